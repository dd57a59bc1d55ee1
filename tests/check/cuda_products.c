/* CUDA matrix products and expansion: adapters for the families of gemm and expand, and tests of what the
 * CPU's table has no member for, against sums in double.
 *
 * Bounds. A sum of k products in f32, in any order, fused or not, and a bias: (k + 4) u (sum|w x| + |bias|).
 * The matrix units may cut where additions round: twice that, of weights that are rounded to f16 first.
 * Rounded to f16: half a unit of its 11 bits more, and 65504 for what is beyond. rho times it, added to y: the
 * sum's error times rho, and one rounding. */
#include "cuda_check.h"
#include "runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows of stored weights on the device, 2 or 4 bytes aligned, as any file has them. */
static const void *put_weights(sl_type type, const void *w, size_t stride, size_t n_row, size_t k) {
    const size_t align = type == SL_F16 || type == SL_BF16 ? 2 : 4;
    return cuda_put(w, (n_row - 1) * stride + (size_t)sl_row_bytes(type, k), align);
}

/* ---- adapters ----------------------------------------------------------------------------------- */

#define GEMM_ARGS                                                                                             \
    const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes, float *y, size_t y_stride,    \
        size_t n_row, size_t n_tok, size_t k
typedef int product_fn(const sl_product_args *args, sl_cuda_stream stream);

/* Inputs of n_tok rows as f32 rows, k apart; activation rows of q8 and q4 products are expanded. */
static float *plain_inputs(sl_type type, const unsigned char *x, size_t x_stride_bytes, size_t n_tok,
                           size_t k) {
    float *out = malloc(n_tok * k * sizeof *out);
    if (!out) abort();
    for (size_t t = 0; t < n_tok; t++, x += x_stride_bytes) {
        if (type != SL_Q8 && type != SL_Q4) {
            memcpy(out + t * k, x, k * sizeof *out);
            continue;
        }
        const float *scales = (const float *)(x + sl_act_scales_offset(k));
        for (size_t i = 0; i < k; i++) out[t * k + i] = (float)(int8_t)x[i] * scales[i / SL_BLOCK];
    }
    return out;
}

static void run_product(product_fn *product, sl_type type, size_t max_tok, GEMM_ARGS) {
    float *inputs = plain_inputs(type, x, x_stride_bytes, n_tok, k);
    const void *weights = put_weights(type, w, w_stride_bytes, n_row, k);
    for (size_t t = 0; t < n_tok; t += max_tok) {
        const size_t n = n_tok - t < max_tok ? n_tok - t : max_tok;
        sl_product_args a = { .w = weights, .w_row_bytes = w_stride_bytes, .type = type, .act = SL_ACT_F32,
                              .gain = 1, .n_row = (uint32_t)n_row, .k = (uint32_t)k, .rows = { .max = (uint32_t)n } };
        a.x = cuda_put_rows(SL_ACT_F32, inputs + t * k, k, k, n, &a.x_stride);
        a.y = cuda_new_rows(SL_ACT_F32, n_row, n, &a.y_stride);
        cuda_run(product(&a, NULL));
        cuda_get_rows(SL_ACT_F32, y + t * y_stride, y_stride, n_row, n, a.y, a.y_stride);
    }
    cuda_free();
    free(inputs);
}

static void run_expand(sl_type type, const void *row, size_t n, float *y) {
    uint64_t stride;
    float *dst = cuda_new_rows(SL_ACT_F32, n, 1, &stride);
    const sl_expand_args a = { .w = put_weights(type, row, 0, 1, n),
                               .w_row_bytes = sl_row_bytes(type, n),
                               .type = type,
                               .act = SL_ACT_F32,
                               .dst = dst,
                               .dst_stride = stride,
                               .n_row = 1,
                               .k = (uint32_t)n };
    cuda_run(cuda.expand(&a, NULL));
    cuda_get_rows(SL_ACT_F32, y, n, n, 1, dst, stride);
    cuda_free();
}

#define DEFINE_ADAPTERS(name, type)                                                                            \
    void check_cuda_gemv_##name(GEMM_ARGS) {                                                                   \
        run_product(cuda.gemv, type, SL_GEMV_ROWS, w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row,   \
                    n_tok, k);                                                                                 \
    }                                                                                                          \
    void check_cuda_gemm_##name(GEMM_ARGS) {                                                                   \
        run_product(cuda.gemm, type, n_tok, w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok,   \
                    k);                                                                                        \
    }                                                                                                          \
    void check_cuda_expand_##name(const void *row, size_t n, float *y) { run_expand(type, row, n, y); }
DEFINE_ADAPTERS(f32, SL_F32)
DEFINE_ADAPTERS(f16, SL_F16)
DEFINE_ADAPTERS(bf16, SL_BF16)
DEFINE_ADAPTERS(q8, SL_Q8)
DEFINE_ADAPTERS(q4, SL_Q4)

/* ---- matrices of the tests ---------------------------------------------------------------------- */

/* Stored weights and what they stand for. */
typedef struct weights {
    sl_type type;
    size_t n_row, k, row_bytes;
    unsigned char *stored;
    float *value; /* [n_row, k] */
    const void *device;
} weights;

