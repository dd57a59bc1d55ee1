/* Reader and validator of .slu. Layout: docs/format.md. Every size is checked against the bytes that remain
 * before anything is allocated for it; what is allocated is at most a small multiple of the header. */
#include "file/slu.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "file/file.h"

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get_u64(const uint8_t *p) { return get_u32(p) | (uint64_t)get_u32(p + 4) << 32; }

static unsigned long long ull(uint64_t v) { return v; }

static bool all_zero(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i]) return false;
    return true;
}

bool sl_slu_header_checksum(const uint8_t *data, uint64_t n_bytes, uint64_t *checksum) {
    static const uint8_t zeros[8];
    const size_t after = SL_SLU_CHECKSUM_AT + sizeof zeros;
    XXH3_state_t *state = XXH3_createState();
    if (!state) return false;
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, data, SL_SLU_CHECKSUM_AT);
    XXH3_64bits_update(state, zeros, sizeof zeros);
    XXH3_64bits_update(state, data + after, (size_t)n_bytes - after);
    *checksum = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return true;
}

bool sl_slu_tensor_bytes(const sl_slu_tensor *tensor, uint64_t *bytes) {
    sl_tensor_spec spec = { .n_dim = tensor->n_dim };
    for (uint32_t i = 0; i < tensor->n_dim; i++) {
        if (!tensor->shape[i] || tensor->shape[i] > INT32_MAX) return false;
        spec.shape[i] = tensor->shape[i];
    }
    return sl_spec_bytes(&spec, tensor->type, bytes);
}

/* ---- header ------------------------------------------------------------------------------------- */

typedef struct header { uint32_t n_meta, n_tensor; uint64_t meta_bytes, data_offset; } header;

static sl_status read_counts(const uint8_t *p, uint64_t size, header *h, sl_error *err) {
    h->n_meta = get_u32(p + 12);
    h->n_tensor = get_u32(p + 16);
    h->meta_bytes = get_u64(p + 24);
    if (h->n_meta > SL_META_MAX)
        return sl_fail(err, SL_E_FORMAT, "the header counts %u metadata entries, expected at most %d",
                       h->n_meta,
                       SL_META_MAX);
    if (!h->n_tensor || h->n_tensor > SL_SLU_MAX_TENSOR)
        return sl_fail(err, SL_E_FORMAT, "the header counts %u tensors, expected 1 to %d", h->n_tensor,
                       SL_SLU_MAX_TENSOR);
    if (get_u32(p + 20)) return sl_fail(err, SL_E_FORMAT, "the header's reserved field is %u, expected 0",
                                        get_u32(p + 20));
    if (h->meta_bytes % 8 || h->meta_bytes > SL_SLU_MAX_META_BYTES)
        return sl_fail(err, SL_E_FORMAT,
                       "the header gives %llu bytes of metadata, expected a multiple of 8 up to %d",
                       ull(h->meta_bytes), SL_SLU_MAX_META_BYTES);
    h->data_offset = sl_slu_data_offset(h->meta_bytes, h->n_tensor);
    if (h->data_offset > size)
        return sl_fail(err, SL_E_FORMAT,
                       "the file has %llu bytes, expected at least %llu for its metadata and tensor "
                       "directory", ull(size), ull(h->data_offset));
    return SL_OK;
}

static sl_status read_header(const uint8_t *p, uint64_t size, header *h, sl_error *err) {
    if (size < SL_SLU_HEADER)
        return sl_fail(err, SL_E_FORMAT, "not a .slu file: it has %llu bytes, expected at least %d", ull(size),
                       SL_SLU_HEADER);
    if (memcmp(p, SL_SLU_MAGIC, 8)) {
        sl_name_buf buf;
        return sl_fail(err, SL_E_FORMAT, "not a .slu file: it begins with \"%s\", expected \"SLUICE\\r\\n\"",
                       sl_name_escape(p, 8, &buf));
    }
    if (get_u32(p + 8) != SL_SLU_VERSION)
        return sl_fail(err, SL_E_UNSUPPORTED, "version %u of the format, expected %d", get_u32(p + 8),
                       SL_SLU_VERSION);
    if (get_u64(p + 32) != size)
        return sl_fail(err, SL_E_FORMAT, "the file has %llu bytes, its header says %llu", ull(size),
                       ull(get_u64(p + 32)));
    return read_counts(p, size, h, err);
}

