/* Quantised activations, expanded rows, narrowing: bit for bit the reference, and the reference against
 * what the formats promise. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_N = 1100 };

/* 1 .. 131 elements, primes, rows of models. */
static const size_t more_sizes[] = { 191, 257, 509, 768, 1021, 1024 };
enum { N_SMALL = 131, N_SIZE = N_SMALL + sizeof more_sizes / sizeof *more_sizes };

static size_t size_at(size_t i) {
    return i < N_SMALL ? i + 1 : more_sizes[i - N_SMALL];
}

/* ---- activations -------------------------------------------------------------------------------- */

/* The properties types.h states, from the input alone: |x - q scale| <= scale / 2 (and rounding), sums, zeros
 * behind. */
static void check_act_row(check *c, const float *x, size_t n, const unsigned char *row) {
    const int8_t *q = (const int8_t *)row;
    const int32_t *sums = (const int32_t *)(row + sl_act_sums_offset(n));
    const float *scales = (const float *)(row + sl_act_scales_offset(n));
    for (size_t i = 0; i < SL_GROUP * sl_groups(n); i++) {
        const double scale = scales[i / SL_BLOCK], value = i < n ? x[i] : 0;
        if (scale > 0) check_near(c, "q * scale", i, q[i] * scale, value, scale * (0.5 + 1e-4));
        else if (q[i] != 0 || fabs(value) > 127.1e-30) check_fail(c, "q[%zu] is %d of %g", i, q[i], value);
    }
    for (size_t i = 0; i < 16 * sl_groups(n); i++) {
        int32_t sum = 0;
        for (size_t j = 0; j < 16; j++) sum -= q[i / 4 * 16 + j];
        if (sums[i] != sum) check_fail(c, "sums[%zu] is %d, not %d", i, sums[i], sum);
    }
    for (size_t i = 2 * sl_groups(n); sl_act_scales_offset(n) + 4 * i < sl_act_bytes(n); i++) {
        if (scales[i] != 0) check_fail(c, "bytes behind scale %zu are not zero", i);
    }
}

static void check_act(check *c, size_t n, int kind) {
    check_case(c, "n=%zu %s", n, kind < CHECK_N_KIND ? check_kind_name[kind] : "not finite");
    float *x = check_buffer(c, n * sizeof *x);
    unsigned char *got = check_buffer(c, sl_act_bytes(n)), *want = check_buffer(c, sl_act_bytes(n));
    check_fill(c, x, n, kind < CHECK_N_KIND ? kind : CHECK_WIDE);
    if (kind == CHECK_N_KIND) x[check_index(c, n)] = check_random(c) & 1 ? NAN : -INFINITY;
    check_seal(c, x);
    c->test->quant_act(x, n, got);
    c->ref->quant_act(x, n, want);
    check_same(c, "row", got, want, sl_act_bytes(n));
    if (kind < CHECK_N_KIND) check_act_row(c, x, n, got);
    check_end(c);
}

void check_quant_act(check *c) {
    for (size_t i = 0; i < N_SIZE && !c->failed; i++) {
        for (int kind = 0; kind <= CHECK_N_KIND; kind++) check_act(c, size_at(i), kind);
    }
}

/* ---- stored rows -------------------------------------------------------------------------------- */

static sl_expand_fn expand_of(const sl_kernels *table, sl_type type) {
    const sl_expand_fn all[SL_N_TYPE] = { table->expand_f32, table->expand_f16, table->expand_bf16,
                                          table->expand_q8, table->expand_q4 };
    return all[type];
}

/* Relative error of a packed value that its type allows, of the value itself or of the block's largest. */
static double packed_error(sl_type type, double value, double block_max) {
    switch (type) {
    case SL_F32: return 0;
    case SL_F16: return fmax(fabs(value) * 0x1p-11, 0x1p-25);
    case SL_BF16: return fabs(value) * 0x1p-8;
    case SL_Q8: return block_max / 127 * 0.6 + 0x1p-25 * 127;
    default: return block_max / 7 * 0.95 + 0x1p-25 * 8;
    }
}

