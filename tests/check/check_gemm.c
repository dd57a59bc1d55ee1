/* Matrix products of every weight type against sums in double.
 *
 * Bounds. A float product of k terms in any order, fused or not, is off by at most (k + 1) u sum|w x| (and
 * half the least subnormal for each product that underflows). A quantised product is exact inside a block of
 * 32, so its sum has k / 32 terms, each with the rounding of two scales, their product and the sum. CUDA kernels
 * take inputs in f32 instead, quant times scale rounded once, and sum their k products as the float ones do. */
#include "check.h"
#include "os/os.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape { size_t n_row, n_tok, k; bool wide_strides; int kind; } shape;

/* all weights 1000, all inputs -1000: every partial sum is at its limit */
enum { KIND_EQUAL = CHECK_N_KIND, N_KIND };

/* One case in memory. */
typedef struct product {
    sl_type type;
    sl_gemm_fn gemm;
    shape s;
    size_t w_stride, x_stride, y_stride; /* bytes, bytes, elements */
    unsigned char *w, *x;
    float *w_value; /* [n_row, k] what the stored weights stand for */
    double *x_value; /* [n_tok, k] */
    float *y;
} product;

static bool is_quantised(sl_type type) {
    return type == SL_Q8 || type == SL_Q4;
}

static void fill_values(check *c, float *v, size_t n, int kind, float equal, sl_type type) {
    if (kind == KIND_EQUAL) {
        for (size_t i = 0; i < n; i++) v[i] = equal;
        return;
    }
    check_fill(c, v, n, kind);
    for (size_t i = 0; type == SL_F16 && i < n; i++) v[i] = fmaxf(fminf(v[i], 60000), -60000);
}

static void expand_row(check *c, sl_type type, const void *row, size_t k, float *y) {
    const sl_expand_fn expand[SL_N_TYPE] = { c->ref->expand_f32, c->ref->expand_f16, c->ref->expand_bf16,
                                             c->ref->expand_q8, c->ref->expand_q4 };
    expand[type](row, k, y);
}

static void make_weights(check *c, product *p) {
    const shape *s = &p->s;
    const size_t row_bytes = (size_t)sl_row_bytes(p->type, s->k);
    p->w_stride = row_bytes + (s->wide_strides ? 4 + 4 * check_index(c, 20) : 0);
    p->w = check_buffer(c, (s->n_row - 1) * p->w_stride + row_bytes);
    p->w_value = check_buffer(c, s->n_row * s->k * sizeof(float));
    for (size_t r = 0; r < s->n_row; r++) {
        float *values = p->w_value + r * s->k;
        unsigned char *row = p->w + r * p->w_stride;
        fill_values(c, values, s->k, s->kind, 1000, p->type);
        sl_pack_row(p->type, values, s->k, row);
        expand_row(c, p->type, row, s->k, values);
    }
    check_seal(c, p->w);
}

static void make_inputs(check *c, product *p) {
    const shape *s = &p->s;
    const size_t row_bytes = is_quantised(p->type) ? sl_act_bytes(s->k) : 4 * s->k;
    p->x_stride = row_bytes + (s->wide_strides ? 64 * check_index(c, 3) : 0);
    p->x = check_buffer(c, (s->n_tok - 1) * p->x_stride + row_bytes);
    p->x_value = check_buffer(c, s->n_tok * s->k * sizeof(double));
    float *values = check_buffer(c, s->k * sizeof *values);
    for (size_t t = 0; t < s->n_tok; t++) {
        unsigned char *row = p->x + t * p->x_stride;
        double *x = p->x_value + t * s->k;
        fill_values(c, values, s->k, s->kind, -1000, SL_F32);
        if (is_quantised(p->type)) c->ref->quant_act(values, s->k, row);
        else memcpy(row, values, row_bytes);
        const float *scales = (const float *)(row + sl_act_scales_offset(s->k));
        for (size_t i = 0; i < s->k; i++) {
            x[i] = is_quantised(p->type) ? (double)(int8_t)row[i] * scales[i / SL_BLOCK] : values[i];
        }
    }
    check_seal(c, p->x);
}

