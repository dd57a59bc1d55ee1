/* What all architectures share: the list of them, schemas, and token ids in metadata. */
#include "models/arch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define SL_MODEL(name, arch) extern const sl_arch arch;
#include "models/models.def"
#undef SL_MODEL

static const struct { const char *name; const sl_arch *arch; } models[] = {
#define SL_MODEL(name, arch) { name, &arch },
#include "models/models.def"
#undef SL_MODEL
};

enum { N_MODEL = sizeof models / sizeof models[0] };

const sl_arch *sl_arch_find(const char *model_type) {
    for (size_t i = 0; i < N_MODEL; i++)
        if (!strcmp(models[i].name, model_type)) return models[i].arch;
    return NULL;
}

#define SL_MODEL(name, arch) ", " name
static const char all_names[] =
#include "models/models.def"
    ;
#undef SL_MODEL

const char *sl_arch_names(void) { return all_names + 2; }

sl_status sl_arch_of(const sl_meta *meta, const sl_arch **arch, sl_error *err) {
    const char *type = NULL;
    sl_name_buf buf;
    SL_TRY(sl_meta_text(meta, "model_type", true, &type, err));
    *arch = sl_arch_find(type);
    if (*arch) return SL_OK;
    return sl_fail(err, SL_E_UNSUPPORTED, "model_type \"%s\" is not known; expected one of %s", sl_name(type, &buf),
                   sl_arch_names());
}

sl_status sl_arch_size(const sl_meta *meta, const char *key, bool required, int64_t max, size_t *out, sl_error *err) {
    int64_t v = (int64_t)*out;
    SL_TRY(sl_meta_int(meta, key, required, 1, max, &v, err));
    *out = (size_t)v;
    return SL_OK;
}

sl_status sl_arch_token_ids(const sl_meta *meta, const char *key, size_t n_vocab, int32_t *ids, size_t max, size_t *n,
                            sl_error *err) {
    const sl_meta_entry *entry = sl_meta_find(meta, key);
    *n = 0;
    if (!entry || !entry->n) return SL_OK;
    if (entry->type != SL_META_INT) return sl_fail(err, SL_E_FORMAT, "%s is not a token id", key);
    if (entry->n > max) return sl_fail(err, SL_E_FORMAT, "%s lists %zu ids, expected at most %zu", key, entry->n, max);
    for (size_t i = 0; i < entry->n; i++) {
        if (entry->v.i[i] < 0 || (uint64_t)entry->v.i[i] >= n_vocab)
            return sl_fail(err, SL_E_FORMAT, "%s is %lld, expected 0 to %zu", key, (long long)entry->v.i[i], n_vocab - 1);
        ids[i] = (int32_t)entry->v.i[i];
    }
    *n = entry->n;
    return SL_OK;
}

sl_status sl_arch_check_tokens(const sl_meta *meta, size_t n_vocab, sl_error *err) {
    int32_t ids[SL_MAX_EOS];
    size_t n;
    SL_TRY(sl_arch_token_ids(meta, "bos_token_id", n_vocab, ids, 1, &n, err));
    return sl_arch_token_ids(meta, "eos_token_id", n_vocab, ids, SL_MAX_EOS, &n, err);
}

static bool add_tensor(sl_schema *schema, const sl_tensor_rule *rule, size_t layer) {
    if (!sl_grow((void **)&schema->specs, &schema->cap, schema->n + 1, sizeof *schema->specs)) return false;
    sl_tensor_spec *spec = &schema->specs[schema->n++];
    memset(spec, 0, sizeof *spec);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(spec->name, sizeof spec->name, rule->name, layer);
#pragma GCC diagnostic pop
    spec->n_dim = rule->n_dim;
    spec->class_ = rule->class_;
    memcpy(spec->shape, rule->shape, rule->n_dim * sizeof *rule->shape);
    return true;
}

bool sl_schema_add(sl_schema *schema, const sl_tensor_rule *rules, size_t n, size_t layer) {
    for (size_t i = 0; i < n; i++)
        if (rules[i].there && !add_tensor(schema, &rules[i], layer)) return false;
    return true;
}

void sl_schema_release(sl_schema *schema) {
    free(schema->specs);
    *schema = (sl_schema){ 0 };
}

sl_type sl_class_type(sl_tensor_class class_, sl_type model_type) {
    if (class_ == SL_TENSOR_KEEP) return SL_F32;
    if (class_ == SL_TENSOR_SMALL && (model_type == SL_Q8 || model_type == SL_Q4)) return SL_F16;
    if (class_ == SL_TENSOR_EMBED && model_type == SL_Q4) return SL_Q8;
    return model_type;
}

bool sl_class_allows(sl_tensor_class class_, sl_type type) {
    if (class_ == SL_TENSOR_KEEP) return type == SL_F32;
    return class_ != SL_TENSOR_SMALL || (type != SL_Q8 && type != SL_Q4);
}

uint64_t sl_spec_width(const sl_tensor_spec *spec) { return spec->shape[spec->n_dim - 1]; }

uint64_t sl_spec_rows(const sl_tensor_spec *spec) {
    uint64_t n = 1;
    for (uint32_t i = 0; i + 1 < spec->n_dim; i++)
        if (!sl_mul(n, spec->shape[i], &n)) return UINT64_MAX;
    return n;
}

bool sl_spec_bytes(const sl_tensor_spec *spec, sl_type type, uint64_t *bytes) {
    uint64_t rows = sl_spec_rows(spec);
    return rows != UINT64_MAX && sl_mul(rows, sl_row_bytes(type, sl_spec_width(spec)), bytes) &&
           *bytes <= INT64_MAX;
}
