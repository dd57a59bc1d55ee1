/* RMSNorm on vectors. Four partial sums over the whole quads of vectors hide the latency of the additions; the
 * rest goes to the first. The order depends on n alone. */

SL_INLINE float sum_of_squares(const float *x, size_t n) {
    vf sum[4] = { v_zero(), v_zero(), v_zero(), v_zero() };
    size_t i = 0;
    for (; i + 4 * SL_LANES <= n; i += 4 * SL_LANES)
        for (size_t j = 0; j < 4; j++) {
            const vf v = v_load(x + i + j * SL_LANES);
            sum[j] = v_fma(v, v, sum[j]);
        }
    for (; i < n; i += SL_LANES) {
        const vf v = v_load_n(x + i, n - i < SL_LANES ? n - i : SL_LANES);
        sum[0] = v_fma(v, v, sum[0]);
    }
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

void SL_ISA(sl_rmsnorm)(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                        float eps) {
    for (size_t g = 0; g < n_group; g++, x += n, y += n, w += w_step) {
        const vf mean = v_set1(sum_of_squares(x, n) / (float)n + eps);
        const vf scale = v_div(v_set1(1.0f), v_sqrt(mean));
        size_t i = 0;
        for (; i + SL_LANES <= n; i += SL_LANES)
            v_store(y + i, v_mul(v_mul(v_load(x + i), scale), v_load(w + i)));
        if (i < n) v_store_n(y + i, v_mul(v_mul(v_load_n(x + i, n - i), scale), v_load_n(w + i, n - i)), n - i);
    }
}
