/* What every .cu file includes: the CUDA language under nvcc (sm_80 and later), and the same language run by
 * threads of the CPU under any C++17 compiler (tests/device, where device_host.h lies on the include path).
 *
 * The subset both understand: a kernel is a template or function with exactly one argument, a trivially
 * copyable struct by value, launched only through sl_launch, that begins with sl_begin; warps of 32 lanes with the
 * _sync intrinsics; barriers that every thread of the block reaches before any returns. C++ only, so not one of the
 * headers read by C. */
#ifndef SL_KERNELS_CUDA_H
#define SL_KERNELS_CUDA_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* The block's dynamic shared memory, from a multiple of align bytes on (the same in all of a file, and a divisor of its
 * size); every use names its start. */
#define SL_SHARED_AT(T, name, align)                                    \
    extern __shared__ __align__(align) unsigned char sl_shared_bytes[]; \
    T *name = reinterpret_cast<T *>(sl_shared_bytes)
#define SL_SHARED(T, name) SL_SHARED_AT(T, name, 16)

/* Does the kernel, as it runs on the current device, wait for the one before it (sl_begin)? Only what was compiled for
 * sm_90 or later does, not PTX for less that the driver compiles for such a device. Drivers before that for CUDA 12.3
 * cannot capture launches that begin early, and builds with CUDA 12 may meet one. */
static inline cudaError_t sl_kernel_waits(const void *kernel, unsigned *waits) {
    *waits = 0;
    if (CUDART_VERSION < 13000)
        return cudaSuccess;
    cudaFuncAttributes has = {};
    const cudaError_t status = cudaFuncGetAttributes(&has, kernel);
    *waits = has.ptxVersion >= 90;
    return status;
}

/* The launch of sl_launch, which may begin early (CUDA C++ Programming Guide, Programmatic Dependent Launch). */
template <class A> cudaError_t sl_launch_kernel(void (*kernel)(A), dim3 grid, dim3 block, size_t shared_bytes,
                                                cudaStream_t stream, const A &args) {
    void *list[] = {const_cast<A *>(&args)};
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = &early;
    const void *entry = reinterpret_cast<const void *>(kernel);
    const cudaError_t status = sl_kernel_waits(entry, &config.numAttrs);
    return status == cudaSuccess ? cudaLaunchKernelExC(&config, entry, list) : status;
}
#else
#include "device_host.h"
#endif

/* First in every kernel, for all threads. On sm_90 and later a launch may begin while the one before it in its stream
 * still runs: its blocks take places that are free and wait here until that one is done and all that it wrote can be
 * seen. So nothing of the device's memory may be touched before (but see sl_prefetch), and no thread may return before
 * (or what comes after this kernel would not wait for what came in front of it). From here on the next launch may begin
 * likewise. */
