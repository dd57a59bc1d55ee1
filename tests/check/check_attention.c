/* Causal attention with f32 and f16 keys and values: against float64 with an ordinary softmax; positions at the
 * edges of blocks, windows, groups of heads, every query alone.
 *
 * A score errs by e = (head_dim + 3) u sum |q k| scale, its distance to the largest by 2 e and one rounding of
 * itself, so a weight by d = 2 e + u (spread + 4) of itself; weights are summed and values added over n keys in
 * blocks with a rescaling each: d + (n + n / 16 + 4) u. The quotient of two such sums errs by twice that. */
#include "rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct attention_case {
    rows q, y, scratch;
    void *k, *v;
    double *k_exact, *v_exact; /* [positions, kv_stride] */
    sl_attention_args args;
    bool half;
} attention_case;

/* Keys or values, as f32 or f16, and what they hold in double. */
static void *cache(check *c, size_t n, bool half, float reach, double *exact) {
    float *x = check_buffer(c, n * sizeof *x);
    uint16_t *h = check_buffer(c, n * sizeof *h);
    check_fill_range(c, x, n, -reach, reach);
    for (size_t i = 0; i < n; i++) {
        h[i] = check_index(c, 50) ? sl_f32_to_f16(x[i]) : (uint16_t)check_index(c, 1024); /* some subnormals */
        exact[i] = half ? sl_f16_to_f32(h[i]) : x[i];
    }
    void *out = half ? (void *)h : (void *)x;
    check_seal(c, out);
    return out;
}

static attention_case setup(check *c, bool half, size_t head_dim, size_t n_head, size_t pos, size_t n_tok,
                            size_t window) {
    attention_case v = { .half = half };
    check_case(c, "head_dim=%zu heads=%zu pos=%zu n_tok=%zu window=%zu", head_dim, n_head, pos, n_tok, window);
    const size_t stride = head_dim + pos % 3, width = n_head * head_dim;
    const size_t n = (pos + n_tok - 1) * stride + head_dim;
    v.q = rows_input(c, n_tok, width, width + 2, -3, 3);
    v.y = rows_make(c, n_tok, width, width + 1);
    v.scratch = rows_make(c, 1, sl_attn_scratch(n_head, head_dim), sl_attn_scratch(n_head, head_dim));
    v.k_exact = doubles(n);
    v.v_exact = doubles(n);
    v.k = cache(c, n, half, 2, v.k_exact);
    v.v = cache(c, n, half, 1, v.v_exact);
    v.args = (sl_attention_args){ .q = v.q.at, .k = v.k, .v = v.v, .y = v.y.at, .scratch = v.scratch.at,
                                  .scale = 1 / sqrtf((float)head_dim), .q_stride = v.q.stride,
                                  .kv_stride = stride, .y_stride = v.y.stride, .head_dim = head_dim,
                                  .n_head = n_head, .n_tok = n_tok, .pos = pos, .window = window };
    return v;
}

static void call(check *c, bool half, const sl_attention_args *args) {
    (half ? c->test->attention_f16 : c->test->attention_f32)(args);
}

/* Score of one key; *size is the sum of magnitudes. */
static double score(const attention_case *v, const float *q, size_t key, double *size) {
    double sum = 0;
    *size = 0;
    for (size_t i = 0; i < v->args.head_dim; i++) {
        const double part = (double)q[i] * v->k_exact[key * v->args.kv_stride + i] * v->args.scale;
        sum += part;
        *size += fabs(part);
    }
    return sum;
}

/* One query head: its keys begin .. end - 1. */
static void compare_head(check *c, const attention_case *v, const float *q, const float *y, size_t begin,
                         size_t end) {
    const size_t n = end - begin, d = v->args.head_dim;
    double *weight = doubles(n), top = -INFINITY, low = INFINITY, total = 0, reach = 0;
    for (size_t j = 0; j < n; j++) {
        double size;
        weight[j] = score(v, q, begin + j, &size);
        top = fmax(top, weight[j]);
        low = fmin(low, weight[j]);
        reach = fmax(reach, size);
    }
    for (size_t j = 0; j < n; j++) total += weight[j] = exp(weight[j] - top);
    const double weight_error = 2 * (double)(d + 3) * CHECK_U * reach + CHECK_U * (top - low + 4);
    const double relative = 2 * (weight_error + ((double)n * 17 / 16 + 4) * CHECK_U);
    for (size_t i = 0; i < d; i++) {
        double sum = 0, size = 0;
        for (size_t j = 0; j < n; j++) {
            const double part = weight[j] / total * v->v_exact[(begin + j) * v->args.kv_stride + i];
            sum += part;
            size += fabs(part);
        }
        if (!check_near(c, "y", i, y[i], sum, relative * size + 0x1p-140)) break;
    }
    free(weight);
}

