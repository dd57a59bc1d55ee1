/* Bridge: gated convolutions and selective state spaces joined by a recurrent gating bridge, with routing.
 * Equations, state and checkpoint layout: docs/bridge.md. This file reads the hyperparameters, names the
 * tensors and emits the graph; the arithmetic lives in kernels/. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/graph.h"
#include "models/arch.h"

typedef struct bridge_hyper {
    size_t n_vocab, d, e, n_layer, head_dim, n_head, n_state, n_group, k, block, f;
    float eps;
    bool tied, any_s4d, shift_keys;
    bool s4d[SL_MAX_LAYER], routed[SL_MAX_LAYER];
    float tau[SL_MAX_LAYER];
} bridge_hyper;

/* ---- hyperparameters ---------------------------------------------------------------------------- */

static sl_status divides(const char *part, size_t a, const char *whole, size_t b, sl_error *err) {
    if (b % a == 0) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "%s is %zu, expected a divisor of %s (%zu)", part, a, whole, b);
}

static sl_status ssm_kind(const char *text, size_t layer, bridge_hyper *h, sl_error *err) {
    sl_name_buf buf;
    if (strcmp(text, "s6") && strcmp(text, "s4d"))
        return sl_fail(err, SL_E_FORMAT, "ssm_type is \"%s\" in layer %zu, expected \"s6\" or \"s4d\"",
                       sl_name(text, &buf), layer);
    h->s4d[layer] = !strcmp(text, "s4d");
    h->any_s4d |= h->s4d[layer];
    return SL_OK;
}

static sl_status read_ssm_types(const sl_meta *meta, bridge_hyper *h, sl_error *err) {
    const sl_meta_entry *entry = sl_meta_find(meta, "ssm_type");
    if (!entry) return SL_OK;
    if (entry->type != SL_META_STRING && entry->n)
        return sl_fail(err, SL_E_FORMAT, "ssm_type is not text, expected \"s6\", \"s4d\" or a list of them");
    if (entry->is_list && entry->n != h->n_layer)
        return sl_fail(err, SL_E_FORMAT, "ssm_type lists %zu layers, expected num_hidden_layers (%zu)", entry->n,
                       h->n_layer);
    for (size_t i = 0; i < h->n_layer; i++) SL_TRY(ssm_kind(entry->v.s[entry->is_list ? i : 0], i, h, err));
    return SL_OK;
}

static sl_status read_routed_layers(const sl_meta *meta, bridge_hyper *h, sl_error *err) {
    const sl_meta_entry *entry = sl_meta_find(meta, "routed_layers");
    if (!entry || (entry->is_list && !entry->n)) return SL_OK;
    if (entry->type != SL_META_INT || !entry->is_list)
        return sl_fail(err, SL_E_FORMAT, "routed_layers is not a list of layer numbers");
    for (size_t i = 0; i < entry->n; i++) {
        int64_t layer = entry->v.i[i];
        if (layer < 0 || layer >= (int64_t)h->n_layer)
            return sl_fail(err, SL_E_FORMAT, "routed_layers names layer %lld, expected 0 to %zu", (long long)layer,
                           h->n_layer - 1);
        if (h->s4d[layer])
            return sl_fail(err, SL_E_FORMAT, "routed_layers names layer %lld, which is of ssm_type s4d and never "
                           "routed", (long long)layer);
        h->routed[layer] = true;
    }
    return SL_OK;
}

static sl_status read_thresholds(const sl_meta *meta, bridge_hyper *h, sl_error *err) {
    const sl_meta_entry *entry = sl_meta_find(meta, "router_threshold");
    for (size_t i = 0; i < h->n_layer; i++) h->tau[i] = 0.5f;
    if (!entry) return SL_OK;
    if (entry->type != SL_META_INT && entry->type != SL_META_FLOAT)
        return sl_fail(err, SL_E_FORMAT, "router_threshold is not a number or a list of numbers");
    if (entry->is_list && entry->n != h->n_layer)
        return sl_fail(err, SL_E_FORMAT, "router_threshold lists %zu layers, expected num_hidden_layers (%zu)",
                       entry->n, h->n_layer);
    for (size_t i = 0; i < h->n_layer; i++) {
        size_t j = entry->is_list ? i : 0;
        double tau = entry->type == SL_META_INT ? (double)entry->v.i[j] : entry->v.f[j];
        if (!h->routed[i]) continue;
        if (!(tau >= 0 && tau <= 1))
            return sl_fail(err, SL_E_FORMAT, "router_threshold is %g in layer %zu, expected 0 to 1", tau, i);
        h->tau[i] = (float)tau;
    }
    return SL_OK;
}

