/* Products of stored weights with 1 to 16 rows of f16 activations, of quantised ones with 64: the weights are read once,
 * straight from their stored form, and multiplied on the matrix units, of whose 8 columns each is a row of x. (Beyond 32
 * rows by two blocks, the second of which finds them in the second-level cache. Block-diagonal weights, which are few and
 * not quantised, come here for up to 64 rows as well, 16 to a block.)
 *
 * What bounds such a product is memory, if nothing else does. At 4.8 TB/s an SM of 132 is given 21 bytes a clock: 37
 * weights of q4 with their scales. It issues 128 lanes' instructions a clock, so 3.5 for each weight is all there is.
 * Expanded to floats and with a multiply-add for every weight and row of x there would be seven or more, here there are
 * three: quants become f16 in pairs (byte permutation, subtraction, scale), and the unit takes eight to an instruction for
 * up to 8 rows.
 *
 * A warp computes 16 weight rows. Lane (g, q) = (lane / 4, lane % 4) reads the weights of rows g and g + 8 and x of
 * row g, each in chunks of 16 stored bytes (weights_cuda.h): those of its q, the four q side by side. The order of
 * elements inside an instruction is the unit's for both factors, so nothing is moved between lanes. The steps of a
 * row are dealt out to n_split warps, whose sums are added in order: the order of a sum depends on k and the number
 * of weight rows only. Weights of all types are rounded to f16, as for many rows (gemm_mma_body.h).
 *
 * Included by gemv_mma.cu, and by the mutants of the harness. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"
#include "kernels/mma_cuda.h"

namespace {

enum { WARP = 32, N_WARP = 8, N_THREAD = N_WARP * WARP };
enum { ROWS = 16, TOKENS = 8, CHUNKS = 4 }; /* of an instruction; chunks of a row in a step */
enum { PITCH = ROWS + 4 };                  /* of sums in shared memory: the lanes' are in different banks */
enum { MANY_BLOCKS = 264 };                 /* that a large GPU takes at once */
enum { MANY_ROWS = 64 * MANY_BLOCKS };      /* weight rows that fill it 64 to a block */

/* ---- factors ------------------------------------------------------------------------------------ */

/* Eight elements of a row of both factors as the instruction's words, w of two rows. */
template <int n_tile> struct piece {
    uint32_t w[2][4], x[n_tile][4];
};

/* The lane's rows of x. Where there is none the first takes its place: nobody reads the sums of that column. */
template <int n_tile> struct rows_of_x {
    const uint16_t *row[n_tile];
};

/* from: elements from the rows' starts to the chunk's first. */
template <sl_type type, int n_tile>
__device__ __forceinline__ void take_piece(const sl_chunk<type> *chunk, const rows_of_x<n_tile> &x, size_t from, int p,
                                           piece<n_tile> &out) {
    chunk[0].halves(p, out.w[0]);
    chunk[1].halves(p, out.w[1]);
#pragma unroll
    for (int j = 0; j < n_tile; j++) {
        const uint4 v = *(const uint4 *)(x.row[j] + from + sl_chunk<type>::start(0, p));
        out.x[j][0] = v.x, out.x[j][1] = v.y, out.x[j][2] = v.z, out.x[j][3] = v.w;
    }
}

/* The same element by element, zeros from k on: the end of a row, or rows of x without alignment. */
template <sl_type type, int n_tile>
__device__ __forceinline__ void take_piece_slowly(const unsigned char *const *row, uint32_t k,
                                                  const rows_of_x<n_tile> &x, uint32_t c, int p, piece<n_tile> &out) {
    const uint32_t start = sl_chunk<type>::start(c, p), groups = sl_groups_of(k);
#pragma unroll
    for (uint32_t e = 0; e < 8; e += 2) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float low = start + e < k ? sl_weight<type>(row[i], groups, start + e) : 0;
            const float high = start + e + 1 < k ? sl_weight<type>(row[i], groups, start + e + 1) : 0;
            out.w[i][e / 2] = sl_pack_f16(low, high);
        }
