/* A .slu to one of another element type. */
#include <stdlib.h>
#include <string.h>

#include "file/repack.h"

typedef struct job {
    sl_slu slu;
    const sl_arch *arch;
    void *hyper;
    sl_schema schema;
    const sl_slu_tensor **source; /* [schema.n] */
    sl_slu_tensor *tensors;       /* [schema.n] */
    const sl_convert_params *params;
} job;

static void job_release(job *j) {
    sl_schema_release(&j->schema);
    sl_slu_close(&j->slu);
    free(j->hyper);
    free(j->source);
    free(j->tensors);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const sl_slu_tensor *const *)a)->name, (*(const sl_slu_tensor *const *)b)->name);
}

/* The file's tensors in the order of the schema; sl_slu_check has found the two sets equal. */
static sl_status order_tensors(job *j, sl_error *err) {
    size_t n = j->schema.n;
    const sl_slu_tensor **sorted;
    SL_TRY(sl_alloc((void **)&j->source, n, sizeof *j->source, "the names of tensors", err));
    SL_TRY(sl_alloc((void **)&sorted, n, sizeof *sorted, "the names of tensors", err));
    for (size_t i = 0; i < n; i++) sorted[i] = &j->slu.tensors[i];
    qsort(sorted, n, sizeof *sorted, by_name);
    for (size_t i = 0; i < n; i++) {
        const sl_slu_tensor *wanted = &j->tensors[i];
        j->source[i] = *(const sl_slu_tensor **)bsearch(&wanted, sorted, n, sizeof *sorted, by_name);
    }
    free(sorted);
    return SL_OK;
}

static sl_status copy_tensor(const job *j, size_t i, sl_repack *repack, sl_error *err) {
    const sl_slu_tensor *t = j->source[i];
    const uint64_t width = sl_spec_width(&j->schema.specs[i]), row = sl_row_bytes(t->type, width);
    const uint64_t n_row = sl_spec_rows(&j->schema.specs[i]);
    const uint64_t piece = row < SL_REPACK_PIECE ? SL_REPACK_PIECE / row : 1;
    for (uint64_t at = 0; at < n_row; at += piece) {
        uint64_t n = n_row - at < piece ? n_row - at : piece;
        const uint8_t *rows = j->slu.data + t->offset + at * row;
        SL_TRY(sl_repack_rows(repack, t->name, rows, t->type, j->tensors[i].type, n, width, err));
        sl_os_map_drop(rows, n * row);
    }
    return SL_OK;
}

static sl_status write_weights(const job *j, sl_slu_writer *writer, sl_error *err) {
    uint64_t all = 0;
    sl_repack repack;
    sl_status status = SL_OK;
    for (size_t i = 0; i < j->schema.n; i++) all += j->source[i]->bytes;
    sl_repack_init(&repack, writer, all, j->params);
    for (size_t i = 0; i < j->schema.n && status == SL_OK; i++) status = copy_tensor(j, i, &repack, err);
    sl_repack_release(&repack);
    return status;
}

static sl_status run(job *j, const char *in, const char *path, sl_type type, sl_error *err) {
    sl_name_buf buf;
    sl_slu_writer *writer;
    SL_TRY(sl_slu_open(&j->slu, in, err));
    if (sl_os_same_file(in, path))
        return sl_fail(err, SL_E_ARG, "%s is read and cannot be written too", sl_os_path_name(path, &buf));
    sl_status status = sl_slu_check(&j->slu, &j->arch, &j->hyper, err);
    if (status == SL_OK) status = sl_slu_verify(&j->slu, NULL, NULL, err);
    if (status != SL_OK) return sl_file_context(sl_os_path_name(in, &buf), status, err);
    SL_TRY(j->arch->schema(j->hyper, &j->schema, err));
    SL_TRY(sl_repack_tensors(&j->schema, type, &j->tensors, err));
    SL_TRY(order_tensors(j, err));
    SL_TRY(sl_repack_keys(&j->slu.meta, type, err));
    SL_TRY(sl_slu_writer_open(&writer, path, &j->slu.meta, j->tensors, j->schema.n, err));
    status = write_weights(j, writer, err);
    if (status == SL_OK) return sl_slu_writer_finish(writer, err);
    sl_slu_writer_abort(writer);
    return status;
}

sl_status sl_quantize(const char *in, const char *path, sl_type type, const sl_convert_params *params,
                      sl_error *err) {
    job j = { .params = params };
    sl_status status = run(&j, in, path, type, err);
    job_release(&j);
    return status;
}
