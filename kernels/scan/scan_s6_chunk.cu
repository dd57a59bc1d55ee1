/* S6 selective scan of long runs on the matrix units: the chunked form of state space duality (Dao and Gu
 * 2024, "Transformers are SSMs", section 6) of bridge.md step 4, for f16 activations. One long sequence
 * fills the GPU, because all chunks of all heads are computed side by side; only the states between them are
 * passed on in order.
 *
 * With L_ij the product of the decays after token j up to token i, chunks of Q = 64 tokens and, per head, C
 * and B [Q, N], r [Q, P], S [N, P]:
 *   contribute   in_c = B^T (L_end,j Delta_j r_j)                      per chunk and head
 *   pass         S_c+1 = S_c + (fade_c S_c + in_c), fade_c = L - 1   per element, chunk after chunk
 *   respond      y = (C B^T * L * Delta) r + L_start C S_c + skip r, gate and norm by heads
 * S_c takes in_c's place in the scratch.
 *
 * Numbers. L is exp of a sum of the steps -decay Delta between two tokens: of the rest of j's block of 8
 * tokens, of whole blocks and of the beginning of i's. All terms have one sign: no differences of long sums,
 * no division by a decay, and what lies in the future is masked before exp. C B^T is of f16 as they come.
 * Every other operand of a product (the weighed r, C B^T * L * Delta, r, S) is f32, whose range f16 does not
 * have, and goes in as hi + lo, two bf16; B and C beside them too, which is exact (11 bits are 8 and at most 3):
 * of the products hi hi, hi lo and lo hi what is lost is below 2^-16 of each summand. Sums and states are f32.
 * Measured in the harness against float64, decay Delta from 1e-6 to 50: the state is off by up to 9e-6 of its
 * largest element, where the token scan is by up to 5e-7, and y, which is rounded to f16, by the same 5e-4 of its
 * head's largest at most, 2e-4 in the mean square.
 * Where a head's summands cancel the norm enlarges what is left and its error: the harness follows 2^-15 of the
 * summands' sizes through gate and norm, and no seed has gone beyond that.
 *
 * Counted at P = N = 64, a token and head: 35 K multiply-adds on matrix units (C B^T 2.5 K and the triangle
 * 7.5 K, of which future fragments are skipped, C S 12 K, the contribution 12 K) against 12 K of the token scan
 * on f32 units, of which there are a fifteenth. 1.1 KB of activations, B and C again for every head, and 4 x
 * 256 bytes of states to and from the scratch, which for a pass of 512 tokens fits in L2 (8 MB in use at e =
 * 4096). C B^T is formed again for every head of a group: a tenth of the products, for which heads need not wait
 * for each other. In respond four warps share 55 KB: four blocks per SM on sm_90 (128 registers), two on
 * sm_80; contribute takes 28 KB. Counted and compiled, not timed.
 *
 * Heads of up to 128 channels are padded with zeros to multiples of 16; larger ones are left to scan_s6.cu. States
 * of more than 128 go by in slabs of up to so many, padded too: B, C and S are staged, C B^T and C S summed on, slab
 * by slab. */
#include "kernels/mma_cuda.h"
#include "kernels/scan/scan_cuda.h"