/* A row packed from values expands to them within the type's error. */
static void check_packed(check *c, sl_type type, size_t n) {
    check_case(c, "n=%zu packed", n);
    float *x = check_buffer(c, n * sizeof *x), *y = check_buffer(c, n * sizeof *y);
    unsigned char *row = check_buffer(c, (size_t)sl_row_bytes(type, n));
    check_fill(c, x, n, CHECK_UNIFORM);
    check_seal(c, x);
    sl_pack_row(type, x, n, row);
    check_seal(c, row);
    expand_of(c->test, type)(row, n, y);
    for (size_t i = 0; i < n; i++) {
        double max = 0;
        const size_t first = i / SL_BLOCK * SL_BLOCK;
        for (size_t j = first; j < n && j < first + SL_BLOCK; j++) max = fmax(max, fabs(x[j]));
        check_near(c, "y", i, y[i], x[i], packed_error(type, x[i], max));
    }
    check_end(c);
}

/* Any bytes: every bit pattern of an element comes up; NaN payloads included. */
static void check_any_bytes(check *c, sl_type type, size_t n) {
    const size_t row_bytes = (size_t)sl_row_bytes(type, n);
    check_case(c, "n=%zu random bytes", n);
    unsigned char *row = check_buffer(c, row_bytes);
    float *got = check_buffer(c, n * sizeof *got), *want = check_buffer(c, n * sizeof *want);
    for (size_t i = 0; i < row_bytes; i++) row[i] = (unsigned char)check_random(c);
    check_seal(c, row);
    expand_of(c->test, type)(row, n, got);
    expand_of(c->ref, type)(row, n, want);
    for (size_t i = 0; i < n; i++) {
        if (isnan(got[i]) && isnan(want[i])) got[i] = want[i] = 0; /* which NaN comes out of 0 * inf is open */
    }
    check_same(c, "y", got, want, n * sizeof *got);
    check_end(c);
}

static void check_expand(check *c, sl_type type) {
    for (size_t i = 0; i < N_SIZE && !c->failed; i++) {
        check_packed(c, type, size_at(i));
        check_any_bytes(c, type, size_at(i));
    }
}

void check_expand_f32(check *c) { check_expand(c, SL_F32); }
void check_expand_f16(check *c) { check_expand(c, SL_F16); }
void check_expand_bf16(check *c) { check_expand(c, SL_BF16); }
void check_expand_q8(check *c) { check_expand(c, SL_Q8); }
void check_expand_q4(check *c) { check_expand(c, SL_Q4); }

/* ---- narrowing ---------------------------------------------------------------------------------- */

/* |f16(x) - x| is at most half a unit of the f16 at x; 65520 and above is infinite. */
static void check_half(check *c, size_t i, float x, uint16_t h) {
    const double value = sl_f16_to_f32(h);
    if (fabs((double)x) >= 65520) {
        if (!isinf(value) || (value < 0) != (x < 0)) check_fail(c, "y[%zu] of %g is %g", i, (double)x, value);
        return;
    }
    int exponent;
    frexp(fmax(fabs((double)x), 0x1p-14), &exponent);
    check_near(c, "y", i, value, x, ldexp(1, exponent - 12));
}

void check_narrow_f16(check *c) {
    for (size_t i = 0; i < N_SIZE && !c->failed; i++) {
        const size_t n = size_at(i);
        for (int kind = 0; kind < CHECK_N_KIND; kind++) {
            check_case(c, "n=%zu %s", n, check_kind_name[kind]);
            float *x = check_buffer(c, n * sizeof *x);
            uint16_t *got = check_buffer(c, n * sizeof *got), *want = check_buffer(c, n * sizeof *want);
            check_fill(c, x, n, kind);
            if (i % 3 == 0) x[check_index(c, n)] = i % 2 ? NAN : INFINITY;
            check_seal(c, x);
            c->test->narrow_f16(x, got, n);
            c->ref->narrow_f16(x, want, n);
            check_same(c, "y", got, want, n * sizeof *got);
            for (size_t j = 0; j < n; j++) {
                if (!isnan(x[j])) check_half(c, j, x[j], got[j]);
            }
            check_end(c);
        }
    }
}

/* ---- benches ------------------------------------------------------------------------------------ */

