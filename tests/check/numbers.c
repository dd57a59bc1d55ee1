/* Random inputs and comparisons of the kernel harness. */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

const char *const check_kind_name[CHECK_N_KIND] = { "uniform", "wide", "tiny", "large" };

/* splitmix64 (Steele, Lea, Flood 2014) */
uint64_t check_random(check *c) {
    uint64_t z = c->rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

size_t check_index(check *c, size_t n) {
    return (size_t)(check_random(c) % n);
}

float check_uniform(check *c, float low, float high) {
    return low + (high - low) * (float)(check_random(c) >> 40) * 0x1p-24f;
}

static float tiny(check *c) {
    const float sign = check_random(c) & 1 ? 1.0f : -1.0f;
    switch (check_index(c, 4)) {
    case 0: return sign * 0.0f;
    case 1: return sign * ldexpf(check_uniform(c, 1, 2), -140); /* subnormal */
    default: return sign * ldexpf(check_uniform(c, 1, 2), -(int)check_index(c, 100) - 20);
    }
}

void check_fill(check *c, float *x, size_t n, int kind) {
    for (size_t i = 0; i < n; i++) {
        const float sign = check_random(c) & 1 ? 1.0f : -1.0f;
        switch (kind) {
        case CHECK_WIDE: x[i] = sign * ldexpf(check_uniform(c, 1, 2), (int)check_index(c, 40) - 20); break;
        case CHECK_TINY: x[i] = tiny(c); break;
        case CHECK_LARGE: x[i] = sign * 1000; break;
        default: x[i] = check_uniform(c, -1, 1); break;
        }
    }
}

void check_fill_range(check *c, float *x, size_t n, float low, float high) {
    for (size_t i = 0; i < n; i++) x[i] = check_uniform(c, low, high);
}

void check_case(check *c, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->what, sizeof c->what, fmt, args);
    va_end(args);
}

void check_fail(check *c, const char *fmt, ...) {
    enum { MAX_PRINTED = 8 }; /* per variant: the first ones tell */
    if (c->failed++ >= MAX_PRINTED || c->quiet) return;
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "FAILED %s [%s] ", c->kernel, c->what);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
}

bool check_same(check *c, const char *name, const void *got, const void *want, size_t n_bytes) {
    if (n_bytes == 0 || memcmp(got, want, n_bytes) == 0) return true;
    const unsigned char *a = got, *b = want;
    size_t i = 0;
    while (a[i] == b[i]) i++;
    float fa = 0, fb = 0;
    if (i / 4 * 4 + 4 <= n_bytes) {
        memcpy(&fa, a + i / 4 * 4, 4);
        memcpy(&fb, b + i / 4 * 4, 4);
    }
    check_fail(c, "%s: byte %zu is %02x, not %02x (as float %zu: %.9g, not %.9g)", name, i, a[i], b[i], i / 4,
               (double)fa, (double)fb);
    return false;
}

bool check_near(check *c, const char *name, size_t i, double got, double want, double bound) {
    if (fabs(got - want) <= bound) return true;
    check_fail(c, "%s[%zu] is %.9g, not %.9g within %.3g", name, i, got, want, bound);
    return false;
}

bool check_ulp(check *c, const char *name, size_t i, double got, double want, double ulps) {
    if (isinf((float)want) && got == (double)(float)want) return true;
    int exponent;
    frexp(fmax(fabs(want), (double)FLT_MIN), &exponent);
    const double bound = ulps * ldexp(1, exponent - FLT_MANT_DIG);
    if (fabs(got - want) <= bound) return true;
    check_fail(c, "%s[%zu] is %.9g, not %.9g within %.3g ulp", name, i, got, want, ulps);
    return false;
}