#pragma unroll
        for (int j = 0; j < n_tile; j++) {
            const uint16_t *from = x.row[j] + start + e;
            out.x[j][e / 2] = start + e < k ? *from : 0;
            out.x[j][e / 2] |= start + e + 1 < k ? (uint32_t)from[1] << 16 : 0;
        }
    }
}

template <int n_tile> __device__ __forceinline__ void multiply(const piece<n_tile> &f, float sum[n_tile][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t w[4] = {f.w[0][2 * half], f.w[1][2 * half], f.w[0][2 * half + 1], f.w[1][2 * half + 1]};
#pragma unroll
        for (int j = 0; j < n_tile; j++) sl_mma_f16(sum[j], w, f.x[j] + 2 * half);
    }
}

/* Has the kernel an SM's registers for one block of it: q4 with 32 rows, which takes more than 128 a thread. It asks for
 * twice as much at once then. */
template <sl_type type, int n_tile> constexpr bool is_alone = type == SL_Q4 && n_tile > 2;

/* How many steps of a warp's are asked for at once. */
template <sl_type type, int n_tile>
constexpr int flights = (n_tile > 1 && !is_alone<type, n_tile>) || type == SL_F32 ? 2 : 4;

/* ---- a warp's sums ------------------------------------------------------------------------------ */

struct share {
    const unsigned char *row[2];
    uint32_t k, split; /* of n_split: which steps */
    bool x_aligned;
};

/* w_aligned is no condition inside: the code for other rows would be issued with it, predicated off. */
template <sl_type type, int n_tile, int n_split, bool w_aligned>
__device__ __forceinline__ void sum_up(const share &s, const rows_of_x<n_tile> &x, uint32_t q, float sum[n_tile][4]) {
    constexpr int n_flight = flights<type, n_tile>;
    constexpr int n_piece = sl_chunk<type>::n_piece;
    constexpr uint32_t STEP = 8 * n_piece * CHUNKS; /* elements */
    const uint32_t groups = sl_groups_of(s.k), n_chunk = sl_chunk<type>::count(s.k);
    const uint32_t n_step = (n_chunk + CHUNKS - 1) / CHUNKS;
    const uint32_t n_whole = s.x_aligned ? sl_chunk<type>::count_full(s.k) / CHUNKS : 0;
    const uint32_t first = sl_chunk<type>::start(q, 0);
    uint32_t step = s.split;
    for (; step < n_whole; step += n_split * n_flight) {
        sl_chunk<type> chunk[n_flight][2];
#pragma unroll
        for (int f = 0; f < n_flight; f++) {
            const uint32_t c = (step + n_split * f) * CHUNKS + q;
            if (step + n_split * f >= n_whole) continue;
            chunk[f][0].template load<true>(s.row[0], groups, c, w_aligned);
            chunk[f][1].template load<true>(s.row[1], groups, c, w_aligned);
        }
#pragma unroll
        for (int f = 0; f < n_flight; f++) {
            if (step + n_split * f >= n_whole) continue;
            const size_t from = first + (step + n_split * f) * STEP;
#pragma unroll
            for (int p = 0; p < n_piece; p++) {
                piece<n_tile> factors;
                take_piece<type, n_tile>(chunk[f], x, from, p, factors);
                multiply<n_tile>(factors, sum);
            }
        }
    }
#pragma unroll 1
    for (step = n_whole + (s.split + n_split - n_whole % n_split) % n_split; step < n_step; step += n_split) {
#pragma unroll 1
        for (int p = 0; p < n_piece; p++) {
            piece<n_tile> factors;
            take_piece_slowly<type, n_tile>(s.row, s.k, x, step * CHUNKS + q, p, factors);
            multiply<n_tile>(factors, sum);
        }
    }
}

/* ---- the product -------------------------------------------------------------------------------- */

template <int n_tile> struct part { /* a warp's sums */
    float rows[n_tile * TOKENS][PITCH];
};

