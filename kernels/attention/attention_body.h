/* Causal attention on vectors: one pass over the keys with online softmax (Milakov and Gimelshein 2018), blocks
 * of SL_ATTN_BLOCK absolute positions outside, queries and heads inside, so that a block is read from memory
 * once for all of them. f16 blocks are widened into scratch first.
 *
 * A query's result must not depend on what else is in the call: scores are summed lane by lane over head_dim
 * with one fixed tree per key; keys outside the query's own window get the weight 0 and no arithmetic on
 * their values; blocks start at multiples of SL_ATTN_BLOCK whatever the position. */
#include <assert.h>

enum { VALUE_BLOCK = 64 / SL_LANES, SCORE_VECTORS = SL_ATTN_BLOCK / SL_LANES };

/* Running softmax of one query head: its largest score and the sum of its weights; y holds the sum so far. */
typedef struct softmax {
    float top, total;
} softmax;

/* Rows of keys and values at positions base .. base + SL_ATTN_BLOCK - 1, of which a query sees from .. to - 1
 * (counted from base). */
typedef struct block {
    const float *k, *v;
    size_t stride, head_dim;
    size_t from, to;
} block;

/* Lane-wise partial dot products of q with four rows. */
SL_INLINE void dot_four(const float *q, const float *const row[4], size_t head_dim, vf *sum) {
    for (size_t j = 0; j < 4; j++) sum[j] = v_zero();
    size_t i = 0;
    for (; i + SL_LANES <= head_dim; i += SL_LANES) {
        const vf x = v_load(q + i);
        for (size_t j = 0; j < 4; j++) sum[j] = v_fma(x, v_load(row[j] + i), sum[j]);
    }
    if (i == head_dim) return;
    const vf x = v_load_n(q + i, head_dim - i);
    for (size_t j = 0; j < 4; j++) sum[j] = v_fma(x, v_load_n(row[j] + i, head_dim - i), sum[j]);
}

/* Scaled scores of keys first .. first + SL_LANES - 1, -infinity where the query does not see them (the row of
 * key from stands in there: nothing past the last key may be read). */
static vf score_lanes(const block *b, const float *q, float scale, size_t first) {
    if (first >= b->to || first + SL_LANES <= b->from) return v_set1(-INFINITY);
    vf sum[SL_LANES];
    for (size_t j = 0; j < SL_LANES; j += 4) {
        const float *row[4];
        for (size_t l = 0; l < 4; l++) {
            const size_t key = first + j + l;
            row[l] = b->k + (key >= b->from && key < b->to ? key : b->from) * b->stride;
        }
        dot_four(q, row, b->head_dim, sum + j);
    }
    const vf score = v_mul(v_sum_each(sum), v_set1(scale));
    const ptrdiff_t shift = (ptrdiff_t)first;
    return v_keep(score, (ptrdiff_t)b->from - shift, (ptrdiff_t)b->to - shift, v_set1(-INFINITY));
}

/* y = fade y + sum of weight[key] v[key], over n_vec vectors of components, each of n lanes; v is at base. */
SL_INLINE void add_values(const block *b, const float *v, const float *weight, vf fade, float *y, size_t n_vec,
                          size_t n) {
    vf sum[VALUE_BLOCK];
    for (size_t j = 0; j < n_vec; j++) sum[j] = v_mul(fade, v_load_n(y + j * SL_LANES, n));
    v += b->from * b->stride;
    for (size_t key = b->from; key < b->to; key++, v += b->stride) {
        const vf w = v_set1(weight[key]);
        for (size_t j = 0; j < n_vec; j++) sum[j] = v_fma(w, v_load_n(v + j * SL_LANES, n), sum[j]);
    }
    for (size_t j = 0; j < n_vec; j++) v_store_n(y + j * SL_LANES, sum[j], n);
}

static void attend_block(const block *b, const float *q, float scale, softmax *state, float *y) {
    float weight[SL_ATTN_BLOCK];
    vf score[SCORE_VECTORS], top = v_set1(-INFINITY), total = v_zero();
    for (size_t j = 0; j < SCORE_VECTORS; j++) {
        score[j] = score_lanes(b, q, scale, j * SL_LANES);
        top = v_max(top, score[j]);
    }
    const float block_top = v_top(top), new_top = block_top > state->top ? block_top : state->top;
    for (size_t j = 0; j < SCORE_VECTORS; j++) {
        const vf w = v_exp(v_sub(score[j], v_set1(new_top)));
        v_store(weight + j * SL_LANES, w);
        total = v_add(total, w);
    }
    const vf fade = v_exp(v_sub(v_set1(state->top), v_set1(new_top)));
    state->total = state->total * v_first(fade) + v_sum(total);
    state->top = new_top;

    const size_t d = b->head_dim;
    size_t i = 0;
    for (; i + VALUE_BLOCK * SL_LANES <= d; i += VALUE_BLOCK * SL_LANES)
        add_values(b, b->v + i, weight, fade, y + i, VALUE_BLOCK, SL_LANES);
    for (; i + SL_LANES <= d; i += SL_LANES) add_values(b, b->v + i, weight, fade, y + i, 1, SL_LANES);
    if (i < d) add_values(b, b->v + i, weight, fade, y + i, 1, d - i);
}

/* First key that query t sees. */
static size_t first_key(const sl_attention_args *a, size_t t) {
    const size_t end = a->pos + t + 1;
    return a->window && end > a->window ? end - a->window : 0;
}

/* All queries and heads over the block at base. */
static void attend_queries(const sl_attention_args *a, block b, size_t base) {
    softmax *state = (softmax *)a->scratch;
    for (size_t t = 0; t < a->n_tok; t++) {
        const size_t begin = first_key(a, t), end = a->pos + t + 1;
        if (begin >= base + SL_ATTN_BLOCK || end <= base) continue;
        b.from = begin > base ? begin - base : 0;
        b.to = end - base < SL_ATTN_BLOCK ? end - base : SL_ATTN_BLOCK;
        for (size_t h = 0; h < a->n_head; h++)
            attend_block(&b, a->q + t * a->q_stride + h * a->head_dim, a->scale, &state[t * a->n_head + h],
                         a->y + t * a->y_stride + h * a->head_dim);
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
        const block b = { (const float *)a->k + at, (const float *)a->v + at, a->kv_stride, a->head_dim, 0, 0 };
        attend_queries(a, b, base);
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

void SL_ISA(sl_attention_f16)(const sl_attention_args *a) {
    const size_t d = a->head_dim, begin = first_key(a, 0), end = a->pos + a->n_tok;
    float *k = a->scratch + 2 * SL_ATTN_QUERIES * a->n_head, *v = k + SL_ATTN_BLOCK * d;
    attend_begin(a);
    for (size_t base = begin / SL_ATTN_BLOCK * SL_ATTN_BLOCK; base < end; base += SL_ATTN_BLOCK) {
        const size_t from = begin > base ? begin : base;
        const size_t n_row = (end - base < SL_ATTN_BLOCK ? end : base + SL_ATTN_BLOCK) - from;
        widen_rows((const uint16_t *)a->k + from * a->kv_stride, a->kv_stride, k + (from - base) * d, n_row, d);
        widen_rows((const uint16_t *)a->v + from * a->kv_stride, a->kv_stride, v + (from - base) * d, n_row, d);
        attend_queries(a, (block){ k, v, d, d, 0, 0 }, base);
    }
    attend_end(a);
}