static weights make_weights(check *c, sl_type type, size_t n_row, size_t k, size_t gap) {
    const sl_expand_fn expand[SL_N_TYPE] = { c->ref->expand_f32, c->ref->expand_f16, c->ref->expand_bf16,
                                             c->ref->expand_q8, c->ref->expand_q4 };
    weights w = { type, n_row, k, (size_t)sl_row_bytes(type, k) + gap, NULL, NULL, NULL };
    w.stored = check_buffer(c, n_row * w.row_bytes);
    w.value = check_buffer(c, n_row * k * sizeof *w.value);
    for (size_t r = 0; r < n_row; r++) {
        check_fill(c, w.value + r * k, k, CHECK_UNIFORM);
        sl_pack_row(type, w.value + r * k, k, w.stored + r * w.row_bytes);
        expand[type](w.stored + r * w.row_bytes, k, w.value + r * k);
    }
    w.device = put_weights(type, w.stored, w.row_bytes, n_row, k);
    return w;
}

/* Values that the activations' type holds exactly. */
static float *make_values(check *c, sl_act act, size_t n) {
    float *x = check_buffer(c, n * sizeof *x);
    check_fill(c, x, n, CHECK_UNIFORM);
    for (size_t i = 0; i < n; i++) x[i] = cuda_rounded(act, x[i]);
    return x;
}

/* A sum in double and the bound of its f32 computation. */
typedef struct bounded { double value, bound; } bounded;

static bounded dot(const float *w, const float *x, size_t k, uint32_t lift, float bias) {
    double value = bias, magnitude = fabs((double)bias);
    for (size_t i = 0; i < k; i++) {
        const double part = ldexp((double)w[i] * x[i], (int)lift);
        value += part;
        magnitude += fabs(part);
    }
    return (bounded){ value, ((double)k + 4) * CHECK_U * magnitude };
}

/* The same on the matrix units. */
static bounded dot_on_units(const float *w, const float *x, size_t k, uint32_t lift, float bias) {
    float *units = malloc(k * sizeof *units);
    if (!units) abort();
    for (size_t i = 0; i < k; i++) units[i] = cuda_rounded(SL_ACT_F16, w[i]);
    bounded s = dot(units, x, k, lift, bias);
    s.bound *= 2;
    free(units);
    return s;
}

/* What is beyond the range of f16 counts as its largest number. */
static bounded within_f16(bounded s) {
    if (fabs(s.value) - s.bound > 65504) s.bound = 0;
    s.value = fmax(fmin(s.value, 65504), -65504);
    return s;
}

static bounded rounded(bounded s, sl_act act) {
    int exponent;
    if (act == SL_ACT_F32) return s;
    frexp(fmax(fabs(s.value) + s.bound, 0x1p-14), &exponent); /* below that the unit stays the same */
    s.bound += ldexp(1, exponent - 12);                       /* half a unit of 11 bits */
    return within_f16(s);
}

/* ---- products ----------------------------------------------------------------------------------- */

enum { GEMV, GEMM, STORE };
static const char *const kernel_names[] = { "gemv", "gemm", "store" };

typedef struct shape {
    int kernel;
    sl_type type;
    sl_act act;
    sl_product_out out;
    uint32_t n_row, k, max, n, lift; /* n: how many rows the device is told */
    bool bias, rho, indexed, counted, in_place; /* in_place: indexed as well */
} shape;

enum { N_SPARE = 3 }; /* batch rows that are not among the rows */

typedef struct product {
    shape s;
    weights w;
    float *x, *bias, *rho, *before, *after, *sums;
    uint32_t *index;
    uint32_t n_batch;
} product;

/* Increasing places in the batch that leave out some. */
static void fill_index(check *c, product *p) {
    uint32_t at = 0, spare = N_SPARE;
    for (uint32_t t = 0; t < p->s.max; t++, at++) {
        if (spare > 0 && check_random(c) % 2) at++, spare--;
        p->index[t] = at;
    }
}

static product make_product(check *c, shape s) {
    product p = { .s = s, .n_batch = s.max + N_SPARE };
    p.w = make_weights(c, s.type, s.n_row, s.k,
                       s.type == SL_F16 || s.type == SL_BF16 ? 2 * check_index(c, 2) : 0);
    p.x = make_values(c, s.act, (size_t)s.max * s.k);
    p.bias = make_values(c, SL_ACT_F32, s.n_row);
    p.rho = make_values(c, SL_ACT_F32, p.n_batch);
    p.before = make_values(c, SL_ACT_F32, (size_t)p.n_batch * s.n_row);
    p.after = check_buffer(c, (size_t)p.n_batch * s.n_row * sizeof *p.after);
    p.sums = make_values(c, SL_ACT_F32, (size_t)s.max * s.n_row);
    p.index = check_buffer(c, s.max * sizeof *p.index);
    fill_index(c, &p);
    return p;
}

static sl_act out_type(const shape *s) {
    return s->out == SL_OUT_ACT ? s->act : SL_ACT_F32;
}

/* A second matrix in the same launch, to a place of its own, changes nothing of either; it is the first one again, a weight
 * row on, so that the sums are the first one's but for the first row. */
