/* RMSNorm of rows on a CUDA device, and the router, which begins with one.
 *
 * A team of threads takes a group: one warp up to SMALL elements, else a whole block. Its size follows from the
 * group's alone, and so does the order of the sum: lane by lane in steps of the team, a tree over the warp, warps in
 * order. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace {

enum { WARP = 32, N_WARP = 8, SMALL = 512 };

/* The sum over a team of n_warp warps; all threads of the block call. shared: [N_WARP]. */
__device__ float team_sum(float v, uint32_t n_warp, float *shared) {
    v = sl_warp_sum(v);
    if (n_warp == 1) return v;
    __syncthreads(); /* an earlier sum has been read */
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    for (uint32_t i = 0; i < n_warp; i++) v = i ? v + shared[i] : shared[0];
    return v;
}

template <class X> __device__ float square_sum(const X *x, uint32_t n, uint32_t first, uint32_t step) {
    float sum = 0;
    for (uint32_t i = first; i < n; i += step) {
        const float v = sl_load(x + i);
        sum += v * v;
    }
    return sum;
}

struct norm_launch {
    sl_norm_args a;
    uint32_t n_warp; /* of a team */
};

template <class X, class Y> __global__ void rmsnorm(norm_launch launch) {
    __shared__ float shared[N_WARP];
    const sl_norm_args &a = launch.a;
    const uint32_t team = launch.n_warp * WARP, first = threadIdx.x % team;
    const uint64_t row = blockIdx.x;
    const uint32_t group = blockIdx.y * (blockDim.x / team) + threadIdx.x / team;
    if (row >= sl_row_count(a.rows)) return;
    const uint32_t n = group < a.n_group ? a.n : 0; /* idle teams keep the others company at barriers */
    const X *x = static_cast<const X *>(a.x) + row * a.x_stride + static_cast<uint64_t>(group) * a.n;
    Y *y = static_cast<Y *>(a.y) + row * a.y_stride + static_cast<uint64_t>(group) * a.n;
    const float *w = a.w + static_cast<uint64_t>(group) * a.w_step;
    const float sum = team_sum(square_sum(x, n, first, team), launch.n_warp, shared);
    const float scale = 1 / sqrtf(sum / static_cast<float>(a.n) + a.eps);
    for (uint32_t i = first; i < n; i += team) sl_store(y + i, sl_load(x + i) * scale * w[i]);
}

/* One block a row. */
__global__ void route_score(sl_route_args a) {
    __shared__ float shared[N_WARP];
    const uint64_t row = blockIdx.x;
    if (row >= sl_row_count(a.rows)) return;
    const float *x = a.x + row * a.x_stride;
    const float sum = team_sum(square_sum(x, a.d, threadIdx.x, blockDim.x), N_WARP, shared);
    const float scale = 1 / sqrtf(sum / static_cast<float>(a.d) + a.eps);
    float z = 0;
    for (uint32_t i = threadIdx.x; i < a.d; i += blockDim.x) z += a.w[i] * (x[i] * scale * a.norm[i]);
    z = team_sum(z, N_WARP, shared) + *a.b;
    if (threadIdx.x == 0) a.rho[row] = a.tau < 1 ? fmaxf(0, 1 - sl_sigmoid(-z) / (1 - a.tau)) : 0;
}

} /* namespace */

int sl_rmsnorm_cuda(const sl_norm_args *args, sl_stream stream) {
    const bool small = args->n <= SMALL;
    const norm_launch launch = {*args, small ? 1u : static_cast<uint32_t>(N_WARP)};
    const uint32_t n_team = !small ? 1 : args->n_group < N_WARP ? args->n_group : static_cast<uint32_t>(N_WARP);
    const dim3 grid(args->rows.max, sl_ceil_div(args->n_group, n_team)), block(n_team * launch.n_warp * WARP);
    if (!args->x_f32) return sl_launch(args->act == SL_ACT_BF16 ? rmsnorm<sl_bf16, sl_bf16> : rmsnorm<float, float>, grid,
                                       block, 0, stream, launch);
    return sl_launch(args->act == SL_ACT_BF16 ? rmsnorm<float, sl_bf16> : rmsnorm<float, float>, grid, block, 0, stream,
                     launch);
}

int sl_route_score_cuda(const sl_route_args *args, sl_stream stream) {
    return sl_launch(route_score, dim3(args->rows.max), dim3(N_WARP * WARP), 0, stream, *args);
}