static sl_status read_shape(const sl_meta *meta, bridge_hyper *h, sl_error *err) {
    SL_TRY(sl_arch_size(meta, "vocab_size", true, SL_MAX_VOCAB, &h->n_vocab, err));
    SL_TRY(sl_arch_size(meta, "hidden_size", true, SL_MAX_WIDTH, &h->d, err));
    SL_TRY(sl_arch_size(meta, "num_hidden_layers", true, SL_MAX_LAYER, &h->n_layer, err));
    h->e = h->d;
    SL_TRY(sl_arch_size(meta, "inner_size", false, SL_MAX_WIDTH, &h->e, err));
    SL_TRY(sl_arch_size(meta, "head_dim", true, SL_MAX_WIDTH, &h->head_dim, err));
    SL_TRY(sl_arch_size(meta, "state_size", true, SL_MAX_WIDTH, &h->n_state, err));
    h->n_group = 1;
    h->k = 4;
    h->block = 64;
    SL_TRY(sl_arch_size(meta, "n_groups", false, SL_MAX_WIDTH, &h->n_group, err));
    SL_TRY(sl_arch_size(meta, "conv_kernel", false, 4096, &h->k, err));
    SL_TRY(sl_arch_size(meta, "gate_block", false, SL_MAX_WIDTH, &h->block, err));
    SL_TRY(sl_arch_size(meta, "intermediate_size", true, SL_MAX_WIDTH, &h->f, err));
    SL_TRY(divides("head_dim", h->head_dim, "inner_size", h->e, err));
    h->n_head = h->e / h->head_dim;
    SL_TRY(divides("n_groups", h->n_group, "the number of heads", h->n_head, err));
    return divides("gate_block", h->block, "inner_size", h->e, err);
}