static void check_pair(const product *p, const sl_product_args *first) {
    const shape *s = &p->s;
    const size_t n = (size_t)p->n_batch * s->n_row * 4;
    float *y[2] = { check_buffer(check_current(), n), check_buffer(check_current(), n) };
    sl_product_args a = *first;
    if (s->n_row < 2) return;
    a.n_row--, a.bias = NULL, a.out = s->out == SL_OUT_ADD ? SL_OUT_F32 : s->out;
    void *second = cuda_new_rows(out_type(s), s->n_row - 1, p->n_batch, &a.y_stride);
    a.y = cuda_new_rows(out_type(s), s->n_row - 1, p->n_batch, &a.y_stride);
    cuda_run(sl_gemv_pair_cuda(&a, (const char *)a.w + a.w_row_bytes, second, NULL));
    cuda_get_rows(out_type(s), y[0], s->n_row, s->n_row - 1, p->n_batch, a.y, a.y_stride);
    cuda_get_rows(out_type(s), y[1], s->n_row, s->n_row - 1, p->n_batch, second, a.y_stride);
    for (uint32_t t = 0; t < s->n; t++)
        check_same(check_current(), "sums of a pair", y[0] + t * s->n_row + 1, y[1] + t * s->n_row,
                   (s->n_row - 2) * sizeof(float));
}

/* x of the rows, where they lie; there are no others. */
static const void *put_inputs(const product *p, uint64_t *stride) {
    const shape *s = &p->s;
    if (!s->in_place) return cuda_put_rows(s->act, p->x, s->k, s->k, s->n, stride);
    float *all = check_buffer(check_current(), (size_t)p->n_batch * s->k * sizeof *all);
    for (size_t i = 0; i < (size_t)p->n_batch * s->k; i++) all[i] = NAN;
    for (uint32_t t = 0; t < s->n; t++)
        memcpy(all + (size_t)p->index[t] * s->k, p->x + (size_t)t * s->k, s->k * sizeof *all);
    return cuda_put_rows(s->act, all, s->k, s->k, p->index[s->n - 1] + 1, stride);
}

/* With no row nothing but the count may be read: there is nothing else. */
static void launch_product(const product *p) {
    const shape *s = &p->s;
    sl_product_args a = { .w_row_bytes = p->w.row_bytes, .type = s->type, .act = s->act, .out = s->out,
                          .n_row = s->n_row, .k = s->k, .gain = ldexpf(1, (int)s->lift),
                          .rows = { .max = s->max } };
    const float *sums = NULL;
    uint64_t sums_stride = s->n_row;
    if (s->n > 0) {
        a.w = p->w.device;
        a.x = put_inputs(p, &a.x_stride);
        a.rows.in_place = s->in_place;
        sums = cuda_put_rows(SL_ACT_F32, p->sums, s->n_row, s->n_row, s->n, &sums_stride);
        if (s->bias) a.bias = cuda_put(p->bias, s->n_row * sizeof *p->bias, 4);
        if (s->rho) a.rho = cuda_put(p->rho, p->n_batch * sizeof *p->rho, 4);
        if (s->indexed) a.rows.index = cuda_put(p->index, s->n * sizeof *p->index, 4);
    }
    if (s->counted) a.rows.n = cuda_put(&s->n, sizeof s->n, 4);
    if (s->out == SL_OUT_ADD)
        a.y = cuda_put_rows(SL_ACT_F32, p->before, s->n_row, s->n_row, p->n_batch, &a.y_stride);
    else a.y = cuda_new_rows(out_type(s), s->n_row, p->n_batch, &a.y_stride);
    if (s->kernel == STORE) cuda_run(cuda.store(&a, sums, sums_stride, NULL));
    else cuda_run((s->kernel == GEMV ? cuda.gemv : cuda.gemm)(&a, NULL));
    if (s->kernel == GEMV && s->n > 0) check_pair(p, &a);
    cuda_get_rows(out_type(s), p->after, s->n_row, s->n_row, p->n_batch, a.y, a.y_stride);
}

/* What y[b][r] is to become. */
static bounded expected(const product *p, uint32_t t, uint32_t b, uint32_t r) {
    const shape *s = &p->s;
    const float bias = s->bias ? p->bias[r] : 0;
    const bool units = s->kernel != STORE && s->act == SL_ACT_F16;
    const float *w_row = p->w.value + (size_t)r * s->k, *x_row = p->x + (size_t)t * s->k;
    bounded v = (units ? dot_on_units : dot)(w_row, x_row, s->k, s->lift, bias);
    if (s->kernel == STORE) {
        v.value = ldexp((double)p->sums[(size_t)t * s->n_row + r], (int)s->lift) + bias;
        v.bound = CHECK_U * fabs(v.value);
    }
    if (s->out != SL_OUT_ADD) return rounded(v, out_type(s));
    const double rho = s->rho ? (double)p->rho[b] : 1;
    v.value = p->before[(size_t)b * s->n_row + r] + rho * v.value;
    v.bound = fabs(rho) * v.bound * 1.0001 + CHECK_U * fabs(v.value);
    return v;
}

static bool check_row(check *c, const product *p, uint32_t t, uint32_t b) {
    for (uint32_t r = 0; r < p->s.n_row; r++) {
        const bounded want = expected(p, t, b, r);
        const size_t at = (size_t)b * p->s.n_row + r;
        if (!check_near(c, "y", at, p->after[at], want.value, want.bound)) return false;
    }
    return true;
}

static bool check_untouched(check *c, const product *p, uint32_t b) {
    for (size_t at = (size_t)b * p->s.n_row; at < (size_t)(b + 1) * p->s.n_row; at++) {
        const bool kept = p->s.out == SL_OUT_ADD ? p->after[at] == p->before[at] : isnan(p->after[at]) != 0;
        if (kept) continue;
        check_fail(c, "y[%zu] of row %u, which is none of the rows, was written", at, b);
        return false;
    }
    return true;
}