void bench_quant_act(check *c) {
    static float x[1024];
    static _Alignas(64) unsigned char row[4096];
    check_fill(c, x, 1024, CHECK_UNIFORM);
    CHECK_BENCH(c, "n=1024", 4096, 0, c->test->quant_act(x, 1024, row));
}

static void bench_expand(check *c, sl_type type) {
    static float x[1024], y[1024];
    static _Alignas(64) unsigned char row[4096];
    check_fill(c, x, 1024, CHECK_UNIFORM);
    sl_pack_row(type, x, 1024, row);
    CHECK_BENCH(c, "n=1024", 4096, 0, expand_of(c->test, type)(row, 1024, y));
}

void bench_expand_f32(check *c) { bench_expand(c, SL_F32); }
void bench_expand_f16(check *c) { bench_expand(c, SL_F16); }
void bench_expand_bf16(check *c) { bench_expand(c, SL_BF16); }
void bench_expand_q8(check *c) { bench_expand(c, SL_Q8); }
void bench_expand_q4(check *c) { bench_expand(c, SL_Q4); }

void bench_narrow_f16(check *c) {
    static float x[1024];
    static uint16_t y[1024];
    check_fill(c, x, 1024, CHECK_UNIFORM);
    CHECK_BENCH(c, "n=1024", 4096, 0, c->test->narrow_f16(x, y, 1024));
}

/* ---- mutants ------------------------------------------------------------------------------------ */

/* Rounds towards zero. */
void mutant_quant_act_truncate(const float *x, size_t n, void *out) {
    sl_kernels_select(0).quant_act(x, n, out);
    int8_t *q = out;
    const float *scales = (const float *)(q + sl_act_scales_offset(n));
    for (size_t i = 0; i < n; i++) {
        if (scales[i / SL_BLOCK] > 0) q[i] = (int8_t)(x[i] / scales[i / SL_BLOCK]);
    }
}

/* Forgets the sums. */
void mutant_quant_act_sums(const float *x, size_t n, void *out) {
    sl_kernels_select(0).quant_act(x, n, out);
    memset((char *)out + sl_act_sums_offset(n), 0, 64 * sl_groups(n));
}

/* Writes whole eights. */
void mutant_expand_f32_overrun(const void *row, size_t n, float *y) {
    sl_kernels_select(0).expand_f32(row, n, y);
    for (size_t i = n; i < (n + 7) / 8 * 8; i++) y[i] = 0;
}

/* Takes subnormals for zero. */
void mutant_expand_f16_flush(const void *row, size_t n, float *y) {
    sl_kernels_select(0).expand_f16(row, n, y);
    for (size_t i = 0; i < n; i++) {
        if (fabsf(y[i]) < 0x1p-14f) y[i] = 0;
    }
}

/* Drops the last element. */
void mutant_expand_bf16_last(const void *row, size_t n, float *y) {
    sl_kernels_select(0).expand_bf16(row, n - 1, y);
}

/* Reads its scales one block late. */
void mutant_expand_q8_scale(const void *row, size_t n, float *y) {
    sl_kernels_select(0).expand_q8(row, n, y);
    const uint16_t *scale = (const uint16_t *)((const char *)row + SL_GROUP * sl_groups(n));
    for (size_t i = SL_BLOCK; i < n; i++) {
        y[i] = (float)((const int8_t *)row)[i] * sl_f16_to_f32(scale[i / SL_BLOCK - 1]);
    }
}

/* Takes the quants as 0 .. 15. */
void mutant_expand_q4_offset(const void *row, size_t n, float *y) {
    const uint8_t *q = row;
    const uint16_t *scale = (const uint16_t *)(q + SL_BLOCK * sl_groups(n));
    for (size_t i = 0; i < n; i++) {
        const uint8_t pair = q[i / SL_GROUP * SL_BLOCK + i % SL_BLOCK];
        y[i] = (float)(i % SL_GROUP < SL_BLOCK ? pair & 15 : pair >> 4) * sl_f16_to_f32(scale[i / SL_BLOCK]);
    }
}

/* Cuts instead of rounding. */
void mutant_narrow_f16_cut(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        union { float f; uint32_t u; } v = { x[i] };
        v.u &= ~0x1fffu;
        y[i] = sl_f32_to_f16(v.f);
    }
}
