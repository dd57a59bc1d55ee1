/* Bias and output of a product whose sums another library has left in memory. */
#include "kernels/gemm/product_cuda.h"

namespace {

enum { N_THREAD = 256 };
constexpr unsigned max_grid_y = 65535;

struct store_args {
    sl_product_args p;
    const float *sum;
    uint64_t sum_stride;
};

__global__ void __launch_bounds__(N_THREAD) store_kernel(store_args a) {
    sl_begin();
    const uint32_t n = sl_row_count(a.p.rows), r = blockIdx.x * N_THREAD + threadIdx.x;
    if (r >= a.p.n_row) return;
    for (uint32_t t = blockIdx.y; t < n; t += gridDim.y) sl_put_sum(a.p, t, r, r, a.sum[t * a.sum_stride + r]);
}

} // namespace

int sl_store_cuda(const sl_product_args *args, const float *sum, uint64_t sum_stride, sl_cuda_stream stream) {
    const dim3 grid((args->n_row + N_THREAD - 1) / N_THREAD,
        args->rows.max < max_grid_y ? args->rows.max : max_grid_y);
    return sl_launch(store_kernel, grid, dim3(N_THREAD), 0, stream, store_args{*args, sum, sum_stride});
}
