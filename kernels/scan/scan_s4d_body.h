/* S4D scan on vectors; lanes are channels. Blocks of 32 channels: their state (8 KiB for 32 poles) and
 * constants (16 KiB) stay in the first level of the cache over the tokens, and two to four sums side by side
 * hide the latency of each. */

enum { S4D_BLOCK = 32 / SL_LANES };

/* n_vec vectors of channels from i on, each of n lanes (n < SL_LANES only for a single one). */
SL_INLINE void s4d_channels(const sl_scan_s4d_args *a, size_t i, size_t n_vec, size_t n) {
    for (size_t t = 0; t < a->n_tok; t++) {
        vf r[S4D_BLOCK], y[S4D_BLOCK];
        for (size_t v = 0; v < n_vec; v++) {
            r[v] = v_load_n(a->r + t * a->r_stride + i + v * SL_LANES, n);
            y[v] = v_zero();
        }
        for (size_t m = 0; m < a->n_pole; m++)
            for (size_t v = 0; v < n_vec; v++) {
                const size_t re = 2 * m * a->pole_stride + i + v * SL_LANES, im = re + a->pole_stride;
                const vf s_re = v_load_n(a->state + re, n), s_im = v_load_n(a->state + im, n);
                const vf a_re = v_load_n(a->a + re, n), a_im = v_load_n(a->a + im, n);
                const vf new_re = v_fnma(a_im, s_im, v_fma(a_re, s_re, r[v]));
                const vf new_im = v_fma(a_re, s_im, v_mul(a_im, s_re));
                v_store_n(a->state + re, new_re, n);
                v_store_n(a->state + im, new_im, n);
                y[v] = v_fma(v_load_n(a->k + re, n), new_re, y[v]);
                y[v] = v_fnma(v_load_n(a->k + im, n), new_im, y[v]);
            }
        for (size_t v = 0; v < n_vec; v++) {
            const vf skip = v_load_n(a->skip + i + v * SL_LANES, n);
            v_store_n(a->y + t * a->y_stride + i + v * SL_LANES, v_fma(skip, r[v], y[v]), n);
        }
    }
}

void SL_ISA(sl_scan_s4d)(const sl_scan_s4d_args *a) {
    size_t i = 0;
    for (; i + S4D_BLOCK * SL_LANES <= a->n; i += S4D_BLOCK * SL_LANES) s4d_channels(a, i, S4D_BLOCK, SL_LANES);
    for (; i + SL_LANES <= a->n; i += SL_LANES) s4d_channels(a, i, 1, SL_LANES);
    if (i < a->n) s4d_channels(a, i, 1, a->n - i);
}
