/* The weight file .slu: reader, validator, writer. Layout byte by byte in docs/format.md.
 *
 * A file is hostile until validated: sl_slu_open maps it and checks everything that does not need the
 * tensor data (all sizes with checked arithmetic, before any allocation proportional to the content),
 * including that names are unique and that the ranges follow one another to exactly the end of file.
 * sl_slu_check then holds metadata and tensors against the architecture. */
#ifndef SL_FILE_SLU_H
#define SL_FILE_SLU_H

#include "base/meta.h"
#include "kernels/types.h"
#include "models/arch.h"

enum { SL_SLU_ALIGN = 4096, SL_SLU_VERSION = 1, SL_SLU_MAX_TENSOR = 1 << 17, SL_SLU_MAX_META_BYTES = 1 << 26 };

typedef struct sl_slu_tensor {
    char name[SL_MAX_NAME];
    sl_type type;
    uint32_t n_dim;
    uint64_t shape[SL_MAX_DIM];
    uint64_t offset, bytes; /* absolute in the file */
    uint64_t checksum;      /* XXH3-64 of the data */
} sl_slu_tensor;

typedef struct sl_slu {
    const uint8_t *data; /* the mapping */
    uint64_t size;
    sl_meta meta;        /* keys of config.json; "tokenizer" (tokenizer.json) and "chat_template" besides */
    sl_slu_tensor *tensors;
    size_t n_tensor;
    uint64_t fingerprint; /* the header's checksum, and so of everything: names the model in state files */
} sl_slu;

/* On failure the struct is zeroed. A folder, a device, an empty file are refused. */
sl_status sl_slu_open(sl_slu *slu, const char *path, sl_error *err);
void sl_slu_close(sl_slu *slu);
/* Architecture, hyperparameters and the exact set of tensors. On success *arch and *hyper (malloc'd, the
 * caller's) are set. */
sl_status sl_slu_check(const sl_slu *slu, const sl_arch **arch, void **hyper, sl_error *err);
/* Reads all tensor data and compares checksums; progress may be NULL. */
sl_status sl_slu_verify(const sl_slu *slu, void (*progress)(void *arg, uint64_t done, uint64_t all), void *arg,
                        sl_error *err);

/* Writing: begin with the complete metadata and the list of tensors (name, type, shape; the rest is filled
 * in), then the data of each tensor in that order in any pieces, then finish, which writes the directory,
 * syncs and puts the file in place. abort drops it. */
typedef struct sl_slu_writer sl_slu_writer;
sl_status sl_slu_writer_open(sl_slu_writer **out, const char *path, const sl_meta *meta,
                             const sl_slu_tensor *tensors, size_t n_tensor, sl_error *err);
sl_status sl_slu_writer_data(sl_slu_writer *writer, const void *data, uint64_t n_bytes, sl_error *err);
sl_status sl_slu_writer_finish(sl_slu_writer *writer, sl_error *err); /* always releases the writer */
void sl_slu_writer_abort(sl_slu_writer *writer);                      /* NULL is fine */

#endif
