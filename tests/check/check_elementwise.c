/* Element-wise kernels: against float64 in units of the last place, every element alone (whole vectors and
 * tails must agree), in place, infinities and NaN.
 *
 * silu and softplus stay within 4 ulp (3.1 and 2.6 measured) and one or two products add theirs; where
 * e^-|x| is subnormal silu has an absolute error of |x| 2^-150, SMALL per unit of its factor. */
#include "check.h"

#include <math.h>
#include <string.h>

#define SMALL 0x1p-139

/* A kernel of two inputs and one output behind one shape: y = f(x, b) with factor alpha where it takes one. */
typedef void (*apply_fn)(const sl_kernels *k, const float *x, const float *b, float *y, size_t n);
/* The true value, and the bound for its error. */
typedef double (*truth_fn)(float x, float b, double *bound);

static const float ALPHA = -0.37f;

static double silu(double x) { return x / (1 + exp(-x)); }

static void apply_silu_mul(const sl_kernels *k, const float *x, const float *b, float *y, size_t n) {
    k->silu_mul(x, b, y, n);
}
static double truth_silu_mul(float x, float b, double *bound) {
    const double want = silu((double)x) * b;
    *bound = 9 * CHECK_U * fabs(want) + SMALL * (1 + fabs((double)b));
    return want;
}

static void apply_silu_add(const sl_kernels *k, const float *x, const float *b, float *y, size_t n) {
    k->silu_add(x, b, y, n);
}
static double truth_silu_add(float x, float b, double *bound) {
    const float sum = x + b;
    *bound = 8 * CHECK_U * fabs(silu((double)sum)) + SMALL;
    return silu((double)sum);
}

static void apply_softplus(const sl_kernels *k, const float *x, const float *b, float *y, size_t n) {
    k->softplus(x, b, y, ALPHA, n);
}
static double truth_softplus(float x, float b, double *bound) {
    const float sum = x + b;
    const double z = (double)sum, want = (double)ALPHA * (fmax(z, 0) + log1p(exp(-fabs(z))));
    *bound = 9 * CHECK_U * fabs(want) + SMALL;
    return want;
}

/* y += alpha x, with b as the former y */
static void apply_add_scaled(const sl_kernels *k, const float *x, const float *b, float *y, size_t n) {
    if (y != b) memcpy(y, b, n * sizeof *y);
    k->add_scaled(y, x, ALPHA, n);
}
static double truth_add_scaled(float x, float b, double *bound) {
    const double part = (double)ALPHA * x;
    *bound = CHECK_U * (fabs(part) + fabs(part + b)) * 1.001 + 0x1p-149;
    return part + b;
}

static void one_case(check *c, apply_fn apply, truth_fn truth, size_t n, int kind, float spread) {
    check_case(c, "n=%zu x=%s b=+-%g", n, check_kind_name[kind], (double)spread);
    const size_t bytes = n * sizeof(float);
    float *x = check_buffer(c, bytes), *b = check_buffer(c, bytes), *y = check_buffer(c, bytes);
    check_fill(c, x, n, kind);
    check_fill_range(c, b, n, -spread, spread);
    check_seal(c, x);
    apply(c->test, x, b, y, n);
    for (size_t i = 0; i < n; i++) {
        double bound;
        const double want = truth(x[i], b[i], &bound);
        if (!check_near(c, "y", i, y[i], want, bound)) break;
    }
    for (size_t i = 0; i < n; i++) {
        float one;
        apply(c->test, x + i, b + i, &one, 1);
        if (!check_same(c, "element alone", &one, y + i, sizeof one)) break;
    }
    apply(c->test, x, b, b, n);
    check_same(c, "in place of the second input", b, y, bytes);
    check_end(c);
}

static void all_sizes(check *c, apply_fn apply, truth_fn truth) {
    static const size_t sizes[] = { 63, 64, 67, 128, 257, 2048 };
    for (size_t n = 1; n <= 33; n++)
        for (int kind = 0; kind < CHECK_N_KIND; kind++) one_case(c, apply, truth, n, kind, n % 2 ? 1 : 100);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < CHECK_N_KIND; kind++) one_case(c, apply, truth, sizes[s], kind, 12);
}

