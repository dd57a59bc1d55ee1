/* The transformer baseline in Hugging Face's Llama layout: Llama 2 and 3, Mistral, Qwen 2 and 3.
 * Grouped-query attention over a KV store, rotary positions with the usual scalings, SwiGLU
 * (Touvron et al. 2023; GQA: Ainslie et al. 2023; rotary: Su et al. 2021). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "graph/graph.h"
#include "models/arch.h"

typedef struct llama_hyper {
    size_t n_vocab, d, n_layer, n_head, n_kv_head, head_dim, n_rot, f, max_context;
    float eps, rope_gain;
    bool tied, qkv_bias, out_bias, mlp_bias, qk_norm;
    size_t window[SL_MAX_LAYER]; /* 0: all */
    float inv_freq[SL_MAX_ROT / 2];
} llama_hyper;

/* ---- hyperparameters ---------------------------------------------------------------------------- */

static sl_status read_shape(const sl_meta *meta, llama_hyper *h, sl_error *err) {
    SL_TRY(sl_arch_size(meta, "vocab_size", true, SL_MAX_VOCAB, &h->n_vocab, err));
    SL_TRY(sl_arch_size(meta, "hidden_size", true, SL_MAX_WIDTH, &h->d, err));
    SL_TRY(sl_arch_size(meta, "intermediate_size", true, SL_MAX_WIDTH, &h->f, err));
    SL_TRY(sl_arch_size(meta, "num_hidden_layers", true, SL_MAX_LAYER, &h->n_layer, err));
    SL_TRY(sl_arch_size(meta, "num_attention_heads", true, 4096, &h->n_head, err));
    h->n_kv_head = h->n_head;
    SL_TRY(sl_arch_size(meta, "num_key_value_heads", false, 4096, &h->n_kv_head, err));
    bool preset = h->head_dim > 0;
    if (!preset) h->head_dim = h->d / h->n_head;
    if (!preset && !sl_meta_find(meta, "head_dim") && h->d % h->n_head)
        return sl_fail(err, SL_E_FORMAT, "num_attention_heads is %zu, expected a divisor of hidden_size (%zu)",
                       h->n_head, h->d);
    SL_TRY(sl_arch_size(meta, "head_dim", false, SL_MAX_ROT, &h->head_dim, err));
    SL_TRY(sl_arch_size(meta, "max_position_embeddings", false, INT32_MAX, &h->max_context, err));
    if (h->n_head % h->n_kv_head)
        return sl_fail(err, SL_E_FORMAT, "num_key_value_heads is %zu, expected a divisor of num_attention_heads (%zu)",
                       h->n_kv_head, h->n_head);
    if (!h->head_dim || h->head_dim > SL_MAX_ROT)
        return sl_fail(err, SL_E_FORMAT, "head_dim is %zu, expected 1 to %d", h->head_dim, SL_MAX_ROT);
    double part = 1;
    SL_TRY(sl_meta_float(meta, "partial_rotary_factor", false, 0, 1, &part, err));
    h->n_rot = (size_t)((double)h->head_dim * part);
    if (h->n_rot % 2 || !h->n_rot)
        return sl_fail(err, SL_E_FORMAT, "head_dim gives %zu rotary components, expected an even number", h->n_rot);
    return SL_OK;
}

typedef struct rope_key { char text[96]; } rope_key;

/* Where a rotary setting stands: under rope_parameters (newer files), rope_scaling, or at the top. False: nowhere. */
static bool find_rope_key(const sl_meta *meta, const char *name, rope_key *key) {
    static const char *const places[] = { "rope_parameters.", "rope_scaling.", "" };
    for (size_t i = 0; i < 3; i++) {
        snprintf(key->text, sizeof key->text, "%s%s", places[i], name);
        if (sl_meta_find(meta, key->text)) return true;
    }
    return false;
}

/* Its value. If it is nowhere, the object `place` lacks it; place NULL: then *out keeps its default. */
static sl_status rope_float(const sl_meta *meta, const char *place, const char *name, double min, double max, double *out,
                            sl_error *err) {
    rope_key key;
    const bool there = find_rope_key(meta, name, &key);
    if (!there && !place) return SL_OK;
    if (!there) snprintf(key.text, sizeof key.text, "%s.%s", place, name);
    return sl_meta_float(meta, key.text, true, min, max, out, err);
}

static sl_status rope_bool(const sl_meta *meta, const char *name, bool *out, sl_error *err) {
    rope_key key;
    return find_rope_key(meta, name, &key) ? sl_meta_bool(meta, key.text, true, out, err) : SL_OK;
}