/* Row g of d is weight row g, or g + 8 in its second half; columns are rows of x. */
template <int n_tile>
__device__ __forceinline__ void keep_sums(part<n_tile> *to, uint32_t g, uint32_t q, const float sum[n_tile][4]) {
#pragma unroll
    for (int j = 0; j < n_tile; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) to->rows[j * TOKENS + 2 * q + i % 2][g + i / 2 * 8] = sum[j][i];
    }
}

template <int n_side, int n_tile> __device__ __forceinline__ float total(const part<n_tile> *parts, uint32_t t, uint32_t r) {
    float sum = 0;
#pragma unroll
    for (uint32_t split = 0; split < N_WARP / n_side; split++) sum += parts[split * n_side].rows[t][r];
    return sum;
}

/* Which weights and rows of x a block has. Of a gated pair a warp takes eight rows of the first matrix and the same eight
 * of the second. */
template <int n_tile, int n_side> struct place {
    uint32_t warp_rows, rows, t0, block, r0;
    const unsigned char *w;

    __device__ __forceinline__ explicit place(const sl_pair_args &pair) {
        const sl_product_args &p = pair.first.p;
        warp_rows = pair.gated ? ROWS / 2 : ROWS, rows = warp_rows * n_side;
        const uint32_t part_row = blockIdx.x / pair.n_part, n_group = (p.n_row + rows - 1) / rows;
        t0 = blockIdx.x % pair.n_part * n_tile * TOKENS;
        block = part_row / n_group, r0 = part_row % n_group * rows;
        w = (const unsigned char *)p.w + (blockIdx.y > 0 ? pair.w_on : 0);
    }
    /* Row g of the 16 of one of the warps side by side; the last one where there is none. */
    __device__ __forceinline__ const unsigned char *row(const sl_pair_args &pair, uint32_t side, uint32_t g) const {
        const uint32_t r = r0 + side * warp_rows + (pair.gated ? g % 8 : g), last = pair.first.p.n_row - 1;
        return w + ((size_t)block * pair.first.p.n_row + (r < last ? r : last)) * pair.first.p.w_row_bytes +
               (pair.gated && g >= 8 ? pair.w_on : 0);
    }
};

/* In front of sl_begin: what the block's warps will ask for at first comes while the launch before this one ends. Only of
 * the blocks that a large GPU takes at once, and of products that are computed whatever a router says. (TensorRT-LLM does
 * the same in its products of few rows.) */
template <sl_type type, int n_tile, int n_side>
__device__ __forceinline__ void prefetch(const sl_pair_args &pair) {
    const sl_product_args &p = pair.first.p;
    constexpr uint32_t chunk_bytes = 4 * sl_chunk<type>::n_word;
    constexpr uint32_t n_line = N_WARP / n_side * flights<type, n_tile> * CHUNKS * chunk_bytes / SL_LINE_BYTES; /* of a row */
    static_assert(n_line * ROWS * n_side <= N_THREAD, "a thread has one line");
    const uint32_t row = threadIdx.x / n_line, from = threadIdx.x % n_line * SL_LINE_BYTES;
    if (p.rows.n || blockIdx.x >= MANY_BLOCKS || row >= ROWS * n_side) return;
    const place<n_tile, n_side> at(pair);
    if (from < sl_chunk<type>::count_full(p.k) * chunk_bytes) sl_prefetch(at.row(pair, row / ROWS, row % ROWS) + from);
}

