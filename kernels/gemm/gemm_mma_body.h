/* Products of stored weights with many rows of f16 activations on the matrix units; how many rows may be
 * known to the device only. The units are asked by warps (mma_cuda.h), as all devices can be, or by warpgroups
 * (wgmma_cuda.h), where that is faster.
 *
 * A block computes 128 rows of x by 128 weight rows (64 by 128, or 64 by 32, where that would leave most of a GPU, or of
 * the tile, idle) in four warps, or eight where those would run out of registers; of f16 weights 128 by 256 in eight,
 * where there are as many; 64 elements at a time, three steps of tiles in shared memory: while one is multiplied, the
 * copies for the next two are under way. (Eight for f16 weights in tiles of 64 by 32, of which each of a large GPU's
 * processors has one: 28 KB of weights under way to it are what memory would deliver to each of 132 at 4.3 TB/s while it
 * answers, if that takes 0.8 us.) f16 weights and x go there by asynchronous copies; weights of other types are read into
 * registers before a multiplication, and after it expanded and rounded to f16. Chunk c of row r of a tile lies at c ^
 * r % 8 of its row of 128 bytes, so that the eight rows of a matrix load, and the eight chunks of a copied row, are in
 * different banks.
 *
 * What bounds it: per element of the depth 128 x 256 products are made of 768 bytes from the second-level cache, 85
 * operations a byte (128 x 128: 64, 64 x 128: 43), and a warp's 64 x 64 of them of 8 matrix loads to 32 products (32 x 64:
 * 6 to 16). For 16 elements of 64 x 64 a warp reads 4 KB of shared memory and is brought 1.5 KB (of 128 x 128: 2 KB).
 * Eight warps are all that registers allow an SM: one block of 144 KB, or two of four warps and 96 KB where an SM has 228.
 *
 * Warpgroups take both operands from shared memory, in the same places, 64 rows by all columns of a tile each, and go on
 * meanwhile: a step's product is asked for, the next copies are, and then the product of the step before is waited for, so
 * that the units always have one more to do. So one step less is on its way of as many in shared memory; there is room for
 * four of 128 x 256, whose 1,024 clocks of the units leave time for the copies to come. That much in 1,024 clocks is 48 bytes
 * a clock for each processor from the second-level cache.
 *
 * Blocks beyond the number of rows leave at once. Each sum runs over its elements in the same order,
 * whatever its tile holds beside it and however wide that is. Included by gemm_mma.cu, gemm_wgmma.cu, and by
 * the mutants of the harness, which are a few types of it. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"
#include "kernels/mma_cuda.h"
#include "kernels/wgmma_cuda.h"

namespace {

enum { WARP = 32, GROUP_ROWS = 64 /* of a warpgroup's tile */ };
enum { DEPTH = 64, ROW_CHUNKS = DEPTH / 8 }; /* a chunk: eight f16, 16 bytes */
/* For half the SMs of the GPUs this is meant for, for nearly all of them if half the rows are missing, two for each. */
enum { FEW_BLOCKS = 64, MOST_BLOCKS = 256, TWICE_BLOCKS = 264 };

/* A block's tile: token_warps warps share its rows, the rest its columns. stages: steps in shared memory; ahead: how many
 * of them are brought before they are multiplied. */
template <int tokens, int cols, int warps, int token_warps, int stages, int ahead> struct tile_shape {
    enum { TOKENS = tokens, COLS = cols, THREADS = warps * WARP, STAGES = stages, AHEAD = ahead };
    enum { TOKEN_WARPS = token_warps, WARP_TOKENS = tokens / token_warps, WARP_COLS = cols * token_warps / warps };
    enum { N_X = WARP_TOKENS / 16, N_W = WARP_COLS / 8 }; /* a warp's fragments */
    enum { APART = THREADS / ROW_CHUNKS };                /* rows between the chunks that a thread brings */
};
/* Multiplied by warps, in two rows side by side. */
template <int tokens, int cols, int warps, int stages = 3>
struct shape : tile_shape<tokens, cols, warps, 2, stages, stages - 1> {
    enum { BY_GROUP = false };
};
/* By warpgroups, of which each takes 64 rows and all columns. One step more is still being multiplied. */
template <int tokens, int cols, int stages>
struct group_shape : tile_shape<tokens, cols, tokens / 16, tokens / 16, stages, stages - 2> {
    enum { BY_GROUP = true };
};