/* One of the rows alone: in f16 and f32 alike its sums have the same bits in whatever tile, beside whatever others. */
static void check_alone(check *c, const product *p) {
    product one = *p;
    const uint32_t t = (uint32_t)check_index(c, p->s.n), b = p->s.out == SL_OUT_ADD && p->s.indexed ? p->index[t] : t;
    const size_t n = p->s.n_row, at = (size_t)b * n;
    one.s.max = one.s.n = 1, one.s.counted = one.s.indexed = one.s.in_place = false, one.n_batch = 1;
    one.x += (size_t)t * p->s.k, one.rho += b, one.before += at;
    one.after = check_buffer(c, n * sizeof *one.after);
    launch_product(&one);
    check_same(c, "a row by itself", one.after, p->after + at, n * sizeof *one.after);
}

static void check_product(check *c, shape s) {
    static const char *const outs[] = { "act", "f32", "add" };
    s.in_place = s.indexed && s.kernel == GEMV && s.act == SL_ACT_F16 && check_random(c) % 2;
    check_case(c, "%s %s %s to %s, n_row=%u k=%u rows %u of %u lift %u%s%s%s%s%s", kernel_names[s.kernel],
               sl_type_name(s.type), cuda_act_name(s.act), outs[s.out], s.n_row, s.k, s.n,
               s.max, s.lift, s.bias ? " bias" : "", s.rho ? " rho" : "", s.indexed ? " index" : "",
               s.counted ? " counted" : "", s.in_place ? " in place" : "");
    const product p = make_product(c, s);
    launch_product(&p);
    uint32_t t = 0;
    for (uint32_t b = 0; b < p.n_batch && !c->failed; b++) {
        const bool row_here = t < s.n && b == (s.out == SL_OUT_ADD && s.indexed ? p.index[t] : t);
        if (row_here) check_row(c, &p, t++, b);
        else check_untouched(c, &p, b);
    }
    if (s.kernel == GEMM && s.n > 0 && !c->failed) check_alone(c, &p);
    cuda_free();
    check_end(c);
}

/* Every type, activation and output, each with the options by chance; few, no and all rows. */
static void check_products(check *c, int kernel) {
    static const uint32_t ks[] = { 1, 7, 64, 95, 160, 512 };
    for (int i = 0; i < SL_N_TYPE * 2 * 3 * 6 && !c->failed; i++) {
        shape s = { .kernel = kernel, .type = (sl_type)(i % SL_N_TYPE), .act = (sl_act)(i / SL_N_TYPE % 2),
                    .out = (sl_product_out)(i / SL_N_TYPE / 2 % 3), .k = ks[i / (SL_N_TYPE * 2 * 3)] };
        const uint32_t most = kernel == GEMV ? sl_gemv_rows(s.act, s.type) : 70;
        s.n_row = 1 + (uint32_t)check_index(c, i % 7 == 0 ? 150 : 20);
        s.max = 1 + (uint32_t)check_index(c, check_random(c) % 2 ? most : 5);
        const uint64_t options = check_random(c);
        s.bias = options & 1, s.rho = options & 2, s.indexed = options & 4, s.counted = options & 8;
        s.lift = options & 16 ? 0 : options & 32 ? 6 : 20; /* the last beyond the range of f16 */
        s.n = s.counted ? (uint32_t)check_index(c, s.max + 1) : s.max;
        check_product(c, s);
    }
}

/* No row at all, for each kernel and output. */
static void check_nothing(check *c, int kernel) {
    for (int i = 0; i < SL_N_TYPE * 3 && !c->failed; i++) {
        check_product(c, (shape){ .kernel = kernel, .type = (sl_type)(i % SL_N_TYPE), .act = SL_ACT_F16,
                                  .out = (sl_product_out)(i / SL_N_TYPE), .n_row = 9, .k = 128,
                                  .max = i % 2 ? 16 : 4, .counted = true, .bias = true });
    }
}

/* Shapes at the edges of the matrix units' tiles, for each type of weights. */
typedef struct tile_shape { uint32_t n_row, k, max, n; } tile_shape;

static void check_tiles(check *c, int kernel, const tile_shape *tiles, size_t n_tile) {
    for (size_t i = 0; i < SL_N_TYPE * n_tile && !c->failed; i++) {
        const tile_shape *s = &tiles[i / SL_N_TYPE];
        const uint64_t options = check_random(c);
        if (kernel == GEMV && s->max > sl_gemv_rows(SL_ACT_F16, (sl_type)(i % SL_N_TYPE))) continue;
        check_product(c, (shape){ .kernel = kernel, .type = (sl_type)(i % SL_N_TYPE), .act = SL_ACT_F16,
                                  .out = (sl_product_out)(options % 3), .n_row = s->n_row,
                                  .k = s->k, .max = s->max, .n = s->n, .bias = options & 4,
                                  .rho = options & 8, .indexed = options & 16, .counted = true,
                                  .lift = options & 32 ? 20 : 0 });
    }
}

/* Of 16 weight rows and 8 rows, steps of 4 chunks, all that a warp asks for at once and a step more; so many weight rows
 * that a block takes 64; and, quantised, more rows, in one block and two. */
