/* What every .cu file includes: the CUDA language under nvcc (sm_80 and later), and the same language run by
 * threads of the CPU under any C++17 compiler (tests/device, where device_host.h lies on the include path).
 *
 * The subset both understand: a kernel is a template or function with exactly one argument, a trivially
 * copyable struct by value, launched only through sl_launch; warps of 32 lanes with the _sync intrinsics;
 * barriers that every thread of the block reaches before any returns. C++ only, so not one of the headers read
 * by C. */
#ifndef SL_KERNELS_CUDA_H
#define SL_KERNELS_CUDA_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* The block's dynamic shared memory, 16-byte aligned; every use names its start. */
#define SL_SHARED(T, name)                                           \
    extern __shared__ __align__(16) unsigned char sl_shared_bytes[]; \
    T *name = reinterpret_cast<T *>(sl_shared_bytes)

/* 0, or the cudaError_t of a launch that was refused. What the kernel does wrong later shows at the next
 * synchronisation. Beyond 32 KB the kernel is given leave first: the default limit of 48 KB counts static
 * shared memory too. */
template <class A> int sl_launch(void (*kernel)(A), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, const A &args) {
    const void *entry = reinterpret_cast<const void *>(kernel);
    if (shared_bytes > 32 * 1024) {
        cudaError_t status = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shared_bytes));
        if (status != cudaSuccess)
            return static_cast<int>(status);
    }
    void *list[] = {const_cast<A *>(&args)};
    return static_cast<int>(cudaLaunchKernel(entry, grid, block, list, shared_bytes, stream));
}
#else
#include "device_host.h"
#endif

/* A bf16 activation. */
struct sl_bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float sl_bf16_bits_to_float(uint16_t bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

/* To nearest even; a NaN stays one. */
__device__ __forceinline__ uint16_t sl_float_to_bf16_bits(float v) {
#ifdef __CUDACC__
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
#else
    unsigned u = __float_as_uint(v);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

/* Exact. */
__device__ __forceinline__ float sl_half_to_float(uint16_t bits) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    return sl_device_half_to_float(bits);
#endif
}

/* To nearest even; a NaN stays one. */
__device__ __forceinline__ uint16_t sl_float_to_half(float v) {
#ifdef __CUDACC__
    return __half_as_ushort(__float2half_rn(v));
#else
    return sl_device_float_to_half(v);
#endif
}

__device__ __forceinline__ float sl_load(const float *p) { return *p; }
__device__ __forceinline__ float sl_load(const sl_bf16 *p) { return sl_bf16_bits_to_float(p->bits); }
__device__ __forceinline__ void sl_store(float *p, float v) { *p = v; }
__device__ __forceinline__ void sl_store(sl_bf16 *p, float v) { p->bits = sl_float_to_bf16_bits(v); }

/* Four elements at once: p 16-byte aligned for float, 8-byte for bf16. */
__device__ __forceinline__ void sl_load4(const float *p, float v[4]) {
    float4 x = *reinterpret_cast<const float4 *>(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
__device__ __forceinline__ void sl_load4(const sl_bf16 *p, float v[4]) {
    uint2 x = *reinterpret_cast<const uint2 *>(p);
    v[0] = __uint_as_float(x.x << 16), v[1] = __uint_as_float(x.x & 0xffff0000u);
    v[2] = __uint_as_float(x.y << 16), v[3] = __uint_as_float(x.y & 0xffff0000u);
}
__device__ __forceinline__ void sl_store4(float *p, const float v[4]) {
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void sl_store4(sl_bf16 *p, const float v[4]) {
    uint2 x;
    x.x = sl_float_to_bf16_bits(v[0]) | static_cast<unsigned>(sl_float_to_bf16_bits(v[1])) << 16;
    x.y = sl_float_to_bf16_bits(v[2]) | static_cast<unsigned>(sl_float_to_bf16_bits(v[3])) << 16;
    *reinterpret_cast<uint2 *>(p) = x;
}

/* Eight elements at once, for 16-byte aligned rows of either type. */
template <class T> __device__ __forceinline__ void sl_load8(const T *p, float v[8]) {
    sl_load4(p, v);
    sl_load4(p + 4, v + 4);
}
__device__ __forceinline__ void sl_load8(const sl_bf16 *p, float v[8]) {
    uint4 x = *reinterpret_cast<const uint4 *>(p);
    const unsigned words[4] = {x.x, x.y, x.z, x.w};
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

/* Over the 32 lanes of a warp, all of which call: each gets the same bits. */
__device__ __forceinline__ float sl_warp_sum(float v) {
    for (int step = 16; step > 0; step >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
__device__ __forceinline__ float sl_warp_max(float v) {
    for (int step = 16; step > 0; step >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

#endif