/* In place of the first input, where the contract allows it. */
static void first_in_place(check *c, apply_fn apply) {
    enum { N = 37 };
    check_case(c, "in place of the first input");
    float *x = check_buffer(c, N * sizeof *x), *b = check_buffer(c, N * sizeof *b);
    float *y = check_buffer(c, N * sizeof *y);
    check_fill_range(c, x, N, -9, 9);
    check_fill_range(c, b, N, -9, 9);
    apply(c->test, x, b, y, N);
    apply(c->test, x, b, x, N);
    check_same(c, "y", x, y, N * sizeof *y);
    check_end(c);
}

/* want NaN: any NaN. */
static void special(check *c, apply_fn apply, float x, float b, float want) {
    float y;
    check_case(c, "x=%g b=%g", (double)x, (double)b);
    apply(c->test, &x, &b, &y, 1);
    if (isnan(want) ? !isnan(y) : y != want) check_fail(c, "found %g, expected %g", (double)y, (double)want);
    check_end(c);
}

void check_silu_mul(check *c) {
    all_sizes(c, apply_silu_mul, truth_silu_mul);
    first_in_place(c, apply_silu_mul);
    special(c, apply_silu_mul, INFINITY, 2, INFINITY);
    special(c, apply_silu_mul, -200, 2, 0);
    special(c, apply_silu_mul, NAN, 2, NAN);
    special(c, apply_silu_mul, 2, NAN, NAN);
}

void check_silu_add(check *c) {
    all_sizes(c, apply_silu_add, truth_silu_add);
    first_in_place(c, apply_silu_add);
    special(c, apply_silu_add, INFINITY, 2, INFINITY);
    special(c, apply_silu_add, -200, 2, 0);
    special(c, apply_silu_add, 2, NAN, NAN);
}

void check_softplus(check *c) {
    all_sizes(c, apply_softplus, truth_softplus);
    first_in_place(c, apply_softplus);
    special(c, apply_softplus, INFINITY, 2, -INFINITY);
    special(c, apply_softplus, -INFINITY, 2, 0);
    special(c, apply_softplus, NAN, 2, NAN);
}

void check_add_scaled(check *c) {
    all_sizes(c, apply_add_scaled, truth_add_scaled);
    special(c, apply_add_scaled, INFINITY, 2, -INFINITY);
    special(c, apply_add_scaled, NAN, 2, NAN);
}

static void bench(check *c, apply_fn apply, double flops) {
    enum { N = 5504 };
    float *x = check_buffer(c, N * sizeof *x), *b = check_buffer(c, N * sizeof *b);
    float *y = check_buffer(c, N * sizeof *y);
    check_fill_range(c, x, N, -4, 4);
    check_fill_range(c, b, N, -4, 4);
    CHECK_BENCH(c, "n=5504", 3.0 * N * sizeof *x, flops * N, apply(c->test, x, b, y, N));
    check_end(c);
}

void bench_silu_mul(check *c) { bench(c, apply_silu_mul, 0); }
void bench_silu_add(check *c) { bench(c, apply_silu_add, 0); }
void bench_softplus(check *c) { bench(c, apply_softplus, 0); }
void bench_add_scaled(check *c) {
    enum { N = 2048 };
    float *x = check_buffer(c, N * sizeof *x), *y = check_buffer(c, N * sizeof *y);
    check_fill_range(c, x, N, -1, 1);
    check_fill_range(c, y, N, -1, 1);
    CHECK_BENCH(c, "n=2048", 3.0 * N * sizeof *x, 2.0 * N, c->test->add_scaled(y, x, 1e-6f, N));
    check_end(c);
}

/* A sigmoid through a table-like rational: good to three digits. */
void mutant_silu_mul_coarse(const float *g, const float *u, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = g[i] * (0.5f + 0.5f * g[i] / (1 + fabsf(g[i]))) * u[i];
}

/* Whole vectors only. */
void mutant_silu_mul_no_tail(const float *g, const float *u, float *y, size_t n) {
    sl_kernels_select(SL_CPU_REF).silu_mul(g, u, y, n > 8 ? n / 8 * 8 : n);
}

/* Reads the element past the end. */
void mutant_silu_add_past_end(const float *a, const float *b, float *y, size_t n) {
    volatile float next = a[n];
    (void)next;
    sl_kernels_select(SL_CPU_REF).silu_add(a, b, y, n);
}

/* e^-x overflows instead of e^-|x| vanishing. */
void mutant_softplus_plain(const float *x, const float *b, float *y, float alpha, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = alpha * logf(1 + expf(x[i] + b[i]));
}

void mutant_add_scaled_overwrite(float *y, const float *x, float alpha, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = alpha * x[i];
}
