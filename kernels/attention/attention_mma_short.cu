/* Causal attention of single queries and short runs on the matrix units of a CUDA device, for f16 activations over
 * f16 keys and values. A query stands alone: a run's rows are so many of them, so that a row's bits do not depend on
 * how many came with it. Its keys are cut into chunks (attention_cuda.h), which single queries deal out to the blocks
 * of a grid and fold together in a second launch, rows of a run take in turn.
 *
 * What bounds it is memory: 4 P bytes a key for up to HEADS query heads of a group, and nothing but that should be
 * waited for. So keys and values go from memory to registers and from there to the units, without shared memory or
 * barriers: a warp takes every fourth TILE of a chunk by itself (beyond 128 components every second, and half of the
 * values' columns), asks for the next keys once it has the scores, for the next values once it has added these. Keys, or
 * columns of values, are the 16 rows of an instruction, the heads its 8 columns. With (g, q) = (lane / 4, lane % 4) a
 * lane loads 16 bytes at a time of the keys g and g + 8 and of the values 2 q, 2 q + 1, 2 q + 8, 2 q + 9; the order of
 * components inside a sum, and of rows of the result, is free, so each word is an operand as it lies (keys) or with its
 * neighbour's halves (values).
 *
 * What is rounded: as in attention_mma.cu. Sums stand for exp2(top) times themselves, here. */
#include "kernels/approx_cuda.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/mma_cuda.h"

using attention::LIFT;
using attention::LOG2_E;
using attention::THREADS;

namespace {

enum { TILE = 16, HEADS = 8, WARPS = THREADS / 32 };

struct short_args {
    sl_attention_cuda_args a;
    uint32_t group, pieces; /* query heads of a kv head, and blocks that take HEADS of them each */
    float unit;             /* scores times it are logarithms to base 2 */
    bool aligned;           /* rows of q, for 16 bytes at a time */
};

/* A block's query: heads head .. head + n_head - 1 of a row, over one kv head. */
struct query {
    const uint16_t *k, *v; /* position 0 */
    uint64_t row;          /* of the batch */
    uint32_t head, n_head, dim;
    attention::sight seen;
    bool aligned; /* keys and values */
};

/* How the warps share a tile's columns, and the tiles. */
template <int WIDTH> struct division {
    enum { COLUMNS = WIDTH < 128 ? WIDTH : 128, PARTS = WIDTH / COLUMNS, TEAMS = WARPS / PARTS, STEP = TILE * TEAMS };
    static __device__ __forceinline__ unsigned team() { return threadIdx.x / 32 / PARTS; }
    static __device__ __forceinline__ unsigned first_column() { return threadIdx.x / 32 % PARTS * COLUMNS; }
};

/* What a lane holds of a tile. */
template <int WIDTH> struct keys {
    uint32_t word[2][WIDTH / 32][4];
};
template <int WIDTH> struct values {
    uint32_t word[4][division<WIDTH>::COLUMNS / 64][4];
};

/* A lane's sums of its warp's share of a chunk, of heads 2 q (0) and 2 q + 1: total over its own keys; of the values
 * sum[4 j + c][0], [1] at column 64 j + 8 g + 2 c of the warp's, [2], [3] at the next. */
template <int WIDTH> struct lane_sums {
    float top[2], total[2], sum[division<WIDTH>::COLUMNS / 16][4];
};

/* What the teams of warps found of a chunk, and in runs of several rows the chunks so far. */
template <int WIDTH> struct shared_sums {
    enum { TEAMS = division<WIDTH>::TEAMS, STRIDE = WIDTH + 4 };
    attention::softmax part[TEAMS][HEADS], whole[HEADS];
    float sum[TEAMS][HEADS][STRIDE];
    float folded[HEADS][WIDTH];
};

/* Blocks on a processor, by what registers they take. */
constexpr int blocks_of(int width) { return width > 128 ? 2 : width > 64 ? 3 : 4; }

/* ---- from memory ---------------------------------------------------------------------------------- */

/* Components at .. at + 7 of a row; zeros beyond dim, and of a row that is not there. */
__device__ __forceinline__ void take8(uint32_t word[4], const uint16_t *row, uint32_t at, uint32_t dim, bool there,
                                      bool aligned) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (there && at < dim && aligned)
        x = *reinterpret_cast<const uint4 *>(row + at);
    word[0] = x.x, word[1] = x.y, word[2] = x.z, word[3] = x.w;
    if (aligned || !there)
        return;
    for (uint32_t i = 0; i < 8; i++)
        if (at + i < dim)
            word[i / 2] |= static_cast<uint32_t>(row[at + i]) << i % 2 * 16;
}