namespace {

enum {
    WARP = 32,
    N_WARP = 4,
    THREADS = N_WARP * WARP,
    CHUNK = SL_S6_CHUNK,
    SLOT = CHUNK / 2,    /* rows of the pass per place in the scratch: see find_chunk */
    SPAN = 16,           /* tokens, channels or states of a fragment */
    TILE = 8,            /* columns of a fragment of sums, and tokens whose steps are summed directly */
    N_TILE = CHUNK / TILE,
    PIECE = 8,           /* elements of 16 bytes */
    PAD = 8,             /* behind the rows of a tile: eight rows of 16 bytes hit all banks */
    PART = 32,           /* channels of a warp's share of a contribution */
    MAX_SIDE = 128,      /* channels, and states of a slab */
    PASS_THREADS = 256,
    AHEAD = 4            /* chunks that are loaded together in a pass over them */
};

struct chunk_launch {
    sl_s6_cuda_args a;
    uint32_t n_head, n_slot;
    uint32_t width, depth; /* channels, and states of a slab, padded */
    bool wide_r, wide_bc;  /* r and s, B and C can be read 16 bytes at a time */
    bool even, wide_state; /* and states two or four floats */
};

/* Shared memory of a block, b, c and s of a slab. Tiles of bf16, b and c of f16, rows of width + PAD or depth +
 * PAD. */
struct chunk_memory {
    float *delta, *step;    /* [CHUNK] Delta; decay Delta */
    float *before, *after;  /* [CHUNK] steps of the token's block of TILE up to it; behind it */
    uint16_t *r_hi, *r_lo;  /* [CHUNK, width] */
    uint16_t *b, *c;        /* [CHUNK, depth] */
    uint16_t *s_hi, *s_lo;  /* [depth, width] the state at the chunk's beginning */
    float *y;               /* [CHUNK, width], in the place of s */
};

enum { STEP_BYTES = 4 * CHUNK * sizeof(float) };

__host__ __device__ __forceinline__ uint32_t tile_bytes(uint32_t rows, uint32_t columns) {
    return rows * (columns + PAD) * static_cast<uint32_t>(sizeof(uint16_t));
}

__device__ __forceinline__ chunk_memory memory_at(unsigned char *shared, const chunk_launch &l) {
    const uint32_t r = tile_bytes(CHUNK, l.width), b = tile_bytes(CHUNK, l.depth);
    unsigned char *tiles = shared + STEP_BYTES;
    chunk_memory m;
    m.delta = reinterpret_cast<float *>(shared);
    m.step = m.delta + CHUNK, m.before = m.step + CHUNK, m.after = m.before + CHUNK;
    m.r_hi = reinterpret_cast<uint16_t *>(tiles);
    m.r_lo = reinterpret_cast<uint16_t *>(tiles + r);
    m.b = reinterpret_cast<uint16_t *>(tiles + 2 * r);
    m.c = reinterpret_cast<uint16_t *>(tiles + 2 * r + b);
    m.s_hi = reinterpret_cast<uint16_t *>(tiles + 2 * r + 2 * b);
    m.s_lo = m.s_hi + l.depth * (l.width + PAD);
    m.y = reinterpret_cast<float *>(m.s_hi);
    return m;
}

size_t contribute_bytes(const chunk_launch &l) {
    return STEP_BYTES + 2 * tile_bytes(CHUNK, l.width) + tile_bytes(CHUNK, l.depth);
}

size_t respond_bytes(const chunk_launch &l) {
    const uint32_t tokens = CHUNK, rows = l.depth > tokens ? l.depth : tokens; /* two bf16, or a float */
    return STEP_BYTES + 2 * tile_bytes(CHUNK, l.width) + 2 * tile_bytes(CHUNK, l.depth) +
           2 * tile_bytes(rows, l.width);
}

/* ---- the block's chunk -------------------------------------------------------------------------- */

struct chunk {
    uint64_t row; /* deep row of its first token */
    uint32_t n, head, slot;
};

/* Which chunk lies at the block's place in the scratch; false: none. Chunk k of a run that starts in row r lies
 * at r / SLOT + k. Long runs do not meet there: n >= CHUNK rows cover at least floor(n / SLOT) >= ceil(n /
 * CHUNK) places. So the run, if there is one, is the last whose first place is not behind this one. */
__device__ bool find_chunk(const chunk_launch &l, chunk &at) {
    const uint32_t *start = l.a.runs.start, slot = blockIdx.y;
    for (uint32_t n = l.a.runs.n; n > 1;) {
        const uint32_t half = n / 2;
        if (start[half] / SLOT <= slot) start += half, n -= half;
        else n = half;
    }
    const uint32_t n_tok = start[1] - start[0], from = (slot - start[0] / SLOT) * CHUNK;
    at.row = static_cast<uint64_t>(start[0]) + from;
    at.n = min(static_cast<uint32_t>(CHUNK), n_tok - from);
    at.head = blockIdx.x, at.slot = slot;
    return n_tok >= CHUNK && from < n_tok;
}

/* The head's part of the scratch, [N, P]: the chunk's contribution, then the state at its beginning. */
__device__ __forceinline__ float *state_of(const chunk_launch &l, const chunk &at) {
    return l.a.scratch + (static_cast<uint64_t>(at.slot) * l.n_head + at.head) * l.a.n_state * l.a.head_dim;
}
__device__ __forceinline__ float *fades(const chunk_launch &l, uint32_t slot) {
    return l.a.scratch + static_cast<uint64_t>(l.n_slot) * l.a.e * l.a.n_state +
           static_cast<uint64_t>(slot) * l.n_head;
}

/* ---- staging ------------------------------------------------------------------------------------ */

/* Past the chunk's tokens Delta is 0. */
__device__ void stage_steps(const chunk_launch &l, const chunk &at, const chunk_memory &m) {
    const uint32_t t = threadIdx.x;
    if (t < CHUNK) {
        m.delta[t] = t < at.n ? sl_s6_delta<sl_f16>(l.a, at.row + t, at.head) : 0;
        m.step[t] = l.a.decay[at.head] * m.delta[t];
    }
    __syncthreads();
    if (t < CHUNK) {
        m.before[t] = sl_scan_sum(m.step, t / TILE * TILE, t + 1);
        m.after[t] = sl_scan_sum(m.step, t + 1, (t / TILE + 1) * TILE);
    }
    __syncthreads();
}

/* Steps of whole blocks from .. to - 1. */
__device__ __forceinline__ float sum_blocks(const chunk_memory &m, uint32_t from, uint32_t to) {
    float sum = 0;
    for (uint32_t k = from; k < to; k++) sum += m.before[k * TILE + TILE - 1];
    return sum;
}

/* The slab from state `first` on of the columns of B or C to a tile, zeros around them; the copies are a group of
 * their own. */
__device__ void stage_rows(const chunk_launch &l, const chunk &at, uint64_t column, uint32_t first,
                           uint16_t *tile) {
    const uint32_t pieces = l.depth / PIECE, left = l.a.n_state - first;
    for (uint32_t i = threadIdx.x; i < CHUNK * pieces; i += THREADS) {
        const uint32_t t = i / pieces, n = i % pieces * PIECE;
        const sl_f16 *from = sl_s6_in<sl_f16>(l.a, at.row + t, column + first + n);
        uint16_t *to = tile + t * (l.depth + PAD) + n;
        if (l.wide_bc) sl_copy_async16_zero(to, from, t < at.n && n < left);
        else
            for (uint32_t j = 0; j < PIECE; j++) to[j] = t < at.n && n + j < left ? from[j].bits : 0;
    }
    sl_copy_async_commit();
}

/* Once this thread's copies of stage_rows are there: an infinity that cuBLAS stored becomes the largest number. */
__device__ void saturate_rows(const chunk_launch &l, uint16_t *tile) {
    const uint32_t pieces = l.depth / PIECE;
    for (uint32_t i = threadIdx.x; i < CHUNK * pieces; i += THREADS) {
        uint4 *at = reinterpret_cast<uint4 *>(tile + i / pieces * (l.depth + PAD) + i % pieces * PIECE);
        const uint4 v = *at;
        *at = make_uint4(sl_saturate_halves(v.x), sl_saturate_halves(v.y), sl_saturate_halves(v.z),
                         sl_saturate_halves(v.w));
    }
}

__device__ __forceinline__ uint4 pack_piece(const uint16_t *v) {
    uint32_t words[PIECE / 2];
#pragma unroll
    for (int j = 0; j < PIECE / 2; j++) words[j] = v[2 * j] | static_cast<uint32_t>(v[2 * j + 1]) << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/* v as two rows of bf16. */
__device__ __forceinline__ void split_piece(const float *v, uint16_t *hi, uint16_t *lo) {
    uint16_t h[PIECE], r[PIECE];
#pragma unroll
    for (int j = 0; j < PIECE; j++) sl_split_bf16(v[j], h + j, r + j);
    *reinterpret_cast<uint4 *>(hi) = pack_piece(h);
    *reinterpret_cast<uint4 *>(lo) = pack_piece(r);
}

__device__ __forceinline__ void load_r(const chunk_launch &l, const chunk &at, uint32_t t, uint32_t p,
                                       float *r) {
    const uint64_t row = at.row + t, c = static_cast<uint64_t>(at.head) * l.a.head_dim + p;
    const sl_f16 *in = sl_s6_in<sl_f16>(l.a, row, l.a.e + c), *s = sl_s6_s<sl_f16>(l.a, row, c);
    if (l.wide_r) {
        float add[PIECE];
        sl_load8(in, r);
        if (s) sl_load8(s, add);
        for (uint32_t j = 0; s && j < PIECE; j++) r[j] = sl_silu<sl_f16>(r[j] + add[j]);
    } else
        for (uint32_t j = 0; j < PIECE; j++)
            if (p + j < l.a.head_dim) r[j] = sl_scan_input(in + j, s ? s + j : s);
}

/* r, or weight r; zeros past the tokens and channels. */
__device__ void stage_r(const chunk_launch &l, const chunk &at, const chunk_memory &m, const float *weight) {
    const uint32_t pieces = l.width / PIECE;
    for (uint32_t i = threadIdx.x; i < CHUNK * pieces; i += THREADS) {
        const uint32_t t = i / pieces, p = i % pieces * PIECE, to = t * (l.width + PAD) + p;
        float r[PIECE] = {0};
        if (t < at.n && p < l.a.head_dim) load_r(l, at, t, p, r);
#pragma unroll
        for (int j = 0; j < PIECE; j++) r[j] *= weight ? weight[t] : 1;
        split_piece(r, m.r_hi + to, m.r_lo + to);
    }
}

__device__ void stage_state(const chunk_launch &l, const chunk &at, const chunk_memory &m, uint32_t first) {
    const uint32_t pieces = l.width / PIECE, left = l.a.n_state - first;
    const float *state = state_of(l, at) + first * l.a.head_dim;
    for (uint32_t i = threadIdx.x; i < l.depth * pieces; i += THREADS) {
        const uint32_t n = i / pieces, p = i % pieces * PIECE, to = n * (l.width + PAD) + p;
        const float *from = state + n * l.a.head_dim + p;
        float s[PIECE] = {0};
#pragma unroll
        for (uint32_t j = 0; j < PIECE; j += 4) {
            if (l.wide_state && n < left && p + j < l.a.head_dim) sl_load4(from + j, s + j);
            for (uint32_t k = j; !l.wide_state && k < j + 4; k++)
                if (n < left && p + k < l.a.head_dim) s[k] = from[k];
        }
        split_piece(s, m.s_hi + to, m.s_lo + to);
    }
}

/* ---- fragments ---------------------------------------------------------------------------------- */

/* Of the left factor, rows row .. + 15 and columns column .. + 15 of a tile; and of its transpose. */
__device__ __forceinline__ void load_left(uint32_t f[4], const uint16_t *tile, uint32_t stride, uint32_t row,
                                          uint32_t column) {
    const uint32_t lane = threadIdx.x % WARP;
    sl_mma_load(f, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
}
__device__ __forceinline__ void load_left_transposed(uint32_t f[4], const uint16_t *tile, uint32_t stride,
                                                     uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % WARP;
    sl_mma_load_transposed(f, tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
}
/* Two of the right factor, f and f + 2, 8 columns each; and of its transpose. */
__device__ __forceinline__ void load_right(uint32_t f[4], const uint16_t *tile, uint32_t stride, uint32_t row,
                                           uint32_t column) {
    const uint32_t lane = threadIdx.x % WARP;
    sl_mma_load_transposed(f, tile + (row + lane % 16) * stride + column + lane / 16 * 8);
}
__device__ __forceinline__ void load_right_transposed(uint32_t f[4], const uint16_t *tile, uint32_t stride,
                                                      uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % WARP;
    sl_mma_load(f, tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
}

/* v[0] and v[1] as the halves of words, hi + lo. */
__device__ __forceinline__ void split_pair(const float *v, uint32_t *hi, uint32_t *lo) {
    uint16_t h[2], r[2];
    sl_split_bf16(v[0], h, r);
    sl_split_bf16(v[1], h + 1, r + 1);
    *hi = h[0] | static_cast<uint32_t>(h[1]) << 16;
    *lo = r[0] | static_cast<uint32_t>(r[1]) << 16;
}

/* A left factor that is f32, or f16 as it lies in a tile: hi + lo of bf16. */
struct split_left {
    uint32_t hi[4], lo[4];
};
__device__ __forceinline__ void split_half(const uint32_t f[4], split_left &left) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float v[2];
        sl_unpack_half(f[i], v);
        split_pair(v, left.hi + i, left.lo + i);
    }
}

/* Two tiles of sums: a left factor times a right one, both split. */
__device__ __forceinline__ void multiply_pair(float (*sum)[4], const uint32_t *left, const uint32_t *right) {
    sl_mma_bf16(sum[0], left, right);
    sl_mma_bf16(sum[1], left, right + 2);
}
__device__ __forceinline__ void multiply_split(float (*sum)[4], const split_left &left, const uint16_t *hi,
                                               const uint16_t *lo, uint32_t stride, uint32_t row,
                                               uint32_t column) {
    uint32_t right[4];
    load_right(right, hi, stride, row, column);
    multiply_pair(sum, left.hi, right);
    multiply_pair(sum, left.lo, right);
    load_right(right, lo, stride, row, column);
    multiply_pair(sum, left.hi, right);
}

/* ---- contribute --------------------------------------------------------------------------------- */

__device__ __forceinline__ void store_pair(const chunk_launch &l, float *row, uint32_t p, const float *v) {
    if (l.even && p < l.a.head_dim) *reinterpret_cast<float2 *>(row + p) = make_float2(v[0], v[1]);
    for (uint32_t j = 0; !l.even && j < 2; j++)
        if (p + j < l.a.head_dim) row[p + j] = v[j];
}

/* SPAN states of PART channels over all tokens, by a warp. n: of the slab from `first` on. */
__device__ void contribute_part(const chunk_launch &l, const chunk &at, const chunk_memory &m, uint32_t first,
                                uint32_t n, uint32_t p) {
    const uint32_t g = threadIdx.x % WARP / 4, q = threadIdx.x % 4;
    float sum[PART / TILE][4] = {{0}};
    for (uint32_t t = 0; t < at.n; t += SPAN) {
        uint32_t b[4];
        split_left left;
        load_left_transposed(b, m.b, l.depth + PAD, t, n);
        split_half(b, left);
#pragma unroll
        for (uint32_t i = 0; i < PART / SPAN; i++) {
            if (p + i * SPAN >= l.width) continue;
            multiply_split(sum + 2 * i, left, m.r_hi, m.r_lo, l.width + PAD, t, p + i * SPAN);
        }
    }
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t row = first + n + g + half * 8;
        if (row >= l.a.n_state) continue;
#pragma unroll
        for (uint32_t i = 0; i < PART / TILE; i++)
            store_pair(l, state_of(l, at) + row * l.a.head_dim, p + i * TILE + 2 * q, sum[i] + 2 * half);
    }
}

/* Delta becomes what is left of a token's input at the end of the chunk. */
__device__ void weigh_inputs(const chunk_launch &l, const chunk &at, const chunk_memory &m) {
    const uint32_t t = threadIdx.x;
    if (t < CHUNK) m.delta[t] *= expf(-(m.after[t] + sum_blocks(m, t / TILE + 1, N_TILE)));
    if (t == 0) fades(l, at.slot)[at.head] = expm1f(-sum_blocks(m, 0, N_TILE));
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS, 8) contribute(chunk_launch l) {
    sl_begin();
    SL_SHARED(unsigned char, shared);
    chunk at;
    if (!find_chunk(l, at)) return;
    const chunk_memory m = memory_at(shared, l);
    stage_rows(l, at, sl_s6_b(l.a, at.head), 0, m.b);
    stage_steps(l, at, m);
    weigh_inputs(l, at, m);
    stage_r(l, at, m, m.delta);
    const uint32_t parts = (l.width + PART - 1) / PART, all = l.depth / SPAN * parts;
    for (uint32_t first = 0;;) {
        sl_copy_async_wait<0>();
        saturate_rows(l, m.b);
        __syncthreads();
        for (uint32_t i = threadIdx.x / WARP; i < all; i += N_WARP)
            contribute_part(l, at, m, first, i / parts * SPAN, i % parts * PART);
        if ((first += l.depth) >= l.a.n_state) return;
        __syncthreads(); /* the next slab takes the place of this one */
        stage_rows(l, at, sl_s6_b(l.a, at.head), first, m.b);
    }
}

/* ---- pass --------------------------------------------------------------------------------------- */

/* An element of a run's state over its chunks. */
__global__ void __launch_bounds__(PASS_THREADS) pass(chunk_launch l) {
    sl_begin();
    const uint32_t run = blockIdx.y, start = l.a.runs.start[run], n_tok = l.a.runs.start[run + 1] - start;
    const uint32_t element = blockIdx.x * PASS_THREADS + threadIdx.x, n_element = l.a.e * l.a.n_state;
    if (n_tok < CHUNK || element >= n_element) return;
    const uint32_t head = element / (l.a.n_state * l.a.head_dim), n_chunk = (n_tok + CHUNK - 1) / CHUNK;
    float *state = l.a.state.data + l.a.runs.slot[run] * l.a.state.slot_stride + element;
    float *place = l.a.scratch + static_cast<uint64_t>(start / SLOT) * n_element + element;
    const float *fade_at = fades(l, start / SLOT) + head;
    float s = *state;
    for (uint32_t k = 0; k < n_chunk; k += AHEAD) {
        float in[AHEAD], fade[AHEAD];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            const bool there = k + i < n_chunk;
            in[i] = there ? place[static_cast<uint64_t>(k + i) * n_element] : 0;
            fade[i] = there ? fade_at[(k + i) * l.n_head] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            if (k + i < n_chunk) place[static_cast<uint64_t>(k + i) * n_element] = s;
            s += fade[i] * s + in[i];
        }
    }
    *state = s;
}

/* ---- respond ------------------------------------------------------------------------------------ */

/* C_i B_j of the warp's SPAN tokens i from `from` on and all up to them: what the slab adds. */
__device__ void multiply_tokens(const chunk_launch &l, const chunk_memory &m, uint32_t from,
                                float seen[N_TILE][4]) {
    for (uint32_t n = 0; n < l.depth; n += SPAN) {
        uint32_t c[4], b[4];
        load_left(c, m.c, l.depth + PAD, from, n);
#pragma unroll
        for (uint32_t t = 0; t < CHUNK; t += SPAN) {
            if (t > from) continue;
            load_right_transposed(b, m.b, l.depth + PAD, t, n);
            sl_mma_f16(seen[t / TILE], c, b);
            sl_mma_f16(seen[t / TILE + 1], c, b + 2);
        }
    }
}

/* Row i, which half of the fragments holds, times the decays and Delta. Backwards over the blocks of tokens:
 * passed is what lies between a block's end and i. */
__device__ __forceinline__ void weigh_tokens(const chunk_memory &m, uint32_t i, uint32_t half,
                                             float seen[N_TILE][4]) {
    const uint32_t own = i / TILE, q = threadIdx.x % 4;
    float passed = m.before[i];
#pragma unroll
    for (int k = N_TILE - 1; k >= 0; k--) {
        const uint32_t block = static_cast<uint32_t>(k);
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) {
            const uint32_t j = block * TILE + 2 * q + c;
            float decay = 0;
            if (block == own) decay = sl_scan_decay(m.step, j, i);
            if (block < own) decay = expf(-(passed + m.after[j]));
            seen[k][2 * half + c] *= decay * m.delta[j];
        }
        if (block < own) passed += m.before[block * TILE + TILE - 1];
    }
}

