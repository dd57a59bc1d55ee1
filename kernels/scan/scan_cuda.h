/* What the S6 and the S4D scan on a CUDA device share: the input r, and the gate and norm by heads at the end.
 * C++ only, as kernels/cuda.h. */
#ifndef SL_KERNELS_SCAN_SCAN_CUDA_H
#define SL_KERNELS_SCAN_SCAN_CUDA_H

#include "kernels/elementwise/elementwise_cuda.h"

enum { SL_SCAN_WARP = 32 };

/* r of a channel, silu(r + s), or r as it is where there is no s. */
template <class T> __device__ __forceinline__ float sl_scan_input(const T *r, const T *s) {
    return s ? sl_silu(sl_load(r) + sl_load(s)) : sl_load(r);
}

/* The n channels of one head of one token, by a warp: m = RMSNorm(y silu(g)) w, or y where w is NULL. y is
 * spent. */
template <class T>
__device__ __forceinline__ void sl_scan_finish(float *y, const T *g, const float *w, T *m, uint32_t n,
                                               float eps) {
    const uint32_t lane = threadIdx.x % SL_SCAN_WARP;
    float squares = 0;
    for (uint32_t p = lane; w && p < n; p += SL_SCAN_WARP) {
        const float v = y[p] * sl_silu(sl_load(g + p));
        squares += v * v;
        y[p] = v;
    }
    const float scale = w ? 1 / sqrtf(sl_warp_sum(squares) / static_cast<float>(n) + eps) : 1;
    for (uint32_t p = lane; p < n; p += SL_SCAN_WARP) sl_store(m + p, w ? y[p] * scale * w[p] : y[p]);
}

#endif