/* Part of a chunk: the keys from .. to - 1 behind a position, and where they begin in memory at that. */
struct span {
    const uint16_t *k, *v;
    uint32_t from, to, dim;
    bool aligned;
};
__device__ __forceinline__ bool is_seen(const span &s, uint32_t key) { return key >= s.from && key < s.to; }

/* Lanes that read element by element went ways of their own; products are a whole warp's. */
__device__ __forceinline__ void come_together(bool aligned) {
    if (!aligned)
        __syncwarp();
}

template <int WIDTH> __device__ __forceinline__ void take_keys(keys<WIDTH> &k, const span &s, uint32_t base) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        const uint32_t key = base + lane / 4 + 8 * r;
#pragma unroll
        for (unsigned i = 0; i < WIDTH / 32; i++)
            take8(k.word[r][i], s.k + static_cast<uint64_t>(key) * s.dim, 32 * i + lane % 4 * 8, s.dim, is_seen(s, key),
                  s.aligned);
    }
    come_together(s.aligned);
}

template <int WIDTH> __device__ __forceinline__ void take_values(values<WIDTH> &v, const span &s, uint32_t base) {
    const unsigned lane = threadIdx.x % 32, col = division<WIDTH>::first_column() + lane / 4 * 8;
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        const uint32_t key = base + lane % 4 * 2 + r % 2 + r / 2 * 8;
#pragma unroll
        for (unsigned j = 0; j < division<WIDTH>::COLUMNS / 64; j++)
            take8(v.word[r][j], s.v + static_cast<uint64_t>(key) * s.dim, 64 * j + col, s.dim, is_seen(s, key), s.aligned);
    }
    come_together(s.aligned);
}

/* Head g of the block's, laid out as a key. */
template <int WIDTH>
__device__ void take_query(uint32_t word[WIDTH / 32][4], const short_args &p, const query &s) {
    const unsigned lane = threadIdx.x % 32, head = lane / 4;
    const uint16_t *q = static_cast<const uint16_t *>(p.a.q) + s.row * p.a.q_stride +
                        static_cast<uint64_t>(s.head + head) * s.dim;
#pragma unroll
    for (unsigned i = 0; i < WIDTH / 32; i++)
        take8(word[i], q, 32 * i + lane % 4 * 8, s.dim, head < s.n_head, p.aligned);
    come_together(p.aligned);
}

/* ---- a tile --------------------------------------------------------------------------------------- */

/* Of keys g (score[0], [1]) and g + 8 with heads 2 q and 2 q + 1. */
template <int WIDTH>
__device__ __forceinline__ void score_tile(const keys<WIDTH> &k, const uint32_t q[WIDTH / 32][4], float score[4]) {
    score[0] = score[1] = score[2] = score[3] = 0;
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++)
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
            const uint32_t a[4] = {k.word[0][i][w], k.word[1][i][w], k.word[0][i][w + 1], k.word[1][i][w + 1]};
            sl_mma_f16(score, a, q[i] + w);
        }
}