template <class S> struct stage {
    uint4 x[S::TOKENS * ROW_CHUNKS], w[S::COLS * ROW_CHUNKS];
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
    if (i >= k) {
        *to = make_uint4(0, 0, 0, 0);
        return;
    }
#pragma unroll 1
    for (uint32_t j = 0; j < 8; j++) ((uint16_t *)to)[j] = i + j < k ? row[i + j] : 0;
}

/* What one thread brings of a tile of rows of 16-bit numbers: chunk threadIdx.x % ROW_CHUNKS of every APART-th row. */
template <class S, int rows> struct halves_source {
    const uint16_t *row; /* the first */
    size_t stride;
    uint32_t n_row, k; /* rows from the first on */
    bool aligned;

    /* Nearly always there are all rows, and the chunk is within them: one condition and an addition for each copy. */
    __device__ __forceinline__ void bring(uint4 *tile, uint32_t i) const {
        const uint16_t *from = row + i;
        if (aligned && n_row > rows - S::APART && i + 8 <= k) {
#pragma unroll
            for (uint32_t r = 0; r < rows; r += S::APART, from += S::APART * stride)
                sl_copy_async16(tile + r * ROW_CHUNKS, from);
            return;
        }
#pragma unroll 1
        for (uint32_t r = 0; r < rows; r += S::APART)
            bring_halves(tile + r * ROW_CHUNKS, row + (r < n_row ? r : 0) * stride, r < n_row ? k : 0, i, aligned);
    }
};