static sl_status check_rope_object(const sl_meta *meta, const char *place, sl_error *err) {
    const sl_meta_entry *object = sl_meta_find(meta, place);
    if (!object || (object->type == SL_META_JSON && !object->is_list && object->v.s[0][0] == '{')) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "%s is not an object, expected one with rope_type, or null", place);
}

/* The kind that the object names. *kind NULL: none, and nothing in it that needs one; a model that was trained with a
 * scaling must not run without it because its name is missing. */
static sl_status rope_kind_in(const sl_meta *meta, const char *place, const char **kind, sl_error *err) {
    static const char *const names[] = { "rope_type", "type" };
    char key[96];
    *kind = NULL;
    SL_TRY(check_rope_object(meta, place, err));
    for (size_t i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "%s.%s", place, names[i]);
        if (sl_meta_find(meta, key)) return sl_meta_text(meta, key, true, kind, err);
    }
    const size_t n = strlen(place);
    for (size_t i = 0; i < meta->n; i++) {
        const char *other = meta->entries[i].key;
        if (!strncmp(other, place, n) && other[n] == '.' && strcmp(other + n, ".rope_theta"))
            return sl_fail(err, SL_E_FORMAT, "%s.rope_type is missing, expected default, linear, llama3 or yarn", place);
    }
    return SL_OK;
}

/* *kind keeps its default if none is named; *place: the object that names it. */
static sl_status rope_kind(const sl_meta *meta, const char **kind, const char **place, sl_error *err) {
    const char *newer = NULL, *older = NULL;
    sl_name_buf a, b;
    SL_TRY(rope_kind_in(meta, "rope_parameters", &newer, err));
    SL_TRY(rope_kind_in(meta, "rope_scaling", &older, err));
    if (newer && older && strcmp(newer, older))
        return sl_fail(err, SL_E_FORMAT, "rope_scaling is of type \"%s\", expected that of rope_parameters (\"%s\")",
                       sl_name(older, &a), sl_name(newer, &b));
    *place = newer ? "rope_parameters" : "rope_scaling";
    if (newer || older) *kind = newer ? newer : older;
    return SL_OK;
}

/* Llama 3.1's scaling: long wavelengths are stretched by factor, short ones kept, the rest blended. */
static sl_status scale_llama3(const sl_meta *meta, const char *place, llama_hyper *h, double factor, sl_error *err) {
    double low = 0, high = 0, old_context = 0;
    SL_TRY(rope_float(meta, place, "low_freq_factor", 1e-6, 1e6, &low, err));
    SL_TRY(rope_float(meta, place, "high_freq_factor", 1e-6, 1e6, &high, err));
    SL_TRY(rope_float(meta, place, "original_max_position_embeddings", 1, 1e9, &old_context, err));
    if (!(high > low)) return sl_fail(err, SL_E_FORMAT, "high_freq_factor is %g, expected more than low_freq_factor", high);
    for (size_t j = 0; j < h->n_rot / 2; j++) {
        double freq = h->inv_freq[j], turns = old_context * freq / 6.283185307179586;
        double s = (turns - low) / (high - low);
        double part = s < 0 ? 0 : s > 1 ? 1 : s;
        h->inv_freq[j] = (float)((1 - part) * freq / factor + part * freq);
    }
    return SL_OK;
}

static double yarn_gain(double factor, double scale) { return factor > 1 ? 0.1 * scale * log(factor) + 1 : 1; }

/* What cosine and sine are multiplied with: named, or of two scales (DeepSeek's files), or of the factor alone. */
static sl_status read_yarn_gain(const sl_meta *meta, double factor, double *gain, sl_error *err) {
    double scale = 0, all = 0;
    SL_TRY(rope_float(meta, NULL, "mscale", 0, 1e6, &scale, err));
    SL_TRY(rope_float(meta, NULL, "mscale_all_dim", 0, 1e6, &all, err));
    *gain = scale > 0 && all > 0 ? yarn_gain(factor, scale) / yarn_gain(factor, all) : yarn_gain(factor, 1);
    return rope_float(meta, NULL, "attention_factor", 1e-6, 1e6, gain, err);
}

