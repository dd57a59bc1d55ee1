/* Gated causal depthwise convolution, reference: bridge.md step 3 before its norm. */
#include "kernels/prototypes.h"

#include <assert.h>

/* One channel of one token: the oldest product leaves the carried rows and the new one enters. The window
 * slides through the state itself, so a chunk and single steps do the same operations. */
static void step_channel(const sl_conv_args *a, size_t t, size_t i) {
    const float z = a->p[t * a->in_stride + i] * a->v[t * a->in_stride + i];
    float *state = a->state + i;
    float sum = a->bias[i];
    for (size_t j = 0; j + 1 < a->k; j++) sum += a->taps[j * a->taps_stride + i] * state[j * a->state_stride];
    a->s[t * a->out_stride + i] = sum + a->taps[(a->k - 1) * a->taps_stride + i] * z;
    for (size_t j = 0; j + 2 < a->k; j++) state[j * a->state_stride] = state[(j + 1) * a->state_stride];
    if (a->k > 1) state[(a->k - 2) * a->state_stride] = z;
}

void sl_conv_gate_ref(const sl_conv_args *a) {
    assert(a->k >= 1);
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t i = 0; i < a->n; i++) step_channel(a, t, i);
}
