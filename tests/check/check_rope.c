/* Rotary embedding: against float64; odd head sizes, components that do not turn, heads independent. */
#include "check.h"

#include <math.h>

static void one_case(check *c, size_t n_head, size_t head_dim, size_t n_rot) {
    check_case(c, "heads=%zu head_dim=%zu n_rot=%zu", n_head, head_dim, n_rot);
    const size_t half = n_rot / 2, n = n_head * head_dim;
    float *x = check_buffer(c, n * sizeof *x), *old = check_buffer(c, n * sizeof *old);
    float *cosine = check_buffer(c, half * sizeof *cosine), *sine = check_buffer(c, half * sizeof *sine);
    check_fill_range(c, x, n, -3, 3);
    for (size_t i = 0; i < n; i++) old[i] = x[i];
    for (size_t j = 0; j < half; j++) {
        const double angle = (double)check_uniform(c, -4, 4);
        cosine[j] = (float)cos(angle);
        sine[j] = (float)sin(angle);
    }
    check_seal(c, cosine);
    check_seal(c, sine);
    c->test->rope(x, cosine, sine, n_head, head_dim, n_rot);
    for (size_t i = 0; i < n; i++) {
        const size_t at = i % head_dim, j = at % (half ? half : 1);
        double a = old[i], b = 0;
        if (at < half) a = (double)old[i] * cosine[j], b = -(double)old[i + half] * sine[j];
        else if (at < n_rot) a = (double)old[i] * cosine[j], b = (double)old[i - half] * sine[j];
        if (!check_near(c, "x", i, x[i], a + b, at < n_rot ? 2 * CHECK_U * (fabs(a) + fabs(b)) : 0)) break;
    }
    c->test->rope(old + n - head_dim, cosine, sine, 1, head_dim, n_rot);
    check_same(c, "last head alone", old + n - head_dim, x + n - head_dim, head_dim * sizeof *x);
    check_end(c);
}

void check_rope(check *c) {
    for (size_t n_rot = 2; n_rot <= 70; n_rot += 2)
        for (size_t extra = 0; extra < 4; extra += 3) one_case(c, 1 + n_rot % 3, n_rot + extra, n_rot);
    one_case(c, 16, 128, 128);
    one_case(c, 3, 80, 32);
    one_case(c, 2, 256, 64);
}

void bench_rope(check *c) {
    enum { HEADS = 16, DIM = 128 };
    float *x = check_buffer(c, HEADS * DIM * sizeof *x);
    float *cosine = check_buffer(c, DIM / 2 * sizeof *x), *sine = check_buffer(c, DIM / 2 * sizeof *x);
    check_fill_range(c, x, HEADS * DIM, -1, 1);
    for (size_t j = 0; j < DIM / 2; j++) cosine[j] = (float)cos((double)j), sine[j] = (float)sin((double)j);
    CHECK_BENCH(c, "16 heads of 128", 2.0 * HEADS * DIM * sizeof *x, 3.0 * HEADS * DIM,
                c->test->rope(x, cosine, sine, HEADS, DIM, DIM));
    check_end(c);
}

/* Neighbours as pairs, the other layout in use. */
void mutant_rope_neighbours(float *x, const float *cosine, const float *sine, size_t n_head, size_t head_dim,
                            size_t n_rot) {
    for (size_t h = 0; h < n_head; h++, x += head_dim)
        for (size_t j = 0; j < n_rot / 2; j++) {
            const float lo = x[2 * j], hi = x[2 * j + 1];
            x[2 * j] = lo * cosine[j] - hi * sine[j];
            x[2 * j + 1] = hi * cosine[j] + lo * sine[j];
        }
}
