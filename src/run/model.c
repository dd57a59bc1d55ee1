/* Models: from a validated file or from metadata to weights, graph and tokenizer; and the public functions
 * that only ask a model. */
#include "run/model.h"

#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/mem.h"
#include "os/os.h"

void sl_model_close(sl_model *model) {
    if (!model) return;
    sl_tokenizer_destroy(model->tokenizer);
    sl_graph_release(&model->graph);
    free(model->weights.tensors);
    free(model->hyper);
    sl_os_pages_free(model->owned, model->owned_bytes);
    sl_slu_close(&model->slu);
    free(model);
}

/* ---- from parts to a model ---------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const sl_tensor *)a)->spec.name, ((const sl_tensor *)b)->spec.name);
}

static int by_spec_name(const void *a, const void *b) {
    return strcmp(((const sl_tensor_spec *)a)->name, ((const sl_tensor_spec *)b)->name);
}

static int name_and_spec(const void *name, const void *spec) { return strcmp(name, ((const sl_tensor_spec *)spec)->name); }

static sl_status read_tokens(sl_model *model, const sl_meta *meta, sl_error *err) {
    int64_t n_vocab = 0, n_layer = 0, width = 0;
    size_t n_bos;
    SL_TRY(sl_meta_int(meta, "vocab_size", true, 1, INT32_MAX, &n_vocab, err));
    SL_TRY(sl_meta_int(meta, "num_hidden_layers", true, 1, INT32_MAX, &n_layer, err));
    SL_TRY(sl_meta_int(meta, "hidden_size", true, 1, INT32_MAX, &width, err));
    model->n_vocab = (size_t)n_vocab;
    model->n_layer = (size_t)n_layer;
    model->width = (size_t)width;
    SL_TRY(sl_arch_token_ids(meta, "bos_token_id", model->n_vocab, &model->bos, 1, &n_bos, err));
    if (!n_bos) model->bos = -1;
    return sl_arch_token_ids(meta, "eos_token_id", model->n_vocab, model->eos, SL_MAX_EOS, &model->n_eos, err);
}

/* The chat format's end of a turn ends an answer too, also where config.json names only another end token. */
static void add_chat_end(sl_model *model) {
    int32_t end = sl_chat_end(model->chat, model->tokenizer);
    for (size_t i = 0; i < model->n_eos; i++)
        if (model->eos[i] == end) return;
    if (end >= 0 && (size_t)end < model->n_vocab && model->n_eos < SL_MAX_EOS) model->eos[model->n_eos++] = end;
}

static sl_status read_text(sl_model *model, const sl_meta *meta, sl_error *err) {
    const char *json = NULL;
    bool known;
    SL_TRY(sl_meta_text(meta, "tokenizer", false, &json, err));
    SL_TRY(sl_meta_text(meta, "chat_template", false, &model->chat_template, err));
    model->chat = sl_chat_detect(model->chat_template, &known);
    bool begins = !model->chat_template || strstr(model->chat_template, "bos_token"); /* some have one and do not use it */
    model->chat_bos = begins ? model->bos : -1;
    if (!json) return SL_OK;
    SL_TRY(sl_tokenizer_create(json, strlen(json), model->n_vocab, &model->tokenizer, err));
    add_chat_end(model);
    return SL_OK;
}

/* The type of most matrix bytes: what the model is called. */
static sl_type main_type(const sl_weights *weights) {
    uint64_t bytes[SL_N_TYPE] = { 0 };
    sl_type best = SL_F32;
    for (size_t i = 0; i < weights->n; i++)
        if (weights->tensors[i].spec.class_ == SL_TENSOR_MATRIX) bytes[weights->tensors[i].type] += weights->tensors[i].bytes;
    for (int t = 0; t < SL_N_TYPE; t++)
        if (bytes[t] > bytes[best]) best = (sl_type)t;
    return best;
}

static sl_status finish(sl_model *model, const sl_meta *meta, sl_error *err) {
    qsort(model->weights.tensors, model->weights.n, sizeof(sl_tensor), by_name);
    for (size_t i = 0; i < model->weights.n; i++)
        model->n_param += sl_spec_rows(&model->weights.tensors[i].spec) * sl_spec_width(&model->weights.tensors[i].spec);
    model->type = main_type(&model->weights);
    SL_TRY(read_tokens(model, meta, err));
    SL_TRY(read_text(model, meta, err));
    sl_graph_init(&model->graph);
    SL_TRY(model->arch->build(model->hyper, &model->weights, &model->graph, err));
    model->max_context = model->graph.max_context;
    return SL_OK;
}

