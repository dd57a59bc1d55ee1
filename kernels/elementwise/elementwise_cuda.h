/* Functions the CUDA kernels for rows and sequences share. C++ only, as kernels/cuda.h.
 *
 * All of them go through e^-|x|, which never overflows: silu(-89) is a small number, not 0. */
#ifndef SL_KERNELS_ELEMENTWISE_ELEMENTWISE_CUDA_H
#define SL_KERNELS_ELEMENTWISE_ELEMENTWISE_CUDA_H

#include "kernels/approx_cuda.h"
#include "kernels/cuda_kernels.h"

/* v / (1 + e^-x), T: the type of the activations. For f16 ones the device's own exponential and reciprocal do, a third of
 * the instructions: together they are within 2^-19 up to |x| = 16, where f16 has 2^-11. */
template <class T> __device__ __forceinline__ float sl_sigmoid_times(float x, float v) {
    constexpr bool fast = std::is_same<T, sl_f16>::value;
    constexpr float log2_e = 1.44269504f;
    const float e = fast ? sl_exp2_approx(-log2_e * fabsf(x)) : expf(-fabsf(x)), up = x < 0 ? v * e : v;
    return fast ? up * sl_reciprocal_approx(1 + e) : up / (1 + e);
}
template <class T> __device__ __forceinline__ float sl_sigmoid(float x) { return sl_sigmoid_times<T>(x, 1); }
template <class T> __device__ __forceinline__ float sl_silu(float x) { return sl_sigmoid_times<T>(x, x); }
__device__ __forceinline__ float sl_softplus(float x) { return fmaxf(x, 0) + log1pf(expf(-fabsf(x))); }

/* The rows of a domain that are there. */
__device__ __forceinline__ uint32_t sl_row_count(const sl_rows &rows) { return rows.n ? *rows.n : rows.max; }

/* Do rows that lie stride_bytes apart (0: the only one) begin at multiples of bytes? */
static inline bool sl_is_aligned(const void *p, uint64_t stride_bytes, uint64_t bytes) {
    return (reinterpret_cast<uintptr_t>(p) | stride_bytes) % bytes == 0;
}

static inline uint32_t sl_ceil_div(uint64_t a, uint64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

#endif