/* y += C S of the slab. */
template <int PAIRS>
__device__ __forceinline__ void add_state(const chunk_launch &l, const chunk_memory &m, uint32_t from,
                                          float y[2 * PAIRS][4]) {
    for (uint32_t n = 0; n < l.depth; n += SPAN) {
        uint32_t c[4];
        split_left left;
        load_left(c, m.c, l.depth + PAD, from, n);
        split_half(c, left);
#pragma unroll
        for (uint32_t i = 0; i < PAIRS; i++) {
            if (i * SPAN >= l.width) continue;
            multiply_split(y + 2 * i, left, m.s_hi, m.s_lo, l.width + PAD, n, i * SPAN);
        }
    }
}

/* y *= L_start. */
template <int PAIRS>
__device__ __forceinline__ void decay_state(const chunk_memory &m, uint32_t from, float y[2 * PAIRS][4]) {
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t t = from + threadIdx.x % WARP / 4 + half * 8;
        const float decay = expf(-(m.before[t] + sum_blocks(m, 0, t / TILE)));
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; i++) y[i][2 * half] *= decay, y[i][2 * half + 1] *= decay;
    }
}

/* Sums as the fragment of a left factor: two tiles side by side are SPAN columns of it. */
__device__ __forceinline__ void split_sums(const float (*sum)[4], split_left &left) {
#pragma unroll
    for (int i = 0; i < 4; i++) split_pair(sum[i / 2] + i % 2 * 2, left.hi + i, left.lo + i);
}

