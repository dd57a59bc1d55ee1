/* S6 selective scan of one head, reference: bridge.md step 4 (Gu and Dao 2023, with the scalar decay per head
 * of Dao and Gu 2024).
 *
 * S = a S + x B is computed as S + (expm1(log a) S + x B): a decay near 1, rounded to f32, changes the memory's
 * length by up to 6e-8 / (1 - a), while expm1 keeps log a's relative accuracy. */
#include "kernels/prototypes.h"

#include <math.h>

void sl_scan_s6_ref(const sl_scan_s6_args *a) {
    for (size_t t = 0; t < a->n_tok; t++) {
        const float delta = a->delta[t * a->delta_stride];
        const float *r = a->r + t * a->r_stride, *b = a->b + t * a->bc_stride, *c = a->c + t * a->bc_stride;
        const float fade = (float)expm1(-(double)a->decay * delta);
        for (size_t p = 0; p < a->head_dim; p++) {
            const float x = delta * r[p];
            float *s = a->state + p; /* [n_state] rows of head_dim */
            float y = 0;
            for (size_t n = 0; n < a->n_state; n++, s += a->head_dim) {
                *s += fade * *s + x * b[n];
                y += *s * c[n];
            }
            a->y[t * a->y_stride + p] = y + a->skip[p] * r[p];
        }
    }
}