/* In two parts, before and after a multiplication. */
template <sl_type type, class S> struct w_source {
    const unsigned char *row;
    size_t row_bytes;
    uint32_t n_row, k;
    sl_eight<type> eights[S::COLS / S::APART];

    /* Are there all rows, and these elements of them? Nearly always. */
    __device__ __forceinline__ bool is_whole(uint32_t i) const { return n_row > S::COLS - S::APART && i + 8 <= k; }
    __device__ __forceinline__ bool is_aligned() const { return ((uintptr_t)row | row_bytes) % 16 == 0; }

    __device__ __forceinline__ void begin(uint4 *tile, uint32_t i) {
        if constexpr (type == SL_F16) {
            halves_source<S, S::COLS>{(const uint16_t *)row, row_bytes / 2, n_row, k, is_aligned()}.bring(tile, i);
        } else if (is_whole(i) && is_aligned()) {
#pragma unroll
            for (uint32_t r = 0; r < S::COLS; r += S::APART)
                eights[r / S::APART].template load<true>(row + r * row_bytes, sl_groups_of(k), i);
        } else {
#pragma unroll
            for (uint32_t r = 0; r < S::COLS; r += S::APART)
                if (i + 8 <= (r < n_row ? k : 0))
                    eights[r / S::APART].template load<false>(row + (r < n_row ? r : 0) * row_bytes, sl_groups_of(k), i);
        }
    }

    __device__ __forceinline__ void end(uint4 *tile, uint32_t i) const {
        if constexpr (type == SL_F16) return;
        if (is_whole(i)) {
#pragma unroll
            for (uint32_t r = 0; r < S::COLS; r += S::APART) expand_whole(tile + r * ROW_CHUNKS, eights[r / S::APART], i);
            return;
        }
#pragma unroll
        for (uint32_t r = 0; r < S::COLS; r += S::APART)
            expand_to(tile + r * ROW_CHUNKS, eights[r / S::APART], row + r * row_bytes, r < n_row ? k : 0, i);
    }

    static __device__ __forceinline__ void expand_whole(uint4 *to, const sl_eight<type> &eight, uint32_t i) {
        uint32_t h[4];
        eight.halves(i, h);
        *to = make_uint4(h[0], h[1], h[2], h[3]);
    }

    static __device__ __forceinline__ void expand_to(uint4 *to, const sl_eight<type> &eight,
                                                     const unsigned char *from, uint32_t length, uint32_t i) {
        if (i + 8 <= length) return expand_whole(to, eight, i);
        if (i >= length) {
            *to = make_uint4(0, 0, 0, 0);
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

/* One step of a warp: half the rows of x by its part of the weight rows. */
template <class S>
__device__ __forceinline__ void multiply_by_warp(const stage<S> &s, uint32_t warp, uint32_t lane,
                                                 float sum[S::N_X][S::N_W][4]) {
    /* Chunk 2 d + c of a row lies at chunk c's place ^ 2 d, and the same chunk of a row 8 on is a constant away. */
    const uint32_t x_at = place(warp % 2 * S::WARP_TOKENS + lane % 16, lane / 16);
    const uint32_t w_at = place(warp / 2 * S::WARP_COLS + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t d = 0; d < DEPTH / 16; d++) {
        uint32_t x[S::N_X][4], w[4];
#pragma unroll
        for (uint32_t i = 0; i < S::N_X; i++) sl_mma_load(x[i], s.x + (x_at ^ 2 * d) + 16 * i * ROW_CHUNKS);
#pragma unroll
        for (uint32_t j = 0; j < S::N_W / 2; j++) {
            sl_mma_load(w, s.w + (w_at ^ 2 * d) + 16 * j * ROW_CHUNKS);
#pragma unroll
            for (uint32_t i = 0; i < S::N_X; i++) {
                sl_mma_f16(sum[i][2 * j], x[i], w);
                sl_mma_f16(sum[i][2 * j + 1], x[i], w + 2);
            }
        }
    }
}

/* One step of a warpgroup, which goes on meanwhile. */
template <class S>
__device__ __forceinline__ void multiply_by_group(const stage<S> &s, uint32_t warp, float sum[S::N_X][S::N_W][4]) {
    const uint64_t x = sl_wgmma_tile(s.x + warp / 4 * GROUP_ROWS * ROW_CHUNKS), w = sl_wgmma_tile(s.w);
    sl_wgmma_begin();
#pragma unroll
    for (uint32_t d = 0; d < DEPTH / 16; d++) sl_wgmma_f16(sum[0], x + 2 * d, w + 2 * d);
    sl_wgmma_commit();
}

/* A warp's sums to the block's in shared memory, where the tiles were. Rows lie 8 floats more apart than they are long:
 * the rows that a half warp writes are in different banks. */
template <class S> struct sums {
    enum { PITCH = S::COLS + 8 };
    float rows[S::TOKENS * PITCH];
};

template <class S>
__device__ __forceinline__ void keep_sums(sums<S> *all, uint32_t warp, uint32_t lane,
                                          const float sum[S::N_X][S::N_W][4]) {
    enum { PITCH = sums<S>::PITCH };
    float *to = all->rows + (warp % S::TOKEN_WARPS * S::WARP_TOKENS + lane / 4) * PITCH +
                warp / S::TOKEN_WARPS * S::WARP_COLS + lane % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 2 * S::N_X; i++) {
#pragma unroll
        for (uint32_t j = 0; j < S::N_W; j++)
            *(float2 *)(to + 8 * i * PITCH + 8 * j) = make_float2(sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]);
    }
}

/* Four neighbouring columns of a row of y at once: where they lie, what is there, and for SL_OUT_ADD rho. */
struct quad {
    bool there;
    size_t at;
    float rho;
    float4 sum, old;
};

/* Whether four neighbours of y, the first at a multiple of four, can be stored as one. */
__device__ __forceinline__ bool stores_quads(const sl_product_args &p, size_t y_start) {
    const size_t size = p.out == SL_OUT_ACT ? 2 : 4;
    return ((uintptr_t)p.y | (p.y_stride | y_start) * size) % (4 * size) == 0;
}

__device__ __forceinline__ void load_quad(const sl_product_args &p, const float *from, uint32_t t, size_t y_at, quad &q) {
    const size_t b = p.out == SL_OUT_ADD && p.rows.index ? p.rows.index[t] : t;
    q.at = b * p.y_stride + y_at;
    q.sum = *(const float4 *)from;
    if (p.out != SL_OUT_ADD) return;
    q.rho = p.rho ? p.rho[b] : 1.0f;
    q.old = *(const float4 *)((const float *)p.y + q.at);
}

__device__ __forceinline__ void store_quad(const sl_product_args &p, uint32_t r, const quad &q) {
    const float4 bias = p.bias ? make_float4(p.bias[r], p.bias[r + 1], p.bias[r + 2], p.bias[r + 3]) : make_float4(0, 0, 0, 0);
    float4 v = make_float4(fmaf(q.sum.x, p.gain, bias.x), fmaf(q.sum.y, p.gain, bias.y), fmaf(q.sum.z, p.gain, bias.z),
                           fmaf(q.sum.w, p.gain, bias.w));
    if (p.out == SL_OUT_ACT) {
        *(uint2 *)((uint16_t *)p.y + q.at) = make_uint2(sl_pack_f16(v.x, v.y), sl_pack_f16(v.z, v.w));
        return;
    }
    if (p.out == SL_OUT_ADD)
        v = make_float4(fmaf(q.rho, v.x, q.old.x), fmaf(q.rho, v.y, q.old.y), fmaf(q.rho, v.z, q.old.z),
                        fmaf(q.rho, v.w, q.old.w));
    *(float4 *)((float *)p.y + q.at) = v;
}

/* The block's sums, n_row rows from t0 on, to y: a warp writes 128 columns in a row at once, and has four such pieces
 * under way, of which it may have to read what they are added to. */
template <class S>
__device__ __forceinline__ void put_sums(const sl_product_args &p, uint32_t n_row, uint32_t t0, uint32_t r0,
                                         size_t y_start, const sums<S> *all) {
    enum { QUADS = S::COLS / 4, FLIGHT = 4 };
    const uint32_t have = min(p.n_row - r0, (uint32_t)S::COLS), whole = stores_quads(p, y_start) ? have & ~3u : 0;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; whole && i < n_row * QUADS; i += FLIGHT * S::THREADS) {
        quad q[FLIGHT];
#pragma unroll
        for (uint32_t f = 0; f < FLIGHT; f++) {
            const uint32_t t = (i + f * S::THREADS) / QUADS, c = (i + f * S::THREADS) % QUADS * 4;
            q[f].there = t < n_row && c < whole;
            if (q[f].there) load_quad(p, all->rows + t * sums<S>::PITCH + c, t0 + t, y_start + r0 + c, q[f]);
        }
#pragma unroll
        for (uint32_t f = 0; f < FLIGHT; f++)
            if (q[f].there) store_quad(p, r0 + (i + f * S::THREADS) % QUADS * 4, q[f]);
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n_row * (have - whole); i += S::THREADS) {
        const uint32_t t = i / (have - whole), r = whole + i % (have - whole);
        sl_put_sum(p, t0 + t, r0 + r, y_start + r0 + r, all->rows[t * sums<S>::PITCH + r]);
    }
}