/* ---- metadata ----------------------------------------------------------------------------------- */

typedef struct cursor { const uint8_t *p; uint64_t left; } cursor;

static const uint8_t *take(cursor *c, uint64_t n) {
    if (n > c->left) return NULL;
    const uint8_t *p = c->p;
    c->p += n;
    c->left -= n;
    return p;
}

/* n bytes of text without NUL, followed by 1 to 8 zero bytes up to a multiple of 8; NULL if it is not that. */
static const char *take_text(cursor *c, uint64_t n) {
    if (n >= c->left) return NULL;
    uint64_t padded = n / 8 * 8 + 8;
    const uint8_t *p = take(c, padded);
    bool sound = p && all_zero(p + n, padded - n) && !memchr(p, 0, (size_t)n) && sl_file_utf8(p, (size_t)n);
    return sound ? (const char *)p : NULL;
}

static sl_status add_numbers(sl_slu *slu, const char *key, sl_meta_type type, bool is_list, cursor *c,
                             uint64_t n,
                             sl_error *err) {
    sl_name_buf buf;
    int64_t one, *values = &one;
    const uint8_t *p = n <= c->left / 8 ? take(c, 8 * n) : NULL;
    if (!p)
        return sl_fail(err, SL_E_FORMAT, "metadata key %s has %llu values, more than the metadata holds",
                       sl_name(key, &buf), ull(n));
    if (n > 1) SL_TRY(sl_alloc((void **)&values, (size_t)n, 8, "a metadata list", err));
    bool sound = true;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t bits = get_u64(p + 8 * i);
        memcpy(values + i, &bits, 8);
        sound &= type != SL_META_BOOL || bits <= 1;
    }
    sl_status status = sound ? sl_meta_add(&slu->meta, key, type, is_list, values, (size_t)n, err)
                             : sl_fail(err, SL_E_FORMAT, "metadata key %s is neither 0 nor 1",
                                       sl_name(key, &buf));
    if (values != &one) free(values);
    return status;
}

static sl_status add_texts(sl_slu *slu, const char *key, sl_meta_type type, bool is_list, cursor *c, uint64_t n,
                           sl_error *err) {
    sl_name_buf buf;
    const char **texts;
    if (n > c->left / 16) /* a length and at least 8 bytes of text each */
        return sl_fail(err, SL_E_FORMAT, "metadata key %s has %llu texts, more than the metadata holds",
                       sl_name(key, &buf), ull(n));
    SL_TRY(sl_alloc((void **)&texts, (size_t)n, sizeof *texts, "a metadata list", err));
    sl_status status = SL_OK;
    for (uint64_t i = 0; i < n && status == SL_OK; i++) {
        const uint8_t *length = take(c, 8);
        texts[i] = length ? take_text(c, get_u64(length)) : NULL;
        if (!texts[i])
            status = sl_fail(err, SL_E_FORMAT,
                             "metadata key %s: text %llu is cut, not UTF-8 or not padded with zeros",
                             sl_name(key, &buf), ull(i));
    }
    if (status == SL_OK) status = sl_meta_add(&slu->meta, key, type, is_list, texts, (size_t)n, err);
    free(texts);
    return status;
}

