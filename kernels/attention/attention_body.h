/* Causal attention on vectors: one pass over the keys with online softmax (Milakov and Gimelshein 2018), blocks
 * of SL_ATTN_BLOCK absolute positions outside, queries and heads inside, so that a block is read from memory
 * once for all of them. Up to ROWS rows, each one head of one query, are taken together where they see the same keys of
 * the block, so that a component of a key or value is loaded once for them; f16 blocks are widened into scratch first
 * where so many rows read them that this costs less than widening each time (DIRECT).
 *
 * A query's result must not depend on what else is in the call: scores are summed lane by lane over head_dim
 * with one fixed tree per key; keys outside the query's own window get the weight 0 and no arithmetic on
 * their values; blocks start at multiples of SL_ATTN_BLOCK whatever the position. */
#include <assert.h>

enum { ROWS = 4, DIRECT = 2 * ROWS, SCORE_VECTORS = SL_ATTN_BLOCK / SL_LANES };
/* Sums that n_row rows have in registers: vectors of components, keys. */
#define VALUE_VECTORS(n_row) (SL_LANES == 16 ? 4 : 8 / (n_row))
#define SCORE_KEYS(n_row) (SL_LANES == 8 ? 8 / (n_row) : (n_row) < ROWS ? 8 : 4)

/* Running softmax of one row: its largest score and the sum of its weights; y holds the sum so far. */
typedef struct softmax {
    float top, total;
} softmax;

/* Keys and values at positions base .. base + SL_ATTN_BLOCK - 1, of which a query sees from .. to - 1 (counted from
 * base). */
typedef struct block {
    const void *k, *v; /* f16 if half, else f32 */
    size_t stride, head_dim;
    size_t from, to;
    bool half;
} block;

/* Rows that see the same of a block. */
typedef struct rows {
    const float *q[ROWS];
    float *y[ROWS];
    softmax *state; /* [n_row] */
} rows;

/* Components i .. i + n - 1. Of f16 the same of the next block is asked for, or memory would wait for arithmetic and
 * arithmetic for memory: between keys and values the processor sees no stream for long. */
SL_INLINE vf components(const block *b, const void *kv, size_t i, size_t n, bool half) {
    if (!half) return v_load_n((const float *)kv + i, n);
    v_prefetch((const uint16_t *)kv + i, SL_ATTN_BLOCK * b->stride * sizeof(uint16_t));
    return v_load_f16_n((const uint16_t *)kv + i, n);
}

/* sum += q k over components i .. i + n - 1 of n_row rows and the n_key keys that begin at element at, lane by lane. */
SL_INLINE void dot_lanes(const block *b, const rows *x, const size_t *at, size_t i, size_t n, vf sum[ROWS][SL_LANES],
                         size_t n_row, size_t n_key, bool half) {
    vf q[ROWS];
    for (size_t r = 0; r < n_row; r++) q[r] = v_load_n(x->q[r] + i, n);
    for (size_t j = 0; j < n_key; j++) {
        const vf k = components(b, b->k, at[j] + i, n, half);
        for (size_t r = 0; r < n_row; r++) sum[r][j] = v_fma(q[r], k, sum[r][j]);
    }
}

/* Lane-wise partial dot products with n_key keys, to columns of sum from first on. */
SL_INLINE void dot_keys(const block *b, const rows *x, const size_t *at, vf (*sum)[SL_LANES], size_t first, size_t n_row,
                        size_t n_key, bool half) {
    vf part[ROWS][SL_LANES];
    for (size_t r = 0; r < n_row; r++)
        for (size_t j = 0; j < n_key; j++) part[r][j] = v_zero();
    size_t i = 0;
    for (; i + SL_LANES <= b->head_dim; i += SL_LANES) dot_lanes(b, x, at, i, SL_LANES, part, n_row, n_key, half);
    if (i < b->head_dim) dot_lanes(b, x, at, i, b->head_dim - i, part, n_row, n_key, half);
    for (size_t r = 0; r < n_row; r++)
        for (size_t j = 0; j < n_key; j++) sum[r][first + j] = part[r][j];
}

/* Scaled scores of keys first .. first + SL_LANES - 1, -infinity where the query does not see them (key from stands in
 * there: nothing past the last key may be read). */
SL_INLINE void score_lanes(const block *b, const rows *x, float scale, size_t first, vf score[ROWS], size_t n_row, bool half) {
    vf sum[ROWS][SL_LANES];
    if (first >= b->to || first + SL_LANES <= b->from) {
        for (size_t r = 0; r < n_row; r++) score[r] = v_set1(-INFINITY);
        return;
    }
    for (size_t j = 0; j < SL_LANES; j += SCORE_KEYS(n_row)) {
        size_t at[SL_LANES];
        for (size_t l = 0; l < SCORE_KEYS(n_row); l++) {
            const size_t key = first + j + l;
            at[l] = (key >= b->from && key < b->to ? key : b->from) * b->stride;
        }
        dot_keys(b, x, at, sum, j, n_row, SCORE_KEYS(n_row), half);
    }
    const ptrdiff_t shift = (ptrdiff_t)first;
    for (size_t r = 0; r < n_row; r++)
        score[r] = v_keep(v_mul(v_sum_each(sum[r]), v_set1(scale)), (ptrdiff_t)b->from - shift, (ptrdiff_t)b->to - shift,
                          v_set1(-INFINITY));
}

