/* S4D scan, reference: diagonal time-invariant state space with complex poles (Gu et al. 2022). */
#include "kernels/prototypes.h"

static void step_channel(const sl_scan_s4d_args *a, size_t t, size_t i) {
    const float r = a->r[t * a->r_stride + i];
    float y = 0;
    for (size_t m = 0; m < a->n_pole; m++) {
        const size_t re = 2 * m * a->pole_stride + i, im = re + a->pole_stride;
        const float s_re = a->a[re] * a->state[re] - a->a[im] * a->state[im] + r;
        const float s_im = a->a[re] * a->state[im] + a->a[im] * a->state[re];
        y += a->k[re] * s_re - a->k[im] * s_im;
        a->state[re] = s_re;
        a->state[im] = s_im;
    }
    a->y[t * a->y_stride + i] = y + a->skip[i] * r;
}

void sl_scan_s4d_ref(const sl_scan_s4d_args *a) {
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t i = 0; i < a->n; i++) step_channel(a, t, i);
}
