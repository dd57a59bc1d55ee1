/* How billions of random weights are made in seconds: a tensor's rows are drawn from a pool of packed random
 * rows of its width and type. Every row has its own bytes in memory, so nothing is read from a cache that a
 * trained model would read from memory.
 *
 * The embedding outweighs what the layers add to it, so that tokens keep different directions, and a router's
 * random weights give each token an independent score with variance 1; its bias is the quantile of the deep
 * share. The share that was seen is counted and printed. */
#include "cli/bench_preset.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kernels.h"
#include "run/model.h"

static const sl_preset presets[] = {
    { "bridge-1.3b", false, 2048, 21, 32, 1, 64, 5504, 50304 },
    { "bridge-7b", false, 4096, 28, 64, 8, 64, 11008, 50304 },
    { "bridge-13b", false, 5120, 35, 80, 8, 64, 13696, 50304 },
    { "transformer-1.3b", true, 2048, 24, 16, 16, 128, 5504, 50304 },
    { "transformer-1.3b-gqa", true, 2048, 24, 16, 4, 128, 6784, 50304 },
    { "transformer-7b", true, 4096, 32, 32, 32, 128, 11008, 50304 },
    { "transformer-7b-gqa", true, 4096, 32, 32, 8, 128, 13504, 50304 },
    { "transformer-13b", true, 5120, 40, 40, 40, 128, 13824, 50304 },
    { "transformer-13b-gqa", true, 5120, 40, 40, 8, 128, 16960, 50304 },
    { "bridge-tiny", false, 256, 6, 4, 1, 64, 704, 4096 },
    { "transformer-tiny", true, 256, 7, 4, 4, 64, 704, 4096 },
    { "transformer-tiny-gqa", true, 256, 7, 4, 2, 64, 768, 4096 },
};
enum { N_PRESET = sizeof presets / sizeof *presets, STATE_SIZE = 64, CONV_KERNEL = 4, GATE_BLOCK = 64 };

const char *sl_preset_names(void) {
    static char names[512];
    names[0] = 0;
    for (size_t i = 0; i < N_PRESET; i++) {
        strncat(names, i ? ", " : "", sizeof names - strlen(names) - 1);
        strncat(names, presets[i].name, sizeof names - strlen(names) - 1);
    }
    return names;
}

/* ---- NAME:TYPE:deep=X ---------------------------------------------------------------------------- */

static const sl_preset *find_preset(const char *name, size_t n) {
    for (size_t i = 0; i < N_PRESET; i++)
        if (strlen(presets[i].name) == n && !memcmp(presets[i].name, name, n)) return &presets[i];
    return NULL;
}

const sl_preset *sl_preset_twin(const sl_preset *preset) {
    char name[64];
    if (preset->attention) return NULL;
    int n = snprintf(name, sizeof name, "transformer%s-gqa", strchr(preset->name, '-'));
    return find_preset(name, (size_t)n);
}

static sl_status read_deep(const char *text, size_t n, sl_synthetic *out, sl_error *err) {
    char number[32] = "", *end = number;
    sl_name_buf buf;
    if (n < sizeof number) memcpy(number, text, n);
    bool plain = n && n < sizeof number && strspn(number, "0123456789.eE+-") == n;
    double value = plain ? strtod(number, &end) : NAN;
    if (*end || !(value >= 0 && value <= 1))
        return sl_fail(err, SL_E_ARG, "deep: '%s' (expected a number in 0..1)", sl_name_escape(text, n, &buf));
    if (out->preset->attention)
        return sl_fail(err, SL_E_ARG, "deep: '%s' given for %s (expected for a bridge only)",
                       sl_name_escape(text, n, &buf), out->preset->name);
    out->deep = (float)value;
    return SL_OK;
}

static sl_status read_option(const char *text, size_t n, sl_synthetic *out, bool *typed, sl_error *err) {
    char name[8] = "";
    sl_name_buf buf;
    if (n >= 5 && !memcmp(text, "deep=", 5)) return read_deep(text + 5, n - 5, out, err);
    if (n < sizeof name) memcpy(name, text, n);
    if (*typed || !sl_type_parse(name, &out->type))
        return sl_fail(err, SL_E_ARG, "'%s' (expected %sdeep=X)", sl_name_escape(text, n, &buf),
                       *typed ? "" : "a type f32, f16, bf16, q8 or q4, or ");
    *typed = true;
    return SL_OK;
}

sl_status sl_synthetic_parse(const char *text, sl_synthetic *out, sl_error *err) {
    bool typed = false;
    sl_name_buf buf;
    size_t n = strcspn(text, ":");
    *out = (sl_synthetic){ .preset = find_preset(text, n), .type = SL_Q4, .deep = 0.5f };
    if (!out->preset)
        return sl_fail(err, SL_E_ARG, "unknown preset '%s' (expected %s)", sl_name_escape(text, n, &buf),
                       sl_preset_names());
    for (const char *p = text + n; *p; p += n) {
        p++;
        n = strcspn(p, ":");
        SL_TRY(read_option(p, n, out, &typed, err));
    }
    return SL_OK;
}

