/* Writer of .slu. Layout: docs/format.md. The data streams out first, its checksums gathered on the way;
 * header, metadata and directory are laid out in memory and written last, before the rename. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "file/file.h"

struct sl_slu_writer {
    sl_os_out out;
    sl_buf head;            /* header, metadata, directory, padding */
    sl_slu_tensor *tensors; /* [n_tensor] */
    size_t n_tensor, at;    /* the tensor being written */
    uint64_t meta_bytes;
    uint64_t done;          /* bytes of it */
    XXH3_state_t *state;
};

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static void put_u64(uint8_t *p, uint64_t v) {
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

/* ---- metadata ----------------------------------------------------------------------------------- */

static bool append_u64(sl_buf *buf, uint64_t v) {
    uint8_t p[8];
    put_u64(p, v);
    return sl_buf_append(buf, p, 8);
}

static bool append_text(sl_buf *buf, const char *text, size_t n) {
    static const uint8_t zeros[8];
    return sl_buf_append(buf, text, n) && sl_buf_append(buf, zeros, 8 - n % 8);
}

static bool append_entry(sl_buf *buf, const sl_meta_entry *entry) {
    size_t n_key = strlen(entry->key);
    uint8_t p[SL_SLU_META_ENTRY] = { 0 };
    put_u32(p, (uint32_t)n_key);
    p[4] = (uint8_t)entry->type;
    p[5] = entry->is_list;
    put_u64(p + 8, entry->n);
    bool ok = sl_buf_append(buf, p, sizeof p) && append_text(buf, entry->key, n_key);
    for (size_t i = 0; i < entry->n && ok; i++) {
        if (entry->type == SL_META_STRING || entry->type == SL_META_JSON) {
            size_t n = strlen(entry->v.s[i]);
            ok = append_u64(buf, n) && append_text(buf, entry->v.s[i], n);
        } else {
            uint64_t bits;
            memcpy(&bits, &entry->v.i[i], 8);
            ok = append_u64(buf, bits);
        }
    }
    return ok;
}

/* Header without sizes and checksum, metadata, and room for the directory and its padding. */
static sl_status build_head(sl_slu_writer *w, const sl_meta *meta, sl_error *err) {
    uint8_t head[SL_SLU_HEADER] = { 0 };
    static const uint8_t zeros[64];
    SL_TRY(sl_slu_check_meta(meta, err));
    memcpy(head, SL_SLU_MAGIC, 8);
    put_u32(head + 8, SL_SLU_VERSION);
    put_u32(head + 12, (uint32_t)meta->n);
    put_u32(head + 16, (uint32_t)w->n_tensor);
    bool ok = sl_buf_append(&w->head, head, sizeof head);
    for (size_t i = 0; i < meta->n && ok; i++) ok = append_entry(&w->head, &meta->entries[i]);
    w->meta_bytes = w->head.n - SL_SLU_HEADER;
    if (ok && w->meta_bytes > SL_SLU_MAX_META_BYTES)
        return sl_fail(err, SL_E_FORMAT, "the metadata takes %llu bytes, expected at most %d",
                       (unsigned long long)w->meta_bytes, SL_SLU_MAX_META_BYTES);
    uint64_t end = sl_slu_data_offset(w->meta_bytes, w->n_tensor);
    while (ok && w->head.n < end)
        ok = sl_buf_append(&w->head, zeros, sl_min(sizeof zeros, (size_t)(end - w->head.n)));
    return ok ? SL_OK : sl_fail(err, SL_E_MEMORY, "out of memory for the metadata");
}

/* ---- directory ---------------------------------------------------------------------------------- */

static void put_tensor(uint8_t *p, const sl_slu_tensor *t) {
    memcpy(p, t->name, strlen(t->name));
    p += SL_MAX_NAME;
    put_u32(p, (uint32_t)t->type);
    put_u32(p + 4, t->n_dim);
    for (size_t i = 0; i < t->n_dim; i++) put_u64(p + 8 + 8 * i, t->shape[i]);
    put_u64(p + 40, t->offset);
    put_u64(p + 48, t->bytes);
    put_u64(p + 56, t->checksum);
}

static sl_status place_tensors(sl_slu_writer *w, const sl_slu_tensor *tensors, uint64_t *end, sl_error *err) {
    sl_name_buf buf;
    uint64_t next = w->head.n;
    for (size_t i = 0; i < w->n_tensor; i++) {
        sl_slu_tensor *t = &w->tensors[i];
        *t = tensors[i];
        t->offset = next;
        if (!sl_slu_tensor_bytes(t, &t->bytes) || !sl_add(next, t->bytes, &next) ||
            !sl_align(next, SL_SLU_ALIGN, &next))
            return sl_fail(err, SL_E_ARG, "tensor %s is too large", sl_name(t->name, &buf));
    }
    *end = next;
    return SL_OK;
}

static sl_status writer_init(sl_slu_writer *w, const char *path, const sl_meta *meta,
                             const sl_slu_tensor *tensors,
                             sl_error *err) {
    uint64_t end = 0;
    if (!w->n_tensor || w->n_tensor > SL_SLU_MAX_TENSOR)
        return sl_fail(err, SL_E_ARG, "%zu tensors, expected 1 to %d", w->n_tensor, SL_SLU_MAX_TENSOR);
    SL_TRY(sl_alloc((void **)&w->tensors, w->n_tensor, sizeof *tensors, "the tensor directory", err));
    w->state = XXH3_createState();
    if (!w->state) return sl_fail(err, SL_E_MEMORY, "out of memory for a checksum");
    XXH3_64bits_reset(w->state);
    SL_TRY(build_head(w, meta, err));
    SL_TRY(place_tensors(w, tensors, &end, err));
    put_u64(w->head.data + 24, w->meta_bytes);
    put_u64(w->head.data + 32, end);
    SL_TRY(sl_os_out_open(&w->out, path, err));
    return sl_os_out_write(&w->out, w->head.data, w->head.n, err);
}

sl_status sl_slu_writer_open(sl_slu_writer **out, const char *path, const sl_meta *meta,
                             const sl_slu_tensor *tensors, size_t n_tensor, sl_error *err) {
    SL_TRY(sl_alloc((void **)out, 1, sizeof **out, "a file writer", err));
    sl_slu_writer *w = *out;
    w->out.fd = -1;
    w->n_tensor = n_tensor;
    sl_status status = writer_init(w, path, meta, tensors, err);
    if (status == SL_OK) return SL_OK;
    sl_slu_writer_abort(w);
    *out = NULL;
    return status;
}

/* ---- data --------------------------------------------------------------------------------------- */

static sl_status end_tensor(sl_slu_writer *w, sl_error *err) {
    static const uint8_t zeros[SL_SLU_ALIGN];
    sl_slu_tensor *t = &w->tensors[w->at++];
    t->checksum = XXH3_64bits_digest(w->state);
    XXH3_64bits_reset(w->state);
    w->done = 0;
    return sl_os_out_write(&w->out, zeros, (SL_SLU_ALIGN - t->bytes % SL_SLU_ALIGN) % SL_SLU_ALIGN, err);
}

sl_status sl_slu_writer_data(sl_slu_writer *w, const void *data, uint64_t n_bytes, sl_error *err) {
    for (const uint8_t *p = data; n_bytes;) {
        if (w->at == w->n_tensor) return sl_fail(err, SL_E_ARG, "more data than the tensors hold");
        uint64_t left = w->tensors[w->at].bytes - w->done, n = n_bytes < left ? n_bytes : left;
        XXH3_64bits_update(w->state, p, (size_t)n);
        SL_TRY(sl_os_out_write(&w->out, p, n, err));
        w->done += n;
        if (w->done == w->tensors[w->at].bytes) SL_TRY(end_tensor(w, err));
        p += n;
        n_bytes -= n;
    }
    return SL_OK;
}

static sl_status write_head(sl_slu_writer *w, sl_error *err) {
    if (w->at != w->n_tensor)
        return sl_fail(err, SL_E_ARG, "data for %zu of %zu tensors only", w->at, w->n_tensor);
    uint8_t *p = w->head.data + SL_SLU_HEADER + w->meta_bytes;
    for (size_t i = 0; i < w->n_tensor; i++, p += SL_SLU_DIR_ENTRY) put_tensor(p, &w->tensors[i]);
    uint64_t checksum;
    if (!sl_slu_header_checksum(w->head.data, w->head.n, &checksum))
        return sl_fail(err, SL_E_MEMORY, "out of memory for a checksum");
    put_u64(w->head.data + SL_SLU_CHECKSUM_AT, checksum);
    SL_TRY(sl_os_out_pwrite(&w->out, w->head.data, w->head.n, 0, err));
    return sl_os_out_commit(&w->out, err);
}

sl_status sl_slu_writer_finish(sl_slu_writer *w, sl_error *err) {
    sl_status status = write_head(w, err);
    sl_slu_writer_abort(w);
    return status;
}

void sl_slu_writer_abort(sl_slu_writer *w) {
    if (!w) return;
    sl_os_out_abort(&w->out);
    sl_buf_release(&w->head);
    free(w->tensors);
    XXH3_freeState(w->state);
    free(w);
}
