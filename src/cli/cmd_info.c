/* sluice info: what a model file holds, as text or JSON, and on which devices it can run here. */
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "run/model.h"

/* ---- JSON --------------------------------------------------------------------------------------- */

static json_t *json_value(const sl_meta_entry *entry, size_t i) {
    json_t *value = entry->type == SL_META_JSON ? json_loads(entry->v.s[i], JSON_DECODE_ANY, NULL) : NULL;
    if (value) return value;
    switch (entry->type) {
    case SL_META_BOOL: return json_boolean(entry->v.i[i]);
    case SL_META_INT: return json_integer(entry->v.i[i]);
    case SL_META_FLOAT: return json_real(entry->v.f[i]);
    default: return json_string(entry->v.s[i]);
    }
}

static json_t *json_entry(const sl_meta_entry *entry) {
    if (!strcmp(entry->key, "tokenizer") && entry->type == SL_META_STRING)
        return json_sprintf("<%zu bytes>", strlen(entry->v.s[0]));
    if (!entry->is_list) return json_value(entry, 0);
    json_t *list = json_array();
    for (size_t i = 0; i < entry->n; i++) json_array_append_new(list, json_value(entry, i));
    return list;
}

/* True if key is a member of an object that is kept whole under a shorter key. */
static bool is_member(const sl_meta *meta, const char *key) {
    char head[256];
    for (const char *dot = strchr(key, '.'); dot; dot = strchr(dot + 1, '.')) {
        size_t n = sl_min((size_t)(dot - key), sizeof head - 1);
        memcpy(head, key, n);
        head[n] = 0;
        const sl_meta_entry *whole = sl_meta_find(meta, head);
        if (whole && whole->type == SL_META_JSON) return true;
    }
    return false;
}

static json_t *json_tensor(const sl_slu_tensor *t) {
    json_t *shape = json_array();
    for (uint32_t i = 0; i < t->n_dim; i++) json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    char checksum[17];
    snprintf(checksum, sizeof checksum, "%016llx", (unsigned long long)t->checksum);
    return json_pack("{s:s, s:s, s:o, s:I, s:I, s:s}", "name", t->name, "type", sl_type_name(t->type),
                     "shape", shape, "offset", (json_int_t)t->offset, "bytes", (json_int_t)t->bytes,
                     "checksum", checksum);
}

static int write_piece(const char *data, size_t n, void *arg) {
    (void)arg;
    return sl_out(data, n) ? 0 : -1;
}

static int print_json(const sl_slu *slu) {
    json_t *meta = json_object(), *tensors = json_array();
    for (size_t i = 0; i < slu->meta.n; i++)
        if (!is_member(&slu->meta, slu->meta.entries[i].key))
            json_object_set_new(meta, slu->meta.entries[i].key, json_entry(&slu->meta.entries[i]));
    for (size_t i = 0; i < slu->n_tensor; i++) json_array_append_new(tensors, json_tensor(&slu->tensors[i]));
    json_t *root = json_pack("{s:o, s:o}", "metadata", meta, "tensors", tensors);
    if (!root) return sl_report(SL_EXIT_FAILED, "out of memory for the model's description");
    bool good = !json_dump_callback(root, write_piece, NULL, JSON_INDENT(1)) && sl_out("\n", 1) &&
                sl_out_flush();
    json_decref(root);
    return good ? SL_EXIT_OK : SL_EXIT_FAILED;
}

/* ---- text --------------------------------------------------------------------------------------- */

static bool line(const char *name, const char *fmt, ...) SL_PRINTF(2, 3);
static bool line(const char *name, const char *fmt, ...) {
    char text[512], all[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    int n = snprintf(all, sizeof all, "%-18s %s\n", name, text);
    return sl_out(all, sl_min((size_t)n, sizeof all - 1));
}

typedef struct amount { char text[48]; } amount;

/* 123456789 as "123,456,789". */
static const char *grouped(uint64_t v, amount *a) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%llu", (unsigned long long)v), w = 0;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) a->text[w++] = ',';
        a->text[w++] = digits[i];
    }
    a->text[w] = 0;
    return a->text;
}

static bool print_model(const sl_model *model) {
    sl_model_info info;
    amount n;
    sl_size_buf a, b;
    sl_name_buf name;
    sl_model_get_info(model, &info);
    const sl_meta_entry *type = sl_meta_find(&model->slu.meta, "model_type");
    bool good = line("architecture", "%s%s", type ? sl_name(type->v.s[0], &name) : info.architecture,
                     info.has_router ? ", routed" : "");
    good = good && line("type", "%s", info.type);
    good = good && line("parameters", "%s", grouped(info.n_param, &n));
    good = good && line("weights", "%s in %zu tensors", sl_size(info.weight_bytes, &a), model->slu.n_tensor);
    good = good && line("file", "%s", sl_size(model->slu.size, &a));
    good = good && line("shape", "%zu layers, width %zu, vocabulary %zu", info.n_layer, info.width,
                        info.n_vocab);
    good = good && line("state", "%s per sequence, %s more per token", sl_size(info.state_bytes, &a),
                        sl_size(info.kv_token_bytes, &b));
    good = good && (info.max_context ? line("context", "%s tokens", grouped(info.max_context, &n))
                                     : line("context", "no limit"));
    return good;
}

