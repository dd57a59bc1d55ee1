/* A folder of safetensors, config.json and tokenizer.json to a .slu. Everything is checked before the output
 * is opened; the weights then pass through row by row, in constant memory. */
#include <stdlib.h>
#include <string.h>

#include "file/folder_text.h"
#include "file/repack.h"

typedef struct job {
    const char *folder;
    const sl_convert_params *params;
    sl_meta meta;
    const sl_arch *arch;
    void *hyper;
    sl_schema schema;
    sl_safetensors st;
    size_t *index;          /* [schema.n] the place of each tensor in st */
    sl_type type;
    sl_slu_tensor *tensors; /* [schema.n] */
} job;

static void job_release(job *j) {
    sl_meta_release(&j->meta);
    free(j->hyper);
    sl_schema_release(&j->schema);
    sl_safetensors_close(&j->st);
    free(j->index);
    free(j->tensors);
}

static sl_status read_config(job *j, sl_error *err) {
    SL_TRY(sl_folder_config(j->folder, &j->meta, err));
    sl_status status = sl_arch_of(&j->meta, &j->arch, err);
    if (status == SL_OK) status = sl_alloc(&j->hyper, 1, j->arch->hyper_bytes, "hyperparameters", err);
    if (status == SL_OK) status = j->arch->hyper(&j->meta, j->hyper, err);
    return status == SL_OK ? SL_OK : sl_file_context("config.json", status, err);
}

/* What checkpoints of the Llama family carry besides: the head of a model whose head is the embedding, and
 * rotary frequencies, which follow from config.json. */
static bool is_llama_surplus(const char *name) {
    static const char freq[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name), n_freq = sizeof freq - 1;
    return !strcmp(name, "lm_head.weight") || (n >= n_freq && !strcmp(name + n - n_freq, freq));
}

static sl_status match_tensors(job *j, sl_error *err) {
    sl_found *found;
    SL_TRY(j->arch->schema(j->hyper, &j->schema, err));
    SL_TRY(sl_safetensors_open(&j->st, j->folder, err));
    SL_TRY(sl_alloc((void **)&j->index, j->schema.n, sizeof *j->index, "the names of tensors", err));
    SL_TRY(sl_alloc((void **)&found, j->st.n_tensor, sizeof *found, "the names of tensors", err));
    for (size_t i = 0; i < j->st.n_tensor; i++)
        found[i] = (sl_found){ j->st.tensors[i].name, j->st.tensors[i].n_dim, j->st.tensors[i].shape };
    bool own = !strcmp(j->arch->model_type, "bridge"); /* our own layout has no surplus */
    sl_status status = sl_schema_match(&j->schema, found, j->st.n_tensor, j->index,
                                       own ? NULL : is_llama_surplus, j->params->line, j->params->arg, err);
    free(found);
    return status;
}

/* As asked, or as the matrices are stored; where they differ, f32 holds them all. */
static sl_type choose_type(const job *j) {
    sl_type type = SL_N_TYPE;
    if (j->params->type) return *j->params->type;
    for (size_t i = 0; i < j->schema.n; i++) {
        sl_type is = j->st.tensors[j->index[i]].type;
        if (j->schema.specs[i].class_ != SL_TENSOR_MATRIX) continue;
        type = type == SL_N_TYPE || type == is ? is : SL_F32;
    }
    return type == SL_N_TYPE ? SL_F32 : type;
}

/* ---- weights ------------------------------------------------------------------------------------ */

typedef struct source { sl_os_in in; size_t shard; char *rows; size_t cap; } source;

static sl_status open_shard(const job *j, size_t shard, source *s, sl_error *err) {
    sl_name_buf buf;
    if (s->in.open && s->shard == shard) return SL_OK;
    sl_os_in_close(&s->in);
    s->shard = shard;
    SL_TRY(sl_os_in_open(&s->in, j->st.shards[shard].name, err));
    if (s->in.size == j->st.shards[shard].size) return SL_OK;
    return sl_fail(err, SL_E_IO, "%s changed while it was read",
                   sl_os_path_name(j->st.shards[shard].name, &buf));
}