static void compare(check *c, const attention_case *v) {
    const sl_attention_args *a = &v->args;
    check_gaps(c, "y", a->y, v->y.width * sizeof *a->y, v->y.stride * sizeof *a->y, a->n_tok);
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t h = 0; h < a->n_head; h++) {
            const size_t end = a->pos + t + 1, begin = a->window && end > a->window ? end - a->window : 0;
            const size_t at = h * a->head_dim;
            compare_head(c, v, a->q + t * a->q_stride + at, a->y + t * a->y_stride + at, begin, end);
        }
}

/* Each query and head by itself has the same bits. */
static void again(check *c, const attention_case *v) {
    const sl_attention_args *whole = &v->args;
    const rows y = rows_make(c, 1, whole->head_dim, whole->head_dim);
    for (size_t t = 0; t < whole->n_tok; t++)
        for (size_t h = 0; h < whole->n_head; h++) {
            const size_t at = h * whole->head_dim;
            sl_attention_args a = *whole;
            a.q += t * a.q_stride + at;
            a.y = y.at;
            a.n_tok = a.n_head = 1;
            a.pos += t;
            call(c, v->half, &a);
            const float *want = whole->y + t * whole->y_stride + at;
            if (!check_same(c, "query alone", y.at, want, a.head_dim * sizeof *want)) return;
        }
}

static void one_case(check *c, bool half, size_t head_dim, size_t n_head, size_t pos, size_t n_tok,
                     size_t window) {
    const attention_case v = setup(c, half, head_dim, n_head, pos, n_tok, window);
    call(c, half, &v.args);
    compare(c, &v);
    again(c, &v);
    free(v.k_exact);
    free(v.v_exact);
    check_end(c);
}

static void all_cases(check *c, bool half) {
    static const size_t positions[] = { 0, 1, 30, 31, 32, 33, 63, 64, 95, 100 };
    static const size_t windows[] = { 0, 1, 5, 32, 33, 64 }, dims[] = { 1, 8, 13, 16, 33, 64, 80, 128, 200 };
    for (size_t d = 1; d <= 35; d++) one_case(c, half, d, 1 + d % 3, d * 2, 1 + d % 5, d % 2 ? 0 : d);
    for (size_t p = 0; p < 10; p++)
        for (size_t w = 0; w < 6; w++)
            one_case(c, half, dims[(p + w) % 9], 1 + (p + 2 * w) % 4, positions[p], w % 2 ? 16 : 1 + p,
                     windows[w]);
    one_case(c, half, 64, 8, 300, SL_ATTN_QUERIES, 0);
    one_case(c, half, 128, 4, 700, 2, 256);
}

void check_attention_f32(check *c) { all_cases(c, false); }
void check_attention_f16(check *c) { all_cases(c, true); }

static void bench(check *c, bool half) {
    for (size_t n_tok = 1; n_tok <= 16; n_tok += 15)
        for (size_t n_head = 1; n_head <= 4; n_head += 3) {
            const attention_case v = setup(c, half, 128, n_head, 1008, n_tok, 0);
            char label[64];
            snprintf(label, sizeof label, "%zu heads of 128, %zu queries", n_head, n_tok);
            CHECK_BENCH(c, label, 1024.0 * 128 * (half ? 4 : 8), 4.0 * 128 * 1016 * (double)(n_tok * n_head),
                        call(c, half, &v.args));
            free(v.k_exact);
            free(v.v_exact);
            check_end(c);
        }
}

void bench_attention_f32(check *c) { bench(c, false); }
void bench_attention_f16(check *c) { bench(c, true); }

/* The window one key too long. */
void mutant_attention_f32_wide_window(const sl_attention_args *args) {
    sl_attention_args a = *args;
    if (a.window) a.window++;
    sl_kernels_select(SL_CPU_REF).attention_f32(&a);
}

/* A query sees the tokens of the call that come after it. */
void mutant_attention_f32_not_causal(const sl_attention_args *args) {
    sl_attention_args a = *args;
    a.n_tok = 1;
    a.pos = args->pos + args->n_tok - 1;
    for (size_t t = 0; t < args->n_tok; t++) {
        a.window = args->window ? args->window + args->n_tok - 1 - t : 0;
        sl_kernels_select(SL_CPU_REF).attention_f32(&a);
        a.q += a.q_stride;
        a.y += a.y_stride;
    }
}

/* Takes subnormal f16 for zero. */
void mutant_attention_f16_flush(const sl_attention_args *args) {
    const size_t n = (args->pos + args->n_tok - 1) * args->kv_stride + args->head_dim;
    uint16_t *v = malloc(n * sizeof *v);
    if (!v) abort();
    memcpy(v, args->v, n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        if (!(v[i] & 0x7c00)) v[i] = 0;
    sl_attention_args a = *args;
    a.v = v;
    sl_kernels_select(SL_CPU_REF).attention_f16(&a);
    free(v);
}
