/* RMSNorm: against float64, alone and among groups, in place.
 *
 * A sum of n squares errs by at most (n + 1) u of itself, its root by half of that; division, root, two
 * products and the mean add less than five roundings. */
#include "check.h"

#include <math.h>

enum { MAX_GROUP = 5 };

static void one_group(check *c, const float *x, const float *w, const float *y, size_t n, double eps) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    const double scale = 1 / sqrt(sum / (double)n + eps), u = ((double)(n + 1) / 2 + 5) * CHECK_U;
    for (size_t i = 0; i < n; i++) {
        const double want = x[i] * scale * w[i];
        if (!check_near(c, "y", i, y[i], want, u * fabs(want) + 0x1p-148 * (1 + fabs((double)w[i])))) return;
    }
}

static void one_case(check *c, size_t n_group, size_t n, size_t w_step, int kind, float eps) {
    check_case(c, "groups=%zu n=%zu w_step=%zu x=%s eps=%g", n_group, n, w_step, check_kind_name[kind],
               (double)eps);
    const size_t bytes = n_group * n * sizeof(float), last = (n_group - 1) * n;
    float *x = check_buffer(c, bytes), *w = check_buffer(c, (w_step ? n_group * n : n) * sizeof *w);
    float *y = check_buffer(c, bytes), *alone = check_buffer(c, n * sizeof *alone);
    check_fill(c, x, n_group * n, kind);
    check_fill_range(c, w, w_step ? n_group * n : n, -2, 2);
    check_seal(c, w);
    c->test->rmsnorm(x, w, y, n_group, n, w_step, eps);
    for (size_t g = 0; g < n_group; g++) one_group(c, x + g * n, w + g * w_step, y + g * n, n, (double)eps);

    c->test->rmsnorm(x + last, w + (n_group - 1) * w_step, alone, 1, n, w_step, eps);
    check_same(c, "last group alone", alone, y + last, n * sizeof *y);
    c->test->rmsnorm(x, w, x, n_group, n, w_step, eps);
    check_same(c, "in place", x, y, bytes);
    check_end(c);
}

void check_rmsnorm(check *c) {
    static const size_t sizes[] = { 63, 64, 65, 100, 127, 128, 129, 256, 509, 2048 };
    for (size_t n = 1; n <= 33; n++)
        for (int kind = 0; kind < CHECK_N_KIND; kind++)
            one_case(c, 1 + n % MAX_GROUP, n, n % 2 ? n : 0, kind, 1e-5f);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < CHECK_N_KIND; kind++) one_case(c, 1 + s % 3, sizes[s], sizes[s], kind, 1e-6f);
}

void bench_rmsnorm(check *c) {
    enum { N = 2048 };
    float *x = check_buffer(c, N * sizeof *x), *w = check_buffer(c, N * sizeof *w);
    float *y = check_buffer(c, N * sizeof *y);
    check_fill(c, x, N, CHECK_UNIFORM);
    check_fill(c, w, N, CHECK_UNIFORM);
    CHECK_BENCH(c, "n=2048", 3.0 * N * sizeof *x, 4.0 * N, c->test->rmsnorm(x, w, y, 1, N, 0, 1e-5f));
    CHECK_BENCH(c, "32 heads of 64", 3.0 * N * sizeof *x, 4.0 * N,
                c->test->rmsnorm(x, w, y, 32, 64, 64, 1e-5f));
    check_end(c);
}

/* The root of the plain mean: divides by zero where all of x is. */
void mutant_rmsnorm_no_eps(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                           float eps) {
    (void)eps;
    sl_kernels_select(SL_CPU_REF).rmsnorm(x, w, y, n_group, n, w_step, 0);
}

/* Leaves the tail of each group out of the sum. */
void mutant_rmsnorm_tail(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                         float eps) {
    for (size_t g = 0; g < n_group; g++, x += n, y += n, w += w_step) {
        double sum = 0;
        for (size_t i = 0; i < (n < 8 ? n : n / 8 * 8); i++) sum += (double)x[i] * x[i];
        const double scale = 1 / sqrt(sum / (double)n + (double)eps);
        for (size_t i = 0; i < n; i++) y[i] = (float)(x[i] * scale * w[i]);
    }
}