/* y += seen r. */
template <int PAIRS>
__device__ __forceinline__ void add_tokens(const chunk_launch &l, const chunk_memory &m, uint32_t from,
                                           const float seen[N_TILE][4], float y[2 * PAIRS][4]) {
#pragma unroll
    for (uint32_t t = 0; t < CHUNK; t += SPAN) {
        if (t > from) continue;
        split_left left;
        split_sums(seen + t / TILE, left);
#pragma unroll
        for (uint32_t i = 0; i < PAIRS; i++) {
            if (i * SPAN >= l.width) continue;
            multiply_split(y + 2 * i, left, m.r_hi, m.r_lo, l.width + PAD, t, i * SPAN);
        }
    }
}

/* Two numbers of which each word holds a part, in bf16. */
__device__ __forceinline__ float2 joined(uint32_t hi, uint32_t lo) {
    return make_float2(__uint_as_float(hi << 16) + __uint_as_float(lo << 16),
                       __uint_as_float(hi & 0xffff0000u) + __uint_as_float(lo & 0xffff0000u));
}

/* y + skip r of the warp's tokens to shared memory, and from there through gate and norm. */
template <int PAIRS>
__device__ void finish(const chunk_launch &l, const chunk &at, const chunk_memory &m, uint32_t from,
                       const float y[2 * PAIRS][4]) {
    const uint32_t g = threadIdx.x % WARP / 4, q = threadIdx.x % 4, stride = l.width + PAD;
    const float *skip = l.a.skip + static_cast<uint64_t>(at.head) * l.a.head_dim;
#pragma unroll
    for (uint32_t i = 0; i < 2 * 2 * PAIRS; i++) { /* two channels each; what is past the last nobody reads */
        const uint32_t p = i / 2 * TILE + 2 * q, place = (from + g + i % 2 * 8) * stride + p;
        if (p >= l.a.head_dim) continue;
        const float2 r = joined(*reinterpret_cast<const uint32_t *>(m.r_hi + place),
                                *reinterpret_cast<const uint32_t *>(m.r_lo + place));
        const float *sum = y[i / 2] + i % 2 * 2, next = p + 1 < l.a.head_dim ? skip[p + 1] : 0;
        *reinterpret_cast<float2 *>(m.y + place) = make_float2(sum[0] + skip[p] * r.x, sum[1] + next * r.y);
    }
    __syncwarp();
    for (uint32_t t = from; t < min(from + SPAN, at.n); t++)
        sl_s6_finish<sl_f16>(l.a, at.row + t, at.head, m.y + t * stride);
}

