/* Causal attention of the heads that share one key/value head, reference: for each query one walk over the
 * keys for the largest score and one for the weighted sum, so softmax needs no rescaling. */
#include "kernels/prototypes.h"

#include <math.h>

/* Element i of the f32 or f16 row at the given position. */
typedef float (*row_fn)(const void *rows, size_t index);

static float row_f32(const void *rows, size_t index) { return ((const float *)rows)[index]; }
static float row_f16(const void *rows, size_t index) { return sl_f16_to_f32(((const uint16_t *)rows)[index]); }

static double score(const sl_attention_args *a, row_fn row, const float *q, size_t key) {
    double sum = 0;
    for (size_t i = 0; i < a->head_dim; i++) sum += (double)q[i] * row(a->k, key * a->kv_stride + i);
    return sum * a->scale;
}

static void attend(const sl_attention_args *a, row_fn row, const float *q, float *y, size_t pos) {
    const size_t end = pos + 1, begin = a->window && end > a->window ? end - a->window : 0;
    double top = -INFINITY, total = 0;
    for (size_t key = begin; key < end; key++) top = fmax(top, score(a, row, q, key));
    for (size_t i = 0; i < a->head_dim; i++) y[i] = 0;
    for (size_t key = begin; key < end; key++) {
        const double weight = exp(score(a, row, q, key) - top);
        total += weight;
        for (size_t i = 0; i < a->head_dim; i++) y[i] += (float)weight * row(a->v, key * a->kv_stride + i);
    }
    for (size_t i = 0; i < a->head_dim; i++) y[i] = (float)(y[i] / total);
}

static void attend_all(const sl_attention_args *a, row_fn row) {
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t h = 0; h < a->n_head; h++) {
            const size_t at = h * a->head_dim;
            attend(a, row, a->q + t * a->q_stride + at, a->y + t * a->y_stride + at, a->pos + t);
        }
}

void sl_attention_f32_ref(const sl_attention_args *a) { attend_all(a, row_f32); }
void sl_attention_f16_ref(const sl_attention_args *a) { attend_all(a, row_f16); }
