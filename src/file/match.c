/* Found tensors against the schema: both lists are sorted by name and walked side by side. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

typedef struct item { const char *name; size_t at; } item;

static int by_name(const void *a, const void *b) {
    return strcmp(((const item *)a)->name, ((const item *)b)->name);
}

typedef struct shape_buf { char text[128]; } shape_buf;

static const char *shape_text(uint32_t n_dim, const uint64_t *shape, shape_buf *buf) {
    size_t n = 0;
    buf->text[n++] = '[';
    for (uint32_t i = 0; i < n_dim && n < sizeof buf->text - 24; i++)
        n += (size_t)snprintf(buf->text + n, 24, i ? ", %llu" : "%llu", (unsigned long long)shape[i]);
    memcpy(buf->text + n, "]", 2);
    return buf->text;
}

/* Mismatches so far; the latest stands in *err until the next one comes. */
typedef struct list { size_t n; sl_line_fn line; void *arg; sl_error *err; } list;

/* Makes room in err for the next mismatch; false if the list is full and it is only counted. */
static bool next_line(list *l) {
    if (l->n && l->n < SL_MATCH_LINES && l->line && l->err) l->line(l->arg, l->err->text);
    return ++l->n <= SL_MATCH_LINES;
}

static void missing(list *l, const sl_tensor_spec *spec) {
    sl_name_buf name;
    shape_buf shape;
    if (next_line(l))
        sl_fail(l->err, SL_E_FORMAT, "tensor %s is missing, expected shape %s", sl_name(spec->name, &name),
                shape_text(spec->n_dim, spec->shape, &shape));
}

static void surplus(list *l, const sl_found *found) {
    sl_name_buf name;
    shape_buf shape;
    if (next_line(l))
        sl_fail(l->err, SL_E_FORMAT, "tensor %s of shape %s is surplus, expected no tensor of this name",
                sl_name(found->name, &name), shape_text(found->n_dim, found->shape, &shape));
}

static void compare(list *l, const sl_tensor_spec *spec, const sl_found *found) {
    sl_name_buf name;
    shape_buf is, want;
    if (spec->n_dim == found->n_dim && !memcmp(spec->shape, found->shape, spec->n_dim * sizeof *spec->shape))
        return;
    if (next_line(l))
        sl_fail(l->err, SL_E_FORMAT, "tensor %s has shape %s, expected %s", sl_name(spec->name, &name),
                shape_text(found->n_dim, found->shape, &is), shape_text(spec->n_dim, spec->shape, &want));
}

static void walk(list *l, const sl_schema *schema, const item *specs, const sl_found *found, const item *items,
                 size_t n_found, size_t *index, bool (*surplus_ok)(const char *name)) {
    size_t i = 0, j = 0;
    while ((i < schema->n || j < n_found) && (l->line || !l->n)) {
        int order = i == schema->n ? 1 : j == n_found ? -1 : strcmp(specs[i].name, items[j].name);
        if (order < 0) {
            missing(l, &schema->specs[specs[i++].at]);
        } else if (order > 0) {
            const sl_found *f = &found[items[j++].at];
            if (!surplus_ok || !surplus_ok(f->name)) surplus(l, f);
        } else {
            index[specs[i].at] = items[j].at;
            compare(l, &schema->specs[specs[i++].at], &found[items[j++].at]);
        }
    }
}

sl_status sl_schema_match(const sl_schema *schema, const sl_found *found, size_t n_found, size_t *index,
                          bool (*surplus_ok)(const char *name), sl_line_fn line, void *arg, sl_error *err) {
    list l = { 0, line, arg, err };
    item *specs = sl_calloc(schema->n, sizeof *specs), *items = sl_calloc(n_found, sizeof *items);
    if (!specs || !items) {
        free(specs);
        free(items);
        return sl_fail(err, SL_E_MEMORY, "out of memory for the names of tensors");
    }
    for (size_t i = 0; i < schema->n; i++) specs[i] = (item){ schema->specs[i].name, i };
    for (size_t i = 0; i < n_found; i++) items[i] = (item){ found[i].name, i };
    qsort(specs, schema->n, sizeof *specs, by_name);
    qsort(items, n_found, sizeof *items, by_name);
    walk(&l, schema, specs, found, items, n_found, index, surplus_ok);
    free(specs);
    free(items);
    if (l.n > SL_MATCH_LINES) {
        if (line && err) line(arg, err->text);
        return sl_fail(err, SL_E_FORMAT, "... and %zu more tensors are missing, surplus or misshapen",
                       l.n - SL_MATCH_LINES);
    }
    return l.n ? SL_E_FORMAT : SL_OK;
}