__device__ __forceinline__ void stage_bc(const chunk_launch &l, const chunk &at, const chunk_memory &m,
                                         uint32_t first) {
    stage_rows(l, at, sl_s6_b(l.a, at.head), first, m.b);
    stage_rows(l, at, sl_s6_c(l.a, at.head), first, m.c);
}

/* PAIRS: of tiles of channels that a warp keeps. */
template <int PAIRS> __global__ void __launch_bounds__(THREADS) respond(chunk_launch l) {
    sl_begin();
    SL_SHARED(unsigned char, shared);
    chunk at;
    if (!find_chunk(l, at)) return;
    const chunk_memory m = memory_at(shared, l);
    const uint32_t from = threadIdx.x / WARP * SPAN, row = from + threadIdx.x % WARP / 4;
    float seen[N_TILE][4] = {{0}}, y[2 * PAIRS][4] = {{0}};
    stage_bc(l, at, m, 0);
    stage_steps(l, at, m);
    stage_r(l, at, m, nullptr);
    for (uint32_t first = 0;;) {
        stage_state(l, at, m, first);
        sl_copy_async_wait<0>();
        saturate_rows(l, m.b);
        saturate_rows(l, m.c);
        __syncthreads();
        if (from < at.n) add_state<PAIRS>(l, m, from, y), multiply_tokens(l, m, from, seen);
        __syncthreads(); /* the next slab, or y, takes the place of this one */
        if ((first += l.depth) >= l.a.n_state) break;
        stage_bc(l, at, m, first);
    }
    if (from >= at.n) return;
    decay_state<PAIRS>(m, from, y);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) weigh_tokens(m, row + half * 8, half, seen);
    add_tokens<PAIRS>(l, m, from, seen, y);
    finish<PAIRS>(l, at, m, from, y);
}

