#include "file/repack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void sl_repack_init(sl_repack *r, sl_slu_writer *writer, uint64_t all, const sl_convert_params *params) {
    *r = (sl_repack){ .writer = writer, .all = all, .params = params };
    r->kernels = sl_kernels_select(SL_CPU_REF); /* expanding is exact in every variant; packing takes longer */
}

void sl_repack_release(sl_repack *r) {
    free(r->values);
    sl_buf_release(&r->packed);
}

static void expand(const sl_repack *r, sl_type from, const void *row, size_t n) {
    const sl_expand_fn fn[SL_N_TYPE] = { r->kernels.expand_f32, r->kernels.expand_f16, r->kernels.expand_bf16,
                                         r->kernels.expand_q8, r->kernels.expand_q4 };
    fn[from](row, n, r->values);
}

/* The largest magnitude that does not become infinite: 65504 in f16, which is also the type of the scales of
 * q8 and q4 (so the bound there is safe), and 0x1.FEp127 in bf16. */
static float type_limit(sl_type type) {
    if (type == SL_F32) return 3.40282347e38f;
    return type == SL_BF16 ? 3.38953139e38f : 65504.0f;
}

static sl_status check_values(const float *x, size_t n, const char *name, sl_type to, sl_error *err) {
    sl_name_buf buf;
    const float limit = type_limit(to);
    for (size_t i = 0; i < n; i++) {
        if (fabsf(x[i]) <= limit) continue;
        if (!isfinite(x[i]))
            return sl_fail(err, SL_E_FORMAT, "tensor %s holds %s, expected finite values", sl_name(name, &buf),
                           isnan(x[i]) ? "NaN" : "an infinite value");
        return sl_fail(err, SL_E_FORMAT, "tensor %s holds %g, which does not fit in %s (at most %g)",
                       sl_name(name, &buf),
                       (double)x[i], sl_type_name(to), (double)limit);
    }
    return SL_OK;
}

static sl_status reserve(sl_repack *r, size_t width, size_t packed_bytes, sl_error *err) {
    bool ok = true;
    if (width > r->width_cap) {
        free(r->values);
        r->width_cap = 0;
        r->values = sl_calloc(width, sizeof(float));
        if (r->values) r->width_cap = width;
        ok = r->values;
    }
    ok = ok && sl_grow((void **)&r->packed.data, &r->packed.cap, packed_bytes, 1);
    return ok ? SL_OK : sl_fail(err, SL_E_MEMORY, "out of memory for a row of %zu values", width);
}

sl_status sl_repack_rows(sl_repack *r, const char *name, const void *rows, sl_type from, sl_type to,
                         uint64_t n_row,
                         uint64_t width, sl_error *err) {
    const size_t in_bytes = (size_t)sl_row_bytes(from, width), out_bytes = (size_t)sl_row_bytes(to, width);
    SL_TRY(reserve(r, (size_t)width, out_bytes * (size_t)n_row, err));
    for (size_t i = 0; i < n_row; i++) {
        const uint8_t *row = (const uint8_t *)rows + i * in_bytes;
        expand(r, from, row, (size_t)width);
        SL_TRY(check_values(r->values, (size_t)width, name, to, err));
        if (from == to) memcpy(r->packed.data + i * out_bytes, row, out_bytes);
        else sl_pack_row(to, r->values, (size_t)width, r->packed.data + i * out_bytes);
    }
    SL_TRY(sl_slu_writer_data(r->writer, r->packed.data, n_row * out_bytes, err));
    r->done += n_row * in_bytes;
    if (r->params->progress && !r->params->progress(r->params->arg, r->done, r->all))
        return sl_fail(err, SL_E_IO, "interrupted");
    return SL_OK;
}

sl_status sl_repack_tensors(const sl_schema *schema, sl_type type, sl_slu_tensor **tensors, sl_error *err) {
    SL_TRY(sl_alloc((void **)tensors, schema->n, sizeof **tensors, "the list of tensors", err));
    for (size_t i = 0; i < schema->n; i++) {
        const sl_tensor_spec *spec = &schema->specs[i];
        sl_slu_tensor *t = &(*tensors)[i];
        memcpy(t->name, spec->name, sizeof t->name);
        memcpy(t->shape, spec->shape, sizeof t->shape);
        t->n_dim = spec->n_dim;
        t->type = sl_class_type(spec->class_, type);
    }
    return SL_OK;
}

sl_status sl_repack_keys(sl_meta *meta, sl_type type, sl_error *err) {
    SL_TRY(sl_meta_set_string(meta, "sluice.type", sl_type_name(type), err));
    return sl_meta_set_string(meta, "sluice.writer", "sluice " SLUICE_VERSION, err);
}