static sl_status read_entry(sl_slu *slu, size_t index, cursor *c, sl_error *err) {
    sl_name_buf buf;
    const uint8_t *p = take(c, SL_SLU_META_ENTRY);
    if (!p) return sl_fail(err, SL_E_FORMAT, "the metadata ends in entry %zu", index);
    uint32_t key_bytes = get_u32(p);
    uint64_t n = get_u64(p + 8);
    const char *key = key_bytes && key_bytes <= SL_META_MAX_KEY ? take_text(c, key_bytes) : NULL;
    if (!key)
        return sl_fail(err, SL_E_FORMAT,
                       "metadata entry %zu has a key of %u bytes that is not text of 1 to %d bytes",
                       index, key_bytes, SL_META_MAX_KEY);
    if (p[4] > SL_META_JSON || p[5] > 1 || p[6] || p[7])
        return sl_fail(err, SL_E_FORMAT, "metadata key %s is of kind %u.%u.%u.%u, expected 0-4.0-1.0.0",
                       sl_name(key, &buf), p[4], p[5], p[6], p[7]);
    if (!p[5] && n != 1)
        return sl_fail(err, SL_E_FORMAT, "metadata key %s has %llu values, expected 1", sl_name(key, &buf),
                       ull(n));
    sl_meta_type type = (sl_meta_type)p[4];
    if (type >= SL_META_STRING) return add_texts(slu, key, type, p[5], c, n, err);
    return add_numbers(slu, key, type, p[5], c, n, err);
}

static sl_status read_meta(sl_slu *slu, const header *h, sl_error *err) {
    cursor c = { slu->data + SL_SLU_HEADER, h->meta_bytes };
    for (uint32_t i = 0; i < h->n_meta; i++) SL_TRY(read_entry(slu, i, &c, err));
    if (!c.left) return sl_slu_check_meta(&slu->meta, err);
    return sl_fail(err, SL_E_FORMAT, "%llu bytes of metadata are left over after %u entries", ull(c.left),
                   h->n_meta);
}

uint64_t sl_slu_entry_bytes(const sl_meta_entry *entry) {
    uint64_t bytes = SL_SLU_META_ENTRY + strlen(entry->key) / 8 * 8 + 8;
    if (entry->type < SL_META_STRING) return bytes + 8 * (uint64_t)entry->n;
    for (size_t i = 0; i < entry->n; i++) bytes += 8 + strlen(entry->v.s[i]) / 8 * 8 + 8;
    return bytes;
}

/* The JSON of an entry; *n_values, what is left for all of them, is lessened by what they hold. */
static sl_status check_json(const sl_meta_entry *entry, size_t *n_values, sl_error *err) {
    sl_name_buf buf;
    sl_error why;
    for (size_t i = 0; i < entry->n; i++) {
        sl_json_doc doc;
        sl_status status = sl_json_read(&doc, entry->v.s[i], strlen(entry->v.s[i]), *n_values, &why);
        bool whole = status == SL_OK && doc.values->kind >= SL_JSON_LIST;
        *n_values -= doc.n;
        sl_json_release(&doc);
        if (status != SL_OK)
            return sl_fail(err, status, "metadata key %s: %s", sl_name(entry->key, &buf), why.text);
        if (!whole)
            return sl_fail(err, SL_E_FORMAT, "metadata key %s holds a plain value of JSON, expected an object or a list",
                           sl_name(entry->key, &buf));
    }
    return SL_OK;
}

sl_status sl_slu_check_meta(const sl_meta *meta, sl_error *err) {
    sl_name_buf buf;
    uint64_t bytes = 0;
    size_t n_values = SL_META_MAX_VALUES;
    for (size_t i = 0; i < meta->n; i++) {
        const sl_meta_entry *entry = &meta->entries[i];
        if (strcmp(entry->key, "tokenizer")) bytes += sl_slu_entry_bytes(entry);
        if (bytes > SL_META_MAX_BYTES)
            return sl_fail(err, SL_E_FORMAT,
                           "metadata key %s of %llu bytes: with it the keys besides tokenizer have %llu, expected at "
                           "most %d", sl_name(entry->key, &buf), ull(sl_slu_entry_bytes(entry)), ull(bytes),
                           SL_META_MAX_BYTES);
        if (entry->type == SL_META_JSON) SL_TRY(check_json(entry, &n_values, err));
    }
    return SL_OK;
}

/* ---- directory ---------------------------------------------------------------------------------- */