/* ---- launches ----------------------------------------------------------------------------------- */

/* States of a slab: as many slabs as are needed, of one size. */
uint32_t slab_depth(uint32_t n_state) {
    const uint32_t n_slab = sl_ceil_div(n_state, MAX_SIDE);
    return sl_ceil_div(sl_ceil_div(n_state, n_slab), SPAN) * SPAN;
}

chunk_launch plan(const sl_s6_cuda_args &a) {
    chunk_launch l = {};
    l.a = a;
    l.n_head = a.e / a.head_dim;
    l.n_slot = a.max_row / SLOT;
    l.width = sl_ceil_div(a.head_dim, SPAN) * SPAN;
    l.depth = slab_depth(a.n_state);
    l.wide_r = a.head_dim % PIECE == 0;
    l.wide_bc = a.n_state % PIECE == 0 && 2 * a.e % PIECE == 0;
    l.even = a.head_dim % 2 == 0;
    l.wide_state = a.head_dim % 4 == 0;
    return l;
}

} /* namespace */

uint64_t sl_s6_scratch_cuda(uint32_t max_row, uint32_t e, uint32_t head_dim, uint32_t n_state) {
    if (max_row < CHUNK || head_dim > MAX_SIDE) return 0;
    return static_cast<uint64_t>(max_row / SLOT) * (static_cast<uint64_t>(e) * n_state + e / head_dim);
}

