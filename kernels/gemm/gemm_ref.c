/* Matrix products, reference: y[t][r] = w[r] . x[t] with f32 accumulation.
 *
 * Float sums run in four chains (element i belongs to chain i mod 4), added pairwise at the end: one chain
 * would be four times slower and lose two bits more. Quantised products are exact inside a block of 32. */
#include "kernels/prototypes.h"

enum { N_CHAIN = 4 };

static float load_f32(const void *row, size_t i) {
    return ((const float *)row)[i];
}

static float load_f16(const void *row, size_t i) {
    return sl_f16_to_f32(((const uint16_t *)row)[i]);
}

static float load_bf16(const void *row, size_t i) {
    return sl_bf16_to_f32(((const uint16_t *)row)[i]);
}

static inline float dot_float(const void *w, const float *x, size_t k, float (*load)(const void *, size_t)) {
    float sum[N_CHAIN] = { 0 };
    size_t i = 0;
    for (; i + N_CHAIN <= k; i += N_CHAIN) {
        for (size_t j = 0; j < N_CHAIN; j++) sum[j] += load(w, i + j) * x[i + j];
    }
    for (; i < k; i++) sum[i % N_CHAIN] += load(w, i) * x[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static float dot_f32(const void *w, const void *x, size_t k) {
    return dot_float(w, x, k, load_f32);
}

static float dot_f16(const void *w, const void *x, size_t k) {
    return dot_float(w, x, k, load_f16);
}

static float dot_bf16(const void *w, const void *x, size_t k) {
    return dot_float(w, x, k, load_bf16);
}

static float dot_q8(const void *w, const void *x, size_t k) {
    const size_t n_group = sl_groups(k);
    const int8_t *wq = w, *xq = x;
    const uint16_t *w_scale = (const uint16_t *)(wq + SL_GROUP * n_group);
    const float *x_scale = (const float *)(xq + sl_act_scales_offset(k));
    float sum = 0;
    for (size_t block = 0; block < 2 * n_group; block++, wq += SL_BLOCK, xq += SL_BLOCK) {
        int32_t dot = 0;
        for (size_t j = 0; j < SL_BLOCK; j++) dot += wq[j] * xq[j];
        sum += (float)dot * (sl_f16_to_f32(w_scale[block]) * x_scale[block]);
    }
    return sum;
}

static float dot_q4(const void *w, const void *x, size_t k) {
    const size_t n_group = sl_groups(k);
    const uint8_t *wq = w;
    const int8_t *xq = x;
    const uint16_t *w_scale = (const uint16_t *)(wq + SL_GROUP / 2 * n_group);
    const float *x_scale = (const float *)(xq + sl_act_scales_offset(k));
    float sum = 0;
    for (size_t g = 0; g < n_group; g++, wq += SL_GROUP / 2, xq += SL_GROUP) {
        int32_t low = 0, high = 0;
        for (size_t j = 0; j < SL_BLOCK; j++) {
            low += ((wq[j] & 15) - 8) * xq[j];
            high += ((wq[j] >> 4) - 8) * xq[SL_BLOCK + j];
        }
        sum += (float)low * (sl_f16_to_f32(w_scale[2 * g]) * x_scale[2 * g]);
        sum += (float)high * (sl_f16_to_f32(w_scale[2 * g + 1]) * x_scale[2 * g + 1]);
    }
    return sum;
}

#define DEFINE_GEMM(type)                                                                                    \
    void sl_gemm_##type##_ref(const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes,    \
                              float *y, size_t y_stride, size_t n_row, size_t n_tok, size_t k) {             \
        for (size_t r = 0; r < n_row; r++) {                                                                 \
            const void *row = (const char *)w + r * w_stride_bytes;                                          \
            for (size_t t = 0; t < n_tok; t++) {                                                             \
                y[t * y_stride + r] = dot_##type(row, (const char *)x + t * x_stride_bytes, k);              \
            }                                                                                                \
        }                                                                                                    \
    }

DEFINE_GEMM(f32)
DEFINE_GEMM(f16)
DEFINE_GEMM(bf16)
DEFINE_GEMM(q8)
DEFINE_GEMM(q4)
