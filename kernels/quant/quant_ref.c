/* Quantisation of activations, expansion of stored rows, narrowing: reference. The vector variants give
 * the same bits. */
#include "kernels/prototypes.h"

#include <math.h>
#include <string.h>

static uint32_t magnitude_bits(float v) {
    union { float f; uint32_t u; } c = { v };
    return c.u & 0x7fffffffu;
}

/* max |x|; NaN if there is one. Magnitudes order like their bits, NaN above all. */
static float max_magnitude(const float *x, size_t n) {
    union { uint32_t u; float f; } max = { 0 };
    for (size_t i = 0; i < n; i++) {
        if (magnitude_bits(x[i]) > max.u) max.u = magnitude_bits(x[i]);
    }
    return max.f;
}

/* A block of 32 quants at zeroed q. A block with a value that is not finite keeps a scale that is not
 * finite, so that the products show it. */
static float quant_block(const float *x, size_t n, int8_t *q) {
    const float scale = max_magnitude(x, n) / 127;
    if (scale < 1e-30f) return 0;
    if (!(scale <= 3e38f)) return scale;
    const float inverse = 1 / scale;
    for (size_t i = 0; i < n; i++) q[i] = (int8_t)rintf(x[i] * inverse);
    return scale;
}

void sl_quant_act_ref(const float *x, size_t n, void *out) {
    const size_t n_group = sl_groups(n);
    int8_t *q = out;
    int32_t *sums = (int32_t *)(q + sl_act_sums_offset(n));
    float *scales = (float *)(q + sl_act_scales_offset(n));
    memset(out, 0, sl_act_bytes(n));
    for (size_t block = 0; block < 2 * n_group; block++, q += SL_BLOCK, sums += 8) {
        const size_t first = block * SL_BLOCK;
        const size_t width = first >= n ? 0 : n - first < SL_BLOCK ? n - first : SL_BLOCK;
        scales[block] = quant_block(x + (width ? first : 0), width, q);
        for (size_t half = 0; half < 2; half++) {
            int32_t sum = 0;
            for (size_t j = 0; j < 16; j++) sum -= q[16 * half + j];
            for (size_t j = 0; j < 4; j++) sums[4 * half + j] = sum;
        }
    }
}

void sl_expand_f32_ref(const void *row, size_t n, float *y) {
    if (n) memcpy(y, row, n * sizeof *y);
}

void sl_expand_f16_ref(const void *row, size_t n, float *y) {
    const uint16_t *w = row;
    for (size_t i = 0; i < n; i++) y[i] = sl_f16_to_f32(w[i]);
}

void sl_expand_bf16_ref(const void *row, size_t n, float *y) {
    const uint16_t *w = row;
    for (size_t i = 0; i < n; i++) y[i] = sl_bf16_to_f32(w[i]);
}

void sl_expand_q8_ref(const void *row, size_t n, float *y) {
    const int8_t *q = row;
    const uint16_t *scale = (const uint16_t *)(q + SL_GROUP * sl_groups(n));
    for (size_t i = 0; i < n; i++) y[i] = q[i] * sl_f16_to_f32(scale[i / SL_BLOCK]);
}

void sl_expand_q4_ref(const void *row, size_t n, float *y) {
    const uint8_t *q = row;
    const uint16_t *scale = (const uint16_t *)(q + SL_GROUP / 2 * sl_groups(n));
    for (size_t i = 0; i < n; i++) {
        const uint8_t pair = q[i / SL_GROUP * SL_BLOCK + i % SL_BLOCK];
        const int value = (i % SL_GROUP < SL_BLOCK ? pair & 15 : pair >> 4) - 8;
        y[i] = (float)value * sl_f16_to_f32(scale[i / SL_BLOCK]);
    }
}

void sl_narrow_f16_ref(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = sl_f32_to_f16(x[i]);
}
