/* Rows of one element type to rows of another, into a .slu being written: what convert and quantize share. */
#ifndef SL_FILE_REPACK_H
#define SL_FILE_REPACK_H

#include "file/file.h"
#include "kernels/kernels.h"

typedef struct sl_repack {
    sl_slu_writer *writer;
    sl_kernels kernels;
    float *values;            /* one row */
    sl_buf packed;            /* rows not yet written */
    size_t width_cap;
    uint64_t done, all;       /* input bytes, for progress */
    const sl_convert_params *params;
} sl_repack;

/* Rows of at most about this many bytes are handed over at a time. */
enum { SL_REPACK_PIECE = 1 << 20 };

void sl_repack_init(sl_repack *repack, sl_slu_writer *writer, uint64_t all, const sl_convert_params *params);
/* n_row rows of width elements of the tensor called name, from one type to another. A value that is not finite
 * or does not fit in the new type is refused by the tensor's name. The same type is copied. */
sl_status sl_repack_rows(sl_repack *repack, const char *name, const void *rows, sl_type from, sl_type to,
                         uint64_t n_row, uint64_t width, sl_error *err);
void sl_repack_release(sl_repack *repack);

/* The schema as the list of tensors of a .slu of this type; malloc'd. */
sl_status sl_repack_tensors(const sl_schema *schema, sl_type type, sl_slu_tensor **tensors, sl_error *err);
/* Sets our own keys: type and writer. */
sl_status sl_repack_keys(sl_meta *meta, sl_type type, sl_error *err);

#endif
