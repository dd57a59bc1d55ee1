/* A checkpoint folder: model.safetensors, or shards named by model.safetensors.index.json. */
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"

enum {
    INDEX_MAX_BYTES = 1 << 24,
    INDEX_MAX_VALUES = 1 << 20, /* the largest known one lists 140,000 tensors: 280,000 values and keys */
    MAX_SHARD = 1 << 14
};

static unsigned long long ull(uint64_t v) { return v; }

/* ---- one shard ---------------------------------------------------------------------------------- */

static sl_status read_header(const sl_os_in *in, char **header, size_t *n_bytes, sl_error *err) {
    uint8_t p[8];
    uint64_t n = 0;
    if (in->size < 8) return sl_fail(err, SL_E_FORMAT, "the file has %llu bytes, expected at least 8",
                                     ull(in->size));
    SL_TRY(sl_os_in_read(in, p, 8, 0, err));
    for (int i = 7; i >= 0; i--) n = n << 8 | p[i];
    if (n > SL_ST_MAX_HEADER)
        return sl_fail(err, SL_E_FORMAT, "the header has %llu bytes, expected at most %d", ull(n),
                       SL_ST_MAX_HEADER);
    if (n > in->size - 8)
        return sl_fail(err, SL_E_FORMAT, "the header has %llu bytes, the file only %llu", ull(n),
                       ull(in->size));
    *n_bytes = (size_t)n;
    SL_TRY(sl_alloc((void **)header, (size_t)n + 1, 1, "a safetensors header", err));
    return sl_os_in_read(in, *header, n, 8, err);
}

static sl_status parse_file(sl_safetensors *st, uint32_t index, const sl_os_in *in, sl_error *err) {
    sl_st_shard *shard = &st->shards[index];
    size_t n = 0;
    SL_TRY(read_header(in, &shard->header, &n, err));
    return sl_safetensors_parse(shard->header, n, 8 + n, in->size - 8 - n, index, st, err);
}

static sl_status add_shard(sl_safetensors *st, const char *folder, const char *name, sl_error *err) {
    sl_os_in in;
    sl_name_buf buf;
    if (!sl_grow((void **)&st->shards, &st->shard_cap, st->n_shard + 1, sizeof *st->shards))
        return sl_fail(err, SL_E_MEMORY, "out of memory for the list of shards");
    sl_st_shard *shard = &st->shards[st->n_shard];
    *shard = (sl_st_shard){ .name = sl_file_path(folder, name) };
    if (!shard->name) return sl_fail(err, SL_E_MEMORY, "out of memory for the list of shards");
    st->n_shard++;
    SL_TRY(sl_os_in_open(&in, shard->name, err));
    shard->size = in.size;
    sl_status status = parse_file(st, (uint32_t)st->n_shard - 1, &in, err);
    sl_os_in_close(&in);
    return status == SL_OK ? SL_OK : sl_file_context(sl_name(name, &buf), status, err);
}

/* ---- the index ---------------------------------------------------------------------------------- */

static bool is_plain_name(const char *name) {
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) return false;
    for (const char *p = name; *p; p++)
        if (*p == '/' || *p == '\\' || (unsigned char)*p < 0x20) return false;
    return true;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Opens each file that the map names, once. */
static sl_status add_shards(sl_safetensors *st, const char *folder, const sl_json *map, const char **names,
                            sl_error *err) {
    sl_name_buf buf;
    size_t n = 0;
    const sl_json *key = sl_json_first(map);
    for (; n < map->n; key = sl_json_next_key(key)) {
        names[n] = sl_json_text(key + 1);
        if (!names[n])
            return sl_fail(err, SL_E_FORMAT, "weight_map.%s is not text, expected a file name",
                           sl_name(key->v.text, &buf));
        if (!is_plain_name(names[n]))
            return sl_fail(err, SL_E_FORMAT,
                           "weight_map names \"%s\", expected a plain file name in the folder",
                           sl_name(names[n], &buf));
        n++;
    }
    qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++) {
        if (i && !strcmp(names[i - 1], names[i])) continue;
        if (st->n_shard == MAX_SHARD) return sl_fail(err, SL_E_FORMAT, "more than %d shards", MAX_SHARD);
        SL_TRY(add_shard(st, folder, names[i], err));
    }
    return SL_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const sl_st_tensor *)a)->name, ((const sl_st_tensor *)b)->name);
}

static const char *base_name(const char *path) { return strrchr(path, '/') + 1; /* sl_file_path put one */ }

static int by_key(const void *a, const void *b) {
    return strcmp((*(const sl_json *const *)a)->v.text, (*(const sl_json *const *)b)->v.text);
}

/* The file that the sorted keys of the map name for a tensor; NULL: none. */
static const char *find_file(const sl_json **keys, size_t n, const char *tensor) {
    const sl_json wanted = { .v.text = tensor }, *key = &wanted;
    const sl_json **found = bsearch(&key, keys, n, sizeof *keys, by_key);
    return found ? (*found)[1].v.text : NULL;
}

