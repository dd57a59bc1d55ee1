/* Sums over the threads of a block or of a warp, for RMS norms on a CUDA device. C++ only, as kernels/cuda.h.
 *
 * The order follows from the number of elements, the size of the team and whether rows are read by fours: lane by lane
 * in steps of the team, a tree over the warp, warps in order. */
#ifndef SL_KERNELS_NORM_NORM_CUDA_H
#define SL_KERNELS_NORM_NORM_CUDA_H

#include "kernels/cuda.h"

enum { SL_TEAM_WARP = 32, SL_TEAM_WARPS = 8 /* of a block-wide team */ };

/* The sum over a team of n_warp warps, 1 or all of the block; all threads of the block call, with a barrier between
 * two calls. shared: [n_warp]. */
__device__ __forceinline__ float sl_team_sum(float v, uint32_t n_warp, float *shared) {
    v = sl_warp_sum(v);
    if (n_warp == 1) return v;
    if (threadIdx.x % SL_TEAM_WARP == 0) shared[threadIdx.x / SL_TEAM_WARP] = v;
    __syncthreads();
    v = shared[0];
    for (uint32_t i = 1; i < n_warp; i++) v += shared[i];
    return v;
}

/* The thread's part, from first on in steps, of the sum of squares of x [n]; of fours, where n is a multiple of 4 and x
 * is aligned to them. */
template <class X>
__device__ __forceinline__ float sl_square_sum(const X *x, uint32_t n, uint32_t first, uint32_t step, bool fours) {
    float sum = 0, v[4];
    if (fours) {
#pragma unroll 4
        for (uint32_t i = 4 * first; i < n; i += 4 * step) {
            sl_load4(x + i, v);
            sum += v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
        }
        return sum;
    }
    for (uint32_t i = first; i < n; i += step) {
        v[0] = sl_load(x + i);
        sum += v[0] * v[0];
    }
    return sum;
}

#endif
