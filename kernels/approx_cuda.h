/* The device's own exponential and reciprocal, one instruction each where expf and a division are a dozen: for values
 * that are rounded to f16 afterwards. Results below 2^-126 are 0. Inline PTX, as else only in kernels/mma_cuda.h;
 * tests/check/cuda_fragments.c holds both to float64. C++ only, as kernels/cuda.h. */
#ifndef SL_KERNELS_APPROX_CUDA_H
#define SL_KERNELS_APPROX_CUDA_H

#include "kernels/cuda.h"

/* 2^x, within 2 units in the last place; 0 below x = -126. */
__device__ __forceinline__ float sl_exp2_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
#endif
}

/* 1 / x for 1 <= x <= 2^126, within a unit in the last place. */
__device__ __forceinline__ float sl_reciprocal_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1 / x;
#endif
}

#endif