/* y = fade y + sum of weight[key] v[key], over n_vec vectors of components from i on, each of n lanes. */
SL_INLINE void add_values(const block *b, const rows *x, size_t i, float (*weight)[SL_ATTN_BLOCK], const vf *fade,
                          size_t n_row, size_t n_vec, size_t n, bool half) {
    vf sum[ROWS][SL_LANES];
    for (size_t r = 0; r < n_row; r++)
        for (size_t j = 0; j < n_vec; j++) sum[r][j] = v_mul(fade[r], v_load_n(x->y[r] + i + j * SL_LANES, n));
    for (size_t key = b->from; key < b->to; key++) {
        vf w[ROWS];
        for (size_t r = 0; r < n_row; r++) w[r] = v_set1(weight[r][key]);
        for (size_t j = 0; j < n_vec; j++) {
            const vf v = components(b, b->v, key * b->stride + i + j * SL_LANES, n, half);
            for (size_t r = 0; r < n_row; r++) sum[r][j] = v_fma(w[r], v, sum[r][j]);
        }
    }
    for (size_t r = 0; r < n_row; r++)
        for (size_t j = 0; j < n_vec; j++) v_store_n(x->y[r] + i + j * SL_LANES, sum[r][j], n);
}

/* Weights of the block's keys from the scores of one row; returns how what was before fades. */
SL_INLINE vf weigh(const vf score[SCORE_VECTORS], softmax *state, float weight[SL_ATTN_BLOCK]) {
    vf top = v_set1(-INFINITY), total = v_zero();
    for (size_t j = 0; j < SCORE_VECTORS; j++) top = v_max(top, score[j]);
    const float block_top = v_top(top), new_top = block_top > state->top ? block_top : state->top;
    for (size_t j = 0; j < SCORE_VECTORS; j++) {
        const vf w = v_exp(v_sub(score[j], v_set1(new_top)));
        v_store(weight + j * SL_LANES, w);
        total = v_add(total, w);
    }
    const vf fade = v_exp(v_sub(v_set1(state->top), v_set1(new_top)));
    state->total = state->total * v_first(fade) + v_sum(total);
    state->top = new_top;
    return fade;
}

/* n_row rows over the block; n_row and half are constants where this is called. */
SL_INLINE void attend_rows(const block *b, const rows *x, float scale, size_t n_row, bool half) {
    float weight[ROWS][SL_ATTN_BLOCK];
    vf score[SCORE_VECTORS][ROWS], fade[ROWS];
    for (size_t j = 0; j < SCORE_VECTORS; j++) score_lanes(b, x, scale, j * SL_LANES, score[j], n_row, half);
    for (size_t r = 0; r < n_row; r++) {
        vf own[SCORE_VECTORS];
        for (size_t j = 0; j < SCORE_VECTORS; j++) own[j] = score[j][r];
        fade[r] = weigh(own, x->state + r, weight[r]);
    }
    const size_t d = b->head_dim, step = VALUE_VECTORS(n_row) * SL_LANES;
    size_t i = 0;
    for (; i + step <= d; i += step) add_values(b, x, i, weight, fade, n_row, VALUE_VECTORS(n_row), SL_LANES, half);
    for (; i + SL_LANES <= d; i += SL_LANES) add_values(b, x, i, weight, fade, n_row, 1, SL_LANES, half);
    if (i < d) add_values(b, x, i, weight, fade, n_row, 1, d - i, half);
}

static void attend_one(const block *b, const rows *x, float scale) {
    if (b->half) attend_rows(b, x, scale, 1, true);
    else attend_rows(b, x, scale, 1, false);
}
static void attend_two(const block *b, const rows *x, float scale) {
    if (b->half) attend_rows(b, x, scale, 2, true);
    else attend_rows(b, x, scale, 2, false);
}
static void attend_four(const block *b, const rows *x, float scale) {
    if (b->half) attend_rows(b, x, scale, 4, true);
    else attend_rows(b, x, scale, 4, false);
}

/* First key that query t sees. */
static size_t first_key(const sl_attention_args *a, size_t t) {
    const size_t end = a->pos + t + 1;
    return a->window && end > a->window ? end - a->window : 0;
}

/* What query t sees of the block at base. */
static block seen_by(const sl_attention_args *a, block b, size_t base, size_t t) {
    const size_t begin = first_key(a, t), end = a->pos + t + 1;
    b.from = begin > base ? begin - base : 0;
    b.to = end <= base ? 0 : end - base < SL_ATTN_BLOCK ? end - base : SL_ATTN_BLOCK;
    return b;
}