void check_cuda_gemv(check *c) {
    static const tile_shape tiles[] = {
        { 16, 32, 8, 8 },    { 17, 31, 9, 9 },       { 15, 33, 16, 8 },     { 32, 1056, 1, 1 },  { 3, 2050, 16, 16 },
        { 33, 4352, 9, 9 },  { 16, 8320, 7, 7 },     { 16896, 40, 8, 3 },   { 16900, 65, 9, 9 }, { 17000, 8, 1, 1 },
        { 17, 320, 17, 17 }, { 16, 95, 32, 32 },     { 33, 1056, 33, 33 },   { 15, 64, 64, 64 }, { 40, 2050, 64, 31 },
        { 16896, 24, 40, 33 },
    };
    check_nothing(c, GEMV), check_products(c, GEMV);
    check_tiles(c, GEMV, tiles, sizeof tiles / sizeof *tiles);
}

/* Of 64 and 128 rows, 32, 128 and 256 weight rows, 64 elements; some with more steps than there is room for. Larger tiles
 * are for products of many. */
void check_cuda_gemm(check *c) {
    static const tile_shape tiles[] = {
        { 32, 64, 64, 64 },   { 33, 65, 65, 65 },   { 31, 63, 65, 64 },
        { 64, 648, 129, 65 }, { 1, 129, 17, 1 },    { 65, 192, 33, 33 },
        { 130, 200, 2110, 3 }, { 129, 328, 2049, 66 }, { 128, 64, 4096, 33 }, { 97, 257, 2112, 0 },
        { 129, 456, 16890, 200 }, { 300, 457, 11300, 131 }, { 257, 65, 11300, 0 },
        { 130, 200, 32700, 140 }, { 300, 328, 16300, 129 }, { 513, 192, 10900, 65 },
    };
    check_nothing(c, GEMM), check_products(c, GEMM);
    check_tiles(c, GEMM, tiles, sizeof tiles / sizeof *tiles);
}
void check_cuda_store(check *c) { check_nothing(c, STORE), check_products(c, STORE); }

/* ---- gated products ----------------------------------------------------------------------------- */

/* The second matrix is the first one again, a weight row on. silu' is never more than 1.1; the device's exponential and
 * reciprocal are exact to 2^-18 and as many units as the exponent has. */
static bounded gated(const product *p, uint32_t t, uint32_t r, uint32_t lift) {
    const float *w = p->w.value + (size_t)r * p->s.k, *x = p->x + (size_t)t * p->s.k;
    const bounded gate = within_f16(dot_on_units(w, x, p->s.k, p->s.lift, 0));
    const bounded up = within_f16(dot_on_units(w + p->s.k, x, p->s.k, p->s.lift, 0));
    const double silu = gate.value / (1 + exp(-gate.value)), own = fabs(silu) * (0x1p-18 + 0x1p-22 * fabs(gate.value));
    bounded v = { ldexp(silu * up.value, -(int)lift), 0 };
    v.bound = (1.1 * gate.bound + own) * (fabs(up.value) + up.bound) + fabs(silu) * up.bound;
    v.bound = ldexp(v.bound, -(int)lift);
    return rounded(v, SL_ACT_F16);
}

static void check_gated(check *c, shape s, uint32_t lift) {
    check_case(c, "%s, n_row=%u k=%u rows %u of %u lift %u, %u%s", sl_type_name(s.type), s.n_row, s.k, s.n, s.max, s.lift,
               lift, s.in_place ? " in place" : "");
    const product p = make_product(c, s);
    sl_product_args a = { .w = p.w.device, .w_row_bytes = p.w.row_bytes, .type = s.type, .act = SL_ACT_F16,
                          .n_row = s.n_row - 1, .k = s.k, .gain = ldexpf(1, (int)s.lift), .rows = { .max = s.max } };
    if (s.n > 0) a.x = put_inputs(&p, &a.x_stride);
    if (s.in_place) a.rows.index = cuda_put(p.index, s.n * sizeof *p.index, 4), a.rows.in_place = true;
    a.rows.n = cuda_put(&s.n, sizeof s.n, 4);
    a.y = cuda_new_rows(SL_ACT_F16, a.n_row, s.max, &a.y_stride);
    cuda_run(cuda.gemv_gated(&a, (const char *)a.w + a.w_row_bytes, lift, NULL));
    cuda_get_rows(SL_ACT_F16, p.after, a.n_row, a.n_row, s.max, a.y, a.y_stride);
    for (size_t i = 0; i < (size_t)s.max * a.n_row && !c->failed; i++) {
        const uint32_t t = (uint32_t)(i / a.n_row), r = (uint32_t)(i % a.n_row);
        const bounded want = t < s.n ? gated(&p, t, r, lift) : (bounded){ 0, 0 };
        if (t < s.n) check_near(c, "y", i, p.after[i], want.value, want.bound);
        else if (!isnan(p.after[i])) check_fail(c, "y[%zu] of row %u, which is none of the rows, was written", i, t);
    }
    cuda_free();
    check_end(c);
}