/* ---- the product -------------------------------------------------------------------------------- */

/* Blocks for which registers (of a warpgroup's: shared memory) leave room on a processor. */
template <sl_type type, class S> constexpr int blocks_of() {
    if (S::BY_GROUP) return S::STAGES * sizeof(stage<S>) > 112 * 1024 ? 1 : 2;
    return S::TOKENS == 64 && type == SL_F16 ? 3 : S::THREADS > 128 ? 1 : 2;
}

template <sl_type type, class S>
__global__ void __launch_bounds__(S::THREADS, (blocks_of<type, S>())) gemm_mma_kernel(sl_blocks_args a) {
    sl_begin();
    SL_SHARED_AT(stage<S>, stages, 1024);
    const sl_product_args &p = a.p;
    const uint32_t n = sl_row_count(p.rows), n_tile = (p.n_row + S::COLS - 1) / S::COLS;
    const uint32_t block = blockIdx.y / n_tile, r0 = blockIdx.y % n_tile * S::COLS, t0 = blockIdx.x * S::TOKENS;
    if (t0 >= n) return;

    const uint32_t first = threadIdx.x / ROW_CHUNKS, chunk = threadIdx.x % ROW_CHUNKS, at = place(first, chunk);
    const uint16_t *x_start = (const uint16_t *)p.x + (size_t)block * a.x_step;
    const uint32_t x_row = t0 + first < n ? t0 + first : t0, w_row = r0 + first < p.n_row ? r0 + first : r0;
    const halves_source<S, S::TOKENS> x = {x_start + x_row * p.x_stride, p.x_stride, t0 + first < n ? n - t0 - first : 0, p.k,
                           ((uintptr_t)x_start | p.x_stride * 2) % 16 == 0};
    w_source<type, S> w;
    w.row = (const unsigned char *)p.w + ((size_t)block * p.n_row + w_row) * p.w_row_bytes;
    w.row_bytes = p.w_row_bytes;
    w.n_row = r0 + first < p.n_row ? p.n_row - r0 - first : 0;
    w.k = p.k;

    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const bool has_sums = t0 + warp % S::TOKEN_WARPS * S::WARP_TOKENS < n &&
                          r0 + warp / S::TOKEN_WARPS * S::WARP_COLS < p.n_row;
    const uint32_t n_step = (p.k + DEPTH - 1) / DEPTH;
    for (uint32_t step = 0; step < S::AHEAD; step++) {
        if (step < n_step) {
            x.bring(stages[step].x + at, step * DEPTH + chunk * 8);
            w.begin(stages[step].w + at, step * DEPTH + chunk * 8);
            w.end(stages[step].w + at, step * DEPTH + chunk * 8);
        }
        sl_copy_async_commit();
    }
    /* Weights that are expanded, and not multiplied by the warps that do it, wait in registers for a step. */
    constexpr bool KEEPS = S::BY_GROUP && type != SL_F16;
    if constexpr (KEEPS)
        if (S::AHEAD < n_step) w.begin(nullptr, S::AHEAD * DEPTH + chunk * 8);
    float sum[S::N_X][S::N_W][4] = {};
    uint32_t step = 0;
#pragma unroll 1
    do { /* at least once: ptxas would not let products overlap whose sums might also come from elsewhere */
        sl_copy_async_wait<S::AHEAD - 1>();
        if constexpr (S::BY_GROUP) sl_wgmma_publish();
        __syncthreads(); /* this step's tiles are there, and those are free that come next */
        const uint32_t ahead = step + S::AHEAD;
        stage<S> &next = stages[ahead % S::STAGES];
        if constexpr (S::BY_GROUP) multiply_by_group<S>(stages[step % S::STAGES], warp, sum);
        if (ahead < n_step) {
            x.bring(next.x + at, ahead * DEPTH + chunk * 8);
            if constexpr (KEEPS) w.end(next.w + at, ahead * DEPTH + chunk * 8);
            else w.begin(next.w + at, ahead * DEPTH + chunk * 8);
        }
        sl_copy_async_commit();
        if constexpr (KEEPS) {
            if (ahead + 1 < n_step) w.begin(nullptr, (ahead + 1) * DEPTH + chunk * 8);
        } else if constexpr (!S::BY_GROUP) {
            if (has_sums) multiply_by_warp<S>(stages[step % S::STAGES], warp, lane, sum);
            if (ahead < n_step) w.end(next.w + at, ahead * DEPTH + chunk * 8);
        }
        if constexpr (S::BY_GROUP) sl_wgmma_wait<1>(); /* the last step's tiles have been read */
    } while (++step < n_step);
    if constexpr (S::BY_GROUP) {
        sl_wgmma_wait<0>();
        sl_wgmma_end(sum[0]);
    }
    __syncthreads(); /* nobody reads the tiles any more */
    sums<S> *all = reinterpret_cast<sums<S> *>(stages);
    static_assert(sizeof *all <= S::STAGES * sizeof *stages, "the sums lie where the tiles were");
    keep_sums<S>(all, warp, lane, sum);
    __syncthreads();
    put_sums<S>(p, n - t0 < S::TOKENS ? n - t0 : (uint32_t)S::TOKENS, t0, r0, (size_t)block * a.y_step, all);
}