/* Over the lanes that share q. */
__device__ __forceinline__ float column_max(float v) {
    for (int step = 4; step < 32; step *= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}
__device__ __forceinline__ float column_sum(float v) {
    for (int step = 4; step < 32; step *= 2)
        v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* Scores to weights; how what was before fades. */
template <int WIDTH>
__device__ __forceinline__ void weigh(lane_sums<WIDTH> &mine, const span &s, uint32_t base, float unit,
                                      float score[4], float fade[2]) {
    const uint32_t key = base + threadIdx.x % 32 / 4;
    if (!is_seen(s, key))
        score[0] = score[1] = -INFINITY;
    if (!is_seen(s, key + 8))
        score[2] = score[3] = -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float best = column_max(fmaxf(score[h], score[h + 2]));
        const float top = fmaxf(mine.top[h], fmaf(best, unit, -LIFT));
        fade[h] = sl_exp2_approx(__fadd_rn(mine.top[h], -top));
        score[h] = sl_exp2_approx(fmaf(score[h], unit, -top));
        score[h + 2] = sl_exp2_approx(fmaf(score[h + 2], unit, -top));
        mine.total[h] = fmaf(mine.total[h], fade[h], __fadd_rn(score[h], score[h + 2]));
        mine.top[h] = top;
    }
}

/* The weights of head g for keys 2 q and 2 q + 1 of eight, of which each lane has two heads of key g. */
__device__ __forceinline__ uint32_t turn(float even, float odd) {
    const unsigned lane = threadIdx.x % 32, from = lane % 4 * 8 + lane / 8;
    const uint32_t word = sl_pack_half(even, odd);
    const uint32_t first = __shfl_sync(0xffffffffu, word, static_cast<int>(from)),
                   second = __shfl_sync(0xffffffffu, word, static_cast<int>(from + 4));
    return __byte_perm(first, second, lane / 4 % 2 ? 0x7632 : 0x5410);
}

/* sum = fade sum + weight v. */
template <int WIDTH>
__device__ __forceinline__ void add_values(const values<WIDTH> &v, const float weight[4], const float fade[2],
                                           lane_sums<WIDTH> &mine) {
    const uint32_t b[2] = {turn(weight[0], weight[1]), turn(weight[2], weight[3])};
#pragma unroll
    for (int j = 0; j < division<WIDTH>::COLUMNS / 64; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint32_t x[4] = {v.word[0][j][c], v.word[1][j][c], v.word[2][j][c], v.word[3][j][c]};
            const uint32_t a[4] = {__byte_perm(x[0], x[1], 0x5410), __byte_perm(x[0], x[1], 0x7632),
                                   __byte_perm(x[2], x[3], 0x5410), __byte_perm(x[2], x[3], 0x7632)};
            float *sum = mine.sum[4 * j + c];
            for (int i = 0; i < 4; i++)
                sum[i] = __fmul_rn(sum[i], fade[i % 2]);
            sl_mma_f16(sum, a, b);
        }
}

/* ---- a chunk -------------------------------------------------------------------------------------- */

/* Of a chunk what the query sees, behind a place where each team begins anew. (A chunk of more than 2^32 keys would be of
 * 2^38 in all.) */
__device__ span span_of(const query &s, uint64_t chunk) {
    const uint64_t from = max(s.seen.begin, chunk << s.seen.shift), to = min(s.seen.end, (chunk + 1) << s.seen.shift);
    const uint64_t origin = from / (TILE * WARPS) * (TILE * WARPS);
    return {s.k + origin * s.dim, s.v + origin * s.dim, static_cast<uint32_t>(from - origin),
            static_cast<uint32_t>(to - origin), s.dim, s.aligned};
}

/* The warp's tiles: those that its team's number is of all by absolute position. */
template <int WIDTH>
__device__ __forceinline__ void attend_tiles(const span &s, const uint32_t q[WIDTH / 32][4], float unit,
                                             lane_sums<WIDTH> &mine) {
    enum { STEP = division<WIDTH>::STEP };
    uint32_t base = division<WIDTH>::team() * TILE;
    mine.top[0] = mine.top[1] = -INFINITY;
    mine.total[0] = mine.total[1] = 0;
#pragma unroll
    for (int i = 0; i < division<WIDTH>::COLUMNS / 16 * 4; i++)
        mine.sum[i / 4][i % 4] = 0;
    while (base + TILE <= s.from)
        base += STEP;
    if (base >= s.to)
        return;
    keys<WIDTH> k;
    values<WIDTH> v;
    take_keys(k, s, base);
    take_values(v, s, base);
    for (; base < s.to; base += STEP) {
        float score[4], fade[2];
        score_tile<WIDTH>(k, q, score);
        if (base + STEP < s.to)
            take_keys(k, s, base + STEP);
        weigh(mine, s, base, unit, score, fade);
        add_values(v, score, fade, mine);
        if (base + STEP < s.to)
            take_values(v, s, base + STEP);
    }
}

template <int WIDTH> __device__ void share_sums(const lane_sums<WIDTH> &mine, shared_sums<WIDTH> *t) {
    const unsigned team = division<WIDTH>::team(), first = division<WIDTH>::first_column();
    const unsigned g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const float total = column_sum(mine.total[h]);
        if (g == 0 && first == 0)
            t->part[team][2 * q + h] = {mine.top[h], total};
#pragma unroll
        for (unsigned i = 0; i < division<WIDTH>::COLUMNS / 16; i++)
            *reinterpret_cast<float2 *>(&t->sum[team][2 * q + h][first + i / 4 * 64 + 8 * g + i % 4 * 2]) =
                make_float2(mine.sum[i][h], mine.sum[i][h + 2]);
    }
}