static sl_status read_name(const uint8_t *p, size_t index, sl_slu_tensor *t, sl_error *err) {
    size_t n = 0;
    while (n < SL_MAX_NAME && p[n] > 0x20 && p[n] < 0x7F) n++;
    if (!n || n == SL_MAX_NAME || !all_zero(p + n, SL_MAX_NAME - n))
        return sl_fail(err, SL_E_FORMAT,
                       "the name of tensor %zu is not 1 to %d printable characters padded with zeros",
                       index, SL_MAX_NAME - 1);
    memcpy(t->name, p, SL_MAX_NAME);
    return SL_OK;
}

static sl_status read_tensor(const uint8_t *p, size_t index, sl_slu_tensor *t, sl_error *err) {
    uint64_t bytes;
    sl_name_buf buf;
    SL_TRY(read_name(p, index, t, err));
    uint32_t type = get_u32(p + SL_MAX_NAME);
    p += SL_MAX_NAME + 4;
    t->n_dim = get_u32(p);
    if (type >= SL_N_TYPE)
        return sl_fail(err, SL_E_FORMAT, "tensor %s is of type %u, expected 0 to %d", sl_name(t->name, &buf),
                       type,
                       SL_N_TYPE - 1);
    if (!t->n_dim || t->n_dim > SL_MAX_DIM)
        return sl_fail(err, SL_E_FORMAT, "tensor %s has %u dimensions, expected 1 to %d",
                       sl_name(t->name, &buf),
                       t->n_dim, SL_MAX_DIM);
    t->type = (sl_type)type;
    for (size_t i = 0; i < SL_MAX_DIM; i++) t->shape[i] = get_u64(p + 4 + 8 * i);
    t->offset = get_u64(p + 36);
    t->bytes = get_u64(p + 44);
    t->checksum = get_u64(p + 52);
    for (size_t i = t->n_dim; i < SL_MAX_DIM; i++)
        if (t->shape[i])
            return sl_fail(err, SL_E_FORMAT, "tensor %s has %llu in the unused dimension %zu, expected 0",
                           sl_name(t->name, &buf), ull(t->shape[i]), i);
    if (!sl_slu_tensor_bytes(t, &bytes))
        return sl_fail(err, SL_E_FORMAT, "tensor %s has a dimension outside of 1 to %d, or too many elements",
                       sl_name(t->name, &buf), INT32_MAX);
    if (t->bytes != bytes)
        return sl_fail(err, SL_E_FORMAT, "tensor %s has %llu bytes, expected %llu for its type and shape",
                       sl_name(t->name, &buf), ull(t->bytes), ull(bytes));
    return SL_OK;
}

static sl_status read_directory(sl_slu *slu, const header *h, sl_error *err) {
    sl_name_buf buf;
    uint64_t next = h->data_offset;
    const uint8_t *p = slu->data + SL_SLU_HEADER + h->meta_bytes;
    SL_TRY(sl_alloc((void **)&slu->tensors, h->n_tensor, sizeof *slu->tensors, "the tensor directory", err));
    for (size_t i = 0; i < h->n_tensor; i++, p += SL_SLU_DIR_ENTRY) {
        sl_slu_tensor *t = &slu->tensors[i];
        SL_TRY(read_tensor(p, i, t, err));
        if (t->offset != next)
            return sl_fail(err, SL_E_FORMAT, "tensor %s is at offset %llu, expected %llu",
                           sl_name(t->name, &buf),
                           ull(t->offset), ull(next));
        if (!sl_add(next, t->bytes, &next) || !sl_align(next, SL_SLU_ALIGN, &next) || next > slu->size)
            return sl_fail(err, SL_E_FORMAT,
                           "tensor %s of %llu bytes at offset %llu does not fit in the file's %llu "
                           "bytes", sl_name(t->name, &buf), ull(t->bytes), ull(t->offset), ull(slu->size));
    }
    slu->n_tensor = h->n_tensor;
    if (next == slu->size) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "the file has %llu bytes, expected %llu: to the end of the last tensor",
                   ull(slu->size), ull(next));
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const sl_slu_tensor *const *)a)->name, (*(const sl_slu_tensor *const *)b)->name);
}

