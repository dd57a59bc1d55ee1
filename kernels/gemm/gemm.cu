/* Products of stored weights with any number of rows of f32 activations, where cuBLAS is absent (gemm_mma.cu
 * takes f16): tiles of 64 weight rows by 64 rows of x, 32 elements at a time expanded into shared memory, 4
 * x 4 sums per thread in f32. Each sum runs over its elements in order, whatever the tile holds beside it.
 * Tiles beyond the number of rows leave at once. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"

namespace {

enum { TILE = 64, DEPTH = 32, N_THREAD = 256, PITCH = TILE / 4 + 1 /* float4s, for the banks */ };

/* A tile as [DEPTH][TILE], so that a thread reads the same element of four rows at once. */
typedef float4 tile_row[PITCH];

/* Elements i .. i + 7 of a row of x; zeros from k on. */
__device__ __forceinline__ void load_x(const float *row, uint32_t k, uint32_t i, float v[8]) {
    if (i + 8 <= k && (uintptr_t)(row + i) % 16 == 0) {
        sl_load8(row + i, v);
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) v[j] = i + j < k ? row[i + j] : 0;
}

__device__ __forceinline__ void put_column(tile_row *tile, uint32_t row, uint32_t depth, const float v[8]) {
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) reinterpret_cast<float *>(tile[depth + j])[row] = v[j];
}

__device__ __forceinline__ void add_tile(const tile_row *w, const tile_row *x, uint32_t wi, uint32_t xi,
        float sum[4][4]) {
#pragma unroll 8
    for (int i = 0; i < DEPTH; i++) {
        const float4 w4 = w[i][wi], x4 = x[i][xi];
        const float a[4] = {w4.x, w4.y, w4.z, w4.w}, b[4] = {x4.x, x4.y, x4.z, x4.w};
#pragma unroll
        for (int t = 0; t < 4; t++) {
#pragma unroll
            for (int r = 0; r < 4; r++) sum[t][r] = fmaf(a[r], b[t], sum[t][r]);
        }
    }
}

template <sl_type type> __global__ void __launch_bounds__(N_THREAD, 3) gemm_kernel(sl_blocks_args a) {
    sl_begin();
    __shared__ tile_row w_tile[DEPTH], x_tile[DEPTH];
    const sl_product_args &p = a.p;
    const uint32_t n = sl_row_count(p.rows), n_tile = (p.n_row + TILE - 1) / TILE;
    const uint32_t block = blockIdx.x / n_tile, r0 = blockIdx.x % n_tile * TILE, t0 = blockIdx.y * TILE;
    if (t0 >= n) return;

    /* What this thread loads. A warp has a row in each bank of a tile's column. */
    const uint32_t row = threadIdx.x % TILE, depth = threadIdx.x / TILE * 8;
    const bool has_w = r0 + row < p.n_row, has_x = t0 + row < n;
    const unsigned char *w = (const unsigned char *)p.w + ((size_t)block * p.n_row + r0 + (has_w ? row : 0))
        * p.w_row_bytes;
    const size_t x_at = (t0 + (has_x ? row : 0)) * p.x_stride + (size_t)block * a.x_step;
    const uint32_t groups = sl_groups_of(p.k);
    const uint32_t wi = threadIdx.x % 16, xi = threadIdx.x / 16; /* the four rows of each that it multiplies */
    const bool has_sum = r0 + 4 * wi < p.n_row && t0 + 4 * xi < n;

    float sum[4][4] = {};
    for (uint32_t k0 = 0; k0 < p.k; k0 += DEPTH) {
        float v[8];
        sl_weight8<type>(w, groups, has_w ? p.k : 0, k0 + depth, v);
        put_column(w_tile, row, depth, v);
        load_x((const float *)p.x + x_at, has_x ? p.k : 0, k0 + depth, v);
        put_column(x_tile, row, depth, v);
        __syncthreads();
        if (has_sum) add_tile(w_tile, x_tile, wi, xi, sum);
        __syncthreads();
    }
#pragma unroll
    for (uint32_t t = 0; t < 4; t++) {
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            const uint32_t ti = t0 + 4 * xi + t, ri = r0 + 4 * wi + r;
            if (ti < n && ri < p.n_row) sl_put_sum(p, ti, ri, (size_t)block * a.y_step + ri, sum[t][r]);
        }
    }
}

template <sl_type type> int launch(const sl_blocks_args &a, sl_cuda_stream stream) {
    const dim3 grid((a.p.n_row + TILE - 1) / TILE * a.n_block, (a.p.rows.max + TILE - 1) / TILE);
    return sl_launch(gemm_kernel<type>, grid, dim3(N_THREAD), 0, stream, a);
}

} // namespace

int sl_gemm_blocks_cuda(const sl_blocks_args &a, sl_cuda_stream stream) {
    if (a.p.act == SL_ACT_F16) return sl_gemm_mma_blocks_cuda(a, stream);
    switch (a.p.type) {
    case SL_F32: return launch<SL_F32>(a, stream);
    case SL_F16: return launch<SL_F16>(a, stream);
    case SL_BF16: return launch<SL_BF16>(a, stream);
    case SL_Q8: return launch<SL_Q8>(a, stream);
    default: return launch<SL_Q4>(a, stream);
    }
}

int sl_gemm_cuda(const sl_product_args *args, sl_cuda_stream stream) {
    return sl_gemm_blocks_cuda({*args, 1, 0, 0}, stream);
}
