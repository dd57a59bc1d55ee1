/* The CUDA language for a C++17 compiler: what a .cu file sees through kernels/cuda.h where there is no nvcc.
 *
 * A block's threads are fibers of one OS thread (device_block.cpp), so built-in variables, static shared memory
 * and atomics are plain objects. Warp intrinsics suspend the calling thread until every lane of the mask has
 * arrived with the same intrinsic. Fast approximate functions are the exact ones of <cmath>. */
#ifndef SL_TESTS_DEVICE_DEVICE_HOST_H
#define SL_TESTS_DEVICE_DEVICE_HOST_H

#include "cuda_runtime_api.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};
struct __align__(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(8) int2 {
    int x, y;
};
struct __align__(16) int4 {
    int x, y, z, w;
};
struct __align__(8) uint2 {
    unsigned x, y;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
/* Where accesses are watched the compiler is kept from storing a vector part by part. */
#ifdef SL_RACES
#define SL_AS_ONE(v) asm("" : "+m"(v))
#else
#define SL_AS_ONE(v) ((void)0)
#endif
#define SL_VECTOR2(type, part)                                                                                \
    static inline type make_##type(part x, part y) {                                                          \
        type v = {x, y};                                                                                      \
        SL_AS_ONE(v);                                                                                         \
        return v;                                                                                             \
    }
#define SL_VECTOR4(type, part)                                                                                \
    static inline type make_##type(part x, part y, part z, part w) {                                          \
        type v = {x, y, z, w};                                                                                \
        SL_AS_ONE(v);                                                                                         \
        return v;                                                                                             \
    }
SL_VECTOR2(float2, float)
SL_VECTOR2(int2, int)
SL_VECTOR2(uint2, unsigned)
SL_VECTOR4(float4, float)
SL_VECTOR4(int4, int)
SL_VECTOR4(uint4, unsigned)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

enum sl_device_wait {
    SL_WAIT_SYNC, /* __syncwarp */
    SL_WAIT_INDEX,
    SL_WAIT_UP,
    SL_WAIT_DOWN,
    SL_WAIT_XOR,
    SL_WAIT_BALLOT,
    SL_WAIT_MATRIX, /* an instruction of the matrix units */
    SL_WAIT_BARRIER /* __syncthreads; last: the others are waits of a warp */
};

extern "C" {
/* Suspends until all lanes of the mask call it alike; the lane's result. */
uint32_t sl_device_warp(sl_device_wait kind, unsigned mask, uint32_t value, unsigned arg, unsigned width);
void sl_device_begin(void); /* see sl_begin in kernels/cuda.h; what returns without it is a fault */
void sl_device_barrier(void);
void *sl_device_shared(void);
size_t sl_device_shared_bytes(void); /* of the block's, dynamic ones */
/* What kernels/mma_cuda.h consists of here. */
void sl_device_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void sl_device_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void sl_device_mma_load(uint32_t r[4], const void *row);
void sl_device_mma_load_transposed(uint32_t r[4], const void *row);
/* And kernels/wgmma_cuda.h; the sums of the second are PTX registers. */
void sl_device_wgmma(float *d, unsigned n_col, uint64_t x, uint64_t w);
void sl_device_wgmma_registers(uint32_t *const *d, unsigned n_col, uint64_t x, uint64_t w);
void sl_device_wgmma_begin(void);
void sl_device_wgmma_commit(void);
void sl_device_wgmma_wait(unsigned n);
void sl_device_wgmma_publish(void);
void sl_device_prefetch(const void *p); /* as it does nothing, only what it is given is checked */
void sl_device_copy(void *shared, const void *global, bool valid);
void sl_device_copy_commit(void);
void sl_device_copy_wait(unsigned n);
/* Ends the launch with a fault. (Not noreturn: AddressSanitizer would want to know the fiber's stack for that.) */
void sl_device_trap(const char *what);
float sl_device_half_to_float(uint16_t bits);
uint16_t sl_device_float_to_half(float v);
/* Queues a launch; args of args_bytes are copied. label: a text of the program that names the kernel. */
cudaError_t sl_device_launch(void (*kernel)(void), void (*invoke)(void (*)(void), const void *),
                             const char *label, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                             const void *args, size_t args_bytes);
}

#define SL_SHARED(T, name) T *name = static_cast<T *>(sl_device_shared())
#define SL_SHARED_AT(T, name, align) SL_SHARED(T, name) /* so it lies, as its size is a multiple of that */

template <class A> void sl_device_invoke(void (*kernel)(void), const void *args) {
    reinterpret_cast<void (*)(A)>(kernel)(*static_cast<const A *>(args));
}

