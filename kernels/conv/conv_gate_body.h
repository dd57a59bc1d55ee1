/* Gated causal convolution on vectors; lanes are channels. The usual widths keep the window of z in registers
 * for a tile of tokens; any other width slides it through the state, one row at a time. Both run the chain of
 * conv_gate_ref.c.
 *
 * Tokens go in tiles of 16 with channels inside: walking all tokens for one vector of channels would touch a
 * new page per token and array, more than the first-level TLB holds. */
#include <assert.h>

enum { CONV_TILE = 16, CONV_MAX_WINDOW = 3 };

SL_INLINE vf product(const sl_conv_args *a, size_t t, size_t i, size_t n) {
    return v_mul(v_load_n(a->p + t * a->in_stride + i, n), v_load_n(a->v + t * a->in_stride + i, n));
}

/* Tokens from .. to - 1 of channels i .. i + n - 1, with past = k - 1 <= CONV_MAX_WINDOW a constant. */
SL_INLINE void conv_window(const sl_conv_args *a, size_t from, size_t to, size_t i, size_t n, size_t past) {
    vf z[CONV_MAX_WINDOW + 1], tap[CONV_MAX_WINDOW + 1];
    const vf bias = v_load_n(a->bias + i, n);
    for (size_t j = 0; j < past; j++) z[j] = v_load_n(a->state + j * a->state_stride + i, n);
    for (size_t j = 0; j <= past; j++) tap[j] = v_load_n(a->taps + j * a->taps_stride + i, n);
    for (size_t t = from; t < to; t++) {
        vf sum = bias;
        z[past] = product(a, t, i, n);
        for (size_t j = 0; j <= past; j++) sum = v_fma(tap[j], z[j], sum);
        for (size_t j = 0; j < past; j++) z[j] = z[j + 1];
        v_store_n(a->s + t * a->out_stride + i, sum, n);
    }
    for (size_t j = 0; j < past; j++) v_store_n(a->state + j * a->state_stride + i, z[j], n);
}

/* The same for k > CONV_MAX_WINDOW + 1. */
SL_INLINE void conv_wide(const sl_conv_args *a, size_t from, size_t to, size_t i, size_t n) {
    for (size_t t = from; t < to; t++) {
        const vf z = product(a, t, i, n);
        vf sum = v_load_n(a->bias + i, n);
        float *row = a->state + i;
        for (size_t j = 0; j + 1 < a->k; j++, row += a->state_stride) {
            const vf old = v_load_n(row, n);
            sum = v_fma(v_load_n(a->taps + j * a->taps_stride + i, n), old, sum);
            if (j > 0) v_store_n(row - a->state_stride, old, n);
        }
        v_store_n(row - a->state_stride, z, n);
        sum = v_fma(v_load_n(a->taps + (a->k - 1) * a->taps_stride + i, n), z, sum);
        v_store_n(a->s + t * a->out_stride + i, sum, n);
    }
}

SL_INLINE void conv_lanes(const sl_conv_args *a, size_t from, size_t to, size_t i, size_t n) {
    switch (a->k) {
    case 1: conv_window(a, from, to, i, n, 0); break;
    case 2: conv_window(a, from, to, i, n, 1); break;
    case 3: conv_window(a, from, to, i, n, 2); break;
    case 4: conv_window(a, from, to, i, n, 3); break;
    default: conv_wide(a, from, to, i, n); break;
    }
}

void SL_ISA(sl_conv_gate)(const sl_conv_args *a) {
    assert(a->k >= 1);
    for (size_t from = 0; from < a->n_tok; from += CONV_TILE) {
        const size_t to = a->n_tok - from < CONV_TILE ? a->n_tok : from + CONV_TILE;
        size_t i = 0;
        for (; i + SL_LANES <= a->n; i += SL_LANES) conv_lanes(a, from, to, i, SL_LANES);
        if (i < a->n) conv_lanes(a, from, to, i, a->n - i);
    }
}