/* Eight weight rows of each matrix to a warp, one or four of these to a block; all numbers of rows of x. */
void check_cuda_gemv_gated(check *c) {
    static const uint32_t shapes[][2] = { { 2, 1 },    { 8, 7 },    { 9, 64 },   { 10, 300 }, { 17, 1056 },
                                          { 18, 4352 }, { 33, 95 }, { 8448, 40 }, { 8451, 33 }, { 8482, 8 } };
    for (size_t i = 0; i < SL_N_TYPE * sizeof shapes / sizeof *shapes && !c->failed; i++) {
        const uint32_t *size = shapes[i / SL_N_TYPE], most = sl_gemv_rows(SL_ACT_F16, (sl_type)(i % SL_N_TYPE));
        const uint32_t max = 1 + (uint32_t)check_index(c, size[0] > 1000 && most > 36 ? 36 : most);
        const uint32_t n = check_random(c) % 2 ? max : (uint32_t)check_index(c, max + 1);
        check_gated(c, (shape){ .kernel = GEMV, .type = (sl_type)(i % SL_N_TYPE), .act = SL_ACT_F16, .n_row = size[0],
                                .k = size[1], .max = max, .n = n, .lift = i % 7 == 6 ? 20 : i % 3 ? 0 : 4,
                                .in_place = n > 0 && check_random(c) % 2 }, i % 2 ? 6 : 0);
    }
}

/* ---- block-diagonal products -------------------------------------------------------------------- */

/* y [max, e] of blocks of b, of which n rows were to be written. */
static void check_block_rows(check *c, const weights *w, sl_act act, const float *x, const float *y, uint32_t max,
                             uint32_t n) {
    const uint32_t e = (uint32_t)w->n_row, b = (uint32_t)w->k;
    for (uint32_t i = 0; i < max * e && !c->failed; i++) {
        const uint32_t t = i / e, row = i % e;
        const bool units = act == SL_ACT_F16;
        const float *w_row = w->value + (size_t)row * b, *x_row = x + (size_t)t * e + row / b * b;
        const bounded want = rounded((units ? dot_on_units : dot)(w_row, x_row, b, 0, 0), act);
        if (t < n) check_near(c, "y", i, y[i], want.value, want.bound);
        else if (!isnan(y[i])) check_fail(c, "y[%u] of row %u, which is none of the rows, was written", i, t);
    }
}

static void check_blocks(check *c, sl_type type, sl_act act, uint32_t n_block, uint32_t b, uint32_t max,
                         uint32_t n, bool both) {
    check_case(c, "%s %s, %u blocks of %u, rows %u of %u%s", sl_type_name(type),
               cuda_act_name(act), n_block, b, n, max, both ? ", two matrices" : "");
    const uint32_t e = n_block * b;
    const weights w = make_weights(c, type, e, b, 0), w2 = make_weights(c, type, e, b, 0);
    float *x = make_values(c, act, (size_t)max * e), *y = check_buffer(c, (size_t)max * e * sizeof *y);
    sl_block_args a = { .w = w.device,
                        .w_row_bytes = w.row_bytes,
                        .type = type,
                        .act = act,
                        .n_block = n_block,
                        .b = b,
                        .n_few = check_random(c) % 4 ? sl_block_rows(act) : 0,
                        .rows = { .max = max } };
    a.x = cuda_put_rows(act, x, e, e, max, &a.x_stride);
    a.y = cuda_new_rows(act, e, max, &a.y_stride);
    if (both) a.w2 = w2.device, a.y2 = cuda_new_rows(act, e, max, &a.y_stride);
    if (n < max) a.rows.n = cuda_put(&n, sizeof n, 4);
    cuda_run(cuda.block_linear(&a, NULL));
    cuda_get_rows(act, y, e, e, max, a.y, a.y_stride);
    check_block_rows(c, &w, act, x, y, max, n);
    if (both) {
        cuda_get_rows(act, y, e, e, max, a.y2, a.y_stride);
        check_block_rows(c, &w2, act, x, y, max, n);
    }
    cuda_free();
    check_end(c);
}

void check_cuda_block_linear(check *c) {
    static const uint32_t widths[] = { 1, 3, 8, 16, 20, 64, 65 };
    for (size_t i = 0; i < sizeof widths / sizeof *widths * 6 && !c->failed; i++) {
        const uint32_t n_block = 1 + (uint32_t)check_index(c, 5),
                       max = 1 + (uint32_t)check_index(c, i % 2 ? 40 : 130);
        check_blocks(c, (sl_type)(i % 3), (sl_act)(i / 3 % 2), n_block, widths[i / 6], max,
                     i % 4 ? max : (uint32_t)check_index(c, max), i % 2);
    }
}

/* ---- tables ------------------------------------------------------------------------------------- */

/* Bit for bit the rows of the table, and none beyond the count. */
void check_cuda_embed(check *c) {
    static const uint32_t ds[] = { 1, 31, 64, 100, 257 };
    for (int i = 0; i < SL_N_TYPE * 5 && !c->failed; i++) {
        const uint32_t n_vocab = 1 + (uint32_t)check_index(c, 30), max = 1 + (uint32_t)check_index(c, 9),
                       d = ds[i / SL_N_TYPE];
        const uint32_t n = (uint32_t)check_index(c, max + 1);
        const weights w = make_weights(c, (sl_type)(i % SL_N_TYPE), n_vocab, d, 4 * check_index(c, 2));
        check_case(c, "%s d=%u, %u of %u rows", sl_type_name(w.type), d, n, max);
        int32_t *tokens = check_buffer(c, max * sizeof *tokens);
        float *x = check_buffer(c, (size_t)max * d * sizeof *x);
        for (uint32_t t = 0; t < max; t++) tokens[t] = t < n ? (int32_t)check_index(c, n_vocab) : INT32_MAX;
        sl_embed_args a = { .table = w.device, .table_row_bytes = w.row_bytes, .type = w.type, .d = d,
                            .tokens = cuda_put(tokens, max * sizeof *tokens, 4), .rows = { .max = max } };
        a.x = cuda_new_rows(SL_ACT_F32, d, max, &a.x_stride);
        a.rows.n = cuda_put(&n, sizeof n, 4);
        cuda_run(cuda.embed(&a, NULL));
        cuda_get_rows(SL_ACT_F32, x, d, d, max, a.x, a.x_stride);
        for (uint32_t t = 0; t < n; t++)
            check_same(c, "x", x + (size_t)t * d, w.value + (size_t)tokens[t] * d, d * sizeof *x);
        for (size_t j = (size_t)n * d; j < (size_t)max * d; j++) {
            if (!isnan(x[j])) check_fail(c, "x[%zu] of a row beyond the count was written", j);
        }
        cuda_free();
        check_end(c);
    }
}