static sl_status bridge_read(const sl_meta *meta, void *hyper, sl_error *err) {
    bridge_hyper *h = hyper;
    double eps = 1e-5;
    SL_TRY(read_shape(meta, h, err));
    SL_TRY(sl_arch_check_tokens(meta, h->n_vocab, err));
    SL_TRY(sl_meta_float(meta, "rms_norm_eps", false, 0, 1, &eps, err));
    h->eps = (float)eps;
    if (!(h->eps > 0)) return sl_fail(err, SL_E_FORMAT, "rms_norm_eps is %g, expected more than 0", eps);
    SL_TRY(sl_meta_bool(meta, "tie_word_embeddings", false, &h->tied, err));
    SL_TRY(sl_meta_bool(meta, "shift_keys", false, &h->shift_keys, err));
    SL_TRY(read_ssm_types(meta, h, err));
    SL_TRY(read_routed_layers(meta, h, err));
    SL_TRY(read_thresholds(meta, h, err));
    if (h->any_s4d && h->n_state % 2)
        return sl_fail(err, SL_E_FORMAT, "state_size is %zu, expected an even number for s4d layers", h->n_state);
    return SL_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static bool add_layer(const bridge_hyper *h, size_t layer, sl_schema *schema) {
    const size_t d = h->d, e = h->e, f = h->f, b = h->block;
    const bool s6 = !h->s4d[layer], s4d = h->s4d[layer], routed = h->routed[layer];
    const sl_tensor_rule rules[] = {
        { true, SL_TENSOR_KEEP, "model.layers.%zu.norm_mix.weight", 1, { d } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.norm_mlp.weight", 1, { d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.conv.in.weight", 2, { 3 * e, d } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.conv.kernel.weight", 3, { e, 1, h->k } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.conv.kernel.bias", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.conv.norm.weight", 1, { e } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.ssm.in.weight", 2,
          { 2 * e + (h->s4d[layer] ? 0 : 2 * h->n_group * h->n_state + h->n_head), d } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.ssm.D", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.ssm.norm.weight", 1, { e } },
        { true, SL_TENSOR_SMALL, "model.layers.%zu.bridge.input_gate.weight", 3, { e / b, b, b } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.input_gate.bias", 1, { e } },
        { true, SL_TENSOR_SMALL, "model.layers.%zu.bridge.recurrence_gate.weight", 3, { e / b, b, b } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.recurrence_gate.bias", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.Lambda", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.kappa", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.omega", 1, { e } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.bridge.gamma", 1, { e } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.out.weight", 2, { d, e } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.gate.weight", 2, { f, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.up.weight", 2, { f, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.down.weight", 2, { d, f } },
        { s6, SL_TENSOR_KEEP, "model.layers.%zu.ssm.A_log", 1, { h->n_head } },
        { s6, SL_TENSOR_KEEP, "model.layers.%zu.ssm.dt_bias", 1, { h->n_head } },
        { s4d, SL_TENSOR_KEEP, "model.layers.%zu.ssm.log_dt", 1, { e } },
        { s4d, SL_TENSOR_KEEP, "model.layers.%zu.ssm.log_A_real", 2, { e, h->n_state / 2 } },
        { s4d, SL_TENSOR_KEEP, "model.layers.%zu.ssm.A_imag", 2, { e, h->n_state / 2 } },
        { s4d, SL_TENSOR_KEEP, "model.layers.%zu.ssm.C", 3, { e, h->n_state / 2, 2 } },
        { routed, SL_TENSOR_KEEP, "model.layers.%zu.router.weight", 1, { d } },
        { routed, SL_TENSOR_KEEP, "model.layers.%zu.router.bias", 1, { 1 } },
    };
    return sl_schema_add(schema, rules, sizeof rules / sizeof rules[0], layer);
}

static sl_status bridge_schema(const void *hyper, sl_schema *schema, sl_error *err) {
    const bridge_hyper *h = hyper;
    const sl_tensor_rule rules[] = {
        { true, SL_TENSOR_EMBED, "model.embed.weight", 2, { h->n_vocab, h->d } },
        { true, SL_TENSOR_KEEP, "model.norm.weight", 1, { h->d } },
        { !h->tied, SL_TENSOR_EMBED, "lm_head.weight", 2, { h->n_vocab, h->d } },
    };
    bool ok = sl_schema_add(schema, rules, 3, 0);
    for (size_t i = 0; ok && i < h->n_layer; i++) ok = add_layer(h, i, schema);
    return ok ? SL_OK : sl_fail(err, SL_E_MEMORY, "out of memory for the list of tensors");
}

/* ---- graph -------------------------------------------------------------------------------------- */

static const float *keep(const sl_weights *w, const char *name, size_t layer) {
    return sl_weights_floats(w, name, layer);
}

/* Kernels read the taps one row per tap: [e, 1, k] -> [k, e]. */
static const float *conv_taps(const bridge_hyper *h, const float *kernel, sl_graph *g) {
    float *taps = sl_graph_constants(g, h->k * h->e);
    for (size_t c = 0; taps && c < h->e; c++)
        for (size_t j = 0; j < h->k; j++) taps[j * h->e + c] = kernel[c * h->k + j];
    return taps;
}

/* -8 softplus(Lambda), in float64. */
static const float *bridge_lambda(const bridge_hyper *h, const float *lambda, sl_graph *g) {
    float *out = sl_graph_constants(g, h->e);
    for (size_t c = 0; out && c < h->e; c++)
        out[c] = (float)(-8 * (fmax(lambda[c], 0) + log1p(exp(-fabs(lambda[c])))));
    return out;
}

static const float *s6_decay(const bridge_hyper *h, const float *a_log, sl_graph *g) {
    float *out = sl_graph_constants(g, h->n_head);
    for (size_t i = 0; out && i < h->n_head; i++) /* inf times a Delta of 0 would be no number */
        out[i] = (float)fmin(exp(a_log[i]), FLT_MAX);
    return out;
}

/* One pole: A_bar = exp(dt A) and 2 C (A_bar - 1) / A. (A_bar - 1) is a complex expm1, which keeps its digits
 * for small dt A: expm1(x) cos y - 2 sin(y/2)^2 + i exp(x) sin y. */
static void s4d_pole(double dt, double re, double im, const float *c, float *a, float *k, size_t stride) {
    double x = dt * re, y = dt * im, half = sin(y / 2);
    double m_re = expm1(x) * cos(y) - 2 * half * half, m_im = exp(x) * sin(y), norm = re * re + im * im;
    double q_re = (m_re * re + m_im * im) / norm, q_im = (m_im * re - m_re * im) / norm;
    a[0] = (float)(exp(x) * cos(y));
    a[stride] = (float)m_im;
    k[0] = (float)(2 * (c[0] * q_re - c[1] * q_im));
    k[stride] = (float)(2 * (c[0] * q_im + c[1] * q_re));
}

static void s4d_poles(const bridge_hyper *h, const sl_weights *w, size_t layer, float *a, float *k) {
    const float *log_dt = keep(w, "model.layers.%zu.ssm.log_dt", layer);
    const float *log_re = keep(w, "model.layers.%zu.ssm.log_A_real", layer);
    const float *im = keep(w, "model.layers.%zu.ssm.A_imag", layer);
    const float *c = keep(w, "model.layers.%zu.ssm.C", layer);
    size_t n_pole = h->n_state / 2;
    for (size_t ch = 0; ch < h->e; ch++)
        for (size_t m = 0; m < n_pole; m++) {
            size_t from = ch * n_pole + m, to = 2 * m * h->e + ch;
            s4d_pole(exp(log_dt[ch]), -exp(log_re[from]), im[from], c + 2 * from, a + to, k + to, h->e);
        }
}

/* W_ssm u of the deep tokens. With shifted keys B reads u of the token before: B and C of one token then meet where
 * a later token equals an earlier one, and what is found is what followed it. */
static int32_t build_ssm_in(const bridge_hyper *h, const sl_tensor *w, size_t i, int32_t u, sl_route route, sl_graph *g) {
    int32_t deep = sl_graph_gather(g, u, route);
    if (!h->shift_keys || h->s4d[i]) return sl_graph_linear(g, deep, w, NULL);
    const size_t b = 2 * h->e, n_b = h->n_group * h->n_state, c = b + n_b, all = c + n_b + h->n_head;
    int32_t before = sl_graph_gather(g, sl_graph_shift(g, u), route), in = sl_graph_columns(g, deep, all);
    sl_graph_linear_into(g, in, 0, deep, sl_graph_rows(g, w, 0, b));
    sl_graph_linear_into(g, in, b, before, sl_graph_rows(g, w, b, n_b));
    sl_graph_linear_into(g, in, c, deep, sl_graph_rows(g, w, c, all - c));
    return in;
}

static int32_t build_ssm(const bridge_hyper *h, const sl_weights *w, size_t i, int32_t u, int32_t s, sl_route route,
                         sl_graph *g) {
    int32_t in = build_ssm_in(h, sl_weights_get(w, "model.layers.%zu.ssm.in.weight", i), i, u, route, g);
    const float *skip = keep(w, "model.layers.%zu.ssm.D", i), *norm = keep(w, "model.layers.%zu.ssm.norm.weight", i);
    if (!h->s4d[i]) {
        sl_s6 p = { h->e, h->head_dim, h->n_state, h->n_group,
                    s6_decay(h, keep(w, "model.layers.%zu.ssm.A_log", i), g),
                    keep(w, "model.layers.%zu.ssm.dt_bias", i), skip, norm, h->eps };
        return sl_graph_s6(g, in, s, route, &p);
    }
    float *a = sl_graph_constants(g, h->e * h->n_state), *k = sl_graph_constants(g, h->e * h->n_state);
    if (a && k) s4d_poles(h, w, i, a, k);
    sl_s4d p = { h->e, h->head_dim, h->n_state / 2, a, k, skip, norm, h->eps };
    return sl_graph_s4d(g, in, s, &p);
}

static void build_mixer(const bridge_hyper *h, const sl_weights *w, size_t i, int32_t x, int32_t u, sl_route route,
                        sl_graph *g) {
    int32_t pqv = sl_graph_linear(g, u, sl_weights_get(w, "model.layers.%zu.conv.in.weight", i), NULL);
    sl_conv conv = { h->e, h->head_dim, h->k, conv_taps(h, keep(w, "model.layers.%zu.conv.kernel.weight", i), g),
                     keep(w, "model.layers.%zu.conv.kernel.bias", i), keep(w, "model.layers.%zu.conv.norm.weight", i),
                     h->eps };
    int32_t s = sl_graph_conv_gate(g, pqv, &conv);
    int32_t m = build_ssm(h, w, i, u, s, route, g);
    int32_t gate_i = sl_graph_block_linear(g, s, sl_weights_get(w, "model.layers.%zu.bridge.input_gate.weight", i));
    int32_t gate_f = sl_graph_block_linear(g, s, sl_weights_get(w, "model.layers.%zu.bridge.recurrence_gate.weight", i));
    sl_bridge bridge = { h->e, keep(w, "model.layers.%zu.bridge.input_gate.bias", i),
                         keep(w, "model.layers.%zu.bridge.recurrence_gate.bias", i),
                         bridge_lambda(h, keep(w, "model.layers.%zu.bridge.Lambda", i), g),
                         keep(w, "model.layers.%zu.bridge.kappa", i), keep(w, "model.layers.%zu.bridge.omega", i),
                         keep(w, "model.layers.%zu.bridge.gamma", i) };
    int32_t o = sl_graph_bridge(g, s, pqv, gate_i, gate_f, m, route, &bridge);
    sl_graph_linear_add(g, x, o, sl_weights_get(w, "model.layers.%zu.out.weight", i), NULL, SL_NO_VALUE);
}

static void build_mlp(const bridge_hyper *h, const sl_weights *w, size_t i, int32_t x, sl_route route, sl_graph *g) {
    int32_t deep = sl_graph_gather(g, x, route);
    int32_t n = sl_graph_norm(g, deep, keep(w, "model.layers.%zu.norm_mlp.weight", i), 1, h->d, 0, h->eps);
    int32_t gate = sl_graph_linear(g, n, sl_weights_get(w, "model.layers.%zu.mlp.gate.weight", i), NULL);
    int32_t up = sl_graph_linear(g, n, sl_weights_get(w, "model.layers.%zu.mlp.up.weight", i), NULL);
    sl_graph_silu_mul(g, gate, up);
    sl_graph_linear_add(g, x, gate, sl_weights_get(w, "model.layers.%zu.mlp.down.weight", i), NULL, route.rho);
}

static sl_status bridge_build(const void *hyper, const sl_weights *weights, sl_graph *g, sl_error *err) {
    const bridge_hyper *h = hyper;
    const sl_tensor *embed = sl_weights_get(weights, "model.embed.weight", 0);
    int32_t x = sl_graph_embed(g, embed);
    for (size_t i = 0; i < h->n_layer; i++) {
        g->layer = i;
        int32_t u = sl_graph_norm(g, x, keep(weights, "model.layers.%zu.norm_mix.weight", i), 1, h->d, 0, h->eps);
        sl_route route = sl_graph_no_route();
        if (h->routed[i])
            route = sl_graph_route(g, u, keep(weights, "model.layers.%zu.router.weight", i),
                                   keep(weights, "model.layers.%zu.router.bias", i), h->tau[i]);
        build_mixer(h, weights, i, x, u, route, g);
        build_mlp(h, weights, i, x, route, g);
    }
    x = sl_graph_outputs(g, x);
    x = sl_graph_norm(g, x, keep(weights, "model.norm.weight", 0), 1, h->d, 0, h->eps);
    sl_graph_head(g, x, h->tied ? embed : sl_weights_get(weights, "lm_head.weight", 0));
    return sl_graph_finish(g, err);
}

const sl_arch sl_arch_bridge = { "bridge", sizeof(bridge_hyper), bridge_read, bridge_schema, bridge_build };