/* The sums of a head over the chunk: what each team's are to be multiplied with, for them. */
struct chunk_sums {
    attention::softmax part;
    float share[WARPS];
};
template <int WIDTH> __device__ chunk_sums sum_of(const shared_sums<WIDTH> &t, unsigned head) {
    chunk_sums s = {attention::nothing(), {0}};
    for (int i = 0; i < t.TEAMS; i++)
        s.part.top = fmaxf(s.part.top, t.part[i][head].top);
    for (int i = 0; i < t.TEAMS; i++) {
        s.share[i] = exp2f(__fadd_rn(t.part[i][head].top, -s.part.top));
        s.part.total = fmaf(s.share[i], t.part[i][head].total, s.part.total);
    }
    return s;
}
template <int WIDTH>
__device__ float value_of(const shared_sums<WIDTH> &t, const chunk_sums &s, unsigned head, uint32_t col) {
    float sum = 0;
    for (int i = 0; i < t.TEAMS; i++)
        sum = fmaf(s.share[i], t.sum[i][head][col], sum);
    return sum;
}

/* ---- blocks --------------------------------------------------------------------------------------- */

/* Row token of a run. */
__device__ query query_of(const short_args &p, uint32_t run, uint32_t token) {
    const uint32_t kv_head = blockIdx.y / p.pieces, piece = blockIdx.y % p.pieces, slot = p.a.runs.slot[run];
    const uint16_t *data = sl_kv_data<const uint16_t>(p.a.kv, slot);
    query s;
    s.k = data + sl_kv_row(p.a.kv, slot, 0, kv_head, 0);
    s.v = data + sl_kv_row(p.a.kv, slot, 1, kv_head, 0);
    s.row = p.a.runs.start[run] + token;
    s.head = kv_head * p.group + piece * HEADS;
    s.n_head = min(static_cast<uint32_t>(HEADS), p.group - piece * HEADS);
    s.dim = p.a.kv.head_dim;
    s.seen = attention::see(p.a.runs.pos[run] + token, p.a.window);
    s.aligned = s.dim % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    return s;
}

/* The block's sums of chunk number i of the query's; those before it must have been read by all. */
template <int WIDTH>
__device__ __forceinline__ void attend_chunk(const short_args &p, const query &s, const uint32_t q[WIDTH / 32][4],
                                             uint64_t i, shared_sums<WIDTH> *t) {
    lane_sums<WIDTH> mine;
    attend_tiles<WIDTH>(span_of(s, (s.seen.begin >> s.seen.shift) + i), q, p.unit, mine);
    share_sums(mine, t);
    __syncthreads();
}

template <int WIDTH> __device__ void put_partial(const short_args &p, const query &s, uint32_t run, uint32_t chunk,
                                                 const shared_sums<WIDTH> &t) {
    for (uint32_t head = 0; head < s.n_head; head++) {
        const chunk_sums sums = sum_of(t, head);
        float *out = attention::partial(p.a, run, s.head + head, chunk);
        for (uint32_t c = threadIdx.x; c < s.dim; c += THREADS)
            out[2 + c] = value_of(t, sums, head, c);
        if (threadIdx.x == 0)
            out[0] = sums.part.top, out[1] = sums.part.total;
    }
}

/* Runs of one row. WIDTH: head_dim rounded up. */
template <int WIDTH> __global__ void __launch_bounds__(THREADS, blocks_of(WIDTH)) attend_single(short_args p) {
    sl_begin();
    SL_SHARED(shared_sums<WIDTH>, t);
    const uint32_t run = blockIdx.z;
    if (p.a.runs.start[run + 1] - p.a.runs.start[run] != 1)
        return;
    const query s = query_of(p, run, 0);
    const uint64_t n_chunk = attention::chunks_of(s.seen);
    uint32_t q[WIDTH / 32][4];
    take_query<WIDTH>(q, p, s);
    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        attend_chunk<WIDTH>(p, s, q, chunk, t);
        put_partial(p, s, run, chunk, *t);
        __syncthreads(); /* nobody reads its sums any more */
    }
}