static sl_status copy_tensor(const job *j, size_t i, source *s, sl_repack *repack, sl_error *err) {
    sl_name_buf buf;
    const sl_st_tensor *t = &j->st.tensors[j->index[i]];
    const uint64_t width = sl_spec_width(&j->schema.specs[i]), row = sl_row_bytes(t->type, width);
    const uint64_t n_row = sl_spec_rows(&j->schema.specs[i]);
    const uint64_t piece = row < SL_REPACK_PIECE ? SL_REPACK_PIECE / row : 1;
    SL_TRY(open_shard(j, t->shard, s, err));
    for (uint64_t at = 0; at < n_row; at += piece) {
        uint64_t n = n_row - at < piece ? n_row - at : piece;
        if (!sl_grow((void **)&s->rows, &s->cap, (size_t)(n * row), 1))
            return sl_fail(err, SL_E_MEMORY, "out of memory for rows of %llu bytes", (unsigned long long)row);
        sl_status status = sl_os_in_read(&s->in, s->rows, n * row, t->offset + at * row, err);
        if (status != SL_OK)
            return sl_file_context(sl_os_path_name(j->st.shards[t->shard].name, &buf), status, err);
        SL_TRY(sl_repack_rows(repack, t->name, s->rows, t->type, j->tensors[i].type, n, width, err));
    }
    return SL_OK;
}

static sl_status write_weights(const job *j, sl_slu_writer *writer, sl_error *err) {
    uint64_t all = 0;
    for (size_t i = 0; i < j->schema.n; i++) all += j->st.tensors[j->index[i]].bytes;
    sl_repack repack;
    source s = { 0 };
    sl_status status = SL_OK;
    sl_repack_init(&repack, writer, all, j->params);
    for (size_t i = 0; i < j->schema.n && status == SL_OK; i++) status = copy_tensor(j, i, &s, &repack, err);
    sl_repack_release(&repack);
    sl_os_in_close(&s.in);
    free(s.rows);
    return status;
}

static sl_status write_file(job *j, const char *path, sl_error *err) {
    sl_slu_writer *writer;
    SL_TRY(sl_slu_writer_open(&writer, path, &j->meta, j->tensors, j->schema.n, err));
    sl_status status = write_weights(j, writer, err);
    if (status == SL_OK) return sl_slu_writer_finish(writer, err);
    sl_slu_writer_abort(writer);
    return status;
}

static sl_status check_output(const job *j, const char *path, sl_error *err) {
    sl_name_buf buf;
    for (size_t i = 0; i < j->st.n_shard; i++)
        if (sl_os_same_file(j->st.shards[i].name, path))
            return sl_fail(err, SL_E_ARG, "%s is read and cannot be written too", sl_os_path_name(path, &buf));
    return SL_OK;
}

static sl_status run(job *j, const char *path, sl_error *err) {
    int64_t n_vocab = 0;
    sl_name_buf buf;
    const sl_os_kind kind = sl_os_kind_of(j->folder);
    if (kind != SL_OS_FOLDER)
        return sl_fail(err, SL_E_IO, "%s is %s, expected a folder with config.json and model.safetensors",
                       sl_os_path_name(j->folder, &buf), kind == SL_OS_NOTHING ? "not there" : "no folder");
    SL_TRY(read_config(j, err));
    SL_TRY(sl_meta_int(&j->meta, "vocab_size", true, 1, INT32_MAX, &n_vocab, err));
    SL_TRY(match_tensors(j, err));
    if (!j->params->no_tokenizer) SL_TRY(sl_folder_tokenizer(j->folder, (size_t)n_vocab, &j->meta, err));
    SL_TRY(check_output(j, path, err));
    j->type = choose_type(j);
    SL_TRY(sl_repack_keys(&j->meta, j->type, err));
    SL_TRY(sl_repack_tensors(&j->schema, j->type, &j->tensors, err));
    return write_file(j, path, err);
}

sl_status sl_convert(const char *folder, const char *path, const sl_convert_params *params, sl_error *err) {
    job j = { .folder = folder, .params = params };
    sl_status status = run(&j, path, err);
    job_release(&j);
    return status;
}
