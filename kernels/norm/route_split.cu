/* Which rows of a batch are deep, on a CUDA device: one block compacts them in their order.
 *
 * The block walks the rows a tile at a time, a thread each. A row's place is the number of deep rows in earlier
 * tiles, in earlier warps (their ballots' counts, summed by every thread: 32 at most) and in lower lanes. The
 * start of a run among the deep rows is then a binary search. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace {

enum { WARP = 32, N_WARP = 32, TILE = N_WARP * WARP };

/* Deep rows of this tile before the thread's own; *total: in all of it. */
__device__ uint32_t place_in_tile(bool deep, uint32_t *counts, uint32_t *total) {
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned ballot = __ballot_sync(0xffffffffu, deep);
    if (lane == 0) counts[warp] = static_cast<uint32_t>(__popc(ballot));
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (uint32_t i = 0; i < N_WARP; i++) {
        if (i == warp) before = all;
        all += counts[i];
    }
    __syncthreads();
    *total = all;
    return before + static_cast<uint32_t>(__popc(ballot & ((1u << lane) - 1)));
}

/* How many of the n increasing numbers are below limit. */
__device__ uint32_t count_below(const uint32_t *numbers, uint32_t n, uint32_t limit) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (numbers[middle] < limit) low = middle + 1;
        else high = middle;
    }
    return low;
}

__global__ void route_split(sl_split_args a) {
    sl_begin();
    __shared__ uint32_t counts[N_WARP];
    uint32_t n = 0;
    for (uint32_t tile = 0; tile < a.n_tok; tile += TILE) {
        const uint32_t row = tile + threadIdx.x;
        const bool deep = row < a.n_tok && a.rho[row] > 0;
        uint32_t total;
        const uint32_t place = n + place_in_tile(deep, counts, &total);
        if (row < a.n_tok) a.row_of[row] = deep ? static_cast<int32_t>(place) : -1;
        if (deep) a.index[place] = row;
        n += total;
    }
    __syncthreads(); /* index is complete */
    for (uint32_t run = threadIdx.x; run <= a.n_run; run += TILE)
        a.deep_start[run] = count_below(a.index, n, a.start[run]);
    if (threadIdx.x > 0) return;
    *a.n = n;
    a.tally[0] += n;
    a.tally[1] += n > 0;
}

} /* namespace */

int sl_route_split_cuda(const sl_split_args *args, sl_cuda_stream stream) {
    return sl_launch(route_split, dim3(1), dim3(TILE), 0, stream, *args);
}
