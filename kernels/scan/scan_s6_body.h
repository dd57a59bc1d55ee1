/* S6 scan of one head on vectors; lanes are channels. A block of four vectors of channels has its y in
 * registers while the rows of the state stream by, from the first level of the cache (16 KiB for 64 x 64) in
 * every token after the first. Per vector of the state: a load, a store, one product and two fused ones, an
 * addition; four y are enough to hide the latency of their sums. Decays as in scan_s6_ref.c. */

enum { S6_BLOCK = 4 };

/* n_vec vectors of channels from p on, each of n lanes (n < SL_LANES only for a single one). */
SL_INLINE void s6_channels(const sl_scan_s6_args *a, size_t p, size_t n_vec, size_t n) {
    const vf decay = v_set1(-a->decay);
    for (size_t t = 0; t < a->n_tok; t++) {
        const float *r = a->r + t * a->r_stride + p, *b = a->b + t * a->bc_stride, *c = a->c + t * a->bc_stride;
        const vf delta = v_set1(a->delta[t * a->delta_stride]), fade = v_expm1(v_mul(decay, delta));
        vf x[S6_BLOCK], y[S6_BLOCK];
        for (size_t v = 0; v < n_vec; v++) {
            x[v] = v_mul(delta, v_load_n(r + v * SL_LANES, n));
            y[v] = v_zero();
        }
        float *s = a->state + p;
        for (size_t i = 0; i < a->n_state; i++, s += a->head_dim) {
            const vf b_i = v_set1(b[i]), c_i = v_set1(c[i]);
            for (size_t v = 0; v < n_vec; v++) {
                const vf old = v_load_n(s + v * SL_LANES, n);
                const vf state = v_add(old, v_fma(fade, old, v_mul(x[v], b_i)));
                v_store_n(s + v * SL_LANES, state, n);
                y[v] = v_fma(state, c_i, y[v]);
            }
        }
        for (size_t v = 0; v < n_vec; v++) {
            const vf skip = v_load_n(a->skip + p + v * SL_LANES, n), r_v = v_load_n(r + v * SL_LANES, n);
            v_store_n(a->y + t * a->y_stride + p + v * SL_LANES, v_fma(skip, r_v, y[v]), n);
        }
    }
}

void SL_ISA(sl_scan_s6)(const sl_scan_s6_args *a) {
    size_t p = 0;
    for (; p + S6_BLOCK * SL_LANES <= a->head_dim; p += S6_BLOCK * SL_LANES)
        s6_channels(a, p, S6_BLOCK, SL_LANES);
    for (; p + SL_LANES <= a->head_dim; p += SL_LANES) s6_channels(a, p, 1, SL_LANES);
    if (p < a->head_dim) s6_channels(a, p, 1, a->head_dim - p);
}
