/* Recurrent gating bridge, reference: bridge.md steps 5 and 6; the recurrence is the real-gated linear
 * recurrent unit of De et al. 2024 (Griffin). Functions in double, state in f32.
 *
 * The decay a = exp(la) is close to 1, so both 1 - a^2 and (a - 1) h are taken from expm1: from a rounded a
 * the first would be wrong in its third digit. */
#include "kernels/prototypes.h"

#include <math.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void step_channel(const sl_bridge_args *a, size_t t, size_t i) {
    const float s = a->s[t * a->s_stride + i], q = a->q[t * a->q_stride + i];
    const double in = sigmoid(a->gate_i[t * a->gate_stride + i] + a->bias_i[i]);
    const double forget = sigmoid(a->gate_f[t * a->gate_stride + i] + a->bias_f[i]);
    const double la = a->lambda[i] * forget;
    const float h = (float)(a->h[i] + (expm1(la) * a->h[i] + sqrt(-expm1(2 * la)) * in * s));
    a->h[i] = h;

    const double light = q * (s + (double)a->kappa[i] * h);
    const double beta = sigmoid((double)a->omega[i] * h + a->gamma[i]);
    double o = (1 - beta) * light;
    const ptrdiff_t row = a->deep_row ? a->deep_row[t] : (ptrdiff_t)t;
    if (row >= 0) o += beta * (a->rho ? a->rho[t] : 1) * a->m[(size_t)row * a->m_stride + i];
    a->o[t * a->o_stride + i] = (float)o;
}

void sl_bridge_ref(const sl_bridge_args *a) {
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t i = 0; i < a->n; i++) step_channel(a, t, i);
}
