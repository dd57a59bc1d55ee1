/* JSON as a flat tree, for the large texts of strangers: tokenizers and the lists that come with a model.
 *
 * A value is 24 bytes in one array, its members follow it, and texts are unescaped in place: a tokenizer of
 * 32 MB (255,744 pieces, 600,000 merges of two texts) takes 0.25 s and 120 MB, against 1.1 s and 240 MB of
 * jansson's tree of allocated values. What is refused: invalid UTF-8, "\u0000", lone surrogates, a key given
 * twice, numbers beyond 64 bits or not finite, more than SL_JSON_DEPTH levels, and more values than the caller
 * allows. */
#ifndef SL_TEXT_JSON_H
#define SL_TEXT_JSON_H

#include "base/error.h"

enum { SL_JSON_DEPTH = 64 };

typedef enum sl_json_kind {
    SL_JSON_NULL, SL_JSON_FALSE, SL_JSON_TRUE, SL_JSON_INT, SL_JSON_REAL, SL_JSON_TEXT, SL_JSON_LIST, SL_JSON_OBJECT
} sl_json_kind;

typedef struct sl_json {
    sl_json_kind kind;
    uint32_t n;    /* bytes of a text, values of a list, members of an object */
    uint32_t span; /* values that it and all within it take: the next one is at value + span */
    union {
        const char *text; /* without a zero byte, and one after it */
        int64_t i;
        double real;      /* nearly: enough to compare with 0 */
    } v;
} sl_json;

typedef struct sl_json_doc {
    sl_json *values; /* the first is the whole */
    size_t n, cap;
    size_t at;       /* where reading ended: the byte at fault if it failed */
    char *text;
} sl_json_doc;

/* Reads a text of at most max_values values (a key counts as one). On failure doc is released but for at. */
sl_status sl_json_read(sl_json_doc *doc, const char *json, size_t n_bytes, size_t max_values, sl_error *err);
void sl_json_release(sl_json_doc *doc);

/* Of a value that may be NULL (absent) or of another kind. */
static inline bool sl_json_is(const sl_json *value, sl_json_kind kind) { return value && value->kind == kind; }
static inline const char *sl_json_text(const sl_json *value) {
    return sl_json_is(value, SL_JSON_TEXT) ? value->v.text : NULL;
}
static inline size_t sl_json_text_bytes(const sl_json *value) {
    return sl_json_is(value, SL_JSON_TEXT) ? value->n : 0;
}
/* Values of a list or members of an object; 0 for others. */
static inline size_t sl_json_size(const sl_json *value) {
    return sl_json_is(value, SL_JSON_LIST) || sl_json_is(value, SL_JSON_OBJECT) ? value->n : 0;
}
/* The first value of a list; the key of the first member of an object, whose value is the one after it. */
static inline const sl_json *sl_json_first(const sl_json *value) { return value ? value + 1 : NULL; }
static inline const sl_json *sl_json_next(const sl_json *value) { return value + value->span; }
/* The key after this one. */
static inline const sl_json *sl_json_next_key(const sl_json *key) { return sl_json_next(key + 1); }
/* A member, by a walk over the object's keys; NULL: there is none. */
const sl_json *sl_json_get(const sl_json *object, const char *key);

#endif
