#include "base/meta.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static bool is_text(sl_meta_type type) { return type == SL_META_STRING || type == SL_META_JSON; }

static void entry_release(sl_meta_entry *entry) {
    if (is_text(entry->type) && entry->v.s)
        for (size_t i = 0; i < entry->n; i++) free(entry->v.s[i]);
    free(entry->v.i);
    free(entry->key);
}

void sl_meta_release(sl_meta *meta) {
    for (size_t i = 0; i < meta->n; i++) entry_release(&meta->entries[i]);
    free(meta->entries);
    *meta = (sl_meta){ 0 };
}

const sl_meta_entry *sl_meta_find(const sl_meta *meta, const char *key) {
    for (size_t i = 0; i < meta->n; i++)
        if (!strcmp(meta->entries[i].key, key)) return &meta->entries[i];
    return NULL;
}

static char *copy_text(const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = malloc(n);
    if (copy) memcpy(copy, text, n);
    return copy;
}

static bool copy_values(sl_meta_entry *entry, const void *values) {
    _Static_assert(sizeof(int64_t) == sizeof(double), "one size for all plain values");
    if (!is_text(entry->type)) {
        entry->v.i = sl_calloc(entry->n, sizeof(int64_t));
        if (entry->v.i && entry->n) memcpy(entry->v.i, values, entry->n * sizeof(int64_t));
        return entry->v.i;
    }
    entry->v.s = sl_calloc(entry->n, sizeof(char *));
    if (!entry->v.s) return false;
    for (size_t i = 0; i < entry->n; i++)
        if (!(entry->v.s[i] = copy_text(((const char *const *)values)[i]))) return false;
    return true;
}

static bool all_finite(const double *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

static sl_status out_of_memory(const char *key, sl_error *err) {
    sl_name_buf buf;
    return sl_fail(err, SL_E_MEMORY, "out of memory for metadata key \"%s\"", sl_name(key, &buf));
}

sl_status sl_meta_add(sl_meta *meta, const char *key, sl_meta_type type, bool is_list, const void *values,
                      size_t n, sl_error *err) {
    sl_name_buf buf;
    if (sl_meta_find(meta, key))
        return sl_fail(err, SL_E_FORMAT, "key \"%s\" is there twice", sl_name(key, &buf));
    if (meta->n >= SL_META_MAX)
        return sl_fail(err, SL_E_FORMAT, "there are more than %d keys", SL_META_MAX);
    if (type == SL_META_FLOAT && !all_finite(values, n))
        return sl_fail(err, SL_E_FORMAT, "%s is not a finite number", sl_name(key, &buf));
    if (!sl_grow((void **)&meta->entries, &meta->cap, meta->n + 1, sizeof *meta->entries))
        return out_of_memory(key, err);
    sl_meta_entry entry = { .key = copy_text(key), .type = type, .is_list = is_list, .n = n };
    if (!entry.key || !copy_values(&entry, values)) {
        entry_release(&entry);
        return out_of_memory(key, err);
    }
    meta->entries[meta->n++] = entry;
    return SL_OK;
}

sl_status sl_meta_set_string(sl_meta *meta, const char *key, const char *value, sl_error *err) {
    const sl_meta_entry *found = sl_meta_find(meta, key);
    if (!found) return sl_meta_add(meta, key, SL_META_STRING, false, &value, 1, err);
    sl_meta one = { 0 };
    SL_TRY(sl_meta_add(&one, key, SL_META_STRING, false, &value, 1, err));
    sl_meta_entry *old = meta->entries + (found - meta->entries);
    entry_release(old);
    *old = one.entries[0];
    free(one.entries);
    return SL_OK;
}

/* ---- typed access ------------------------------------------------------------------------------- */

static const char *kind_name(const sl_meta_entry *entry) {
    static const char *const one[] = { "true or false", "an integer", "a fraction", "text",
                                       "a composed value" };
    return entry->is_list ? "a list" : one[entry->type];
}

/* The scalar under key; *found NULL if it may be absent and is. An integer will do for a float. */
static sl_status scalar(const sl_meta *meta, const char *key, bool required, sl_meta_type type,
                        const char *expected,
                        const sl_meta_entry **found, sl_error *err) {
    sl_name_buf buf;
    const sl_meta_entry *entry = *found = sl_meta_find(meta, key);
    if (!entry && !required) return SL_OK;
    if (!entry)
        return sl_fail(err, SL_E_FORMAT, "%s is missing, expected %s", sl_name(key, &buf), expected);
    bool fits = entry->type == type || (type == SL_META_FLOAT && entry->type == SL_META_INT);
    if (fits && !entry->is_list) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "%s is %s, expected %s", sl_name(key, &buf), kind_name(entry), expected);
}

sl_status sl_meta_int(const sl_meta *meta, const char *key, bool required, int64_t min, int64_t max,
                      int64_t *out, sl_error *err) {
    const sl_meta_entry *entry;
    sl_name_buf buf;
    SL_TRY(scalar(meta, key, required, SL_META_INT, "an integer", &entry, err));
    if (!entry) return SL_OK;
    if (entry->v.i[0] < min || entry->v.i[0] > max)
        return sl_fail(err, SL_E_FORMAT, "%s is %lld, expected %lld to %lld", sl_name(key, &buf),
                       (long long)entry->v.i[0], (long long)min, (long long)max);
    *out = entry->v.i[0];
    return SL_OK;
}

sl_status sl_meta_float(const sl_meta *meta, const char *key, bool required, double min, double max,
                        double *out, sl_error *err) {
    const sl_meta_entry *entry;
    sl_name_buf buf;
    SL_TRY(scalar(meta, key, required, SL_META_FLOAT, "a number", &entry, err));
    if (!entry) return SL_OK;
    double value = entry->type == SL_META_INT ? (double)entry->v.i[0] : entry->v.f[0];
    if (!(value >= min && value <= max))
        return sl_fail(err, SL_E_FORMAT, "%s is %g, expected %g to %g", sl_name(key, &buf), value, min, max);
    *out = value;
    return SL_OK;
}

sl_status sl_meta_bool(const sl_meta *meta, const char *key, bool required, bool *out, sl_error *err) {
    const sl_meta_entry *entry;
    SL_TRY(scalar(meta, key, required, SL_META_BOOL, "true or false", &entry, err));
    if (entry) *out = entry->v.i[0] != 0;
    return SL_OK;
}

sl_status sl_meta_text(const sl_meta *meta, const char *key, bool required, const char **out, sl_error *err) {
    const sl_meta_entry *entry;
    SL_TRY(scalar(meta, key, required, SL_META_STRING, "text", &entry, err));
    if (entry) *out = entry->v.s[0];
    return SL_OK;
}
