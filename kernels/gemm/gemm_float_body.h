/* Products with f32, f16 and bf16 weights: vectors along k, one accumulator for each row and token.
 *
 * A tile has as many accumulators as a vector has lanes (LANES rows x 1 token, LANES / 2 x 2, LANES / 4 x 4): a
 * transposing sum then gives all outputs in one vector. Lane j of an accumulator sums the products of elements
 * j, j + LANES, ... in increasing order; lanes past k add 0. */
#include "kernels/gemm/gemm_tiles.h"

enum { WEIGHT_F32, WEIGHT_F16, WEIGHT_BF16, FLOAT_BLOCK_ROWS = SL_LANES };

/* n weights from element i of a row */
SL_INLINE vf load_weights(int type, const char *row, size_t i, size_t n) {
    const float *wide = (const float *)row;
    const uint16_t *half = (const uint16_t *)row;
    return type == WEIGHT_F32 ? v_load_n(wide + i, n) : type == WEIGHT_F16 ? v_load_f16_n(half + i, n)
                                                                           : v_load_bf16_n(half + i, n);
}

/* Adds the products of n elements from i on. */
SL_INLINE void add_products(int type, const char *const *row, const float *const *x, size_t i, size_t n,
                            size_t n_row, size_t n_tok, vf *sum) {
    vf input[4];
#pragma GCC unroll 4
    for (size_t t = 0; t < n_tok; t++) input[t] = v_load_n(x[t] + i, n);
#pragma GCC unroll 16
    for (size_t r = 0; r < n_row; r++) {
        const vf weights = load_weights(type, row[r], i, n);
#pragma GCC unroll 4
        for (size_t t = 0; t < n_tok; t++) sum[t * n_row + r] = v_fma(weights, input[t], sum[t * n_row + r]);
    }
}

/* LANES / n_tok rows, of which n_valid >= 1 exist; the others repeat the last and are not stored. */
SL_INLINE void float_tile(int type, size_t n_tok, const operands *o, size_t n_valid) {
    const size_t n_row = SL_LANES / n_tok, element = type == WEIGHT_F32 ? 4 : 2;
    const size_t n_kept = n_valid < n_row ? n_valid : n_row;
    const char *row[SL_LANES];
    const float *x[4];
    vf sum[SL_LANES];
    for (size_t r = 0; r < n_row; r++) row[r] = o->w + (r < n_kept ? r : n_kept - 1) * o->w_stride;
    for (size_t t = 0; t < n_tok; t++) x[t] = (const float *)(o->x + t * o->x_stride);
#pragma GCC unroll 16
    for (size_t i = 0; i < SL_LANES; i++) sum[i] = v_zero();
    size_t i = 0;
    for (; i + SL_LANES <= o->k; i += SL_LANES) {
        fetch_ahead(o, i * element * n_row, SL_LANES * element * n_row);
        add_products(type, row, x, i, SL_LANES, n_row, n_tok, sum);
    }
    if (i < o->k) add_products(type, row, x, i, o->k - i, n_row, n_tok, sum);
    float out[SL_LANES];
    v_store(out, v_sum_each(sum));
    for (size_t t = 0; t < n_tok; t++) memcpy(o->y + t * o->y_stride, out + t * n_row, n_kept * sizeof *out);
}

/* The rows of a block, as many at a time as the tile has. */
SL_INLINE void float_rows(int type, size_t n_tok, const operands *block, size_t n_row) {
    const size_t step = SL_LANES / n_tok;
    for (size_t r = 0; r < n_row; r += step) {
        operands o = *block;
        o.w += r * o.w_stride;
        o.y += r;
        float_tile(type, n_tok, &o, n_row - r);
    }
}

#define DEFINE_FLOAT_GEMM(name, type)                                                                        \
    static void name##_one(const operands *o, size_t n_row) { float_rows(type, 1, o, n_row); }               \
    static void name##_two(const operands *o, size_t n_row) { float_rows(type, 2, o, n_row); }               \
    static void name##_four(const operands *o, size_t n_row) { float_rows(type, 4, o, n_row); }              \
    void SL_ISA(sl_gemm_##name)(const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes,  \
                                float *y, size_t y_stride, size_t n_row, size_t n_tok, size_t k) {           \
        const operands o = { w, x, y, w_stride_bytes, x_stride_bytes, y_stride, k, true,                     \
                             sl_cpu_fetches_to_first() };                                                    \
        static const tile_set set = { 3, { name##_one, name##_two, name##_four } };                          \
        walk_tiles(&o, n_row, n_tok, FLOAT_BLOCK_ROWS, &set);                                                \
    }

DEFINE_FLOAT_GEMM(f32, WEIGHT_F32)
DEFINE_FLOAT_GEMM(f16, WEIGHT_F16)
DEFINE_FLOAT_GEMM(bf16, WEIGHT_BF16)