/* Each tensor is where the map (n keys, sorted) says, and the map names no others. */
static sl_status check_map(const sl_safetensors *st, const sl_json **keys, size_t n, sl_error *err) {
    sl_name_buf a, b, c;
    for (size_t i = 0; i < st->n_tensor; i++) {
        const sl_st_tensor *t = &st->tensors[i];
        const char *is = base_name(st->shards[t->shard].name);
        const char *says = find_file(keys, n, t->name);
        if (i && !strcmp(st->tensors[i - 1].name, t->name))
            return sl_fail(err, SL_E_FORMAT, "tensor %s is in two shards", sl_name(t->name, &a));
        if (!says)
            return sl_fail(err, SL_E_FORMAT, "tensor %s of %s is not listed in weight_map",
                           sl_name(t->name, &a),
                           sl_name(is, &b));
        if (strcmp(says, is))
            return sl_fail(err, SL_E_FORMAT, "tensor %s is in %s, but weight_map says %s", sl_name(t->name, &a),
                           sl_name(is, &b), sl_name(says, &c));
    }
    for (size_t i = 0; i < n; i++) {
        sl_st_tensor wanted = { .name = keys[i]->v.text };
        if (!bsearch(&wanted, st->tensors, st->n_tensor, sizeof wanted, by_name))
            return sl_fail(err, SL_E_FORMAT, "tensor %s is not in %s, where weight_map says it is",
                           sl_name(keys[i]->v.text, &a),
                           sl_name(keys[i][1].v.text, &b));
    }
    return SL_OK;
}

static sl_status check_sorted(const sl_safetensors *st, const sl_json *map, sl_error *err) {
    const sl_json **keys, *key = sl_json_first(map);
    SL_TRY(sl_alloc((void **)&keys, map->n, sizeof *keys, "the names of tensors", err));
    for (size_t i = 0; i < map->n; i++, key = sl_json_next_key(key)) keys[i] = key;
    qsort(keys, map->n, sizeof *keys, by_key);
    sl_status status = check_map(st, keys, map->n, err);
    free(keys);
    return status;
}

static sl_status open_map(sl_safetensors *st, const char *folder, const sl_json *root, sl_error *err) {
    const sl_json *map = sl_json_get(root, "weight_map");
    if (!sl_json_is(map, SL_JSON_OBJECT) || !map->n)
        return sl_fail(err, SL_E_FORMAT, "weight_map is missing or empty, expected {\"tensor\": \"file\"}");
    const char **names;
    SL_TRY(sl_alloc((void **)&names, map->n, sizeof *names, "the names of shards", err));
    sl_status status = add_shards(st, folder, map, names, err);
    free(names);
    SL_TRY(status);
    if (st->n_tensor) qsort(st->tensors, st->n_tensor, sizeof *st->tensors, by_name);
    return check_sorted(st, map, err);
}

static sl_status open_index(sl_safetensors *st, const char *folder, sl_error *err) {
    char *json;
    size_t n;
    sl_json_doc doc = { 0 };
    SL_TRY(sl_file_text(folder, INDEX_NAME, INDEX_MAX_BYTES, &json, &n, err));
    sl_status status = json ? sl_json_read(&doc, json, n, INDEX_MAX_VALUES, err)
                            : sl_fail(err, SL_E_IO, "cannot open");
    free(json);
    if (status == SL_OK) status = open_map(st, folder, doc.values, err);
    sl_json_release(&doc);
    return status == SL_OK ? SL_OK : sl_file_context(INDEX_NAME, status, err);
}

/* ---- the folder --------------------------------------------------------------------------------- */

static bool has_file(const char *folder, const char *name) {
    char *path = sl_file_path(folder, name);
    bool there = path && sl_os_kind_of(path) != SL_OS_NOTHING;
    free(path);
    return there;
}

static bool has_shard(const sl_safetensors *st, const char *name) {
    for (size_t i = 0; i < st->n_shard; i++)
        if (!strcmp(base_name(st->shards[i].name), name)) return true;
    return false;
}

static sl_status open_folder(sl_safetensors *st, const char *folder, sl_error *err) {
    sl_name_buf buf;
    bool single = has_file(folder, SINGLE_NAME);
    if (!has_file(folder, INDEX_NAME)) {
        if (!single)
            return sl_fail(err, SL_E_IO, "%s holds no weights, expected " SINGLE_NAME " or " INDEX_NAME,
                           sl_os_path_name(folder, &buf));
        return add_shard(st, folder, SINGLE_NAME, err);
    }
    SL_TRY(open_index(st, folder, err));
    if (single && !has_shard(st, SINGLE_NAME))
        return sl_fail(err, SL_E_FORMAT,
                       INDEX_NAME " does not name " SINGLE_NAME ", which is in the folder: expected "
                       "one of the two");
    return SL_OK;
}

sl_status sl_safetensors_open(sl_safetensors *st, const char *folder, sl_error *err) {
    *st = (sl_safetensors){ 0 };
    sl_status status = open_folder(st, folder, err);
    if (status == SL_OK && st->n_tensor) qsort(st->tensors, st->n_tensor, sizeof *st->tensors, by_name);
    if (status != SL_OK) sl_safetensors_close(st);
    return status;
}

void sl_safetensors_close(sl_safetensors *st) {
    for (size_t i = 0; i < st->n_shard; i++) {
        free(st->shards[i].name);
        free(st->shards[i].header);
    }
    free(st->shards);
    free(st->tensors);
    *st = (sl_safetensors){ 0 };
}