/* ---- hyperparameters ----------------------------------------------------------------------------- */

static sl_status add_int(sl_meta *meta, const char *key, size_t value, sl_error *err) {
    int64_t v = (int64_t)value;
    return sl_meta_add(meta, key, SL_META_INT, false, &v, 1, err);
}

static sl_status add_shape(sl_meta *meta, const sl_preset *p, sl_error *err) {
    const int64_t tied = 1;
    const double eps = 1e-5;
    SL_TRY(sl_meta_set_string(meta, "model_type", p->attention ? "llama" : "bridge", err));
    SL_TRY(add_int(meta, "hidden_size", p->d, err));
    SL_TRY(add_int(meta, "num_hidden_layers", p->n_layer, err));
    SL_TRY(add_int(meta, "intermediate_size", p->f, err));
    SL_TRY(add_int(meta, "vocab_size", p->n_vocab, err));
    SL_TRY(add_int(meta, "head_dim", p->head_dim, err));
    SL_TRY(sl_meta_add(meta, "rms_norm_eps", SL_META_FLOAT, false, &eps, 1, err));
    return sl_meta_add(meta, "tie_word_embeddings", SL_META_BOOL, false, &tied, 1, err);
}

static sl_status add_bridge(sl_meta *meta, const sl_preset *p, sl_error *err) {
    int64_t routed[SL_MAX_LAYER];
    for (size_t i = 1; i + 1 < p->n_layer; i++) routed[i - 1] = (int64_t)i; /* all but the first and last */
    SL_TRY(add_int(meta, "state_size", STATE_SIZE, err));
    SL_TRY(add_int(meta, "n_groups", p->n_group, err));
    SL_TRY(add_int(meta, "conv_kernel", CONV_KERNEL, err));
    SL_TRY(add_int(meta, "gate_block", GATE_BLOCK, err));
    return sl_meta_add(meta, "routed_layers", SL_META_INT, true, routed, p->n_layer - 2, err);
}

static sl_status add_transformer(sl_meta *meta, const sl_preset *p, sl_error *err) {
    SL_TRY(add_int(meta, "num_attention_heads", p->n_head, err));
    SL_TRY(add_int(meta, "num_key_value_heads", p->n_group, err));
    return add_int(meta, "max_position_embeddings", INT32_MAX, err); /* depth is the bench's choice */
}

/* ---- weights ------------------------------------------------------------------------------------- */

enum { POOL_ROWS = 61, EMBED_ROWS = 1021, MAX_POOLS = 32 }; /* primes: neighbouring tensors start elsewhere */

/* Packed random rows of one width and type, with standard deviation `scale`. */
typedef struct pool { uint8_t *rows; size_t n_row, width; sl_type type; float scale; } pool;

typedef struct maker {
    pool pools[MAX_POOLS];
    size_t n_pool;
    float deep;
    bool on_device;
    bool failed; /* out of memory */
} maker;

static uint64_t mix(uint64_t x) { /* splitmix64, Steele et al. 2014 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static float uniform(uint64_t key) { return (float)(mix(key) >> 40) * 0x1p-24f; } /* 0 <= u < 1 */

/* Nearly normal with variance 1: the sum of four uniforms has variance 1/3. */
static float normal(uint64_t key) {
    uint64_t bits = mix(key);
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)((bits >> (16 * i)) & 0xFFFF) * 0x1p-16f;
    return (sum - 2) * 1.7320508f;
}

/* x with P(normal < x) = p, by bisection. */
static float normal_quantile(float p) {
    double low = -30, high = 30;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (erfc(-middle / sqrt(2.0)) / 2 < (double)p) low = middle;
        else high = middle;
    }
    return (float)low;
}

static bool fill_pool(pool *p) {
    size_t row_bytes = (size_t)sl_row_bytes(p->type, p->width);
    float *x = sl_calloc(p->width, sizeof *x);
    p->rows = sl_calloc(p->n_row, row_bytes);
    for (size_t r = 0; x && p->rows && r < p->n_row; r++) {
        for (size_t i = 0; i < p->width; i++) x[i] = p->scale * normal((r << 32) + i);
        sl_pack_row(p->type, x, p->width, p->rows + r * row_bytes);
    }
    bool good = x && p->rows;
    free(x);
    return good;
}

