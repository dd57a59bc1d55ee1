/* Causal attention of long runs on the matrix units of a CUDA device, for f16 activations over f16 keys and
 * values: FlashAttention-2 (Dao 2023). A block holds ROWS rows, each one query head of one token: the heads of
 * a group lie side by side, so that short runs fill blocks too and keys are read for all heads of a group at
 * once. A warp owns 16 rows, their sums in registers; keys and values pass through shared memory in tiles of
 * KEYS by asynchronous copies, the values while the scores are taken, the next keys while the values are
 * added. Tiles begin at multiples of KEYS of absolute positions and keys out of sight have weight 0, so that a
 * result does not depend on where a run is cut or which rows share a block. (A value in sight of one row that
 * is no finite number reaches the rows of its block that do not see it.)
 *
 * What is rounded. Scores: nothing but f32 sums, because queries and keys are f16 as they lie. Weights: to f16,
 * as 2^15 exp(score - top), so that those down to 2^-29 of the largest keep 11 bits. Sums over values are f32,
 * the result is rounded to f16.
 *
 * Cost: 4 KEYS P operations a row and tile against 4 KEYS P bytes a block from L2: 64 per byte. A warp reads
 * each tile once from shared memory for its 16 rows: 16 per byte. Three blocks share an SM up to P = 128,
 * beyond two (on sm_80 one, for its shared memory): one's exponentials hide behind another's products. */
#include "kernels/approx_cuda.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/mma_cuda.h"

using attention::LIFT;
using attention::LOG2_E;
using attention::THREADS;

namespace {

enum { ROWS = 64, KEYS = 64, WARP_ROWS = 16, N_TILE = KEYS / 8 /* columns of fragments in a row of scores */ };
constexpr float NEVER = -3.402823466e+38f;

struct matrix_args {
    sl_attention_cuda_args a;
    uint32_t group;
    float unit; /* scores times it are logarithms to base 2 */
    bool aligned; /* rows of q, for 16 bytes at a time */
};

/* A block's share: rows first .. first + n - 1 of a run and a kv head, counted by token, then by head. */
struct share {
    const uint16_t *k, *v; /* position 0 */
    uint64_t row, pos;     /* of the run's first token: in the batch, in the sequence */
    uint64_t begin, end;   /* keys that some row sees */
    uint32_t first, n, head;
    bool aligned;
};

template <int WIDTH> struct tiles {
    enum { STRIDE = WIDTH + 8 }; /* 16 bytes more: rows of a fragment lie in different banks */
    uint16_t q[ROWS * STRIDE], k[KEYS * STRIDE], v[KEYS * STRIDE];
};

/* What a lane holds of its warp's rows lane / 4 and lane / 4 + 8. Sums stand for exp2(top) times themselves. */
template <int WIDTH> struct rows {
    uint64_t begin[2], end[2]; /* keys in sight */
    float top[2], total[2], sum[WIDTH / 8][4];
};

__device__ bool share_of(const matrix_args &p, share *s) {
    const uint32_t run = blockIdx.z, start = p.a.runs.start[run], n_tok = p.a.runs.start[run + 1] - start;
    const uint32_t first = (gridDim.x - 1 - blockIdx.x) * ROWS; /* those that see most go first */
    if (n_tok <= SL_ATTENTION_SHORT || first >= n_tok * p.group)
        return false;
    const uint32_t slot = p.a.runs.slot[run], dim = p.a.kv.head_dim;
    const uint16_t *data = sl_kv_data<const uint16_t>(p.a.kv, slot);
    s->k = data + sl_kv_row(p.a.kv, slot, 0, blockIdx.y, 0);
    s->v = data + sl_kv_row(p.a.kv, slot, 1, blockIdx.y, 0);
    s->row = start;
    s->pos = p.a.runs.pos[run];
    s->first = first;
    s->n = min(n_tok * p.group - first, static_cast<uint32_t>(ROWS));
    s->head = blockIdx.y * p.group;
    s->begin = attention::see(s->pos + first / p.group, p.a.window).begin;
    s->end = s->pos + (first + s->n - 1) / p.group + 1;
    s->aligned = dim % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    return true;
}

/* Element at which row i of the block begins in q or y. */
__device__ uint64_t row_at(const matrix_args &p, const share &s, uint32_t i, uint64_t stride) {
    const uint32_t token = (s.first + i) / p.group, head = s.head + (s.first + i) % p.group;
    return (s.row + token) * stride + static_cast<uint64_t>(head) * p.a.kv.head_dim;
}

/* Keys or values of positions base .. base + KEYS - 1 to a tile, zeros for those that no row sees and beyond
 * head_dim. */
template <int WIDTH>
__device__ void stage(uint16_t *tile, const share &s, const uint16_t *from, uint64_t base, uint32_t dim) {
    enum { PIECES = WIDTH / 8 };
    for (unsigned i = threadIdx.x; i < KEYS * PIECES; i += THREADS) {
        const unsigned key = i / PIECES, at = i % PIECES * 8;
        const uint64_t pos = base + key;
        const bool seen = pos >= s.begin && pos < s.end;
        uint16_t *to = tile + key * tiles<WIDTH>::STRIDE + at;
        if (s.aligned) {
            sl_copy_async16_zero(to, from + pos * dim + at, seen && at < dim);
        } else {
            for (unsigned j = 0; j < 8; j++)
                to[j] = seen && at + j < dim ? from[pos * dim + at + j] : static_cast<uint16_t>(0);
        }
    }
    sl_copy_async_commit();
}

/* The block's queries, zeros for rows and components that are not there; the copies go with those that come
 * next. */
template <int WIDTH> __device__ void stage_queries(const matrix_args &p, const share &s, uint16_t *tile) {
    enum { PIECES = WIDTH / 8 };
    const uint16_t *q = static_cast<const uint16_t *>(p.a.q);
    const uint32_t dim = p.a.kv.head_dim;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const unsigned row = i / PIECES, at = i % PIECES * 8;
        const uint64_t from = row_at(p, s, row < s.n ? row : 0, p.a.q_stride) + at;
        uint16_t *to = tile + row * tiles<WIDTH>::STRIDE + at;
        if (p.aligned) {
            sl_copy_async16_zero(to, q + from, row < s.n && at < dim);
        } else {
            for (unsigned j = 0; j < 8; j++)
                to[j] = row < s.n && at + j < dim ? q[from + j] : static_cast<uint16_t>(0);
        }
    }
}

