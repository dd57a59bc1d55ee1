/* Element-wise kernels on vectors. */

SL_INLINE void silu_mul_lanes(const float *g, const float *u, float *y, size_t n) {
    v_store_n(y, v_mul(v_silu(v_load_n(g, n)), v_load_n(u, n)), n);
}

void SL_ISA(sl_silu_mul)(const float *g, const float *u, float *y, size_t n) {
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) silu_mul_lanes(g + i, u + i, y + i, SL_LANES);
    if (i < n) silu_mul_lanes(g + i, u + i, y + i, n - i);
}

SL_INLINE void silu_add_lanes(const float *a, const float *b, float *y, size_t n) {
    v_store_n(y, v_silu(v_add(v_load_n(a, n), v_load_n(b, n))), n);
}

void SL_ISA(sl_silu_add)(const float *a, const float *b, float *y, size_t n) {
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) silu_add_lanes(a + i, b + i, y + i, SL_LANES);
    if (i < n) silu_add_lanes(a + i, b + i, y + i, n - i);
}

SL_INLINE void add_scaled_lanes(float *y, const float *x, vf alpha, size_t n) {
    v_store_n(y, v_fma(alpha, v_load_n(x, n), v_load_n(y, n)), n);
}

void SL_ISA(sl_add_scaled)(float *y, const float *x, float alpha, size_t n) {
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) add_scaled_lanes(y + i, x + i, v_set1(alpha), SL_LANES);
    if (i < n) add_scaled_lanes(y + i, x + i, v_set1(alpha), n - i);
}

SL_INLINE void softplus_lanes(const float *x, const float *b, float *y, vf alpha, size_t n) {
    v_store_n(y, v_mul(alpha, v_softplus(v_add(v_load_n(x, n), v_load_n(b, n)))), n);
}

void SL_ISA(sl_softplus)(const float *x, const float *b, float *y, float alpha, size_t n) {
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) softplus_lanes(x + i, b + i, y + i, v_set1(alpha), SL_LANES);
    if (i < n) softplus_lanes(x + i, b + i, y + i, v_set1(alpha), n - i);
}