size_t sl_s6_shared_cuda(uint32_t head_dim, uint32_t n_state) {
    sl_s6_cuda_args a = {};
    a.e = a.head_dim = head_dim, a.n_state = n_state;
    return respond_bytes(plan(a));
}

uint32_t sl_s6_chunked(const sl_s6_cuda_args *args) {
    const bool chunked = args->scratch && args->act == SL_ACT_F16 &&
                         ::sl_s6_scratch_cuda(args->max_row, args->e, args->head_dim, args->n_state) > 0;
    return chunked ? static_cast<uint32_t>(CHUNK) : UINT32_MAX;
}

int sl_s6_chunk_cuda(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    if (args->runs.max_tok < ::sl_s6_chunked(args)) return 0;
    const chunk_launch l = plan(*args);
    const dim3 grid(l.n_head, l.n_slot), block(THREADS);
    const dim3 elements(sl_ceil_div(args->e * args->n_state, PASS_THREADS), args->runs.n);
    int e = sl_launch(contribute, grid, block, contribute_bytes(l), stream, l);
    if (!e) e = sl_launch(pass, elements, dim3(PASS_THREADS), 0, stream, l);
    if (!e) e = sl_launch(l.width <= 64 ? respond<4> : respond<8>, grid, block, respond_bytes(l), stream, l);
    return e;
}