template <int WIDTH> __device__ void begin_rows(const matrix_args &p, const share &s, rows<WIDTH> &mine) {
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const unsigned row = threadIdx.x / 32 * WARP_ROWS + threadIdx.x % 32 / 4 + 8 * h;
        const attention::sight seen = attention::see(s.pos + (s.first + row) / p.group, p.a.window);
        mine.begin[h] = seen.begin;
        mine.end[h] = row < s.n ? seen.end : seen.begin;
        mine.top[h] = NEVER;
        mine.total[h] = 0;
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 8 * 4; i++)
        mine.sum[i / 4][i % 4] = 0;
}

/* Scores of the warp's rows against the tile's keys: columns 8 i + 2 (lane % 4) and the next of row lane / 4,
 * then of row lane / 4 + 8. */
template <int WIDTH> __device__ void score_tile(const tiles<WIDTH> &t, float score[N_TILE][4]) {
    enum { STRIDE = tiles<WIDTH>::STRIDE };
    const unsigned lane = threadIdx.x % 32, row = threadIdx.x / 32 * WARP_ROWS + lane % 16;
    const uint16_t *q = t.q + row * STRIDE + lane / 16 * 8;
    const uint16_t *k = t.k + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < N_TILE * 4; i++)
        score[i / 4][i % 4] = 0;
#pragma unroll
    for (int c = 0; c < WIDTH; c += 16) {
        uint32_t a[4], b[4];
        sl_mma_load(a, q + c);
#pragma unroll
        for (int i = 0; i < N_TILE; i += 2) {
            sl_mma_load(b, k + 8 * i * STRIDE + c);
            sl_mma_f16(score[i], a, b);
            sl_mma_f16(score[i + 1], a, b + 2);
        }
    }
}

/* Keys out of sight of row half h of the lane take part in nothing. */
template <int WIDTH>
__device__ void hide(const rows<WIDTH> &mine, int h, uint64_t base, float score[N_TILE][4]) {
    if (mine.begin[h] <= base && mine.end[h] >= base + KEYS)
        return;
#pragma unroll
    for (unsigned i = 0; i < N_TILE * 2; i++) {
        const uint64_t key = base + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        if (key < mine.begin[h] || key >= mine.end[h])
            score[i / 2][2 * h + i % 2] = -INFINITY;
    }
}

__device__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

/* Scores to weights; the sums so far fade. The lane's share of a row's total is its own until the end. */
template <int WIDTH> __device__ void weigh(rows<WIDTH> &mine, int h, float unit, float score[N_TILE][4]) {
    float best = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < N_TILE * 2; i++)
        best = fmaxf(best, score[i / 2][2 * h + i % 2]);
    const float top = fmaxf(mine.top[h], quad_max(best) * unit - LIFT), fade = sl_exp2_approx(mine.top[h] - top);
#pragma unroll
    for (int i = 0; i < N_TILE * 2; i++) {
        float *weight = &score[i / 2][2 * h + i % 2];
        *weight = sl_exp2_approx(fmaf(*weight, unit, -top));
        total += *weight;
    }
    mine.top[h] = top;
    mine.total[h] = fmaf(mine.total[h], fade, total);
