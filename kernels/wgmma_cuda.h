/* Matrix units as compute capability 9.0 has them at full rate: products of tiles in shared memory, asked for by a
 * warpgroup (four warps, the first a multiple of four) and done while it goes on; mma_cuda.h's reach about two thirds of
 * that there. For code that is compiled for sm_90a. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix
 * Instructions". The test device runs each by its definition (tests/device/device_wgmma.cpp).
 *
 * A tile: rows of 64 f16, 128 bytes, the first at a multiple of 1024; chunk c (16 bytes) of row r lies at c ^ r % 8 of its
 * row. Sums: of thread t in its warpgroup, with w = t / 32, g = t % 32 / 4, q = t % 4,
 *
 *     d[j][0], d[j][1] = D[16 w + g][8 j + 2 q, + 1]        d[j][2], d[j][3] = D[16 w + g + 8][8 j + 2 q, + 1]
 *
 * The order of things: who has written a tile (copies and stores alike) calls sl_wgmma_publish, then comes a barrier. The
 * warpgroup calls sl_wgmma_begin, its products, sl_wgmma_commit. Until sl_wgmma_wait has returned for them, their tiles
 * must not be written and their sums neither read nor written, but by further products. */
#ifndef SL_KERNELS_WGMMA_CUDA_H
#define SL_KERNELS_WGMMA_CUDA_H

#include "kernels/cuda.h"

/* What the products read of a tile: 16 elements of each row, from the first on; 2 more: from 16 elements further on.
 * Bits 0 to 13: address / 16; 32 to 45: bytes from 8 rows to the next 8 / 16; 62, 63: how chunks are exchanged. */
__device__ __forceinline__ uint64_t sl_wgmma_tile(const void *tile) {
#ifdef __CUDACC__
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
#else
    const uint32_t at = static_cast<uint32_t>(static_cast<const char *>(tile) - static_cast<char *>(sl_device_shared()));
#endif
    return static_cast<uint64_t>(1) << 62 | static_cast<uint64_t>(8 * 128 / 16) << 32 | 1u << 16 | (at & 0x3ffffu) >> 4;
}

/* This thread's writes to shared memory can be seen by products that are asked for behind a barrier. */
__device__ __forceinline__ void sl_wgmma_publish() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    sl_device_wgmma_publish();
#endif
}

/* In front of products: sums that were written in another way are theirs from here on. */
__device__ __forceinline__ void sl_wgmma_begin() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    sl_device_wgmma_begin();
#endif
}

/* Ends the group of the products since the last. */
__device__ __forceinline__ void sl_wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    sl_device_wgmma_commit();
#endif
}

/* Waits for all groups but the last n. */
template <int n> __device__ __forceinline__ void sl_wgmma_wait() {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
#else
    sl_device_wgmma_wait(n);
#endif
}

/* Behind the last wait: the compiler does not take the sums from before it. */
template <int n> __device__ __forceinline__ void sl_wgmma_end(float (&d)[n][4]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
#else
    (void)d;
#endif
}

/* ---- products ----------------------------------------------------------------------------------- */

#ifdef __CUDACC__
#define SL_D1(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SL_D4(i) SL_D1(i), SL_D1(i + 1), SL_D1(i + 2), SL_D1(i + 3)
#define SL_D16(i) SL_D4(i), SL_D4(i + 4), SL_D4(i + 8), SL_D4(i + 12)
#define SL_SUMS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SL_SUMS_64                                                                                    \
    SL_SUMS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "   \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "     \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SL_SUMS_128                                                                                   \
    SL_SUMS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "   \
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "     \
               "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
               "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
/* Of n columns; the tiles are the operands behind the sums; signs as they are, neither tile transposed. */
#define SL_PRODUCT(n, sums, tiles, ...)                                                                  \
    asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 " \
                 "{" sums "}, " tiles ", adds, 1, 1, 0, 0;}"                                           \
                 : __VA_ARGS__                                                                         \
                 : "l"(x), "l"(w)                                                                      \
                 : "memory")
#endif

/* d += x w^T: 64 rows of x, 8 n of w, 16 elements of each (sl_wgmma_tile). Products of f16 exact, sums in f32, rounded as
 * sl_mma_f16's may be. */
template <int n> __device__ __forceinline__ void sl_wgmma_f16(float (&d)[n][4], uint64_t x, uint64_t w) {
    static_assert(n == 4 || n == 16 || n == 32, "tiles of 32, 128 or 256 rows");
#ifdef __CUDACC__
    if constexpr (n == 4) SL_PRODUCT(32, SL_SUMS_16, "%16, %17", SL_D4(0));
    if constexpr (n == 16) SL_PRODUCT(128, SL_SUMS_64, "%64, %65", SL_D16(0));
    if constexpr (n == 32) SL_PRODUCT(256, SL_SUMS_128, "%128, %129", SL_D16(0), SL_D16(16));
#else
    sl_device_wgmma(&d[0][0], 8 * n, x, w);
#endif
}

#endif
