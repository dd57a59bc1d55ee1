/* Element-wise kernels, reference: functions in double, rounded once. */
#include "kernels/prototypes.h"

#include <math.h>

static double silu(double x) { return x / (1 + exp(-x)); }

void sl_silu_mul_ref(const float *g, const float *u, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)(silu(g[i]) * u[i]);
}

void sl_silu_add_ref(const float *a, const float *b, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)silu(a[i] + b[i]);
}

void sl_add_scaled_ref(float *y, const float *x, float alpha, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

void sl_softplus_ref(const float *x, const float *b, float *y, float alpha, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const double z = x[i] + b[i];
        y[i] = (float)(alpha * (fmax(z, 0) + log1p(exp(-fabs(z)))));
    }
}
