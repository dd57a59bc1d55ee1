/* Causal attention of runs of several queries on a CUDA device: a block holds ROWS queries of one head against
 * blocks of keys in shared memory, the steps those of attention_cuda.h. Threads form 16 by 8: a thread scores 4
 * queries against 4 keys, then keeps the sums of its 4 queries over every eighth group of 4 components. Keys
 * that no query of the block sees are not read. Runs of a single query go to attention_decode.cu, f16 over f16 of up
 * to 256 components to the matrix units. */
#include "kernels/attention/attention_cuda.h"

using namespace attention;

enum { ROWS = 64, EACH = 4 /* rows of a thread, and keys */, ACROSS = 8 /* threads that share rows */ };

struct prefill {
    sl_attention_cuda_args a;
    uint32_t col_pieces;
    bool q_aligned, kv_aligned;
};

/* A block's share: n rows of a run, the first at position pos, components col .. of a head. */
struct share {
    const void *data;
    uint64_t row, pos, k, v; /* k, v: elements at which position 0 begins */
    uint32_t n, head, col, n_col;
    bool kv_aligned;
};

template <int WIDTH> struct tiles {
    enum { STRIDE = WIDTH + 4, WEIGHTS = KEYS + 4 };
    float q[ROWS * STRIDE], k[KEYS * STRIDE], v[KEYS * STRIDE], weight[ROWS * WEIGHTS];
};

/* One query of a thread: what it sees, of the block at hand from .. to - 1, and its sums (of the values:
 * elsewhere). */
struct query {
    sight sees;
    unsigned from, to;
    softmax part, sum;
};

/* All queries of a thread and their sums over the values: of the chunk at hand, and folded. */
template <int WIDTH> struct state {
    enum { COLS = WIDTH / ACROSS };
    query q[EACH];
    float part[EACH][COLS], sum[EACH][COLS];
};

static __device__ bool share_of(const prefill &p, share *s) {
    const uint32_t run = blockIdx.z, start = p.a.runs.start[run], n_tok = p.a.runs.start[run + 1] - start;
    const uint32_t first = (gridDim.x - 1 - blockIdx.x) * ROWS; /* those that see most go first */
    if (n_tok <= 1 || first >= n_tok)
        return false;
    const uint32_t slot = p.a.runs.slot[run], head = blockIdx.y / p.col_pieces;
    const uint32_t kv_head = head / (p.a.n_head / p.a.kv.n_kv_head);
    s->data = sl_kv_data<const void>(p.a.kv, slot);
    s->row = start + first;
    s->pos = p.a.runs.pos[run] + first;
    s->k = sl_kv_row(p.a.kv, slot, 0, kv_head, 0);
    s->v = sl_kv_row(p.a.kv, slot, 1, kv_head, 0);
    s->n = min(n_tok - first, static_cast<uint32_t>(ROWS));
    s->head = head;
    s->col = blockIdx.y % p.col_pieces * PIECE;
    s->n_col = min(p.a.kv.head_dim - s->col, static_cast<uint32_t>(PIECE));
    s->kv_aligned = p.kv_aligned && reinterpret_cast<uintptr_t>(s->data) % 16 == 0;
    return true;
}

/* n_key keys from position base on, components col .. col + width - 1, of k or v or both (b: 0) to the tile. */
template <class T> static __device__ void stage_typed(float *tile, unsigned stride, const prefill &p,
                                                      const share &s, uint64_t a, uint64_t b, uint64_t at,
                                                      unsigned n_key, uint32_t width) {
    const T *data = static_cast<const T *>(s.data);
    stage<4>(
        tile, stride,
        source<T>{data + a + at, static_cast<ptrdiff_t>(b ? b - a : 0), p.a.kv.head_dim, n_key, width, s.kv_aligned});
}

static __device__ void stage_keys(float *tile, unsigned stride, const prefill &p, const share &s, uint64_t a,
                                  uint64_t b, uint64_t base, unsigned n_key, uint32_t col, uint32_t width) {
    const uint64_t at = base * p.a.kv.head_dim + col;
    if (p.a.kv.f16)
        stage_typed<sl_f16>(tile, stride, p, s, a, b, at, n_key, width);
    else
        stage_typed<float>(tile, stride, p, s, a, b, at, n_key, width);
}