/* bf16 to f16 where they lie, as weights are when they have been copied to a device. */
static void check_in_place(check *c, const weights *w, const sl_expand_args *args) {
    sl_expand_args a = *args;
    a.dst = (void *)(uintptr_t)a.w, a.dst_stride = a.w_row_bytes / 2;
    cuda_run(cuda.expand(&a, NULL));
    uint16_t *row = check_buffer(c, w->k * sizeof *row);
    for (size_t r = 0; r < w->n_row; r++) {
        cuda_get(row, (const char *)w->device + r * w->row_bytes, w->k * sizeof *row);
        for (size_t i = 0; i < w->k; i++)
            check_near(c, "in place", r * w->k + i, row[i], cuda_f16(w->value[r * w->k + i]), 0);
    }
}

/* Several rows in either type, to destinations with and without the alignment of vectors. */
void check_cuda_expand(check *c) {
    for (int i = 0; i < SL_N_TYPE * 2 * 12 && !c->failed; i++) {
        const sl_act act = (sl_act)(i / SL_N_TYPE % 2);
        const size_t n_row = 1 + check_index(c, 6),
                     k = i % 3 ? 64 * (1 + check_index(c, 5)) : 1 + check_index(c, 200);
        const weights w = make_weights(c, (sl_type)(i % SL_N_TYPE), n_row, k, 4 * check_index(c, 2));
        const size_t stride = k + check_index(c, 4), size = sl_act_size(act);
        check_case(c, "%s to %s n_row=%zu k=%zu stride=%zu", sl_type_name(w.type),
                   cuda_act_name(act), n_row, k, stride);
        float *y = check_buffer(c, n_row * k * sizeof *y);
        void *dst = cuda_new(((n_row - 1) * stride + k) * size, size);
        const sl_expand_args a = { .w = w.device,
                                   .w_row_bytes = w.row_bytes,
                                   .type = w.type,
                                   .act = act,
                                   .dst = dst,
                                   .dst_stride = stride,
                                   .n_row = (uint32_t)n_row,
                                   .k = (uint32_t)k };
        cuda_run(cuda.expand(&a, NULL));
        cuda_get_rows(act, y, k, k, n_row, dst, stride);
        for (size_t j = 0; j < n_row * k; j++) {
            const float want = cuda_rounded(act, w.value[j]);
            if (y[j] != want && !check_near(c, "y", j, y[j], want, 0)) break;
        }
        if (w.type == SL_BF16 && act == SL_ACT_F16) check_in_place(c, &w, &a);
        cuda_free();
        check_end(c);
    }
}

/* ---- random weights ----------------------------------------------------------------------------- */

static unsigned char *random_rows(check *c, sl_type type, size_t n_row, size_t k, size_t row_bytes,
                                  uint64_t seed) {
    const size_t n_bytes = (n_row - 1) * row_bytes + (size_t)sl_row_bytes(type, k);
    unsigned char *rows = check_buffer(c, n_bytes);
    void *w = cuda_new(n_bytes, type == SL_F16 || type == SL_BF16 ? 2 : 4);
    const sl_random_args a = { .w = w,
                               .w_row_bytes = row_bytes,
                               .n_row = n_row,
                               .type = type,
                               .scale = 0.25f,
                               .seed = seed,
                               .k = (uint32_t)k };
    cuda_run(cuda.random(&a, NULL));
    cuda_get(rows, w, n_bytes);
    cuda_free();
    return rows;
}

/* Within the scale, mean and spread of a uniform distribution (six standard errors), rows unlike each other. */
static void check_spread(check *c, sl_type type, size_t n_row, size_t k, size_t row_bytes,
                         const unsigned char *rows) {
    const sl_expand_fn expand[SL_N_TYPE] = { c->ref->expand_f32, c->ref->expand_f16, c->ref->expand_bf16,
                                             c->ref->expand_q8, c->ref->expand_q4 };
    float *y = check_buffer(c, k * sizeof *y), *last = check_buffer(c, k * sizeof *last);
    double sum_1 = 0, sum_2 = 0;
    const double n = (double)(n_row * k), scale = 0.25, square = scale * scale / 3;
    for (size_t r = 0; r < n_row; r++) {
        expand[type](rows + r * row_bytes, k, y);
        if (r > 0 && k > 8 && memcmp(y, last, k * sizeof *y) == 0)
            check_fail(c, "rows %zu and %zu are equal", r - 1, r);
        memcpy(last, y, k * sizeof *y);
        for (size_t i = 0; i < k; i++) {
            check_near(c, "value", r * k + i, y[i], 0, scale * 1.002);
            sum_1 += y[i], sum_2 += (double)y[i] * y[i];
        }
    }
    if (n < 1000) return;
    check_near(c, "mean", 0, sum_1 / n, 0, 6 * sqrt(square / n));
    check_near(c, "mean square", 0, sum_2 / n, square,
               6 * square / sqrt(n) + square * 0.02); /* 15 levels of q4: 1.4 % */
}