/* YaRN (Peng et al. 2023): blends by the number of turns a component makes over the old context. */
static sl_status scale_yarn(const sl_meta *meta, const char *place, llama_hyper *h, double base, double factor,
                            sl_error *err) {
    double fast = 32, slow = 1, gain = 1, old_context = (double)h->max_context;
    bool whole = true; /* the borders of the blend */
    SL_TRY(rope_float(meta, h->max_context ? NULL : place, "original_max_position_embeddings", 1, 1e9, &old_context, err));
    SL_TRY(rope_float(meta, NULL, "beta_fast", 1e-6, 1e6, &fast, err));
    SL_TRY(rope_float(meta, NULL, "beta_slow", 1e-6, 1e6, &slow, err));
    SL_TRY(rope_bool(meta, "truncate", &whole, err));
    SL_TRY(read_yarn_gain(meta, factor, &gain, err));
    if (!(base > 1)) return sl_fail(err, SL_E_FORMAT, "rope_theta is %g, expected more than 1 for yarn", base);
    double n = (double)h->n_rot, unit = 2 * log(base);
    double low = n * log(old_context / (fast * 6.283185307179586)) / unit;
    double high = n * log(old_context / (slow * 6.283185307179586)) / unit;
    if (whole) low = floor(low), high = ceil(high);
    low = low < 0 ? 0 : low;
    high = high > n - 1 ? n - 1 : high;
    if (high <= low) high = low + 0.001;
    for (size_t j = 0; j < h->n_rot / 2; j++) {
        double ramp = ((double)j - low) / (high - low), freq = h->inv_freq[j];
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        h->inv_freq[j] = (float)(freq / factor * ramp + freq * (1 - ramp));
    }
    h->rope_gain = (float)gain;
    return SL_OK;
}

static sl_status read_rope(const sl_meta *meta, llama_hyper *h, sl_error *err) {
    double base = 10000, factor = 1;
    const char *kind = "default", *place = NULL;
    sl_name_buf buf;
    SL_TRY(rope_float(meta, NULL, "rope_theta", 1e-3, 1e12, &base, err));
    SL_TRY(rope_kind(meta, &kind, &place, err));
    for (size_t j = 0; j < h->n_rot / 2; j++)
        h->inv_freq[j] = (float)(1 / pow(base, 2 * (double)j / (double)h->n_rot));
    h->rope_gain = 1;
    if (!strcmp(kind, "default")) return SL_OK;
    if (strcmp(kind, "linear") && strcmp(kind, "llama3") && strcmp(kind, "yarn"))
        return sl_fail(err, SL_E_UNSUPPORTED, "%s.rope_type is \"%s\", expected default, linear, llama3 or yarn", place,
                       sl_name(kind, &buf));
    SL_TRY(rope_float(meta, place, "factor", 1e-3, 1e6, &factor, err));
    if (!strcmp(kind, "llama3")) return scale_llama3(meta, place, h, factor, err);
    if (!strcmp(kind, "yarn")) return scale_yarn(meta, place, h, base, factor, err);
    for (size_t j = 0; j < h->n_rot / 2; j++) h->inv_freq[j] = (float)(h->inv_freq[j] / factor);
    return SL_OK;
}

/* Which layers see a window only. Mistral: all; Qwen: those from max_window_layers on, when switched on;
 * an explicit layer_types list wins. */
static sl_status read_window(const sl_meta *meta, llama_hyper *h, bool switched, sl_error *err) {
    size_t window = 0, first = 0;
    bool on = !switched;
    SL_TRY(sl_arch_size(meta, "sliding_window", false, INT32_MAX, &window, err));
    SL_TRY(sl_meta_bool(meta, "use_sliding_window", false, &on, err));
    if (!window || !on) return SL_OK;
    int64_t from = 28;
    if (switched) {
        SL_TRY(sl_meta_int(meta, "max_window_layers", false, 0, INT32_MAX, &from, err));
        first = (size_t)from;
    }
    const sl_meta_entry *types = sl_meta_find(meta, "layer_types");
    if (types && (types->type != SL_META_STRING || !types->is_list || types->n != h->n_layer))
        return sl_fail(err, SL_E_FORMAT, "layer_types is not a list of num_hidden_layers (%zu) texts", h->n_layer);
    for (size_t i = 0; i < h->n_layer; i++)
        if (types ? !strcmp(types->v.s[i], "sliding_attention") : i >= first) h->window[i] = window;
    return SL_OK;
}

static sl_status read_rest(const sl_meta *meta, llama_hyper *h, sl_error *err) {
    double eps = 1e-6;
    const char *act = "silu";
    sl_name_buf buf;
    SL_TRY(read_shape(meta, h, err));
    SL_TRY(sl_arch_check_tokens(meta, h->n_vocab, err));
    SL_TRY(sl_meta_float(meta, "rms_norm_eps", false, 0, 1, &eps, err));
    h->eps = (float)eps;
    if (!(h->eps > 0)) return sl_fail(err, SL_E_FORMAT, "rms_norm_eps is %g, expected more than 0", eps);
    SL_TRY(sl_meta_bool(meta, "tie_word_embeddings", false, &h->tied, err));
    SL_TRY(sl_meta_text(meta, "hidden_act", false, &act, err));
    if (strcmp(act, "silu"))
        return sl_fail(err, SL_E_UNSUPPORTED, "hidden_act is \"%s\", expected \"silu\"", sl_name(act, &buf));
    return read_rope(meta, h, err);
}

