#include "made_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

static float uniform(uint64_t *seed) { /* -1 .. 1 */
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*seed >> 33) / 1073741824.0f - 1;
}

/* Norms about 1, decays in a sane range, everything else small. */
static float fill_row(void *arg, const sl_tensor_spec *spec, sl_type type, uint64_t row, void *stored) {
    (void)row;
    float values[512];
    size_t n = (size_t)sl_spec_width(spec);
    assert_true(n <= 512);
    float centre = strstr(spec->name, "norm") || strstr(spec->name, "A_log") ? 1.0f : 0.0f;
    if (strstr(spec->name, "dt_bias")) centre = -2;
    for (size_t i = 0; i < n; i++) values[i] = centre + 0.3f * uniform(arg);
    sl_pack_row(type, values, n, stored);
    return 0;
}

static void put(sl_meta *meta, const char *key, int64_t value) {
    assert_int_equal(sl_meta_add(meta, key, SL_META_INT, false, &value, 1, NULL), SL_OK);
}

static void put_text(sl_meta *meta, const char *key, const char *value) {
    assert_int_equal(sl_meta_add(meta, key, SL_META_STRING, false, &value, 1, NULL), SL_OK);
}

static void describe_bridge(sl_meta *meta, bool plain, bool narrow) {
    static const char *const types[] = { "s6", "s6", "s4d", "s6" };
    static const int64_t routed[] = { 1, 3 }, yes = 1;
    put_text(meta, "model_type", "bridge");
    put(meta, "inner_size", narrow ? 8 : 48);
    put(meta, "head_dim", narrow ? 4 : 12);
    put(meta, "state_size", narrow ? 4 : 10);
    put(meta, "n_groups", narrow ? 1 : 2);
    put(meta, "conv_kernel", 3);
    put(meta, "gate_block", 8);
    assert_int_equal(sl_meta_add(meta, "ssm_type", SL_META_STRING, true, types, 4, NULL), SL_OK);
    if (plain) return;
    assert_int_equal(sl_meta_add(meta, "shift_keys", SL_META_BOOL, false, &yes, 1, NULL), SL_OK);
    assert_int_equal(sl_meta_add(meta, "routed_layers", SL_META_INT, true, routed, 2, NULL), SL_OK);
}

static sl_model *make(made_kind kind, size_t n_vocab, sl_type type, sl_tensor_init init, void *arg) {
    sl_meta meta = { 0 };
    sl_model *model;
    sl_error err;
    put(&meta, "vocab_size", (int64_t)n_vocab);
    put(&meta, "hidden_size", 40);
    put(&meta, "intermediate_size", 56);
    put(&meta, "num_hidden_layers", 4);
    if (kind == MADE_LLAMA) {
        put_text(&meta, "model_type", "qwen3");
        put(&meta, "num_attention_heads", 4);
        put(&meta, "num_key_value_heads", 2);
        put(&meta, "head_dim", 20);
    } else describe_bridge(&meta, kind == MADE_BRIDGE_PLAIN, kind == MADE_BRIDGE_NARROW);
    if (sl_model_make(&meta, type, init, arg, &model, &err) != SL_OK) fail_msg("%s", err.text);
    sl_meta_release(&meta);
    return model;
}

sl_model *make_model_of(made_kind kind, size_t n_vocab, sl_type type, uint64_t seed) {
    return make(kind, n_vocab, type, fill_row, &seed);
}

sl_model *make_model(made_kind kind, sl_type type, uint64_t seed) { return make_model_of(kind, 101, type, seed); }

/* Element i of a stored row of n, by the definition of the type (kernels/types.h). */
static float element(sl_type type, const uint8_t *row, size_t n, size_t i) {
    const size_t group = i / SL_GROUP, in_half = i % SL_BLOCK;
    const uint8_t *scales = row + sl_groups(n) * (type == SL_Q8 ? SL_GROUP : SL_GROUP / 2);
    uint16_t half;
    float single;
    int quant;
    switch (type) {
    case SL_F32: memcpy(&single, row + 4 * i, 4); return single;
    case SL_F16: memcpy(&half, row + 2 * i, 2); return sl_f16_to_f32(half);
    case SL_BF16: memcpy(&half, row + 2 * i, 2); return sl_bf16_to_f32(half);
    case SL_Q8: quant = (int8_t)row[i]; break;
    default: quant = (row[group * SL_BLOCK + in_half] >> (i % SL_GROUP < SL_BLOCK ? 0 : 4) & 15) - 8;
    }
    memcpy(&half, scales + 2 * (i / SL_BLOCK), 2);
    return (float)quant * sl_f16_to_f32(half);
}

static float expand_row(void *arg, const sl_tensor_spec *spec, sl_type type, uint64_t row, void *stored) {
    const sl_model *model = arg;
    const sl_tensor *t = sl_weights_get(&model->weights, spec->name, 0);
    assert_int_equal(type, SL_F32);
    const uint8_t *from = (const uint8_t *)t->data + row * t->row_bytes;
    float *values = stored;
    const size_t n = (size_t)sl_spec_width(spec);
    for (size_t i = 0; i < n; i++) values[i] = element(t->type, from, n, i);
    return 0;
}

sl_model *make_f32_twin(made_kind kind, sl_model *model) {
    sl_model *twin = make(kind, model->n_vocab, SL_F32, expand_row, model);
    twin->type = model->type;
    return twin;
}