/* n_side: warps beside each other, for 16 weight rows each; the others share the elements of these rows. */
template <sl_type type, int n_tile, int n_side>
__global__ void __launch_bounds__(N_THREAD, is_alone<type, n_tile> ? 1 : 2) gemv_mma_kernel(sl_pair_args pair) {
    prefetch<type, n_tile, n_side>(pair);
    sl_begin();
    __shared__ part<n_tile> parts[N_WARP];
    constexpr uint32_t n_split = N_WARP / n_side;
    const sl_blocks_args &a = pair.first;
    const place<n_tile, n_side> at(pair);
    const uint32_t warp_rows = at.warp_rows, rows = at.rows, t0 = at.t0, block = at.block, r0 = at.r0;
    sl_product_args p = a.p;
    p.w = at.w;
    p.y = (char *)p.y + (blockIdx.y > 0 ? pair.y_on : 0);
    const uint32_t n_all = sl_row_count(p.rows), n = min(n_all - t0, (uint32_t)(n_tile * TOKENS));
    if (t0 >= n_all) return;

    const uint32_t warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, q = threadIdx.x % 4;
    const uint16_t *x_start = (const uint16_t *)p.x + (size_t)block * a.x_step;
    share s;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) s.row[i] = at.row(pair, warp % n_side, g + 8 * i);
    s.k = p.k;
    s.split = warp / n_side;
    s.x_aligned = ((uintptr_t)x_start | p.x_stride * 2) % 16 == 0;
    rows_of_x<n_tile> x;
#pragma unroll
    for (uint32_t j = 0; j < n_tile; j++) {
        const uint32_t t = t0 + (g + TOKENS * j < n ? g + TOKENS * j : 0);
        x.row[j] = x_start + (p.rows.in_place ? p.rows.index[t] : t) * p.x_stride;
    }
    float sum[n_tile][4] = {};
    if (((uintptr_t)p.w | p.w_row_bytes | (pair.gated ? (uint64_t)pair.w_on : 0)) % 16 == 0) sum_up<type, n_tile, n_split, true>(s, x, q, sum);
    else sum_up<type, n_tile, n_split, false>(s, x, q, sum);
    keep_sums<n_tile>(parts + warp, g, q, sum);
    __syncthreads();

    for (uint32_t i = threadIdx.x; i < rows * n; i += N_THREAD) {
        const uint32_t t = i / rows, r = i % rows;
        if (r0 + r >= p.n_row) continue;
        const part<n_tile> *sums = parts + r / warp_rows;
        const float first = total<n_side>(sums, t, r % warp_rows);
        if (pair.gated) { /* of what larger passes would store of both */
            const float gate = sl_within_f16(first * p.gain);
            const float up = sl_within_f16(total<n_side>(sums, t, r % warp_rows + ROWS / 2) * p.gain);
            sl_store((sl_f16 *)p.y + (t0 + t) * p.y_stride + r0 + r, sl_silu<sl_f16>(gate) * (up * pair.scale));
        } else sl_put_sum(p, t0 + t, r0 + r, (size_t)block * a.y_step + r0 + r, first);
    }
}

template <sl_type type, int n_tile, int n_side> int launch_sides(sl_pair_args a, sl_cuda_stream stream) {
    const unsigned rows = (a.gated ? ROWS / 2 : ROWS) * n_side, n_group = (a.first.p.n_row + rows - 1) / rows;
    a.n_part = (a.first.p.rows.max + n_tile * TOKENS - 1) / (n_tile * TOKENS);
    return sl_launch(gemv_mma_kernel<type, n_tile, n_side>, dim3(a.n_part * n_group * a.first.n_block, a.both ? 2 : 1),
                     dim3(N_THREAD), 0, stream, a);
}

/* More weight rows to a block read x less often. */
template <sl_type type, int n_tile> int launch_tiles(const sl_pair_args &a, sl_cuda_stream stream) {
    if constexpr (type == SL_F16 || sl_is_scaled<type>)
        if ((a.gated ? 2 : 1) * a.first.p.n_row >= MANY_ROWS) return launch_sides<type, n_tile, 4>(a, stream);
    return launch_sides<type, n_tile, 1>(a, stream);
}

template <sl_type type> int launch(const sl_pair_args &a, sl_cuda_stream stream) {
    if constexpr (sl_is_scaled<type>)
        if (a.first.p.rows.max > SL_GEMV_ROWS) return launch_tiles<type, 4>(a, stream);
    if (a.first.p.rows.max <= TOKENS) return launch_tiles<type, 1>(a, stream);
    return launch_tiles<type, SL_GEMV_ROWS / TOKENS>(a, stream);
}

} // namespace
