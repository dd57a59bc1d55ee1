/* What the scans on a CUDA device share: the input r, and the gate and norm by heads at the end; and what both
 * forms of the S6 scan do with their arguments. C++ only, as kernels/cuda.h. */
#ifndef SL_KERNELS_SCAN_SCAN_CUDA_H
#define SL_KERNELS_SCAN_SCAN_CUDA_H

#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

enum { SL_SCAN_WARP = 32 };

/* r of a channel, silu(r + s), or r as it is where there is no s. */
template <class T> __device__ __forceinline__ float sl_scan_input(const T *r, const T *s) {
    return s ? sl_silu<T>(sl_load(r) + sl_load(s)) : sl_load(r);
}

/* The n channels of one head of one token, by a warp: m = RMSNorm(y silu(g)) w, or y where w is NULL. y is
 * spent. */
template <class T>
__device__ __forceinline__ void sl_scan_finish(float *y, const T *g, const float *w, T *m, uint32_t n,
                                               float eps) {
    const uint32_t lane = threadIdx.x % SL_SCAN_WARP;
    float squares = 0;
    for (uint32_t p = lane; w && p < n; p += SL_SCAN_WARP) {
        const float v = y[p] * sl_silu<T>(sl_load(g + p));
        squares += v * v;
        y[p] = v;
    }
    const float scale = w ? 1 / sqrtf(sl_warp_sum(squares) / static_cast<float>(n) + eps) : 1;
    for (uint32_t p = lane; p < n; p += SL_SCAN_WARP) sl_store(m + p, w ? y[p] * scale * w[p] : y[p]);
}

/* ---- S6 ----------------------------------------------------------------------------------------- */

/* A column of a deep row of the inputs [g e | r e | B G N | C G N | delta H]. */
template <class T>
__device__ __forceinline__ const T *sl_s6_in(const sl_s6_cuda_args &a, uint64_t row, uint64_t column) {
    return static_cast<const T *>(a.in) + row * a.in_stride + column;
}

__device__ __forceinline__ uint64_t sl_s6_batch_row(const sl_s6_cuda_args &a, uint64_t row) {
    return a.index ? a.index[row] : row;
}

/* s of a deep row from channel c on, or NULL. */
template <class T>
__device__ __forceinline__ const T *sl_s6_s(const sl_s6_cuda_args &a, uint64_t row, uint64_t c) {
    const T *s = static_cast<const T *>(a.s);
    return s ? s + sl_s6_batch_row(a, row) * a.s_stride + c : s;
}

/* Columns of the head's B and C. */
__device__ __forceinline__ uint64_t sl_s6_b(const sl_s6_cuda_args &a, uint32_t head) {
    const uint32_t group = head / (a.e / a.head_dim / a.n_group);
    return 2ull * a.e + static_cast<uint64_t>(group) * a.n_state;
}
__device__ __forceinline__ uint64_t sl_s6_c(const sl_s6_cuda_args &a, uint32_t head) {
    return sl_s6_b(a, head) + static_cast<uint64_t>(a.n_group) * a.n_state;
}

template <class T>
__device__ __forceinline__ float sl_s6_delta(const sl_s6_cuda_args &a, uint64_t row, uint32_t head) {
    const float delta = sl_load(sl_s6_in<T>(a, row, 2ull * a.e + 2ull * a.n_group * a.n_state + head));
    if (!a.dt_bias) return delta;
    return (a.rho ? a.rho[sl_s6_batch_row(a, row)] : 1) * sl_softplus(delta + a.dt_bias[head]);
}

/* y of one head of a deep row to m, by a warp. */
template <class T>
__device__ __forceinline__ void sl_s6_finish(const sl_s6_cuda_args &a, uint64_t row, uint32_t head, float *y) {
    const uint64_t c = static_cast<uint64_t>(head) * a.head_dim;
    sl_scan_finish(y, sl_s6_in<T>(a, row, c), a.norm ? a.norm + c : a.norm,
                   static_cast<T *>(a.m) + row * a.m_stride + c, a.head_dim, a.eps);
}

/* ---- the chunked form --------------------------------------------------------------------------- */

/* Steps from .. to - 1 added up. */
__device__ __forceinline__ float sl_scan_sum(const float *steps, uint32_t from, uint32_t to) {
    float sum = 0;
    for (uint32_t t = from; t < to; t++) sum += steps[t];
    return sum;
}

/* What token i sees of token j's input: the decays of the steps after j up to i; of later tokens nothing. */
__device__ __forceinline__ float sl_scan_decay(const float *steps, uint32_t j, uint32_t i) {
    return j <= i ? expf(-sl_scan_sum(steps, j + 1, i + 1)) : 0;
}

/* v as hi + lo, bf16 each: what is lost is below 2^-17 of it. */
__device__ __forceinline__ void sl_split_bf16(float v, uint16_t *hi, uint16_t *lo) {
    *hi = sl_float_to_bf16_bits(v);
    *lo = sl_float_to_bf16_bits(v - sl_bf16_bits_to_float(*hi));
}

#endif