#pragma unroll
    for (int i = 0; i < WIDTH / 8 * 2; i++)
        mine.sum[i / 2][2 * h + i % 2] *= fade;
}

/* sum += weight v: a fragment of scores is one of weights as it lies. */
template <int WIDTH>
__device__ void add_values(const tiles<WIDTH> &t, const float weight[N_TILE][4], rows<WIDTH> &mine) {
    enum { STRIDE = tiles<WIDTH>::STRIDE };
    const unsigned lane = threadIdx.x % 32;
    const uint16_t *v = t.v + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < N_TILE; i += 2) {
        const float *left = weight[i], *right = weight[i + 1];
        const uint32_t a[4] = {sl_pack_half(left[0], left[1]), sl_pack_half(left[2], left[3]),
                               sl_pack_half(right[0], right[1]), sl_pack_half(right[2], right[3])};
#pragma unroll
        for (int c = 0; c < WIDTH / 8; c += 2) {
            uint32_t b[4];
            sl_mma_load_transposed(b, v + 8 * i * STRIDE + 8 * c);
            sl_mma_f16(mine.sum[c], a, b);
            sl_mma_f16(mine.sum[c + 1], a, b + 2);
        }
    }
}

template <int WIDTH> __device__ void finish(const matrix_args &p, const share &s, const rows<WIDTH> &mine) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const unsigned row = threadIdx.x / 32 * WARP_ROWS + lane / 4 + 8 * h;
        float total = mine.total[h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (row >= s.n)
            continue;
        sl_f16 *y = static_cast<sl_f16 *>(p.a.y) + row_at(p, s, row, p.a.y_stride);
        const bool pairs = reinterpret_cast<uintptr_t>(y) % 4 == 0;
#pragma unroll
        for (unsigned i = 0; i < WIDTH / 8; i++) {
            const unsigned col = i * 8 + lane % 4 * 2, left = col < p.a.kv.head_dim ? p.a.kv.head_dim - col : 0;
            const float low = mine.sum[i][2 * h] / total, high = mine.sum[i][2 * h + 1] / total;
            if (pairs && left > 1) {
                *reinterpret_cast<uint32_t *>(y + col) = sl_pack_f16(low, high);
                continue;
            }
            if (left > 0)
                sl_store(y + col, low);
            if (left > 1)
                sl_store(y + col + 1, high);
        }
    }
}

/* WIDTH: head_dim rounded up. */
template <int WIDTH>
__global__ void __launch_bounds__(THREADS, WIDTH > 128 ? 2 : 3) attend_matrix(matrix_args p) {
    sl_begin();
    SL_SHARED(tiles<WIDTH>, t);
    const uint32_t dim = p.a.kv.head_dim;
    share s;
    if (!share_of(p, &s))
        return;
    uint64_t base = s.begin / KEYS * KEYS;
    stage_queries<WIDTH>(p, s, t->q);
    stage<WIDTH>(t->k, s, s.k, base, dim);
    rows<WIDTH> mine;
    begin_rows(p, s, mine);
    for (; base < s.end; base += KEYS) {
        float score[N_TILE][4];
        sl_copy_async_wait<0>();
        __syncthreads(); /* the keys are here, nobody reads values any more */
        stage<WIDTH>(t->v, s, s.v, base, dim);
        score_tile(*t, score);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            hide(mine, h, base, score);
            weigh(mine, h, p.unit, score);
        }
        sl_copy_async_wait<0>();
        __syncthreads(); /* the values are here, nobody reads keys any more */
        if (base + KEYS < s.end)
            stage<WIDTH>(t->k, s, s.k, base + KEYS, dim);
        add_values(*t, score, mine);
    }
    finish(p, s, mine);
}

template <int WIDTH> int launch_width(const matrix_args &p, sl_cuda_stream stream) {
    const uint64_t n_row = static_cast<uint64_t>(p.a.runs.max_tok) * p.group;
    const dim3 grid(static_cast<unsigned>((n_row + ROWS - 1) / ROWS), p.a.kv.n_kv_head, p.a.runs.n);
    return sl_launch(attend_matrix<WIDTH>, grid, dim3(THREADS), sizeof(tiles<WIDTH>), stream, p);
}

} // namespace

int sl_attention_matrix_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream) {
    const matrix_args p = {*args, args->n_head / args->kv.n_kv_head, args->scale * LOG2_E,
                           sl_attention_q_aligned(args)};
    const uint32_t dim = args->kv.head_dim;
    return dim <= 64    ? launch_width<64>(p, stream)
           : dim <= 96  ? launch_width<96>(p, stream)
           : dim <= 128 ? launch_width<128>(p, stream)
                        : launch_width<256>(p, stream);
}