static sl_status check_names(const sl_slu *slu, sl_error *err) {
    sl_name_buf buf;
    const sl_slu_tensor **order;
    SL_TRY(sl_alloc((void **)&order, slu->n_tensor, sizeof *order, "the names of tensors", err));
    for (size_t i = 0; i < slu->n_tensor; i++) order[i] = &slu->tensors[i];
    qsort(order, slu->n_tensor, sizeof *order, by_name);
    sl_status status = SL_OK;
    for (size_t i = 1; i < slu->n_tensor && status == SL_OK; i++)
        if (!strcmp(order[i - 1]->name, order[i]->name))
            status = sl_fail(err, SL_E_FORMAT, "tensor %s is there twice", sl_name(order[i]->name, &buf));
    free(order);
    return status;
}

/* ---- opening ------------------------------------------------------------------------------------ */

static sl_status parse(sl_slu *slu, sl_error *err) {
    header h = { 0 };
    SL_TRY(read_header(slu->data, slu->size, &h, err));
    SL_TRY(read_meta(slu, &h, err));
    SL_TRY(read_directory(slu, &h, err));
    SL_TRY(check_names(slu, err));
    if (!sl_slu_header_checksum(slu->data, h.data_offset, &slu->fingerprint))
        return sl_fail(err, SL_E_MEMORY, "out of memory for a checksum");
    if (slu->fingerprint == get_u64(slu->data + SL_SLU_CHECKSUM_AT)) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "the header is damaged: its checksum is %016llx, expected %016llx",
                   ull(slu->fingerprint), ull(get_u64(slu->data + SL_SLU_CHECKSUM_AT)));
}

static void release(sl_slu *slu) {
    sl_meta_release(&slu->meta);
    free(slu->tensors);
    *slu = (sl_slu){ 0 };
}

sl_status sl_slu_parse(sl_slu *slu, const void *data, uint64_t size, sl_error *err) {
    *slu = (sl_slu){ .data = data, .size = size };
    sl_status status = parse(slu, err);
    if (status != SL_OK) release(slu);
    return status;
}

sl_status sl_slu_open(sl_slu *slu, const char *path, sl_error *err) {
    sl_os_map map;
    *slu = (sl_slu){ 0 };
    SL_TRY(sl_os_map_file(&map, path, err));
    sl_status status = sl_slu_parse(slu, map.data, map.size, err);
    if (status == SL_OK) return SL_OK;
    sl_name_buf buf;
    sl_os_unmap(&map);
    return sl_file_context(sl_os_path_name(path, &buf), status, err);
}

void sl_slu_close(sl_slu *slu) {
    sl_os_map map = { slu->data, slu->size };
    release(slu);
    sl_os_unmap(&map);
}

/* ---- against the architecture ------------------------------------------------------------------- */

/* The stated type is that of some matrix. Not of all: any mixture can be run, and embedding, head and gates
 * are stored otherwise on purpose. */
static sl_status check_type(const sl_slu *slu, const sl_schema *schema, const size_t *index, sl_error *err) {
    const char *text = NULL;
    const sl_slu_tensor *first = NULL;
    SL_TRY(sl_meta_text(&slu->meta, "sluice.type", true, &text, err));
    for (size_t i = 0; i < schema->n; i++) {
        const sl_slu_tensor *t = &slu->tensors[index[i]];
        if (schema->specs[i].class_ != SL_TENSOR_MATRIX) continue;
        if (!strcmp(text, sl_type_name(t->type))) return SL_OK;
        if (!first) first = t;
    }
    sl_name_buf buf;
    if (!first) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "sluice.type is %s, but no matrix is of it: %s is of type %s", text,
                   sl_name(first->name, &buf), sl_type_name(first->type));
}

static sl_status check_tensors(const sl_slu *slu, const sl_schema *schema, sl_found *found, size_t *index,
                               sl_error *err) {
    sl_name_buf buf;
    for (size_t i = 0; i < slu->n_tensor; i++)
        found[i] = (sl_found){ slu->tensors[i].name, slu->tensors[i].n_dim, slu->tensors[i].shape };
    SL_TRY(sl_schema_match(schema, found, slu->n_tensor, index, NULL, NULL, NULL, err));
    for (size_t i = 0; i < schema->n; i++) {
        const sl_slu_tensor *t = &slu->tensors[index[i]];
        if (!sl_class_allows(schema->specs[i].class_, t->type))
            return sl_fail(err, SL_E_FORMAT, "tensor %s is of type %s, which is not allowed for it",
                           sl_name(t->name, &buf), sl_type_name(t->type));
    }
    return check_type(slu, schema, index, err);
}

