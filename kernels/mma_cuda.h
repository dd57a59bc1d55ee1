/* Matrix units of a GPU (sm_80 and later): products of fragments, loads of fragments from shared memory,
 * copies from device to shared memory that do not occupy registers. The home of inline PTX (but for approx_cuda.h,
 * wgmma_cuda.h and sl_prefetch); the test device runs each by its definition (tests/device/device_mma.cpp), and
 * tests/check/cuda_fragments.cu holds both to it element by element.
 *
 * Everything but the copies is for one whole warp, lanes converged. With g = lane / 4 and q = lane % 4, the
 * layouts of the fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"; the lower index in the low 16 bits
 * of a word):
 *
 *     A 16 x 16:  a[0] = A[g][2q, 2q + 1]      a[1] = A[g + 8][2q, 2q + 1]   a[2], a[3]: 8 columns on
 *     B 16 x 8:   b[0] = B[2q, 2q + 1][g]      b[1] = B[2q + 8, 2q + 9][g]
 *     D 16 x 8:   d[0], d[1] = D[g][2q, 2q + 1]        d[2], d[3] = D[g + 8][2q, 2q + 1] */
#ifndef SL_KERNELS_MMA_CUDA_H
#define SL_KERNELS_MMA_CUDA_H

#include "kernels/cuda.h"

#ifdef __CUDACC__
#include <cuda_pipeline_primitives.h>
#endif

/* ---- products ----------------------------------------------------------------------------------- */

/* d += a b: products of f16 exact, sums in f32. The unit does not round a sum of 16 terms like 16
 * additions: a bound of an f32 sum needs a unit in the last place for each addition, not half of one. */
__device__ __forceinline__ void sl_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    sl_device_mma_f16(d, a, b);
#endif
}

/* The same of bf16. */
__device__ __forceinline__ void sl_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    sl_device_mma_bf16(d, a, b);
#endif
}

/* ---- fragments ---------------------------------------------------------------------------------- */

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8 i .. 8 i + 7 give the rows of matrix i,
 * 8 elements at a 16-byte aligned address each; r[i] = M_i[g][2q, 2q + 1].
 *
 * A fragment from A stored by rows: lane l gives row l % 16, column l / 16 * 8. Two fragments of B (columns
 * 0 .. 15) from B's transpose stored by rows, as a weight matrix is: lane l gives row l % 8 + l / 16 * 8,
 * column l / 8 % 2 * 8; r[0], r[1] are the first, r[2], r[3] the second. */
__device__ __forceinline__ void sl_mma_load(uint32_t r[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    sl_device_mma_load(r, row);
#endif
}

/* The same with each matrix transposed, r[i] = M_i[2q, 2q + 1][g]: fragments of B from B stored by rows,
 * where lane l gives row l % 16, column l / 16 * 8. */
__device__ __forceinline__ void sl_mma_load_transposed(uint32_t r[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    sl_device_mma_load_transposed(r, row);
#endif
}

/* ---- copies ------------------------------------------------------------------------------------- */

/* 16 bytes from device to shared memory, both 16-byte aligned, some time before the wait for their group
 * returns: one thread's wait concerns its own copies only, a barrier behind it makes them everyone's. On the
 * test device they happen at that wait, or at once where the seed of its order is odd. */
__device__ __forceinline__ void sl_copy_async16(void *shared, const void *global) {
#ifdef __CUDACC__
    __pipeline_memcpy_async(shared, global, 16);
#else
    sl_device_copy(shared, global, true);
#endif
}

/* Zeros instead where not valid; then the address is not read. */
__device__ __forceinline__ void sl_copy_async16_zero(void *shared, const void *global, bool valid) {
#ifdef __CUDACC__
    if (valid) __pipeline_memcpy_async(shared, global, 16);
    else __pipeline_memcpy_async(shared, global, 16, 16);
#else
    sl_device_copy(shared, global, valid);
#endif
}

/* Ends the group of the copies since the last, perhaps of none. */
__device__ __forceinline__ void sl_copy_async_commit() {
#ifdef __CUDACC__
    __pipeline_commit();
#else
    sl_device_copy_commit();
#endif
}

/* Waits for all groups but the last n. No thread may return with copies under way. */
template <int n> __device__ __forceinline__ void sl_copy_async_wait() {
#ifdef __CUDACC__
    __pipeline_wait_prior(n);
#else
    sl_device_copy_wait(n);
#endif
}

#endif