/* Scores of the thread's queries against keys x, x + 8, x + 16 and x + 24 of the block of n_key keys. */
template <int WIDTH> __device__ void score_block(const prefill &p, const share &s, tiles<WIDTH> &t,
                                                 uint64_t base, unsigned n_key, bool first,
                                                 float score[EACH][EACH]) {
    enum { STRIDE = tiles<WIDTH>::STRIDE };
    const uint32_t dim = p.a.kv.head_dim;
    const float *q = t.q + threadIdx.x / ACROSS * EACH * STRIDE, *k = t.k + threadIdx.x % ACROSS * STRIDE;
    for (int i = 0; i < EACH * EACH; i++)
        score[i / EACH][i % EACH] = 0;
    for (uint32_t c = 0; c < dim; c += PIECE) {
        const uint32_t width = min(dim - c, static_cast<uint32_t>(PIECE));
        __syncthreads(); /* nobody reads the tiles any more */
        stage_keys(t.k, STRIDE, p, s, s.k, dim > PIECE ? 0 : s.v, base, n_key, c, width);
        if (first || dim > PIECE)
            stage_q(t.q, STRIDE, p.a, s.row * p.a.q_stride + static_cast<uint64_t>(s.head) * dim + c,
                    p.a.q_stride, s.n, width, p.q_aligned);
        if (c + PIECE >= dim && dim > PIECE)
            stage_keys(t.v, STRIDE, p, s, s.v, 0, base, n_key, s.col, s.n_col);
        __syncthreads();
        for (uint32_t i = 0; i < width; i += 4) {
            float4 key[EACH];
            for (int j = 0; j < EACH; j++)
                key[j] = *reinterpret_cast<const float4 *>(k + j * ACROSS * STRIDE + i);
            for (int r = 0; r < EACH; r++) {
                const float4 x = *reinterpret_cast<const float4 *>(q + r * STRIDE + i);
                for (int j = 0; j < EACH; j++)
                    score[r][j] = dot4(x, key[j], score[r][j]);
            }
        }
    }
}

/* Weights of one query's keys to its row in shared memory; returns the fading of what was before. The eight
 * threads of the row call alike. */
static __device__ float weigh(query *q, const float score[EACH], float scale, float *row) {
    const unsigned x = threadIdx.x % ACROSS;
    float scaled[EACH], top = q->part.top, weight[EACH];
    for (int j = 0; j < EACH; j++) {
        const unsigned key = x + static_cast<unsigned>(j) * ACROSS;
        scaled[j] = key >= q->from && key < q->to ? __fmul_rn(score[j], scale) : -INFINITY;
        top = fmaxf(top, scaled[j]);
    }
    for (int step = ACROSS / 2; step > 0; step >>= 1)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    for (int j = 0; j < EACH; j++) {
        const unsigned key = x + static_cast<unsigned>(j) * ACROSS;
        weight[j] = key >= q->from && key < q->to ? expf(scaled[j] - top) : 0;
        row[key] = weight[j];
    }
    /* the tree of a warp whose lanes are keys */
    float total = __fadd_rn(__fadd_rn(weight[0], weight[2]), __fadd_rn(weight[1], weight[3]));
    for (int step = ACROSS / 2; step > 0; step >>= 1)
        total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, step));
    if (q->from >= q->to)
        return 1;
    const float fade = expf(q->part.top - top);
    q->part = {top, fmaf(q->part.total, fade, total)};
    return fade;
}

/* part += weight v over the block's keys; all: every query of the warp sees every key. */
template <bool ALL, int WIDTH> __device__ void add_values(const tiles<WIDTH> &t, state<WIDTH> &state) {
    enum { STRIDE = tiles<WIDTH>::STRIDE, WEIGHTS = tiles<WIDTH>::WEIGHTS, GROUPS = WIDTH / ACROSS / 4 };
    const float *row = t.weight + threadIdx.x / ACROSS * EACH * WEIGHTS,
                *column = t.v + threadIdx.x % ACROSS * 4;
#pragma unroll 2
    for (unsigned key = 0; key < KEYS; key++) {
        float4 v[GROUPS];
        for (int g = 0; g < GROUPS; g++)
            v[g] = *reinterpret_cast<const float4 *>(column + key * STRIDE + g * ACROSS * 4);
        for (int r = 0; r < EACH; r++) {
            if (!ALL && (key < state.q[r].from || key >= state.q[r].to))
                continue;
            const float w = row[r * WEIGHTS + key];
            for (int g = 0; g < GROUPS; g++) {
                float *part = state.part[r] + 4 * g;
                part[0] = fmaf(w, v[g].x, part[0]);
                part[1] = fmaf(w, v[g].y, part[1]);
                part[2] = fmaf(w, v[g].z, part[2]);
                part[3] = fmaf(w, v[g].w, part[3]);
            }
        }
    }
}

/* Ends the chunk of one query. */
template <int WIDTH> __device__ void fold_part(state<WIDTH> &state, int r) {
    const fold f = fold_with<false>(&state.q[r].sum, state.q[r].part);
    state.q[r].part = nothing();
    for (int c = 0; c < WIDTH / ACROSS; c++) {
        state.sum[r][c] = folded(f, state.sum[r][c], state.part[r][c]);
        state.part[r][c] = 0;
    }
}

