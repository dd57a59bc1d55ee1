/* The router on a CUDA device: docs/bridge.md step 2, and the norm before it, from the residual stream in f32. One
 * block a row, its sums in an order that follows from the width alone (norm_cuda.h). */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/norm/norm_cuda.h"

namespace {

struct route_launch {
    sl_route_args a;
    bool fours; /* x, y, w and the norm's weights are read and written by fours */
};

/* What route_split does, for a batch of one row. */
__device__ void split_one(const sl_split_args &a, bool deep) {
    for (uint32_t run = 0; run <= a.n_run; run++) a.deep_start[run] = deep && a.start[run] > 0;
    a.row_of[0] = deep ? 0 : -1;
    if (deep) a.index[0] = 0;
    *a.n = deep;
    a.tally[0] += deep;
    a.tally[1] += deep;
}

/* Y: the type of the activations. */
template <class Y> __global__ void route_score(route_launch launch) {
    sl_begin();
    __shared__ float shared[SL_TEAM_WARPS];
    const sl_route_args &a = launch.a;
    const uint64_t row = blockIdx.x;
    if (row >= sl_row_count(a.rows)) return;
    const float *x = a.x + row * a.x_stride;
    Y *y = static_cast<Y *>(a.y) + row * a.y_stride;
    const float sum = sl_team_sum(sl_square_sum(x, a.d, threadIdx.x, blockDim.x, launch.fours), SL_TEAM_WARPS, shared);
    const float scale = 1 / sqrtf(sum / static_cast<float>(a.d) + a.eps);
    float z = 0;
#pragma unroll 4
    for (uint32_t i = 4 * threadIdx.x; launch.fours && i < a.d; i += 4 * blockDim.x) {
        float u[4], w[4], by[4];
        sl_load4(x + i, u), sl_load4(a.w + i, w), sl_load4(a.norm + i, by);
        for (int j = 0; j < 4; j++) u[j] = u[j] * scale * by[j], z += w[j] * u[j];
        sl_store4(y + i, u);
    }
    for (uint32_t i = launch.fours ? a.d : threadIdx.x; i < a.d; i += blockDim.x) {
        const float u = x[i] * scale * a.norm[i];
        z += a.w[i] * u;
        sl_store(y + i, u);
    }
    __syncthreads(); /* the first sum has been read */
    z = sl_team_sum(z, SL_TEAM_WARPS, shared) + *a.b;
    if (threadIdx.x > 0) return;
    const float rho = a.tau < 1 ? fmaxf(0, 1 - sl_sigmoid<float>(-z) / (1 - a.tau)) : 0;
    a.rho[row] = rho;
    if (a.rows.max == 1) split_one(a.split, rho > 0);
}

} /* namespace */

int sl_route_score_cuda(const sl_route_args *args, sl_cuda_stream stream) {
    const uint64_t size = sl_act_size(args->act);
    const bool fours = args->d % 4 == 0 && sl_is_aligned(args->x, args->x_stride * sizeof(float), sizeof(float4)) &&
                       sl_is_aligned(args->y, args->y_stride * size, 4 * size) &&
                       sl_is_aligned(args->w, 0, sizeof(float4)) && sl_is_aligned(args->norm, 0, sizeof(float4));
    return sl_launch(args->act == SL_ACT_F16 ? route_score<sl_f16> : route_score<float>, dim3(args->rows.max),
                     dim3(SL_TEAM_WARPS * SL_TEAM_WARP), 0, stream, route_launch{*args, fours});
}
