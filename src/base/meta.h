/* Typed key/value metadata: the hyperparameters of a model under the keys of config.json, whether they
 * came from config.json or from a .slu file. Nested objects are flattened with dots
 * ("rope_scaling.factor") and kept whole besides as JSON text; null values are left out. */
#ifndef SL_BASE_META_H
#define SL_BASE_META_H

#include "base/error.h"

typedef enum sl_meta_type {
    SL_META_BOOL, SL_META_INT, SL_META_FLOAT, SL_META_STRING,
    SL_META_JSON /* text of an object or a list of unlike values: refused where a value is asked for */
} sl_meta_type;

/* One entry: n values of one type; a scalar has is_list false and n 1. Strings are bytes, NUL-terminated
 * besides, without a NUL inside. */
typedef struct sl_meta_entry {
    char *key;
    sl_meta_type type;
    bool is_list;
    size_t n;
    union {
        int64_t *i;  /* SL_META_INT, SL_META_BOOL (0, 1) */
        double *f;   /* finite */
        char **s;    /* SL_META_STRING, SL_META_JSON */
    } v;
} sl_meta_entry;

enum { SL_META_MAX = 4096 }; /* entries; keys are found by a linear search */

typedef struct sl_meta { sl_meta_entry *entries; size_t n, cap; } sl_meta;

void sl_meta_release(sl_meta *meta);
const sl_meta_entry *sl_meta_find(const sl_meta *meta, const char *key); /* NULL: absent */

/* Adding copies everything; a key that is there already is an error (SL_E_FORMAT). values: [n] int64_t for
 * bool and int, double, or const char * (also for JSON). */
sl_status sl_meta_add(sl_meta *meta, const char *key, sl_meta_type type, bool is_list, const void *values,
                      size_t n, sl_error *err);
sl_status sl_meta_set_string(sl_meta *meta, const char *key, const char *value, sl_error *err); /* replaces */

/* Typed access with a range. required: an absent key is an error that names it; otherwise *out keeps the
 * caller's default. A wrong type or range is an error that names the key, what was found and expected.
 * An int is taken as a float where a float is asked for; a float with an integral value is not an int. */
sl_status sl_meta_int(const sl_meta *meta, const char *key, bool required, int64_t min, int64_t max,
                      int64_t *out, sl_error *err);
sl_status sl_meta_float(const sl_meta *meta, const char *key, bool required, double min, double max,
                        double *out, sl_error *err);
sl_status sl_meta_bool(const sl_meta *meta, const char *key, bool required, bool *out, sl_error *err);
sl_status sl_meta_text(const sl_meta *meta, const char *key, bool required, const char **out, sl_error *err);

#endif