static void check_value(check *c, const product *p, size_t r, size_t t) {
    const float *w = p->w_value + r * p->s.k;
    const double *x = p->x_value + t * p->s.k;
    const bool exact_blocks = is_quantised(p->type) && !c->cuda;
    const size_t term = exact_blocks ? SL_BLOCK : 1;
    double sum = 0, magnitude = 0, n_term = 0;
    for (size_t i = 0; i < p->s.k; i += term, n_term++) {
        double part = 0;
        for (size_t j = i; j < p->s.k && j < i + term; j++) part += w[j] * x[j];
        sum += part;
        magnitude += fabs(part);
    }
    const double underflow = exact_blocks ? SL_BLOCK * 127 * 127 : 1;
    const double bound = (n_term + 3) * CHECK_U * magnitude + n_term * underflow * 0x1p-149;
    check_near(c, "y", t * p->s.n_row + r, p->y[t * p->y_stride + r], sum, bound);
}

/* Rows r .. r + n_row of tokens t .. t + n_tok, computed alone, have the bits they have in the whole. */
static void check_part(check *c, const product *p, size_t r, size_t n_row, size_t t, size_t n_tok) {
    float *y = check_buffer(c, n_row * n_tok * sizeof *y);
    p->gemm(p->w + r * p->w_stride, p->w_stride, p->x + t * p->x_stride, p->x_stride, y, n_row, n_row, n_tok,
            p->s.k);
    for (size_t i = 0; i < n_tok; i++) {
        if (!check_same(c, "part", y + i * n_row, p->y + (t + i) * p->y_stride + r, n_row * sizeof *y)) return;
    }
}

static void check_parts(check *c, const product *p) {
    const shape *s = &p->s;
    check_part(c, p, 0, s->n_row, 0, s->n_tok);
    check_part(c, p, 0, s->n_row, check_index(c, s->n_tok), 1);
    for (size_t i = 0; i < 2; i++) {
        const size_t r = check_index(c, s->n_row), t = check_index(c, s->n_tok);
        check_part(c, p, r, 1 + check_index(c, s->n_row - r), t, 1 + check_index(c, s->n_tok - t));
    }
}

static void check_product(check *c, sl_type type, sl_gemm_fn gemm, shape s) {
    if (c->failed) return;
    check_case(c, "n_row=%zu n_tok=%zu k=%zu %s%s", s.n_row, s.n_tok, s.k,
               s.kind == KIND_EQUAL ? "equal" : check_kind_name[s.kind], s.wide_strides ? " wide strides" : "");
    product p = { .type = type, .gemm = gemm, .s = s };
    make_weights(c, &p);
    make_inputs(c, &p);
    p.y_stride = s.n_row + (s.wide_strides ? 1 + check_index(c, 9) : 0);
    p.y = check_buffer(c, ((s.n_tok - 1) * p.y_stride + s.n_row) * sizeof *p.y);
    gemm(p.w, p.w_stride, p.x, p.x_stride, p.y, p.y_stride, s.n_row, s.n_tok, s.k);
    check_gaps(c, "y", p.y, s.n_row * sizeof *p.y, p.y_stride * sizeof *p.y, s.n_tok);
    for (size_t t = 0; t < s.n_tok; t++) {
        for (size_t r = 0; r < s.n_row; r++) check_value(c, &p, r, t);
    }
    check_parts(c, &p);
    check_end(c);
}

static void check_gemm(check *c, sl_type type, sl_gemm_fn gemm) {
    static const size_t primes[] = { 191, 257, 509, 1021 };
    static const shape models[] = { { 65, 33, 1024, false, CHECK_UNIFORM }, { 40, 70, 704, true, CHECK_WIDE },
                                    { 9, 3, 5632, false, CHECK_LARGE } };
    for (size_t k = 1; k <= 131; k++) {
        for (int kind = 0; kind < N_KIND; kind++) {
            const size_t n_row = 1 + check_index(c, 9), n_tok = 1 + check_index(c, 5);
            check_product(c, type, gemm, (shape){ n_row, n_tok, k, k % 2 == 0, kind });
        }
    }
    for (size_t n_row = 1; n_row <= 17; n_row++) {
        for (size_t n_tok = 1; n_tok <= 9; n_tok++) {
            check_product(c, type, gemm, (shape){ n_row, n_tok, 160, n_row % 2 == 0, CHECK_UNIFORM });
        }
    }
    for (size_t i = 0; i < sizeof primes / sizeof *primes; i++) {
        check_product(c, type, gemm, (shape){ 11, 7, primes[i], true, CHECK_WIDE });
    }
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) check_product(c, type, gemm, models[i]);
}

void check_gemm_f32(check *c) { check_gemm(c, SL_F32, c->test->gemm_f32); }
void check_gemm_f16(check *c) { check_gemm(c, SL_F16, c->test->gemm_f16); }
void check_gemm_bf16(check *c) { check_gemm(c, SL_BF16, c->test->gemm_bf16); }
void check_gemm_q8(check *c) { check_gemm(c, SL_Q8, c->test->gemm_q8); }
void check_gemm_q4(check *c) { check_gemm(c, SL_Q4, c->test->gemm_q4); }

