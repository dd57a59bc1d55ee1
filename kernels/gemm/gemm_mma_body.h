/* Products of stored weights with many rows of f16 activations on the matrix units; how many rows may be
 * known to the device only.
 *
 * A block of four warps computes 64 rows of x by 128 weight rows (32 where that would leave most of a GPU,
 * or of the tile, idle), 64 elements at a time, three steps of tiles in shared memory: while one is
 * multiplied, the copies for the next two are under way. f16 weights and x go there by asynchronous copies;
 * weights of other types are read into registers before a multiplication, and after it expanded and rounded
 * to f16. Chunk c of row r of a tile lies at c ^ r % 8 of its row of 128 bytes, so that the eight rows of a
 * matrix load, and the eight chunks of a copied row, are in different banks. Per element of the depth 64 x
 * 128 products for 384 bytes from the second-level cache: 43 operations a byte; 72 KB of shared memory allow
 * two blocks per SM of 164 KB and three of 228 KB, whose registers are enough for f16; the other types take
 * two.
 *
 * Blocks beyond the number of rows leave at once. Each sum runs over its elements in the same order,
 * whatever its tile holds beside it and however wide that is. Included by gemm_mma.cu, and by the
 * mutants of the harness, which are a few types of it. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"
#include "kernels/mma_cuda.h"

namespace {

enum { WARP = 32, N_WARP = 4, N_THREAD = N_WARP * WARP, N_STAGE = 3 };
enum { TOKENS = 64, DEPTH = 64, ROW_CHUNKS = DEPTH / 8 }; /* a chunk: eight f16, 16 bytes */
enum { ROWS_APART = N_THREAD / ROW_CHUNKS };              /* between the chunks that a thread brings */
enum { FEW_BLOCKS = 64 }; /* fewer than half the SMs of the GPUs this is meant for */

template <int cols> struct stage {
    uint4 x[TOKENS * ROW_CHUNKS], w[cols * ROW_CHUNKS];
};

__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t chunk) {
    return row * ROW_CHUNKS + (chunk ^ row % ROW_CHUNKS);
}

/* ---- into shared memory ------------------------------------------------------------------------- */

/* Elements i .. i + 7 of a row of 16-bit numbers, zeros from k on. */
__device__ __forceinline__ void bring_halves(uint4 *to, const uint16_t *row, uint32_t k, uint32_t i,
                                             bool aligned) {
    if (aligned && i + 8 <= k) {
        sl_copy_async16(to, row + i);
        return;
    }
#pragma unroll 1
    for (uint32_t j = 0; j < 8; j++) ((uint16_t *)to)[j] = i + j < k ? row[i + j] : 0;
}

/* What one thread brings of a tile: chunk threadIdx.x % ROW_CHUNKS of every ROWS_APART-th row. */
struct x_source {
    const uint16_t *row; /* the first */
    size_t stride;
    uint32_t n_row, k; /* rows from the first on */
    bool aligned;

    __device__ __forceinline__ void bring(uint4 *tile, uint32_t i) const {
#pragma unroll
        for (uint32_t r = 0; r < TOKENS; r += ROWS_APART)
            bring_halves(tile + r * ROW_CHUNKS, row + (r < n_row ? r : 0) * stride, r < n_row ? k : 0, i,
                         aligned);
    }
};

/* In two parts, before and after a multiplication. */
template <sl_type type, int cols> struct w_source {
    const unsigned char *row;
    size_t row_bytes;
    uint32_t n_row, k;
    sl_eight<type> eights[cols / ROWS_APART];

    __device__ __forceinline__ void begin(uint4 *tile, uint32_t i) {
#pragma unroll
        for (uint32_t r = 0; r < cols; r += ROWS_APART) {
            const unsigned char *from = row + (r < n_row ? r : 0) * row_bytes;
            const uint32_t length = r < n_row ? k : 0;
            if constexpr (type == SL_F16)
                bring_halves(tile + r * ROW_CHUNKS, (const uint16_t *)from, length, i,
                             ((uintptr_t)row | row_bytes) % 16 == 0);
            else if (i + 8 <= length) eights[r / ROWS_APART].load(from, sl_groups_of(k), i);
        }
    }

    __device__ __forceinline__ void end(uint4 *tile, uint32_t i) const {
        if constexpr (type != SL_F16) {
#pragma unroll
            for (uint32_t r = 0; r < cols; r += ROWS_APART)
                expand_to(tile + r * ROW_CHUNKS, eights[r / ROWS_APART], row + r * row_bytes,
                          r < n_row ? k : 0, i);
        }
    }

    static __device__ __forceinline__ void expand_to(uint4 *to, const sl_eight<type> &eight,
                                                     const unsigned char *from, uint32_t length, uint32_t i) {
        if (i + 8 <= length) {
            float v[8];
            eight.unpack(i, v);
            *to = make_uint4(sl_pack_f16(v[0], v[1]), sl_pack_f16(v[2], v[3]), sl_pack_f16(v[4], v[5]),
                             sl_pack_f16(v[6], v[7]));
            return;
        }
#pragma unroll 1
        for (uint32_t j = 0; j < 8; j++) {
            const float v = i + j < length ? sl_weight<type>(from, sl_groups_of(length), i + j) : 0;
            ((uint16_t *)to)[j] = sl_float_to_f16(v);
        }
    }
};