/* One more chunk to those before it. A thread's columns are its own; whole is for the next chunk, behind its barriers. */
template <int WIDTH> __device__ void fold_chunk(const query &s, bool first, shared_sums<WIDTH> *t) {
    attention::softmax whole = attention::nothing();
    for (uint32_t head = 0; head < s.n_head; head++) {
        const chunk_sums sums = sum_of(*t, head);
        attention::softmax so_far = first ? attention::nothing() : t->whole[head];
        const attention::fold f = attention::fold_with<true>(&so_far, sums.part);
        for (uint32_t c = threadIdx.x; c < s.dim; c += THREADS)
            t->folded[head][c] =
                attention::folded(f, first ? 0 : t->folded[head][c], value_of(*t, sums, head, c));
        if (head == threadIdx.x)
            whole = so_far;
    }
    __syncthreads();
    if (threadIdx.x < s.n_head)
        t->whole[threadIdx.x] = whole;
}

/* Runs of 2 to SL_ATTENTION_SHORT rows, a block for a row. */
template <int WIDTH> __global__ void __launch_bounds__(THREADS, blocks_of(WIDTH)) attend_short(short_args p) {
    sl_begin();
    SL_SHARED(shared_sums<WIDTH>, t);
    const uint32_t run = blockIdx.z, n_tok = p.a.runs.start[run + 1] - p.a.runs.start[run];
    if (n_tok < 2 || n_tok > SL_ATTENTION_SHORT || blockIdx.x >= n_tok)
        return;
    const query s = query_of(p, run, blockIdx.x);
    const uint64_t n_chunk = attention::chunks_of(s.seen);
    uint32_t q[WIDTH / 32][4];
    take_query<WIDTH>(q, p, s);
    for (uint64_t chunk = 0; chunk < n_chunk; chunk++) {
        attend_chunk<WIDTH>(p, s, q, chunk, t);
        fold_chunk(s, chunk == 0, t);
    }
    __syncthreads();
    for (uint32_t head = 0; head < s.n_head; head++) {
        sl_f16 *y = static_cast<sl_f16 *>(p.a.y) + s.row * p.a.y_stride + static_cast<uint64_t>(s.head + head) * s.dim;
        for (uint32_t c = threadIdx.x; c < s.dim; c += THREADS)
            sl_store(y + c, __fmul_rn(t->folded[head][c], 1 / t->whole[head].total));
    }
}

template <int WIDTH> int launch_width(const short_args &p, sl_cuda_stream stream) {
    const uint32_t pieces = p.a.kv.n_kv_head * p.pieces, n_tok = p.a.runs.max_tok, longest = SL_ATTENTION_SHORT;
    const size_t shared = sizeof(shared_sums<WIDTH>);
    int status = 0;
    if (n_tok > 1) {
        const dim3 grid(n_tok < longest ? n_tok : longest, pieces, p.a.runs.n);
        status = sl_launch(attend_short<WIDTH>, grid, dim3(THREADS), shared, stream, p);
    }
    if (status != 0)
        return status;
    const dim3 grid(attention::split_of(pieces * static_cast<uint64_t>(p.a.runs.n)), pieces, p.a.runs.n);
    return sl_launch(attend_single<WIDTH>, grid, dim3(THREADS), shared, stream, p);
}

} // namespace

int sl_attention_short_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream) {
    const uint32_t dim = args->kv.head_dim, group = args->n_head / args->kv.n_kv_head;
    const short_args p = {*args, group, (group + HEADS - 1) / HEADS, args->scale * LOG2_E,
                          sl_attention_q_aligned(args)};
    const int status = dim <= 64    ? launch_width<64>(p, stream)
                       : dim <= 128 ? launch_width<128>(p, stream)
                                    : launch_width<256>(p, stream);
    return status ? status : sl_attention_fold_cuda(args, true, stream);
}
