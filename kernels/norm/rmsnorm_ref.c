/* RMSNorm, reference: mean of squares and scale in double, rounded once per output. */
#include "kernels/prototypes.h"

#include <math.h>

void sl_rmsnorm_ref(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                    float eps) {
    for (size_t g = 0; g < n_group; g++, x += n, y += n, w += w_step) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
        const double scale = 1 / sqrt(sum / (double)n + eps);
        for (size_t i = 0; i < n; i++) y[i] = (float)(x[i] * scale * w[i]);
    }
}
