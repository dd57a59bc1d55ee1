/* Recurrent gating bridge on vectors; lanes are channels. Tokens go in tiles of 8 with channels inside, for the
 * TLB's sake (see conv_gate_body.h); h stays in a register within a tile.
 *
 * One exponential serves both powers of the decay: with e = expm1(la), 1 - a^2 = -expm1(2 la) = -e (2 + e), and
 * 2 + e lies in 1 .. 2, so nothing cancels. */

enum { BRIDGE_TILE = 8 };

/* h after one token; the gates come with their biases. */
SL_INLINE vf recur(vf h, vf s, vf gate_i, vf gate_f, vf lambda) {
    const vf fade = v_expm1(v_mul(lambda, v_sigmoid(gate_f)));
    const vf gain = v_sqrt(v_mul(fade, v_sub(v_set1(-2.0f), fade)));
    return v_add(h, v_fma(fade, h, v_mul(gain, v_mul(v_sigmoid(gate_i), s))));
}

SL_INLINE void bridge_lanes(const sl_bridge_args *a, size_t from, size_t to, size_t i, size_t n) {
    const vf bias_i = v_load_n(a->bias_i + i, n), bias_f = v_load_n(a->bias_f + i, n);
    const vf lambda = v_load_n(a->lambda + i, n), kappa = v_load_n(a->kappa + i, n);
    const vf omega = v_load_n(a->omega + i, n), gamma = v_load_n(a->gamma + i, n), one = v_set1(1.0f);
    vf h = v_load_n(a->h + i, n);
    for (size_t t = from; t < to; t++) {
        const vf s = v_load_n(a->s + t * a->s_stride + i, n), q = v_load_n(a->q + t * a->q_stride + i, n);
        h = recur(h, s, v_add(v_load_n(a->gate_i + t * a->gate_stride + i, n), bias_i),
                  v_add(v_load_n(a->gate_f + t * a->gate_stride + i, n), bias_f), lambda);
        const vf beta = v_sigmoid(v_fma(omega, h, gamma));
        vf o = v_mul(v_sub(one, beta), v_mul(q, v_fma(kappa, h, s)));
        const ptrdiff_t row = a->deep_row ? a->deep_row[t] : (ptrdiff_t)t;
        if (row >= 0) {
            const vf m = v_load_n(a->m + (size_t)row * a->m_stride + i, n);
            o = v_fma(v_mul(beta, v_set1(a->rho ? a->rho[t] : 1.0f)), m, o);
        }
        v_store_n(a->o + t * a->o_stride + i, o, n);
    }
    v_store_n(a->h + i, h, n);
}

void SL_ISA(sl_bridge)(const sl_bridge_args *a) {
    for (size_t from = 0; from < a->n_tok; from += BRIDGE_TILE) {
        const size_t to = a->n_tok - from < BRIDGE_TILE ? a->n_tok : from + BRIDGE_TILE;
        size_t i = 0;
        for (; i + SL_LANES <= a->n; i += SL_LANES) bridge_lanes(a, from, to, i, SL_LANES);
        if (i < a->n) bridge_lanes(a, from, to, i, a->n - i);
    }
}