/* ---- out of it ---------------------------------------------------------------------------------- */

/* One step of a warp: 32 rows of x by half of the weight rows. */
template <int cols>
__device__ __forceinline__ void multiply(const stage<cols> &s, uint32_t warp, uint32_t lane,
                                         float sum[2][cols / 16][4]) {
    const uint32_t x_row = warp % 2 * 32 + lane % 16, w_row = warp / 2 * (cols / 2) + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (uint32_t d = 0; d < DEPTH / 16; d++) {
        uint32_t x[2][4], w[4];
        sl_mma_load(x[0], s.x + place(x_row, 2 * d + lane / 16));
        sl_mma_load(x[1], s.x + place(x_row + 16, 2 * d + lane / 16));
#pragma unroll
        for (uint32_t j = 0; j < cols / 32; j++) {
            sl_mma_load(w, s.w + place(w_row + 16 * j, 2 * d + lane / 8 % 2));
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                sl_mma_f16(sum[i][2 * j], x[i], w);
                sl_mma_f16(sum[i][2 * j + 1], x[i], w + 2);
            }
        }
    }
}

/* A warp's sums to the block's in shared memory, where the tiles were. Rows lie 8 floats more apart than they are long:
 * the rows that a half warp writes are in different banks. */
template <int cols> struct sums {
    enum { PITCH = cols + 8 };
    float rows[TOKENS * PITCH];
};

template <int cols>
__device__ __forceinline__ void keep_sums(sums<cols> *all, uint32_t warp, uint32_t lane,
                                          const float sum[2][cols / 16][4]) {
    float *to = all->rows + (warp % 2 * 32 + lane / 4) * sums<cols>::PITCH + warp / 2 * (cols / 2) + lane % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
#pragma unroll
        for (uint32_t j = 0; j < cols / 16; j++)
            *(float2 *)(to + 8 * i * sums<cols>::PITCH + 8 * j) =
                make_float2(sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]);
    }
}

/* Whether two neighbours of y, the first at an even column, can be stored as one. */
__device__ __forceinline__ bool stores_pairs(const sl_product_args &p, size_t y_start) {
    const size_t size = p.out == SL_OUT_ACT ? 2 : 4;
    return ((uintptr_t)p.y | (p.y_stride | y_start) * size) % (2 * size) == 0;
}

/* Two neighbouring sums of row t, r and at even. */
__device__ __forceinline__ void put_pair(const sl_product_args &p, uint32_t t, uint32_t r, size_t at, float2 sum) {
    sum.x = fmaf(sum.x, p.gain, p.bias ? p.bias[r] : 0);
    sum.y = fmaf(sum.y, p.gain, p.bias ? p.bias[r + 1] : 0);
    if (p.out == SL_OUT_ACT) {
        *(uint32_t *)((uint16_t *)p.y + t * p.y_stride + at) = sl_pack_f16(sum.x, sum.y);
        return;
    }
    const size_t b = p.out == SL_OUT_ADD && p.rows.index ? p.rows.index[t] : t;
    float2 *y = (float2 *)((float *)p.y + b * p.y_stride + at);
    if (p.out == SL_OUT_ADD) {
        const float rho = p.rho ? p.rho[b] : 1.0f;
        const float2 old = *y;
        sum = make_float2(fmaf(rho, sum.x, old.x), fmaf(rho, sum.y, old.y));
    }
    *y = sum;
}

/* The block's sums, n_row rows from t0 on, to y: a warp writes 64 columns in a row at once. */
template <int cols>
__device__ __forceinline__ void put_sums(const sl_product_args &p, uint32_t n_row, uint32_t t0, uint32_t r0,
                                         size_t y_start, const sums<cols> *all) {
    const bool pairs = stores_pairs(p, y_start);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n_row * (cols / 2); i += N_THREAD) {
        const uint32_t t = i / (cols / 2), c = i % (cols / 2) * 2, r = r0 + c;
        const float2 sum = *(const float2 *)(all->rows + t * sums<cols>::PITCH + c);
        if (pairs && r + 1 < p.n_row) {
            put_pair(p, t0 + t, r, y_start + r, sum);
            continue;
        }
        if (r < p.n_row) sl_put_sum(p, t0 + t, r, y_start + r, sum.x);
        if (r + 1 < p.n_row) sl_put_sum(p, t0 + t, r + 1, y_start + r + 1, sum.y);
    }
}

