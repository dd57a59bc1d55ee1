/* sl_check_vmath: the vector exp, expm1, log1p, sigmoid, silu and softplus against double, in units of the last
 * place, over every STEP-th float of either sign with its infinities and NaN. A unit is never below that of the
 * smallest normal float. silu is held to its limit where e^-|x| is normal; beyond, it vanishes. */
#include "check_vmath.h"

#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { STEP = 1021, LOT = 4096 };

typedef struct subject {
    const char *name;
    double limit, low, high; /* ulp; range of arguments */
} subject;

static const subject subjects[VMATH_N] = {
    [VMATH_EXP] = { "exp", 1.5, -INFINITY, INFINITY },
    [VMATH_EXPM1] = { "expm1", 2, -INFINITY, INFINITY },
    [VMATH_LOG1P_UNIT] = { "log1p", 2, 0, 1 },
    [VMATH_SIGMOID] = { "sigmoid", 2.5, -INFINITY, INFINITY },
    [VMATH_SILU] = { "silu", 3.5, -87, INFINITY },
    [VMATH_SOFTPLUS] = { "softplus", 3, -INFINITY, INFINITY },
};

static double truth(vmath_function f, double x) {
    switch (f) {
    case VMATH_EXP: return exp(x);
    case VMATH_EXPM1: return expm1(x);
    case VMATH_LOG1P_UNIT: return log1p(x);
    case VMATH_SIGMOID: return 1 / (1 + exp(-x));
    case VMATH_SILU: return x / (1 + exp(-x));
    default: return fmax(x, 0) + log1p(exp(-fabs(x)));
    }
}

/* Infinite where one is NaN or infinite and the other, as a float, is not. */
static double ulp_error(float got, double want) {
    int exponent;
    if (isinf((float)want) || isinf(got)) return got == (float)want ? 0 : INFINITY;
    frexp(fmax(fabs(want), (double)FLT_MIN), &exponent);
    const double error = fabs((double)got - want) / ldexp(1, exponent - FLT_MANT_DIG);
    return isnan(error) ? INFINITY : error;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void measure(vmath_function f, const float *x, const float *y, size_t n, double *worst, float *where) {
    for (size_t i = 0; i < n; i++) {
        const double at = (double)x[i];
        if (isnan(at) ? isnan(y[i]) : at < subjects[f].low || at > subjects[f].high) continue;
        const double error = isnan(at) ? INFINITY : ulp_error(y[i], truth(f, at));
        if (error > *worst) *worst = error, *where = x[i];
    }
}

typedef void (*apply_fn)(vmath_function f, const float *x, float *y, size_t n);

static bool holds(const char *isa, apply_fn apply, vmath_function f) {
    static const float ends[] = { INFINITY, -INFINITY, NAN, 0, 1, 88.72283f, 88.72284f, -103.97f, -103.98f,
                                  -1e-12f };
    static float x[LOT], y[LOT];
    double worst = 0;
    float where = 0;
    uint64_t bits = 0;
    while (bits <= UINT32_MAX) {
        for (size_t i = 0; i < LOT; i++, bits += STEP) x[i] = float_of(bits <= UINT32_MAX ? (uint32_t)bits : 0);
        memcpy(x, ends, sizeof ends);
        apply(f, x, y, LOT);
        measure(f, x, y, LOT, &worst, &where);
    }
    const bool good = worst <= subjects[f].limit;
    printf("%s%s_%s: %.3f ulp at %a, limit %g\n", good ? "" : "FAILED ", subjects[f].name, isa, worst,
           (double)where, subjects[f].limit);
    return good;
}

int main(void) {
    const unsigned features = sl_cpu_features();
    bool good = true;
    for (int f = 0; f < VMATH_N; f++) {
        if (features & SL_CPU_AVX2) good &= holds("avx2", vmath_avx2, (vmath_function)f);
        if (features & SL_CPU_AVX512) good &= holds("avx512", vmath_avx512, (vmath_function)f);
    }
    return !good;
}