static bool print_text_side(const sl_model *model) {
    static const char *const kinds[] = { "plain", "ChatML", "Llama 2", "Llama 3", "Mistral" };
    const char *note = model->chat_template ? "" : " (no template)";
    bool good = model->tokenizer
                    ? line("tokenizer", "%s, %zu ids", sl_tokenizer_kind(model->tokenizer),
                           sl_tokenizer_n_vocab(model->tokenizer))
                    : line("tokenizer", "none: takes --tokens only");
    good = good && line("chat format", "%s%s", kinds[model->chat], note);
    char ids[256] = "none";
    int n = 0;
    for (size_t i = 0; i < model->n_eos; i++)
        n += snprintf(ids + n, sizeof ids - (size_t)n, i ? ", %d" : "%d", model->eos[i]);
    return good && (model->bos < 0 ? line("begin token", "none") : line("begin token", "%d", model->bos)) &&
           line("end tokens", "%s", ids);
}

/* A line shows about 80 bytes (sl_name), so a list is formatted up to this many values, and a text up to this
 * many bytes, cut at a character. */
enum { SHOWN = 96 };

static json_t *shown_text(const char *text) {
    size_t n = sl_min(strlen(text), SHOWN);
    while (n == SHOWN && n && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
    return json_stringn(text, n);
}

static json_t *shown_entry(const sl_meta_entry *entry) {
    if (!strcmp(entry->key, "tokenizer") && entry->type == SL_META_STRING) return json_entry(entry);
    const bool text = entry->type == SL_META_STRING;
    if (!entry->is_list) return text ? shown_text(entry->v.s[0]) : json_value(entry, 0);
    json_t *list = json_array();
    for (size_t i = 0; i < sl_min(entry->n, SHOWN); i++)
        json_array_append_new(list, text ? shown_text(entry->v.s[i]) : json_value(entry, i));
    return list;
}

static bool print_entry(const sl_meta_entry *entry) {
    sl_name_buf key, value;
    sl_name(entry->key, &key);
    if (entry->type == SL_META_JSON && !entry->is_list)
        return line("", "%s = %s", key.text, sl_name(entry->v.s[0], &value));
    json_t *json = shown_entry(entry);
    char *text = json ? json_dumps(json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
    bool good = !text || line("", "%s = %s", key.text, sl_name(text, &value));
    free(text);
    json_decref(json);
    return good;
}

/* "cuda:0: NVIDIA H100 (79.65 GiB, 78.9 GiB free, compute 9.0, driver CUDA 12.8, products by libcublas.so.12)" */
static bool print_device(const sl_device_info *d) {
    sl_size_buf all, left;
    if (!strcmp(d->id, "cpu")) return line("device cpu", "%s, %s", d->name, sl_size(d->memory_bytes, &all));
    char name[32];
    snprintf(name, sizeof name, "device %s", d->id);
    if (!d->usable) return line(name, "%s%scannot be used: %s", d->name, d->name[0] ? ": " : "", d->reason);
    return line(name, "%s, %s, %s free, compute capability %d.%d, driver for CUDA %d.%d, runtime %d.%d%s%s%s%s",
                d->name, sl_size(d->memory_bytes, &all), sl_size(d->free_bytes, &left), d->capability / 10,
                d->capability % 10, d->driver / 1000, d->driver / 10 % 100, d->runtime / 1000,
                d->runtime / 10 % 100, d->blas[0] ? ", products by " : "", d->blas, d->reason[0] ? "; " : "",
                d->reason);
}

static bool print_devices(void) {
    sl_device_info devices[16];
    size_t n = sl_min(sl_devices(devices, 16), 16);
    bool good = true;
    for (size_t i = 0; i < n && good; i++) good = print_device(&devices[i]);
    return good;
}

static int print_text(const sl_model *model) {
    bool good = print_model(model) && print_text_side(model);
    good = good && print_devices();
    good = good && line("fingerprint", "%016llx", (unsigned long long)model->fingerprint) &&
           line("metadata", "%zu keys", model->slu.meta.n);
    for (size_t i = 0; i < model->slu.meta.n && good; i++) {
        const sl_meta_entry *entry = &model->slu.meta.entries[i];
        if (!is_member(&model->slu.meta, entry->key)) good = print_entry(entry);
    }
    return good && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

/* Without a model there is still a machine to tell of. */
static int print_machine(void) {
    bool good = print_devices() && line("model", "none near the program (name one with -m FILE)");
    return good && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int run(int argc, char **argv) {
    sl_common common;
    bool json = false;
    sl_common_init(&common);
    const sl_arg args[] = {
        { "-m, --model", "FILE", SL_ARG_TEXT, &common.model, 0, 0, "model file (the shipped Bridge)", NULL },
        { "--json", NULL, SL_ARG_FLAG, &json, 0, 0, "all metadata and tensors as JSON", NULL },
    };
    int code = sl_args_parse(argc, argv, &sl_cmd_info, args, 2, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    if (!json && !sl_common_has_model(&common)) return print_machine();
    sl_model *model;
    if (!sl_common_open_model(&common, &model)) return SL_EXIT_FAILED;
    code = json ? print_json(&model->slu) : print_text(model);
    sl_model_close(model);
    return code;
}

const sl_command sl_cmd_info = {
    "info", "sluice info [-m FILE] [--json]", "what a model file holds, and the devices of this machine", run
};
