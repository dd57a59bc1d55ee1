/* RMSNorm of rows on a CUDA device.
 *
 * A team of threads takes a group: one warp up to SMALL elements, else a whole block. Its size follows from the
 * group's alone, and so does the order of the sum (norm_cuda.h). */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/norm/norm_cuda.h"

namespace {

enum { SMALL = 512 };

struct norm_launch {
    sl_norm_args a;
    uint32_t n_warp; /* of a team */
    bool fours;      /* x, y and w are read and written by fours */
};

template <class X, class Y> __global__ void rmsnorm(norm_launch launch) {
    sl_begin();
    __shared__ float shared[SL_TEAM_WARPS];
    const sl_norm_args &a = launch.a;
    const uint32_t team = launch.n_warp * SL_TEAM_WARP, first = threadIdx.x % team;
    const uint64_t row = blockIdx.x;
    const uint32_t group = blockIdx.y * (blockDim.x / team) + threadIdx.x / team;
    if (row >= sl_row_count(a.rows) || group >= a.n_group)
        return; /* several teams of a block meet at no barrier */
    const uint64_t from = a.rows.in_place ? a.rows.index[row] : row;
    const X *x = static_cast<const X *>(a.x) + from * a.x_stride + static_cast<uint64_t>(group) * a.n;
    Y *y = static_cast<Y *>(a.y) + row * a.y_stride + static_cast<uint64_t>(group) * a.n;
    const float *w = a.w + static_cast<uint64_t>(group) * a.w_step;
    const float sum = sl_team_sum(sl_square_sum(x, a.n, first, team, launch.fours), launch.n_warp, shared);
    const float scale = 1 / sqrtf(sum / static_cast<float>(a.n) + a.eps);
#pragma unroll 4
    for (uint32_t i = 4 * first; launch.fours && i < a.n; i += 4 * team) {
        float v[4], by[4];
        sl_load4(x + i, v);
        sl_load4(w + i, by);
        for (int j = 0; j < 4; j++) v[j] = v[j] * scale * by[j];
        sl_store4(y + i, v);
    }
    for (uint32_t i = launch.fours ? a.n : first; i < a.n; i += team) sl_store(y + i, sl_load(x + i) * scale * w[i]);
}

bool is_fours(const sl_norm_args &a) {
    const uint64_t size = sl_act_size(a.act), x_size = a.x_f32 ? sizeof(float) : size;
    return a.n % 4 == 0 && a.w_step % 4 == 0 && sl_is_aligned(a.x, a.x_stride * x_size, 4 * x_size) &&
           sl_is_aligned(a.y, a.y_stride * size, 4 * size) && sl_is_aligned(a.w, 0, sizeof(float4));
}

} /* namespace */

int sl_rmsnorm_cuda(const sl_norm_args *args, sl_cuda_stream stream) {
    const bool small = args->n <= SMALL;
    const norm_launch launch = {*args, small ? 1u : static_cast<uint32_t>(SL_TEAM_WARPS), is_fours(*args)};
    const uint32_t most = small ? SL_TEAM_WARPS : 1, n_team = args->n_group < most ? args->n_group : most;
    const dim3 grid(args->rows.max, sl_ceil_div(args->n_group, n_team)),
        block(n_team * launch.n_warp * SL_TEAM_WARP);
    void (*kernel)(norm_launch) = rmsnorm<float, float>;
    if (args->act == SL_ACT_F16) kernel = args->x_f32 ? rmsnorm<float, sl_f16> : rmsnorm<sl_f16, sl_f16>;
    return sl_launch(kernel, grid, block, 0, stream, launch);
}