/* See kernels/cuda.h. */
template <class A> cudaError_t sl_launch_kernel(void (*kernel)(A), dim3 grid, dim3 block, size_t shared_bytes,
                                                cudaStream_t stream, const A &args) {
    return sl_device_launch(reinterpret_cast<void (*)(void)>(kernel), sl_device_invoke<A>, __PRETTY_FUNCTION__,
                            grid, block, shared_bytes, stream, &args, sizeof(A));
}

/* ---- bits ---------------------------------------------------------------------------------------- */

template <class To, class From> static inline To sl_device_cast(From v) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float v) { return sl_device_cast<unsigned>(v); }
static inline int __float_as_int(float v) { return sl_device_cast<int>(v); }
static inline float __uint_as_float(unsigned v) { return sl_device_cast<float>(v); }
static inline float __int_as_float(int v) { return sl_device_cast<float>(v); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
/* Four of the eight bytes of b:a, one for each of the selector's low half bytes. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
    unsigned v = 0;
    for (int i = 0; i < 4; i++)
        v |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return v;
}
/* Four products of signed bytes, summed onto c. */
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++)
        c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return c;
}
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }

/* ---- numbers ------------------------------------------------------------------------------------- */

static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
/* Macros: the C library has some of these names for itself. */
#define __expf expf
#define __exp2f exp2f
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float v) { return 1.0f / v; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline int __float2int_rn(float v) { return static_cast<int>(lrintf(v)); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long min(long a, long b) { return a < b ? a : b; }
static inline long max(long a, long b) { return a > b ? a : b; }
static inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
static inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

/* ---- threads of a block -------------------------------------------------------------------------- */

static __forceinline__ void __syncthreads(void) { sl_device_barrier(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { sl_device_warp(SL_WAIT_SYNC, mask, 0, 0, 32); }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __trap(void) { sl_device_trap("__trap"); }

static inline unsigned __ballot_sync(unsigned mask, int p) {
    return sl_device_warp(SL_WAIT_BALLOT, mask, p != 0, 0, 32);
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

/* T: int, unsigned or float. */
template <class T>
static inline T sl_device_shuffle(sl_device_wait kind, unsigned mask, T v, unsigned arg, int width) {
    return sl_device_cast<T>(
        sl_device_warp(kind, mask, sl_device_cast<uint32_t>(v), arg, static_cast<unsigned>(width)));
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    return sl_device_shuffle(SL_WAIT_INDEX, mask, v, static_cast<unsigned>(lane), width);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned step, int width = 32) {
    return sl_device_shuffle(SL_WAIT_UP, mask, v, step, width);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned step, int width = 32) {
    return sl_device_shuffle(SL_WAIT_DOWN, mask, v, step, width);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
    return sl_device_shuffle(SL_WAIT_XOR, mask, v, static_cast<unsigned>(lanes), width);
}

/* ---- atomics: the old value ---------------------------------------------------------------------- */

#ifdef SL_RACES
extern "C" void sl_races_atomic(bool begins); /* device_races.h */
#else
static inline void sl_races_atomic(bool) {}
#endif
template <class T, class F> static inline T sl_device_atomic(T *p, F change) {
    sl_races_atomic(true);
    const T old = *p;
    *p = change(old);
    sl_races_atomic(false);
    return old;
}
#define SL_ATOMIC(T, name, change)                                                                            \
    static inline T name(T *p, T v) {                                                                         \
        return sl_device_atomic(p, [=](T old) { return static_cast<T>(change); });                            \
    }
SL_ATOMIC(int, atomicAdd, static_cast<unsigned>(old) + static_cast<unsigned>(v))
SL_ATOMIC(unsigned, atomicAdd, old + v)
SL_ATOMIC(unsigned long long, atomicAdd, old + v)
SL_ATOMIC(float, atomicAdd, old + v)
SL_ATOMIC(int, atomicMax, max(old, v))
SL_ATOMIC(unsigned, atomicMax, max(old, v))
SL_ATOMIC(int, atomicMin, min(old, v))
SL_ATOMIC(unsigned, atomicMin, min(old, v))
SL_ATOMIC(unsigned, atomicOr, old | v)
SL_ATOMIC(unsigned, atomicAnd, old & v)
SL_ATOMIC(int, atomicExch, (void(old), v))
SL_ATOMIC(unsigned, atomicExch, (void(old), v))
SL_ATOMIC(float, atomicExch, (void(old), v))
template <class T> static inline T atomicCAS(T *p, T seen, T v) {
    return sl_device_atomic(p, [=](T old) { return old == seen ? v : old; });
}

#endif