static sl_status llama_read(const sl_meta *meta, void *hyper, sl_error *err) {
    llama_hyper *h = hyper;
    SL_TRY(read_rest(meta, h, err));
    SL_TRY(sl_meta_bool(meta, "attention_bias", false, &h->qkv_bias, err));
    h->out_bias = h->qkv_bias;
    return sl_meta_bool(meta, "mlp_bias", false, &h->mlp_bias, err);
}

static sl_status mistral_read(const sl_meta *meta, void *hyper, sl_error *err) {
    SL_TRY(read_rest(meta, hyper, err));
    return read_window(meta, hyper, false, err);
}

static sl_status qwen2_read(const sl_meta *meta, void *hyper, sl_error *err) {
    llama_hyper *h = hyper;
    SL_TRY(read_rest(meta, h, err));
    h->qkv_bias = true;
    return read_window(meta, h, true, err);
}

static sl_status qwen3_read(const sl_meta *meta, void *hyper, sl_error *err) {
    llama_hyper *h = hyper;
    h->head_dim = 128; /* the default of this model type */
    SL_TRY(read_rest(meta, h, err));
    h->qk_norm = true;
    SL_TRY(sl_meta_bool(meta, "attention_bias", false, &h->qkv_bias, err));
    h->out_bias = h->qkv_bias;
    return read_window(meta, h, true, err);
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static bool add_layer(const llama_hyper *h, size_t layer, sl_schema *schema) {
    const size_t d = h->d, f = h->f, q = h->n_head * h->head_dim, kv = h->n_kv_head * h->head_dim;
    const sl_tensor_rule rules[] = {
        { true, SL_TENSOR_KEEP, "model.layers.%zu.input_layernorm.weight", 1, { d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.self_attn.q_proj.weight", 2, { q, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.self_attn.k_proj.weight", 2, { kv, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.self_attn.v_proj.weight", 2, { kv, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.self_attn.o_proj.weight", 2, { d, q } },
        { h->qkv_bias, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.q_proj.bias", 1, { q } },
        { h->qkv_bias, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.k_proj.bias", 1, { kv } },
        { h->qkv_bias, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.v_proj.bias", 1, { kv } },
        { h->out_bias, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.o_proj.bias", 1, { d } },
        { h->qk_norm, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.q_norm.weight", 1, { h->head_dim } },
        { h->qk_norm, SL_TENSOR_KEEP, "model.layers.%zu.self_attn.k_norm.weight", 1, { h->head_dim } },
        { true, SL_TENSOR_KEEP, "model.layers.%zu.post_attention_layernorm.weight", 1, { d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.gate_proj.weight", 2, { f, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.up_proj.weight", 2, { f, d } },
        { true, SL_TENSOR_MATRIX, "model.layers.%zu.mlp.down_proj.weight", 2, { d, f } },
        { h->mlp_bias, SL_TENSOR_KEEP, "model.layers.%zu.mlp.gate_proj.bias", 1, { f } },
        { h->mlp_bias, SL_TENSOR_KEEP, "model.layers.%zu.mlp.up_proj.bias", 1, { f } },
        { h->mlp_bias, SL_TENSOR_KEEP, "model.layers.%zu.mlp.down_proj.bias", 1, { d } },
    };
    return sl_schema_add(schema, rules, sizeof rules / sizeof rules[0], layer);
}

static sl_status llama_schema(const void *hyper, sl_schema *schema, sl_error *err) {
    const llama_hyper *h = hyper;
    const sl_tensor_rule rules[] = {
        { true, SL_TENSOR_EMBED, "model.embed_tokens.weight", 2, { h->n_vocab, h->d } },
        { true, SL_TENSOR_KEEP, "model.norm.weight", 1, { h->d } },
        { !h->tied, SL_TENSOR_EMBED, "lm_head.weight", 2, { h->n_vocab, h->d } },
    };
    bool ok = sl_schema_add(schema, rules, 3, 0);
    for (size_t i = 0; ok && i < h->n_layer; i++) ok = add_layer(h, i, schema);
    return ok ? SL_OK : sl_fail(err, SL_E_MEMORY, "out of memory for the list of tensors");
}

/* ---- graph -------------------------------------------------------------------------------------- */

static const float *keep(const sl_weights *weights, bool there, const char *name, size_t layer) {
    return there ? sl_weights_floats(weights, name, layer) : NULL;
}

static void build_attention(const llama_hyper *h, const sl_weights *w, size_t i, int32_t x, sl_graph *g) {
    int32_t u = sl_graph_norm(g, x, keep(w, true, "model.layers.%zu.input_layernorm.weight", i), 1, h->d, 0, h->eps);
    int32_t q = sl_graph_linear(g, u, sl_weights_get(w, "model.layers.%zu.self_attn.q_proj.weight", i),
                                keep(w, h->qkv_bias, "model.layers.%zu.self_attn.q_proj.bias", i));
    int32_t k = sl_graph_linear(g, u, sl_weights_get(w, "model.layers.%zu.self_attn.k_proj.weight", i),
                                keep(w, h->qkv_bias, "model.layers.%zu.self_attn.k_proj.bias", i));
    int32_t v = sl_graph_linear(g, u, sl_weights_get(w, "model.layers.%zu.self_attn.v_proj.weight", i),
                                keep(w, h->qkv_bias, "model.layers.%zu.self_attn.v_proj.bias", i));
    if (h->qk_norm) {
        q = sl_graph_norm(g, q, keep(w, true, "model.layers.%zu.self_attn.q_norm.weight", i), h->n_head, h->head_dim,
                          0, h->eps);
        k = sl_graph_norm(g, k, keep(w, true, "model.layers.%zu.self_attn.k_norm.weight", i), h->n_kv_head,
                          h->head_dim, 0, h->eps);
    }
    sl_graph_rope(g, q, h->n_head, h->head_dim);
    sl_graph_rope(g, k, h->n_kv_head, h->head_dim);
    int32_t y = sl_graph_attention(g, q, k, v, h->n_head, h->n_kv_head, h->head_dim, h->window[i]);
    sl_graph_linear_add(g, x, y, sl_weights_get(w, "model.layers.%zu.self_attn.o_proj.weight", i),
                        keep(w, h->out_bias, "model.layers.%zu.self_attn.o_proj.bias", i), SL_NO_VALUE);
}

static void build_mlp(const llama_hyper *h, const sl_weights *w, size_t i, int32_t x, sl_graph *g) {
    int32_t n = sl_graph_norm(g, x, keep(w, true, "model.layers.%zu.post_attention_layernorm.weight", i), 1, h->d, 0,
                              h->eps);
    int32_t gate = sl_graph_linear(g, n, sl_weights_get(w, "model.layers.%zu.mlp.gate_proj.weight", i),
                                   keep(w, h->mlp_bias, "model.layers.%zu.mlp.gate_proj.bias", i));
    int32_t up = sl_graph_linear(g, n, sl_weights_get(w, "model.layers.%zu.mlp.up_proj.weight", i),
                                 keep(w, h->mlp_bias, "model.layers.%zu.mlp.up_proj.bias", i));
    sl_graph_silu_mul(g, gate, up);
    sl_graph_linear_add(g, x, gate, sl_weights_get(w, "model.layers.%zu.mlp.down_proj.weight", i),
                        keep(w, h->mlp_bias, "model.layers.%zu.mlp.down_proj.bias", i), SL_NO_VALUE);
}

static sl_status llama_build(const void *hyper, const sl_weights *weights, sl_graph *g, sl_error *err) {
    const llama_hyper *h = hyper;
    const sl_tensor *embed = sl_weights_get(weights, "model.embed_tokens.weight", 0);
    g->max_context = h->max_context;
    sl_graph_rope_table(g, h->inv_freq, h->n_rot, h->rope_gain);
    int32_t x = sl_graph_embed(g, embed);
    for (size_t i = 0; i < h->n_layer; i++) {
        g->layer = i;
        build_attention(h, weights, i, x, g);
        build_mlp(h, weights, i, x, g);
    }
    x = sl_graph_outputs(g, x);
    x = sl_graph_norm(g, x, sl_weights_floats(weights, "model.norm.weight", 0), 1, h->d, 0, h->eps);
    sl_graph_head(g, x, h->tied ? embed : sl_weights_get(weights, "lm_head.weight", 0));
    return sl_graph_finish(g, err);
}

const sl_arch sl_arch_llama = { "llama", sizeof(llama_hyper), llama_read, llama_schema, llama_build };
const sl_arch sl_arch_mistral = { "mistral", sizeof(llama_hyper), mistral_read, llama_schema, llama_build };
const sl_arch sl_arch_qwen2 = { "qwen2", sizeof(llama_hyper), qwen2_read, llama_schema, llama_build };
const sl_arch sl_arch_qwen3 = { "qwen3", sizeof(llama_hyper), qwen3_read, llama_schema, llama_build };
