/* What the matrix products on CUDA share: block-diagonal products, the number of rows, the kinds of output. */
#ifndef SL_KERNELS_GEMM_PRODUCT_CUDA_H
#define SL_KERNELS_GEMM_PRODUCT_CUDA_H

#include "kernels/elementwise/elementwise_cuda.h"

/* n_block products side by side, each of p.n_row weight rows of p.k elements: block i starts i * p.n_row weight
 * rows down, reads x from i * x_step and writes y from i * y_step on. 1 block: a plain product. */
struct sl_blocks_args {
    sl_product_args p;
    uint32_t n_block, x_step, y_step;
};
/* And the same with a second matrix like the first: if both, to a y of its own; if gated, y is silu(sum) * sum2 * scale.
 * The matrix lies w_on bytes from the first and its y y_on: of two pointers to choose from, nvcc no longer knows that
 * they are to global memory. */
struct sl_pair_args {
    sl_blocks_args first;
    bool both, gated;
    float scale;
    uint32_t n_part; /* blocks that share the rows of x, side by side; set by the launch */
    int64_t w_on, y_on;
};
/* w2 may be NULL: no second one. */
static inline sl_pair_args sl_pair_of(const sl_blocks_args &first, const void *w2, void *y2) {
    const uintptr_t w = reinterpret_cast<uintptr_t>(first.p.w), y = reinterpret_cast<uintptr_t>(first.p.y);
    return {first, w2 != nullptr, false, 1, 1, static_cast<int64_t>(reinterpret_cast<uintptr_t>(w2) - w),
            static_cast<int64_t>(reinterpret_cast<uintptr_t>(y2) - y)};
}
static inline sl_blocks_args sl_second_of(const sl_pair_args &pair) {
    sl_blocks_args second = pair.first;
    second.p.w = static_cast<const char *>(second.p.w) + pair.w_on;
    second.p.y = static_cast<char *>(second.p.y) + pair.y_on;
    return second;
}

int sl_gemv_blocks_cuda(const sl_pair_args &args, sl_cuda_stream stream); /* rows.max <= SL_GEMV_MOST_ROWS */
int sl_gemv_mma_blocks_cuda(const sl_pair_args &args, sl_cuda_stream stream); /* the same, act f16 */
int sl_gemm_blocks_cuda(const sl_blocks_args &args, sl_cuda_stream stream);
int sl_gemm_mma_blocks_cuda(const sl_blocks_args &args, sl_cuda_stream stream); /* act f16 */
int sl_gemm_wgmma_blocks_cuda(const sl_blocks_args &args, sl_cuda_stream stream); /* the same, compute capability 9.0 */

/* Row t, weight row r of a product whose arguments p are; at: column of y. */
__device__ __forceinline__ void sl_put_sum(const sl_product_args &p, uint32_t t, uint32_t r, size_t at,
        float sum) {
    sum *= p.gain;
    if (p.bias) sum += p.bias[r];
    if (p.out == SL_OUT_ADD) {
        const size_t b = p.rows.index ? p.rows.index[t] : t;
        float *y = (float *)p.y + b * p.y_stride + at;
        *y = fmaf(p.rho ? p.rho[b] : 1.0f, sum, *y);
    } else if (p.out == SL_OUT_F32 || p.act == SL_ACT_F32) {
        ((float *)p.y)[t * p.y_stride + at] = sum;
    } else {
        sl_store((sl_f16 *)p.y + t * p.y_stride + at, sum);
    }
}

#endif