/* Of n rows from number i on as many as may go together. */
static size_t attend_some(const sl_attention_args *a, const block *b, size_t i, size_t n) {
    rows x = { .state = (softmax *)a->scratch + i };
    n = n >= 4 ? 4 : n >= 2 ? 2 : 1;
    for (size_t r = 0; r < n; r++) {
        const size_t t = (i + r) / a->n_head, at = (i + r) % a->n_head * a->head_dim;
        x.q[r] = a->q + t * a->q_stride + at;
        x.y[r] = a->y + t * a->y_stride + at;
    }
    (n == 4 ? attend_four : n == 2 ? attend_two : attend_one)(b, &x, a->scale);
    return n;
}

/* All rows over the block at base, those of neighbouring queries that see the same of it together. */
static void attend_block(const sl_attention_args *a, block b, size_t base) {
    for (size_t t = 0, next; t < a->n_tok; t = next) {
        const block seen = seen_by(a, b, base, t);
        for (next = t + 1; next < a->n_tok; next++) {
            const block other = seen_by(a, b, base, next);
            if (other.from != seen.from || other.to != seen.to) break;
        }
        if (seen.from >= seen.to) continue;
        for (size_t i = t * a->n_head; i < next * a->n_head;) i += attend_some(a, &seen, i, next * a->n_head - i);
    }
}

static void attend_begin(const sl_attention_args *a) {
    assert(a->n_tok <= SL_ATTN_QUERIES); /* what scratch is sized for */
    softmax *state = (softmax *)a->scratch;
    for (size_t t = 0; t < a->n_tok; t++)
        memset(a->y + t * a->y_stride, 0, a->n_head * a->head_dim * sizeof *a->y);
    for (size_t i = 0; i < a->n_tok * a->n_head; i++) state[i] = (softmax){ -INFINITY, 0 };
}

static void attend_end(const sl_attention_args *a) {
    const softmax *state = (const softmax *)a->scratch;
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t h = 0; h < a->n_head; h++, state++) {
            float *y = a->y + t * a->y_stride + h * a->head_dim;
            for (size_t i = 0; i < a->head_dim; i++) y[i] /= state->total;
        }
}

void SL_ISA(sl_attention_f32)(const sl_attention_args *a) {
    attend_begin(a);
    for (size_t base = first_key(a, 0) / SL_ATTN_BLOCK * SL_ATTN_BLOCK; base < a->pos + a->n_tok;
         base += SL_ATTN_BLOCK) {
        const size_t at = base * a->kv_stride;
        const block b = { (const float *)a->k + at, (const float *)a->v + at, a->kv_stride, a->head_dim, 0, 0, false };
        attend_block(a, b, base);
    }
    attend_end(a);
}

/* Rows of f16, stride apart, to rows of f32 without gaps. */
static void widen_rows(const uint16_t *x, size_t stride, float *y, size_t n_row, size_t n) {
    for (size_t r = 0; r < n_row; r++, x += stride, y += n) {
        size_t i = 0;
        for (; i + SL_LANES <= n; i += SL_LANES) v_store(y + i, v_load_f16(x + i));
        if (i < n) v_store_n(y + i, v_load_f16_n(x + i, n - i), n - i);
    }
}

/* Keys and values from .. end - 1 of the block at base in f32. */
static block widen_block(const sl_attention_args *a, size_t base, size_t from, size_t end) {
    const size_t d = a->head_dim, n_row = (end - base < SL_ATTN_BLOCK ? end : base + SL_ATTN_BLOCK) - from;
    float *k = a->scratch + 2 * SL_ATTN_QUERIES * a->n_head, *v = k + SL_ATTN_BLOCK * d;
    widen_rows((const uint16_t *)a->k + from * a->kv_stride, a->kv_stride, k + (from - base) * d, n_row, d);
    widen_rows((const uint16_t *)a->v + from * a->kv_stride, a->kv_stride, v + (from - base) * d, n_row, d);
    return (block){ k, v, d, d, 0, 0, false };
}

void SL_ISA(sl_attention_f16)(const sl_attention_args *a) {
    const size_t begin = first_key(a, 0), end = a->pos + a->n_tok;
    const bool direct = a->n_tok * a->n_head <= DIRECT;
    attend_begin(a);
    for (size_t base = begin / SL_ATTN_BLOCK * SL_ATTN_BLOCK; base < end; base += SL_ATTN_BLOCK) {
        const size_t at = base * a->kv_stride;
        const block own = { (const uint16_t *)a->k + at, (const uint16_t *)a->v + at, a->kv_stride, a->head_dim, 0, 0, true };
        attend_block(a, direct ? own : widen_block(a, base, begin > base ? begin : base, end), base);
    }
    attend_end(a);
}
