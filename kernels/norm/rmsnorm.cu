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
};

template <class X, class Y> __global__ void rmsnorm(norm_launch launch) {
    __shared__ float shared[SL_TEAM_WARPS];
    const sl_norm_args &a = launch.a;
    const uint32_t team = launch.n_warp * SL_TEAM_WARP, first = threadIdx.x % team;
    const uint64_t row = blockIdx.x;
    const uint32_t group = blockIdx.y * (blockDim.x / team) + threadIdx.x / team;
    if (row >= sl_row_count(a.rows) || group >= a.n_group)
        return; /* several teams of a block meet at no barrier */
    const X *x = static_cast<const X *>(a.x) + row * a.x_stride + static_cast<uint64_t>(group) * a.n;
    Y *y = static_cast<Y *>(a.y) + row * a.y_stride + static_cast<uint64_t>(group) * a.n;
    const float *w = a.w + static_cast<uint64_t>(group) * a.w_step;
    const float sum = sl_team_sum(sl_square_sum(x, a.n, first, team), launch.n_warp, shared);
    const float scale = 1 / sqrtf(sum / static_cast<float>(a.n) + a.eps);
    for (uint32_t i = first; i < a.n; i += team) sl_store(y + i, sl_load(x + i) * scale * w[i]);
}

} /* namespace */

int sl_rmsnorm_cuda(const sl_norm_args *args, sl_cuda_stream stream) {
    const bool small = args->n <= SMALL;
    const norm_launch launch = {*args, small ? 1u : static_cast<uint32_t>(SL_TEAM_WARPS)};
    const uint32_t most = small ? SL_TEAM_WARPS : 1, n_team = args->n_group < most ? args->n_group : most;
    const dim3 grid(args->rows.max, sl_ceil_div(args->n_group, n_team)),
        block(n_team * launch.n_warp * SL_TEAM_WARP);
    void (*kernel)(norm_launch) = rmsnorm<float, float>;
    if (args->act == SL_ACT_F16) kernel = args->x_f32 ? rmsnorm<float, sl_f16> : rmsnorm<sl_f16, sl_f16>;
    return sl_launch(kernel, grid, block, 0, stream, launch);
}