/* ---- the product -------------------------------------------------------------------------------- */

template <sl_type type, int cols>
__global__ void __launch_bounds__(N_THREAD, type == SL_F16 ? 3 : 2) gemm_mma_kernel(sl_blocks_args a) {
    SL_SHARED(stage<cols>, stages);
    const sl_product_args &p = a.p;
    const uint32_t n = sl_rows_count(p.rows), n_tile = (p.n_row + cols - 1) / cols;
    const uint32_t block = blockIdx.y / n_tile, r0 = blockIdx.y % n_tile * cols, t0 = blockIdx.x * TOKENS;
    if (t0 >= n) return;

    const uint32_t first = threadIdx.x / ROW_CHUNKS, chunk = threadIdx.x % ROW_CHUNKS, at = place(first, chunk);
    const uint16_t *x_start = (const uint16_t *)p.x + (size_t)block * a.x_step;
    const uint32_t x_row = t0 + first < n ? t0 + first : t0, w_row = r0 + first < p.n_row ? r0 + first : r0;
    const x_source x = {x_start + x_row * p.x_stride, p.x_stride, t0 + first < n ? n - t0 - first : 0, p.k,
                        ((uintptr_t)x_start | p.x_stride * 2) % 16 == 0};
    w_source<type, cols> w;
    w.row = (const unsigned char *)p.w + ((size_t)block * p.n_row + w_row) * p.w_row_bytes;
    w.row_bytes = p.w_row_bytes;
    w.n_row = r0 + first < p.n_row ? p.n_row - r0 - first : 0;
    w.k = p.k;

    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const bool has_sums = t0 + warp % 2 * 32 < n && r0 + warp / 2 * (cols / 2) < p.n_row;
    const uint32_t n_step = (p.k + DEPTH - 1) / DEPTH;
    for (uint32_t step = 0; step < N_STAGE - 1; step++) {
        if (step < n_step) {
            x.bring(stages[step].x + at, step * DEPTH + chunk * 8);
            w.begin(stages[step].w + at, step * DEPTH + chunk * 8);
            w.end(stages[step].w + at, step * DEPTH + chunk * 8);
        }
        sl_copy_async_commit();
    }
    float sum[2][cols / 16][4] = {};
    for (uint32_t step = 0; step < n_step; step++) {
        sl_copy_async_wait<N_STAGE - 2>();
        __syncthreads(); /* this step's tiles are there, and the last one's are free */
        const uint32_t ahead = step + N_STAGE - 1;
        stage<cols> &next = stages[ahead % N_STAGE];
        if (ahead < n_step) {
            x.bring(next.x + at, ahead * DEPTH + chunk * 8);
            w.begin(next.w + at, ahead * DEPTH + chunk * 8);
        }
        sl_copy_async_commit();
        if (has_sums) multiply<cols>(stages[step % N_STAGE], warp, lane, sum);
        if (ahead < n_step) w.end(next.w + at, ahead * DEPTH + chunk * 8);
    }
    __syncthreads(); /* nobody reads the tiles any more */
    sums<cols> *all = reinterpret_cast<sums<cols> *>(stages);
    static_assert(sizeof *all <= N_STAGE * sizeof *stages, "the sums lie where the tiles were");
    keep_sums<cols>(all, warp, lane, sum);
    __syncthreads();
    put_sums<cols>(p, n - t0 < TOKENS ? n - t0 : (uint32_t)TOKENS, t0, r0, (size_t)block * a.y_step, all);
}

template <sl_type type, int cols> int launch_tiles(const sl_blocks_args &a, sl_cuda_stream stream) {
    const dim3 grid((a.p.rows.max + TOKENS - 1) / TOKENS, (a.p.n_row + cols - 1) / cols * a.n_block);
    return sl_launch(gemm_mma_kernel<type, cols>, grid, dim3(N_THREAD), N_STAGE * sizeof(stage<cols>), stream,
                     a);
}

template <sl_type type> int launch(const sl_blocks_args &a, sl_cuda_stream stream) {
    const uint32_t n_wide = (a.p.rows.max + TOKENS - 1) / TOKENS * ((a.p.n_row + 127) / 128) * a.n_block;
    if constexpr (type != SL_F32) { /* of which a thread's part of the wide tile does not fit its registers */
        if (a.p.n_row > 64 && n_wide >= FEW_BLOCKS) return launch_tiles<type, 128>(a, stream);
    }
    return launch_tiles<type, 32>(a, stream);
}

} // namespace