/* Blocks if none of the rows is missing. */
template <class S> uint32_t count_tiles(const sl_blocks_args &a) {
    return (a.p.rows.max + S::TOKENS - 1) / S::TOKENS * ((a.p.n_row + S::COLS - 1) / S::COLS) * a.n_block;
}

template <class S> constexpr size_t shared_of(void) { return S::STAGES * sizeof(stage<S>); }

template <sl_type type, class S> int launch_tiles(const sl_blocks_args &a, sl_cuda_stream stream) {
    const dim3 grid((a.p.rows.max + S::TOKENS - 1) / S::TOKENS, (a.p.n_row + S::COLS - 1) / S::COLS * a.n_block);
    return sl_launch(gemm_mma_kernel<type, S>, grid, dim3(S::THREADS), shared_of<S>(), stream, a);
}

/* Tiles from the largest on, for the units as warps use them and as warpgroups do. */
template <sl_type type> struct warp_tiles {
    typedef shape<128, 256, 8> huge;
    typedef shape<128, 128, type == SL_F16 ? 4 : 8> large;
    typedef shape<64, 128, 4> wide;
    typedef shape<64, 32, 4, type == SL_F16 ? 8 : 3> small;
    /* Of f32 a thread's part of a wide tile does not fit its registers, of the others only f16's of a huge one. */
    enum { HAS_HUGE = type == SL_F16, HAS_WIDE = type != SL_F32, LARGE_BLOCKS = TWICE_BLOCKS };
};
template <sl_type type> struct group_tiles {
    typedef group_shape<128, 256, 4> huge;
    typedef group_shape<128, 128, 6> large;
    typedef group_shape<64, 128, 4> wide;
    typedef group_shape<64, 32, 8> small;
    enum { HAS_HUGE = type != SL_F32, HAS_WIDE = true, LARGE_BLOCKS = MOST_BLOCKS /* one is alone on its SM */ };
};

template <sl_type type, class T = warp_tiles<type>> int launch(const sl_blocks_args &a, sl_cuda_stream stream) {
    if constexpr (T::HAS_HUGE)
        if (a.p.n_row > 128 && count_tiles<typename T::huge>(a) >= MOST_BLOCKS) {
            size_t most; /* the other tiles fit everywhere */
            const cudaError_t status = sl_most_shared(&most);
            if (status != cudaSuccess) return static_cast<int>(status);
            if (shared_of<typename T::huge>() <= most) return launch_tiles<type, typename T::huge>(a, stream);
        }
    if constexpr (T::HAS_WIDE) {
        if (a.p.n_row > 64 && count_tiles<typename T::large>(a) >= T::LARGE_BLOCKS)
            return launch_tiles<type, typename T::large>(a, stream);
        if (a.p.n_row > 64 && count_tiles<typename T::wide>(a) >= FEW_BLOCKS)
            return launch_tiles<type, typename T::wide>(a, stream);
    }
    return launch_tiles<type, typename T::small>(a, stream);
}

} // namespace