template <int WIDTH> __device__ void attend_block(const prefill &p, const share &s, tiles<WIDTH> &t,
                                                  uint64_t base, uint64_t end, bool first,
                                                  state<WIDTH> &state) {
    float score[EACH][EACH];
    score_block(p, s, t, base, static_cast<unsigned>(min(end - base, static_cast<uint64_t>(KEYS))), first,
                score);
    bool all = true;
    for (int r = 0; r < EACH; r++) {
        query *q = &state.q[r];
        const sight seen = q->sees;
        q->from =
            static_cast<unsigned>(seen.begin <= base ? 0 : min(seen.begin - base, static_cast<uint64_t>(KEYS)));
        q->to = static_cast<unsigned>(seen.end <= base ? 0 : min(seen.end - base, static_cast<uint64_t>(KEYS)));
        all = all && q->from == 0 && q->to == KEYS;
        if (base > seen.begin && base < seen.end && (base & ((1ull << seen.shift) - 1)) == 0)
            fold_part(state, r);
        const float fade =
            weigh(q, score[r], p.a.scale,
                  t.weight + (threadIdx.x / ACROSS * EACH + static_cast<unsigned>(r)) * t.WEIGHTS);
        for (int c = 0; c < WIDTH / ACROSS; c++)
            state.part[r][c] = __fmul_rn(state.part[r][c], fade);
    }
    __syncwarp(); /* a row's weights are read by the warp that wrote them */
    if (__all_sync(0xffffffffu, all))
        add_values<true>(t, state);
    else
        add_values<false>(t, state);
}

template <int WIDTH> __device__ void begin(const prefill &p, const share &s, state<WIDTH> &state) {
    for (unsigned r = 0; r < EACH; r++) {
        const unsigned row = threadIdx.x / ACROSS * EACH + r;
        query *q = &state.q[r];
        q->sees = see(s.pos + row, p.a.window);
        if (row >= s.n)
            q->sees.begin = q->sees.end = 0;
        q->part = q->sum = nothing();
        for (int c = 0; c < WIDTH / ACROSS; c++)
            state.part[r][c] = state.sum[r][c] = 0;
    }
}

template <int WIDTH> __device__ void finish(const prefill &p, const share &s, state<WIDTH> &state) {
    for (int r = 0; r < EACH; r++) {
        const unsigned row = threadIdx.x / ACROSS * EACH + static_cast<unsigned>(r);
        fold_part(state, r);
        if (row >= s.n)
            continue;
        const float inverse = 1 / state.q[r].sum.total;
        const uint64_t y =
            (s.row + row) * p.a.y_stride + static_cast<uint64_t>(s.head) * p.a.kv.head_dim + s.col;
        for (int c = 0; c < WIDTH / ACROSS; c++) {
            const unsigned col = threadIdx.x % ACROSS * 4 + static_cast<unsigned>(c / 4 * ACROSS * 4 + c % 4);
            if (col < s.n_col)
                store_act(p.a.y, y + col, __fmul_rn(state.sum[r][c], inverse), p.a.act);
        }
    }
}

/* WIDTH: components in shared memory, PIECE or head_dim rounded up. */
template <int WIDTH> __global__ void __launch_bounds__(THREADS, WIDTH > 64 ? 2 : 3) attend_rows(prefill p) {
    sl_begin();
    SL_SHARED(tiles<WIDTH>, t);
    share s;
    if (!share_of(p, &s))
        return;
    state<WIDTH> mine;
    begin(p, s, mine);
    const uint64_t first = see(s.pos, p.a.window).begin / KEYS * KEYS, end = s.pos + s.n;
    for (uint64_t base = first; base < end; base += KEYS)
        attend_block(p, s, *t, base, end, base == first, mine);
    finish(p, s, mine);
}

template <int WIDTH> static int launch_rows(const prefill &p, sl_cuda_stream stream) {
    const dim3 grid((p.a.runs.max_tok + ROWS - 1) / ROWS, p.a.n_head * p.col_pieces, p.a.runs.n);
    return sl_launch(attend_rows<WIDTH>, grid, dim3(THREADS), sizeof(tiles<WIDTH>), stream, p);
}

static int attend_on_matrix_units(const sl_attention_cuda_args *args, sl_cuda_stream stream) {
    int status = 0;
    if (args->runs.max_tok > SL_ATTENTION_SHORT)
        status = sl_attention_matrix_cuda(args, stream);
    return status ? status : sl_attention_short_cuda(args, stream);
}

/* The kernel of a run depends on types and its own number of rows only. */
int sl_attention_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream) {
    const uint32_t dim = args->kv.head_dim;
    if (sl_attention_on_matrix(args))
        return attend_on_matrix_units(args, stream);
    int status = 0;
    if (args->runs.max_tok > 1) {
        const prefill p = {*args, (dim + PIECE - 1) / PIECE, sl_attention_q_aligned(args), dim % 8 == 0};
        status = dim <= 64 ? launch_rows<64>(p, stream) : launch_rows<PIECE>(p, stream);
    }
    return status ? status : sl_attention_decode_cuda(args, stream);
}