static sl_status check_schema(const sl_slu *slu, const sl_arch *arch, const void *hyper, sl_error *err) {
    sl_schema schema = { 0 };
    void *found = NULL, *index = NULL;
    sl_status status = arch->schema(hyper, &schema, err);
    if (status == SL_OK) status = sl_alloc(&found, slu->n_tensor, sizeof(sl_found), "the names of tensors",
                                           err);
    if (status == SL_OK) status = sl_alloc(&index, schema.n, sizeof(size_t), "the names of tensors", err);
    if (status == SL_OK) status = check_tensors(slu, &schema, found, index, err);
    free(found);
    free(index);
    sl_schema_release(&schema);
    return status;
}

/* Our own keys: the type the matrices were written in, and the texts. */
static sl_status check_own_keys(const sl_slu *slu, sl_error *err) {
    const char *text = NULL;
    sl_type type;
    sl_name_buf buf;
    SL_TRY(sl_meta_text(&slu->meta, "sluice.type", true, &text, err));
    if (!sl_type_parse(text, &type))
        return sl_fail(err, SL_E_FORMAT, "sluice.type is \"%s\", expected f32, f16, bf16, q8 or q4",
                       sl_name(text, &buf));
    SL_TRY(sl_meta_text(&slu->meta, "tokenizer", false, &text, err));
    return sl_meta_text(&slu->meta, "chat_template", false, &text, err);
}

sl_status sl_slu_check(const sl_slu *slu, const sl_arch **arch, void **hyper, sl_error *err) {
    void *own = NULL;
    SL_TRY(check_own_keys(slu, err));
    SL_TRY(sl_arch_of(&slu->meta, arch, err));
    SL_TRY(sl_alloc(&own, 1, (*arch)->hyper_bytes, "hyperparameters", err));
    sl_status status = (*arch)->hyper(&slu->meta, own, err);
    if (status == SL_OK) status = check_schema(slu, *arch, own, err);
    if (status != SL_OK) free(own);
    *hyper = status == SL_OK ? own : NULL;
    return status;
}

sl_status sl_slu_verify(const sl_slu *slu, void (*progress)(void *arg, uint64_t done, uint64_t all), void *arg,
                        sl_error *err) {
    static const uint64_t piece = 1 << 24;
    sl_name_buf buf;
    sl_status status = SL_OK;
    XXH3_state_t *state = XXH3_createState();
    if (!state) return sl_fail(err, SL_E_MEMORY, "out of memory for a checksum");
    for (size_t i = 0; i < slu->n_tensor && status == SL_OK; i++) {
        const sl_slu_tensor *t = &slu->tensors[i];
        XXH3_64bits_reset(state);
        for (uint64_t at = 0; at < t->bytes; at += piece) {
            uint64_t n = t->bytes - at < piece ? t->bytes - at : piece;
            XXH3_64bits_update(state, slu->data + t->offset + at, (size_t)n);
            sl_os_map_drop(slu->data + t->offset + at, n);
            if (progress) progress(arg, t->offset + at + n, slu->size);
        }
        uint64_t end = t->offset + t->bytes, padding = (SL_SLU_ALIGN - t->bytes % SL_SLU_ALIGN) % SL_SLU_ALIGN;
        uint64_t sum = XXH3_64bits_digest(state);
        if (sum != t->checksum)
            status = sl_fail(err, SL_E_FORMAT,
                             "the data of tensor %s is damaged: its checksum is %016llx, expected "
                             "%016llx", sl_name(t->name, &buf), ull(sum), ull(t->checksum));
        else if (!all_zero(slu->data + end, padding))
            status = sl_fail(err, SL_E_FORMAT, "the padding after tensor %s is not zero",
                             sl_name(t->name, &buf));
    }
    XXH3_freeState(state);
    return status;
}
