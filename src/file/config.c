/* config.json to metadata, through jansson (which bounds its own recursion, refuses NaN, numbers out of range
 * and invalid UTF-8). The walk over nested objects keeps its own stack. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

typedef struct frame { json_t *object; void *iter; size_t n_prefix; } frame;

typedef struct walk {
    sl_meta *meta;
    frame stack[SL_JSON_DEPTH + 1];
    size_t depth;
    size_t json_bytes; /* kept whole so far */
    char key[SL_META_MAX_KEY + 1]; /* of the value at hand, dots between levels */
} walk;

static bool is_own_key(const char *key) {
    return !strcmp(key, "tokenizer") || !strcmp(key, "chat_template") || !strncmp(key, "sluice.", 7);
}

/* SL_META_* of a JSON scalar, -1 for others. */
static int scalar_type(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_TRUE:
    case JSON_FALSE: return SL_META_BOOL;
    case JSON_INTEGER: return SL_META_INT;
    case JSON_REAL: return SL_META_FLOAT;
    case JSON_STRING: return SL_META_STRING;
    default: return -1;
    }
}

/* The one type of all values of a list, integers widened to floats beside a float; -1: none. */
static int list_type(const json_t *list) {
    size_t n = json_array_size(list);
    int type = n ? scalar_type(json_array_get(list, 0)) : SL_META_INT;
    for (size_t i = 1; i < n && type >= 0; i++) {
        int next = scalar_type(json_array_get(list, i));
        bool numbers = (type == SL_META_INT || type == SL_META_FLOAT) &&
            (next == SL_META_INT || next == SL_META_FLOAT);
        type = numbers ? (type > next ? type : next) : next == type ? type : -1;
    }
    return type;
}

static sl_status add_json(walk *w, const json_t *value, sl_error *err) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) return sl_fail(err, SL_E_MEMORY, "out of memory");
    w->json_bytes += strlen(text);
    sl_status status = w->json_bytes > SL_META_MAX_BYTES /* members of members are kept whole again and again */
                           ? sl_fail(err, SL_E_FORMAT, "objects within objects take more than %d bytes of metadata",
                                     SL_META_MAX_BYTES)
                           : SL_OK;
    if (status == SL_OK) status = sl_meta_add(w->meta, w->key, SL_META_JSON, false, &(const char *){ text }, 1, err);
    free(text);
    return status;
}

typedef union plain { int64_t i; double f; const char *s; } plain;

static plain plain_value(const json_t *value, int type) {
    if (type == SL_META_BOOL) return (plain){ .i = json_is_true(value) };
    if (type == SL_META_INT) return (plain){ .i = json_integer_value(value) };
    if (type == SL_META_FLOAT) return (plain){ .f = json_number_value(value) };
    return (plain){ .s = json_string_value(value) };
}

static sl_status add_list(walk *w, const json_t *list, sl_error *err) {
    _Static_assert(sizeof(plain) == 8 && sizeof(const char *) == 8, "values of a list lie 8 bytes apart");
    size_t n = json_array_size(list);
    int type = list_type(list);
    if (type < 0) return add_json(w, list, err);
    plain *values;
    SL_TRY(sl_alloc((void **)&values, n, sizeof *values, "a list of config.json", err));
    for (size_t i = 0; i < n; i++) values[i] = plain_value(json_array_get(list, i), type);
    sl_status status = sl_meta_add(w->meta, w->key, (sl_meta_type)type, true, values, n, err);
    free(values);
    return status;
}

static void push(walk *w, json_t *object, size_t n_prefix) {
    w->stack[w->depth++] = (frame){ object, json_object_iter(object), n_prefix };
}

static sl_status add_value(walk *w, json_t *value, size_t n_key, sl_error *err) {
    if (json_is_null(value) || is_own_key(w->key)) return SL_OK;
    if (json_is_array(value)) return add_list(w, value, err);
    if (!json_is_object(value)) {
        int type = scalar_type(value);
        plain one = plain_value(value, type);
        return sl_meta_add(w->meta, w->key, (sl_meta_type)type, false, &one, 1, err);
    }
    SL_TRY(add_json(w, value, err));
    if (n_key < SL_META_MAX_KEY) { /* room for a dot; longer keys are nobody's */
        w->key[n_key] = '.';
        push(w, value, n_key + 1);
    }
    return SL_OK;
}

static sl_status flatten(walk *w, json_t *root, sl_error *err) {
    push(w, root, 0);
    while (w->depth) {
        frame *top = &w->stack[w->depth - 1];
        if (!top->iter) {
            w->depth--;
            continue;
        }
        const char *name = json_object_iter_key(top->iter);
        json_t *value = json_object_iter_value(top->iter);
        size_t n = strlen(name), n_key = top->n_prefix + n;
        top->iter = json_object_iter_next(top->object, top->iter);
        if (!n || n_key > SL_META_MAX_KEY) continue;
        memcpy(w->key + top->n_prefix, name, n + 1);
        SL_TRY(add_value(w, value, n_key, err));
    }
    return SL_OK;
}

/* The text of the last key that begins before byte `at` of JSON that does not parse; empty: none. */
static const char *last_key(const char *json, size_t at, sl_name_buf *buf) {
    const char *begin = NULL, *end = NULL;
    buf->text[0] = 0;
    for (size_t i = 0; i < at; i++) {
        if (json[i] == ':' && begin) sl_name_escape(begin, (size_t)(end - begin), buf);
        if (json[i] != '"') continue;
        begin = json + i + 1;
        for (i++; i < at && json[i] != '"'; i++) i += json[i] == '\\';
        end = json + sl_min(i, at);
    }
    return buf->text;
}

/* Bounds what the tree of jansson costs, and says what is broken. */
static sl_status check_text(const char *json, size_t n_bytes, sl_error *err) {
    sl_json_doc doc;
    sl_error why;
    sl_name_buf key = { "" };
    sl_status status = sl_json_read(&doc, json, n_bytes, SL_CONFIG_MAX_VALUES, &why);
    if (status == SL_E_FORMAT) last_key(json, sl_min(doc.at, n_bytes), &key);
    sl_json_release(&doc);
    if (status == SL_OK) return SL_OK;
    return sl_fail(err, status, "%s%s%s%s", key.text[0] ? "at or after the key " : "", key.text,
                   key.text[0] ? ": " : "", why.text);
}

sl_status sl_config_parse(const char *json, size_t n_bytes, sl_meta *meta, sl_error *err) {
    json_error_t where;
    sl_name_buf buf;
    *meta = (sl_meta){ 0 };
    SL_TRY(check_text(json, n_bytes, err));
    json_t *root = json_loadb(json, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
    if (!root) /* out of memory leaves no reason */
        return where.text[0] ? sl_fail(err, SL_E_FORMAT, "line %d, column %d: %s", where.line, where.column,
                                       sl_name(where.text, &buf))
                             : sl_fail(err, SL_E_MEMORY, "out of memory: %zu bytes of JSON", n_bytes);
    sl_status status = SL_OK;
    if (!json_is_object(root)) {
        status = sl_fail(err, SL_E_FORMAT, "the top is not an object, expected {\"model_type\": ...}");
    } else {
        walk w = { .meta = meta };
        status = flatten(&w, root, err);
    }
    if (status != SL_OK) sl_meta_release(meta);
    json_decref(root);
    return status;
}