__device__ __forceinline__ void sl_begin() {
#ifndef __CUDACC__
    sl_device_begin();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/* Lets the line of weights, which no kernel writes, around p come to the second-level cache. The one thing that may be done
 * with memory in front of sl_begin: there is nothing to be seen of it. Nothing before sm_90, where no launch begins early. */
enum { SL_LINE_BYTES = 128 };
__device__ __forceinline__ void sl_prefetch(const void *p) {
#ifndef __CUDACC__
    sl_device_prefetch(p);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#endif
}

/* ---- launches ------------------------------------------------------------------------------------ */

/* Bytes of shared memory that a block can have on the current device: 163 KB on compute capability 8.0, 227 on 9.0 and
 * 10.0, 99 on 8.6, 8.9 and 12.x. */
static inline cudaError_t sl_most_shared(size_t *bytes) {
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *bytes = static_cast<size_t>(most);
    return status;
}

/* Lets a kernel take as much dynamic shared memory as a block can have on the current device, where one that
 * was not asked for can have 48 KB. Always all of it and not what one launch takes: between this and that launch
 * another thread may do the same for its own, and that must not lower the limit. (Static shared memory would count
 * against the device's: a kernel has one kind or the other.) */
static inline cudaError_t sl_allow_shared(const void *kernel, size_t shared_bytes) {
    size_t most;
    cudaError_t status = sl_most_shared(&most);
    if (status == cudaSuccess && shared_bytes > most)
        status = cudaErrorLaunchOutOfResources;
    if (status != cudaSuccess)
        return status;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
}

/* 0, or the cudaError_t of a launch that was refused. What the kernel does wrong later shows at the next
 * synchronisation. */
template <class A> int sl_launch(void (*kernel)(A), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, const A &args) {
    static_assert(std::is_trivially_copyable<A>::value && sizeof(A) <= 4096 && alignof(A) <= 16,
                  "a kernel's argument is a plain struct of at most 4096 bytes");
    cudaError_t status = cudaSuccess;
    if (shared_bytes > 48 * 1024)
        status = sl_allow_shared(reinterpret_cast<const void *>(kernel), shared_bytes);
    if (status == cudaSuccess)
        status = sl_launch_kernel(kernel, grid, block, shared_bytes, stream, args);
    return static_cast<int>(status);
}

/* ---- 16-bit numbers ------------------------------------------------------------------------------ */

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

/* To nearest even; a NaN stays one. From 65520 on infinite: for what the CPU rounds so, too (KV stores, weights)
 * or cannot be so large. */
__device__ __forceinline__ uint16_t sl_float_to_half(float v) {
#ifdef __CUDACC__
    return __half_as_ushort(__float2half_rn(v));
#else
    return sl_device_float_to_half(v);
#endif
}

/* Two numbers as the halves of a word, and back. */
__device__ __forceinline__ uint32_t sl_pack_half(float low, float high) {
#ifdef __CUDACC__
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
#else
    return sl_float_to_half(low) | static_cast<uint32_t>(sl_float_to_half(high)) << 16;
#endif
}
__device__ __forceinline__ void sl_unpack_half(uint32_t word, float v[2]) {
#ifdef __CUDACC__
    const float2 pair = __half22float2(*reinterpret_cast<const __half2 *>(&word));
    v[0] = pair.x, v[1] = pair.y;
#else
    v[0] = sl_half_to_float(static_cast<uint16_t>(word & 0xffff));
    v[1] = sl_half_to_float(static_cast<uint16_t>(word >> 16));
#endif
}

/* An infinity becomes the largest number with its sign; of one f16, and of the halves of a word. */
__device__ __forceinline__ uint16_t sl_saturate_half(uint16_t bits) {
#ifdef __CUDACC__
    const __half most = __ushort_as_half(0x7bff), least = __ushort_as_half(0xfbff);
    return __half_as_ushort(__hmax_nan(__hmin_nan(__ushort_as_half(bits), most), least));
#else
    return (bits & 0x7fffu) == 0x7c00u ? static_cast<uint16_t>(bits - 1) : bits;
#endif
}
__device__ __forceinline__ uint32_t sl_saturate_halves(uint32_t word) {
#ifdef __CUDACC__
    const __half2 most = __half2half2(__ushort_as_half(0x7bff)), least = __half2half2(__ushort_as_half(0xfbff));
    const __half2 pair = __hmax2_nan(__hmin2_nan(*reinterpret_cast<const __half2 *>(&word), most), least);
    return *reinterpret_cast<const uint32_t *>(&pair);
#else
    return sl_saturate_half(static_cast<uint16_t>(word & 0xffff)) |
           static_cast<uint32_t>(sl_saturate_half(static_cast<uint16_t>(word >> 16))) << 16;
#endif
}

/* ---- elements ----------------------------------------------------------------------------------- */

/* An activation of 16 bits. What is too large for it counts as the largest, so that no infinity arises from one
 * (and no NaN from infinities, which a recurrence would keep): so stored by our kernels, and so read by them
 * where cuBLAS has stored an infinity. */
struct sl_f16 {
    uint16_t bits;
};
__device__ __forceinline__ uint16_t sl_float_to_f16(float v) { return sl_saturate_half(sl_float_to_half(v)); }
/* The same in f32: no digit less, a NaN stays one. */
__device__ __forceinline__ float sl_within_f16(float v) { return v > 65504 ? 65504 : v < -65504 ? -65504 : v; }
__device__ __forceinline__ uint32_t sl_pack_f16(float low, float high) {
    return sl_saturate_halves(sl_pack_half(low, high));
}
__device__ __forceinline__ void sl_unpack_f16(uint32_t word, float v[2]) {
    sl_unpack_half(sl_saturate_halves(word), v);
}

__device__ __forceinline__ float sl_load(const float *p) { return *p; }
__device__ __forceinline__ float sl_load(const sl_f16 *p) {
    return sl_half_to_float(sl_saturate_half(p->bits));
}
__device__ __forceinline__ void sl_store(float *p, float v) { *p = v; }
__device__ __forceinline__ void sl_store(sl_f16 *p, float v) { p->bits = sl_float_to_f16(v); }

/* Four elements at once: p 16-byte aligned for float, 8-byte for f16. */
__device__ __forceinline__ void sl_load4(const float *p, float v[4]) {
    float4 x = *reinterpret_cast<const float4 *>(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
__device__ __forceinline__ void sl_load4(const sl_f16 *p, float v[4]) {
    uint2 x = *reinterpret_cast<const uint2 *>(p);
    sl_unpack_f16(x.x, v), sl_unpack_f16(x.y, v + 2);
}
__device__ __forceinline__ void sl_store4(float *p, const float v[4]) {
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void sl_store4(sl_f16 *p, const float v[4]) {
    *reinterpret_cast<uint2 *>(p) = make_uint2(sl_pack_f16(v[0], v[1]), sl_pack_f16(v[2], v[3]));
}

/* Eight elements at once, for 16-byte aligned rows of either type. */
template <class T> __device__ __forceinline__ void sl_load8(const T *p, float v[8]) {
    sl_load4(p, v);
    sl_load4(p + 4, v + 4);
}
__device__ __forceinline__ void sl_load8(const sl_f16 *p, float v[8]) {
    uint4 x = *reinterpret_cast<const uint4 *>(p);
    sl_unpack_f16(x.x, v), sl_unpack_f16(x.y, v + 2), sl_unpack_f16(x.z, v + 4), sl_unpack_f16(x.w, v + 6);
}

template <class T> __device__ __forceinline__ void sl_store8(T *p, const float v[8]) {
    sl_store4(p, v);
    sl_store4(p + 4, v + 4);
}
__device__ __forceinline__ void sl_store8(sl_f16 *p, const float v[8]) {
    *reinterpret_cast<uint4 *>(p) =
        make_uint4(sl_pack_f16(v[0], v[1]), sl_pack_f16(v[2], v[3]), sl_pack_f16(v[4], v[5]), sl_pack_f16(v[6], v[7]));
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
