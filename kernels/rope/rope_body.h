/* Half-split rotary embedding on vectors; lanes are pairs. */
#include <assert.h>

SL_INLINE void turn(float *lo, float *hi, const float *cos, const float *sin, size_t n) {
    const vf x = v_load_n(lo, n), y = v_load_n(hi, n), c = v_load_n(cos, n), s = v_load_n(sin, n);
    v_store_n(lo, v_fnma(y, s, v_mul(x, c)), n);
    v_store_n(hi, v_fma(x, s, v_mul(y, c)), n);
}

void SL_ISA(sl_rope)(float *x, const float *cos, const float *sin, size_t n_head, size_t head_dim,
                     size_t n_rot) {
    const size_t half = n_rot / 2;
    assert(n_rot % 2 == 0 && n_rot <= head_dim);
    for (size_t h = 0; h < n_head; h++, x += head_dim) {
        size_t j = 0;
        for (; j + SL_LANES <= half; j += SL_LANES) turn(x + j, x + j + half, cos + j, sin + j, SL_LANES);
        if (j < half) turn(x + j, x + j + half, cos + j, sin + j, half - j);
    }
}