static sl_status bind_file(sl_model *model, sl_error *err) {
    const sl_slu *slu = &model->slu;
    sl_schema schema = { 0 };
    sl_status status = sl_alloc((void **)&model->weights.tensors, slu->n_tensor, sizeof(sl_tensor), "tensors", err);
    if (status == SL_OK) status = model->arch->schema(model->hyper, &schema, err);
    if (status == SL_OK) qsort(schema.specs, schema.n, sizeof *schema.specs, by_spec_name);
    for (size_t i = 0; status == SL_OK && i < slu->n_tensor; i++) {
        const sl_slu_tensor *t = &slu->tensors[i];
        const sl_tensor_spec *spec = bsearch(t->name, schema.specs, schema.n, sizeof *spec, name_and_spec);
        model->weights.tensors[model->weights.n++] =
            (sl_tensor){ .spec = *spec, .type = t->type, .data = slu->data + t->offset, .bytes = t->bytes,
                         .row_bytes = sl_row_bytes(t->type, sl_spec_width(spec)) };
    }
    sl_schema_release(&schema);
    model->fingerprint = slu->fingerprint;
    return status;
}

static sl_status open_parts(sl_model *model, const char *path, sl_error *err) {
    SL_TRY(sl_slu_open(&model->slu, path, err));
    SL_TRY(sl_slu_check(&model->slu, &model->arch, &model->hyper, err));
    SL_TRY(bind_file(model, err));
    return finish(model, &model->slu.meta, err);
}

sl_status sl_model_open(const char *path, sl_model **out, sl_error *err) {
    *out = NULL;
    sl_model *model;
    SL_TRY(sl_alloc((void **)&model, 1, sizeof *model, "a model", err));
    sl_status status = open_parts(model, path, err);
    if (status == SL_OK) *out = model;
    else sl_model_close(model);
    return status;
}

/* ---- made models -------------------------------------------------------------------------------- */

enum { MADE_ALIGN = 4096 };

/* Places of the tensors in one block; all sizes checked. */
static sl_status lay_out(sl_model *model, const sl_schema *schema, sl_type type, sl_error *err) {
    SL_TRY(sl_alloc((void **)&model->weights.tensors, schema->n, sizeof(sl_tensor), "tensors", err));
    uint64_t total = 0;
    for (size_t i = 0; i < schema->n; i++) {
        const sl_tensor_spec *spec = &schema->specs[i];
        sl_tensor *t = &model->weights.tensors[i];
        *t = (sl_tensor){ .spec = *spec, .type = sl_class_type(spec->class_, type) };
        t->row_bytes = sl_row_bytes(t->type, sl_spec_width(spec));
        if (!sl_spec_bytes(spec, t->type, &t->bytes) || !sl_align(total, MADE_ALIGN, &total) ||
            !sl_add(total, t->bytes, &total))
            return sl_fail(err, SL_E_ARG, "the model's size does not fit 64 bits");
    }
    model->weights.n = schema->n;
    model->owned_bytes = total;
    model->owned = sl_os_pages_unreserved(total); /* matrices that a device makes are addresses only */
    if (model->owned) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "out of memory: %llu bytes for weights", (unsigned long long)total);
}

static void fill(sl_model *model, sl_tensor_init init, void *arg) {
    uint64_t at = 0;
    for (size_t i = 0; i < model->weights.n; i++) {
        sl_tensor *t = &model->weights.tensors[i];
        sl_align(at, MADE_ALIGN, &at);
        uint8_t *data = (uint8_t *)model->owned + at;
        for (uint64_t r = 0; r < sl_spec_rows(&t->spec) && !(t->random > 0); r++)
            t->random = init(arg, &t->spec, t->type, r, data + r * t->row_bytes);
        t->data = data;
        at += t->bytes;
    }
}