static const pool *find_pool(maker *m, size_t n_row, size_t width, sl_type type, float scale) {
    for (size_t i = 0; i < m->n_pool; i++) {
        const pool *p = &m->pools[i];
        if (p->n_row == n_row && p->width == width && p->type == type && p->scale == scale) return p;
    }
    if (m->n_pool == MAX_POOLS) return NULL;
    pool *p = &m->pools[m->n_pool];
    *p = (pool){ .n_row = n_row, .width = width, .type = type, .scale = scale };
    if (!fill_pool(p)) {
        free(p->rows);
        return NULL;
    }
    m->n_pool++;
    return p;
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

/* Matrices keep activations of order 1; what is added to the residual stream stays small beside it. */
static float matrix_scale(const char *name, size_t width) {
    if (ends_with(name, "embed.weight") || ends_with(name, "embed_tokens.weight")) return 1;
    bool adds = ends_with(name, ".out.weight") || ends_with(name, "down.weight") ||
                ends_with(name, "o_proj.weight") || ends_with(name, "down_proj.weight");
    return (adds ? 0.1f : 0.5f) / sqrtf((float)width);
}

/* Element i of a tensor that is always f32: as at the start of training (docs/bridge.md). */
static float kept_value(const maker *m, const char *name, size_t width, uint64_t key) {
    float u = uniform(key);
    if (ends_with(name, "router.weight")) return normal(key) / sqrtf((float)width);
    if (ends_with(name, "router.bias")) return normal_quantile(m->deep);
    if (ends_with(name, "kernel.weight")) return normal(key) / sqrtf((float)width);
    if (ends_with(name, "A_log")) return logf(1 + 15 * u);
    if (ends_with(name, "dt_bias")) return logf(expm1f(1e-3f * powf(100, u))); /* steps of 1e-3 to 1e-1 */
    if (ends_with(name, "Lambda")) return logf(expm1f(-logf(0.9f + 0.099f * u) / 4)); /* a 0.9 to 0.999 */
    if (ends_with(name, "kappa") || ends_with(name, "conv.norm.weight")) return 0.1f;
    if (ends_with(name, "omega")) return 0.5f * normal(key);
    if (ends_with(name, "bias") || ends_with(name, "gamma")) return 0;
    return 1; /* norms, D */
}

static uint64_t name_key(const char *name) {
    uint64_t key = 0;
    while (*name) key = mix(key ^ (unsigned char)*name++);
    return key;
}

static float init_row(void *arg, const sl_tensor_spec *spec, sl_type type, uint64_t row, void *stored) {
    maker *m = arg;
    size_t width = (size_t)sl_spec_width(spec), row_bytes = (size_t)sl_row_bytes(type, width);
    uint64_t key = name_key(spec->name);
    if (spec->class_ == SL_TENSOR_KEEP) {
        float *out = stored;
        for (size_t i = 0; i < width; i++) out[i] = kept_value(m, spec->name, width, key + row * width + i);
        return 0;
    }
    const float scale = matrix_scale(spec->name, width);
    if (m->on_device && spec->class_ != SL_TENSOR_SMALL) return scale * sqrtf(3); /* uniform, of the same variance */
    size_t n_row = spec->class_ == SL_TENSOR_EMBED ? EMBED_ROWS : POOL_ROWS;
    const pool *p = find_pool(m, n_row, width, type, scale);
    if (p) memcpy(stored, p->rows + (key + row) % n_row * row_bytes, row_bytes);
    else m->failed = true;
    return 0;
}

sl_status sl_synthetic_make(const sl_synthetic *synthetic, sl_model **out, sl_error *err) {
    const sl_preset *p = synthetic->preset;
    sl_meta meta = { 0 };
    maker m = { .deep = synthetic->deep, .on_device = synthetic->on_device };
    *out = NULL;
    sl_status status = add_shape(&meta, p, err);
    if (status == SL_OK) status = p->attention ? add_transformer(&meta, p, err) : add_bridge(&meta, p, err);
    if (status == SL_OK) status = sl_model_make(&meta, synthetic->type, init_row, &m, out, err);
    if (status == SL_OK && m.failed) {
        sl_model_close(*out);
        *out = NULL;
        status = sl_fail(err, SL_E_MEMORY, "out of memory: the random rows of %s", p->name);
    }
    for (size_t i = 0; i < m.n_pool; i++) free(m.pools[i].rows);
    sl_meta_release(&meta);
    return status;
}

uint64_t sl_synthetic_bytes(const sl_synthetic *synthetic) {
    const sl_preset *p = synthetic->preset;
    uint64_t head_rows = p->attention ? 2 * (p->n_head + p->n_group) * p->head_dim : 6 * p->d;
    uint64_t layer_rows = head_rows + 3 * p->f;
    sl_type embed = sl_class_type(SL_TENSOR_EMBED, synthetic->type);
    return p->n_layer * layer_rows * sl_row_bytes(synthetic->type, p->d) +
           p->n_vocab * sl_row_bytes(embed, p->d);
}
