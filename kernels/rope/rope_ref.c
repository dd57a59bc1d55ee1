/* Half-split rotary embedding (Su et al. 2021, in the layout of GPT-NeoX and Llama), reference. */
#include "kernels/prototypes.h"

#include <assert.h>

void sl_rope_ref(float *x, const float *cos, const float *sin, size_t n_head, size_t head_dim, size_t n_rot) {
    const size_t half = n_rot / 2;
    assert(n_rot % 2 == 0 && n_rot <= head_dim);
    for (size_t i = 0; i < n_head; i++, x += head_dim)
        for (size_t j = 0; j < half; j++) {
            const float lo = x[j], hi = x[j + half];
            x[j] = lo * cos[j] - hi * sin[j];
            x[j + half] = hi * cos[j] + lo * sin[j];
        }
}