void check_cuda_random(check *c) {
    static const size_t ks[] = { 1, 70, 256, 999 };
    for (int i = 0; i < SL_N_TYPE * 4 && !c->failed; i++) {
        const sl_type type = (sl_type)(i % SL_N_TYPE);
        const size_t n_row = 5, k = ks[i / SL_N_TYPE], row_bytes = (size_t)sl_row_bytes(type, k) + 4;
        check_case(c, "%s k=%zu", sl_type_name(type), k);
        unsigned char *a = random_rows(c, type, n_row, k, row_bytes, 1),
                      *b = random_rows(c, type, n_row, k, row_bytes, 1);
        unsigned char *other = random_rows(c, type, n_row, k, row_bytes, 2);
        const size_t n_bytes = (n_row - 1) * row_bytes + (size_t)sl_row_bytes(type, k);
        check_same(c, "rows of one seed", a, b, n_bytes);
        if (memcmp(a, other, n_bytes) == 0) check_fail(c, "two seeds give the same rows");
        for (size_t r = 0; r + 1 < n_row; r++) {
            if (memcmp(a + (r + 1) * row_bytes - 4, "\xff\xff\xff\xff", 4) != 0)
                check_fail(c, "bytes behind row %zu were written", r);
        }
        check_spread(c, type, n_row, k, row_bytes, a);
        check_end(c);
    }
}

/* ---- mutants (more in cuda_mutants.cu) ---------------------------------------------------------- */

/* Forgets the bias. */
int mutant_cuda_store_bias(const sl_product_args *args, const float *sum, uint64_t sum_stride,
                           sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.bias = NULL;
    return sl_store_cuda(&a, sum, sum_stride, stream);
}

/* Sums are stored as they are. */
int mutant_cuda_store_not_lifted(const sl_product_args *args, const float *sum, uint64_t sum_stride,
                                 sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.gain = 1;
    return sl_store_cuda(&a, sum, sum_stride, stream);
}
int mutant_cuda_gemm_not_lifted(const sl_product_args *args, sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.gain = 1;
    return sl_gemm_cuda(&a, stream);
}

/* Adds to row t instead of its batch row. */
int mutant_cuda_store_index(const sl_product_args *args, const float *sum, uint64_t sum_stride,
                            sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.rows.index = NULL;
    return sl_store_cuda(&a, sum, sum_stride, stream);
}

/* Rows side by side. */
int mutant_cuda_gemv_not_in_place(const sl_product_args *args, sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.rows.in_place = false;
    return sl_gemv_cuda(&a, stream);
}

/* The other matrix is the gate. */
int mutant_cuda_gated_turned(const sl_product_args *args, const void *w2, uint32_t lift, sl_cuda_stream stream) {
    sl_product_args a = *args;
    a.w = w2;
    return sl_gemv_gated_cuda(&a, args->w, lift, stream);
}

int mutant_cuda_gated_not_scaled(const sl_product_args *args, const void *w2, uint32_t lift, sl_cuda_stream stream) {
    (void)lift;
    return sl_gemv_gated_cuda(args, w2, 0, stream);
}

/* Expands rows beyond the count. */
int mutant_cuda_embed_not_counted(const sl_embed_args *args, sl_cuda_stream stream) {
    sl_embed_args a = *args;
    a.rows.n = NULL;
    return sl_embed_cuda(&a, stream);
}

/* All blocks use the weights of the first. */
int mutant_cuda_block_linear_first(const sl_block_args *args, sl_cuda_stream stream) {
    sl_block_args a = *args;
    a.n_block = 1;
    for (uint32_t i = 0; i < args->n_block; i++) {
        const size_t at = (size_t)i * args->b * sl_act_size(args->act);
        a.x = (const char *)args->x + at;
        a.y = (char *)args->y + at;
        const int status = sl_block_linear_cuda(&a, stream);
        if (status) return status;
    }
    return 0;
}

/* More rows than few ones find all blocks' inputs in the first. */
int mutant_cuda_block_linear_one_input(const sl_block_args *args, sl_cuda_stream stream) {
    sl_block_args a = *args;
    if (a.rows.max <= SL_GEMV_MOST_ROWS) return sl_block_linear_cuda(&a, stream);
    a.n_block = 1, a.w2 = NULL;
    for (uint32_t i = 0; i < args->n_block; i++) {
        a.w = (const char *)args->w + (size_t)i * args->b * args->w_row_bytes;
        a.y = (char *)args->y + (size_t)i * args->b * sl_act_size(args->act);
        const int status = sl_block_linear_cuda(&a, stream);
        if (status) return status;
    }
    return 0;
}

/* Every row is drawn from the seed alone. */
int mutant_cuda_random_same_rows(const sl_random_args *args, sl_cuda_stream stream) {
    sl_random_args a = *args;
    a.n_row = 1;
    for (uint64_t r = 0; r < args->n_row; r++) {
        a.w = (char *)args->w + r * args->w_row_bytes;
        const int status = sl_random_cuda(&a, stream);
        if (status) return status;
    }
    return 0;
}