/* ---- bench -------------------------------------------------------------------------------------- */

enum { BENCH_K = 2048, BENCH_TOKENS = 64, BENCH_PARTS = 16 };
static const uint64_t bench_memory_bytes = 96u << 20; /* more than any cache the threads may count on */

typedef struct bench {
    sl_gemm_fn gemm;
    unsigned char *w, *x;
    float *y;
    size_t n_row, row_bytes, x_stride;
} bench;

/* Rows split between the threads as the backend does it. */
static void run_split(const bench *b, size_t n_tok) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < BENCH_PARTS; i++) {
        const size_t part = b->n_row / BENCH_PARTS;
        const unsigned char *w = b->w + i * part * b->row_bytes;
        b->gemm(w, b->row_bytes, b->x, b->x_stride, b->y + i * part, b->n_row, part, n_tok, BENCH_K);
    }
}

static uint64_t read_words(const uint64_t *p, size_t n) {
    uint64_t sum[8] = { 0 };
    for (size_t i = 0; i + 8 <= n; i += 8) {
        for (size_t j = 0; j < 8; j++) sum[j] += p[i + j];
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* Reads the same bytes and does nothing else: what memory allows. */
static uint64_t run_probe(const bench *b) {
    const size_t part = b->n_row / BENCH_PARTS * b->row_bytes / 8;
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (size_t i = 0; i < BENCH_PARTS; i++) sum += read_words((const uint64_t *)b->w + i * part, part);
    return sum;
}

static void fill_bench(check *c, sl_type type, bench *b) {
    float values[BENCH_K];
    for (size_t r = 0; r < BENCH_PARTS; r++) {
        check_fill(c, values, BENCH_K, CHECK_UNIFORM);
        sl_pack_row(type, values, BENCH_K, b->w + r * b->row_bytes);
    }
    for (size_t r = BENCH_PARTS; r < b->n_row; r++) {
        memcpy(b->w + r * b->row_bytes, b->w + r % BENCH_PARTS * b->row_bytes, b->row_bytes);
    }
    for (size_t t = 0; t < BENCH_TOKENS; t++) {
        check_fill(c, values, BENCH_K, CHECK_UNIFORM);
        if (is_quantised(type)) c->ref->quant_act(values, BENCH_K, b->x + t * b->x_stride);
        else memcpy(b->x + t * b->x_stride, values, sizeof values);
    }
}

static void run_benches(check *c, bench *b) {
    static volatile uint64_t sink;
    static const size_t tokens[] = { 1, 2, 4, 8, 16 };
    const double bytes = (double)b->n_row * (double)b->row_bytes;
    char label[64];
    CHECK_BENCH(c, "read probe, 2 threads", bytes, 0, sink = run_probe(b));
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        const double n_tok = (double)tokens[i];
        snprintf(label, sizeof label, "memory, 2 threads, %zu tok", tokens[i]);
        CHECK_BENCH(c, label, bytes, 2 * n_tok * (double)b->n_row * BENCH_K, run_split(b, tokens[i]));
    }
    b->n_row = 256;
    for (size_t n_tok = 1; n_tok <= BENCH_TOKENS; n_tok *= 8) {
        snprintf(label, sizeof label, "cache, 1 thread, %zu tok", n_tok);
        CHECK_BENCH(c, label, (double)(b->n_row * b->row_bytes), 2.0 * (double)(n_tok * b->n_row * BENCH_K),
                    b->gemm(b->w, b->row_bytes, b->x, b->x_stride, b->y, b->n_row, b->n_row, n_tok, BENCH_K));
    }
    (void)sink;
}

static void bench_gemm(check *c, sl_type type, sl_gemm_fn gemm) {
    bench b = { .gemm = gemm, .row_bytes = (size_t)sl_row_bytes(type, BENCH_K) };
    b.n_row = (size_t)(bench_memory_bytes / b.row_bytes) / 256 * 256;
    b.x_stride = is_quantised(type) ? sl_act_bytes(BENCH_K) : BENCH_K * sizeof(float);
    b.w = sl_os_pages(b.n_row * b.row_bytes);
    b.x = sl_os_pages(BENCH_TOKENS * b.x_stride);
    b.y = sl_os_pages(BENCH_TOKENS * b.n_row * sizeof *b.y);
    if (b.w && b.x && b.y) {
        const bench whole = b;
        fill_bench(c, type, &b);
        run_benches(c, &b);
        b = whole;
    }
    sl_os_pages_free(b.w, b.n_row * b.row_bytes);
    sl_os_pages_free(b.x, BENCH_TOKENS * b.x_stride);
    sl_os_pages_free(b.y, BENCH_TOKENS * b.n_row * sizeof *b.y);
}

void bench_gemm_f32(check *c) { bench_gemm(c, SL_F32, c->test->gemm_f32); }
void bench_gemm_f16(check *c) { bench_gemm(c, SL_F16, c->test->gemm_f16); }
void bench_gemm_bf16(check *c) { bench_gemm(c, SL_BF16, c->test->gemm_bf16); }
void bench_gemm_q8(check *c) { bench_gemm(c, SL_Q8, c->test->gemm_q8); }
void bench_gemm_q4(check *c) { bench_gemm(c, SL_Q4, c->test->gemm_q4); }

/* ---- mutants ------------------------------------------------------------------------------------ */

#define GEMM_ARGS                                                                                            \
    const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes, float *y, size_t y_stride,   \
        size_t n_row, size_t n_tok, size_t k

/* The last element is dropped. */
void mutant_gemm_f32_drop_last(GEMM_ARGS) {
    sl_kernels_select(0).gemm_f32(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k - 1);
}

/* The tail is read in whole fours, past the row's end. */
void mutant_gemm_f32_over_read(GEMM_ARGS) {
    k = (k + 3) / 4 * 4;
    sl_kernels_select(0).gemm_f32(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k);
}

/* Sums of several tokens take another order than that of one. */
void mutant_gemm_bf16_order(GEMM_ARGS) {
    const sl_gemm_fn gemm = sl_kernels_select(0).gemm_bf16;
    gemm(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k);
    for (size_t i = 0; n_tok > 1 && i < n_tok * n_row; i++) {
        float *out = y + i / n_row * y_stride + i % n_row;
        *out = nextafterf(*out, 1);
    }
}

/* The last row is left out. */
void mutant_gemm_f16_rows(GEMM_ARGS) {
    sl_kernels_select(0).gemm_f16(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row / 2 * 2, n_tok, k);
}

/* A token too many. */
void mutant_gemm_q8_tokens(GEMM_ARGS) {
    n_tok = (n_tok + 1) / 2 * 2;
    sl_kernels_select(0).gemm_q8(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k);
}

/* The sign of the weights is lost. */
void mutant_gemm_q8_sign(GEMM_ARGS) {
    const size_t row_bytes = (size_t)sl_row_bytes(SL_Q8, k);
    unsigned char *copy = malloc(row_bytes);
    for (size_t r = 0; copy && r < n_row; r++) {
        memcpy(copy, (const char *)w + r * w_stride_bytes, row_bytes);
        for (size_t i = 0; i < sl_groups(k) * SL_GROUP; i++) copy[i] = (unsigned char)abs((int8_t)copy[i]);
        sl_kernels_select(0).gemm_q8(copy, row_bytes, x, x_stride_bytes, y + r, y_stride, 1, n_tok, k);
    }
    free(copy);
}

static void broken_q4(GEMM_ARGS, void (*damage)(unsigned char *row, size_t k)) {
    const size_t row_bytes = (size_t)sl_row_bytes(SL_Q4, k);
    unsigned char *copy = malloc(row_bytes);
    for (size_t r = 0; copy && r < n_row; r++) {
        memcpy(copy, (const char *)w + r * w_stride_bytes, row_bytes);
        damage(copy, k);
        sl_kernels_select(0).gemm_q4(copy, row_bytes, x, x_stride_bytes, y + r, y_stride, 1, n_tok, k);
    }
    free(copy);
}

static void swap_halves(unsigned char *row, size_t k) {
    for (size_t i = 0; i < sl_groups(k) * SL_BLOCK; i++) row[i] = (unsigned char)(row[i] << 4 | row[i] >> 4);
}

static void one_scale(unsigned char *row, size_t k) {
    unsigned char *scales = row + sl_groups(k) * SL_BLOCK;
    for (size_t i = 2; i < 4 * sl_groups(k); i++) scales[i] = scales[i % 2];
}

/* Low and high halves of the bytes are swapped. */
void mutant_gemm_q4_halves(GEMM_ARGS) {
    broken_q4(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k, swap_halves);
}

/* Only the first scale of a row is used. */
void mutant_gemm_q4_scale(GEMM_ARGS) {
    broken_q4(w, w_stride_bytes, x, x_stride_bytes, y, y_stride, n_row, n_tok, k, one_scale);
}