static sl_status make_parts(sl_model *model, const sl_meta *meta, sl_type type, sl_tensor_init init, void *arg,
                            sl_error *err) {
    sl_schema schema = { 0 };
    SL_TRY(sl_arch_of(meta, &model->arch, err));
    SL_TRY(sl_alloc(&model->hyper, 1, model->arch->hyper_bytes, "hyperparameters", err));
    SL_TRY(model->arch->hyper(meta, model->hyper, err));
    sl_status status = model->arch->schema(model->hyper, &schema, err);
    if (status == SL_OK) status = lay_out(model, &schema, type, err);
    sl_schema_release(&schema);
    if (status != SL_OK) return status;
    fill(model, init, arg);
    return finish(model, meta, err);
}

sl_status sl_model_make(const sl_meta *meta, sl_type type, sl_tensor_init init, void *arg, sl_model **out, sl_error *err) {
    *out = NULL;
    sl_model *model;
    SL_TRY(sl_alloc((void **)&model, 1, sizeof *model, "a model", err));
    sl_status status = make_parts(model, meta, type, init, arg, err);
    if (status == SL_OK) *out = model;
    else sl_model_close(model);
    return status;
}

/* ---- questions to a model ----------------------------------------------------------------------- */

void sl_model_get_info(const sl_model *model, sl_model_info *info) {
    uint64_t bytes = 0;
    bool router = false;
    for (size_t i = 0; i < model->weights.n; i++) bytes += model->weights.tensors[i].bytes;
    for (size_t i = 0; i < model->graph.n_node; i++) router |= model->graph.nodes[i].op == SL_OP_ROUTE_SCORE;
    *info = (sl_model_info){
        .architecture = model->arch->model_type, .type = sl_type_name(model->type), .n_vocab = model->n_vocab,
        .n_layer = model->n_layer, .width = model->width, .n_param = model->n_param, .weight_bytes = bytes,
        .state_bytes = model->graph.state_floats * sizeof(float),
        .kv_token_bytes = sl_kv_token_bytes(&model->graph, model->type != SL_F32), .max_context = model->max_context,
        .has_tokenizer = model->tokenizer != NULL, .has_router = router, .bos = model->bos, .eos = model->eos,
        .n_eos = model->n_eos,
    };
}

static sl_status need_tokenizer(const sl_model *model, sl_error *err) {
    if (model->tokenizer) return SL_OK;
    return sl_fail(err, SL_E_UNSUPPORTED, "the model has no tokenizer, expected token ids (--tokens) instead of text");
}

/* Hands out at most cap of the ids and says how many there are. */
static void give(int32_t *ids, size_t n, int32_t *tokens, size_t cap, size_t *n_token) {
    if (cap && n) memcpy(tokens, ids, sl_min(n, cap) * sizeof *ids);
    *n_token = n;
    free(ids);
}

sl_status sl_tokenize(const sl_model *model, const void *text, size_t n_bytes, unsigned flags, int32_t *tokens, size_t cap,
                      size_t *n_token, sl_error *err) {
    int32_t *ids = NULL;
    size_t n = 0, room = 0;
    SL_TRY(need_tokenizer(model, err));
    sl_status status = sl_tokenizer_encode(model->tokenizer, text, n_bytes, flags & SL_TOKENIZE_SPECIAL, &ids, &n, &room, err);
    give(ids, status == SL_OK ? n : 0, tokens, cap, n_token);
    return status;
}

const void *sl_token_bytes(const sl_model *model, int32_t token, size_t *n_bytes) {
    return model->tokenizer ? sl_tokenizer_bytes(model->tokenizer, token, n_bytes) : NULL;
}

bool sl_token_is_special(const sl_model *model, int32_t token) {
    return model->tokenizer && sl_tokenizer_is_special(model->tokenizer, token);
}

sl_status sl_chat_tokenize(const sl_model *model, const sl_message *messages, size_t n_message, bool first, bool answer,
                           int32_t *tokens, size_t cap, size_t *n_token, sl_error *err) {
    int32_t *ids = NULL;
    size_t n = 0, room = 0;
    SL_TRY(need_tokenizer(model, err));
    sl_status status = sl_chat_encode(model->chat, model->tokenizer, model->chat_bos, messages, n_message, first, answer, &ids,
                                      &n, &room, err);
    give(ids, status == SL_OK ? n : 0, tokens, cap, n_token);
    return status;
}
