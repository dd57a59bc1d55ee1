/* Broken CUDA kernels: one plain product, a thread per sum, and one plain expansion, each with one defect.
 * Without a defect they pass every check, so that it is the defect which is caught. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"

namespace {

enum { N_THREAD = 64 };
enum defect { SOUND, TAIL, ONE_SCALE, ROWS_MIXED, NOT_COUNTED, ORDER, ROUNDED_DOWN, NO_RHO, PAST_END };

struct mutant_args {
    sl_product_args p;
    defect d;
};

template <sl_type type> __device__ float weight(const unsigned char *row, uint32_t k, uint32_t i, defect d) {
    const uint32_t groups = (k + SL_GROUP - 1) / SL_GROUP;
    return sl_weight_quant<type>(row, i) * sl_weight_scale<type>(row, groups, d == ONE_SCALE ? 0 : i);
}

__device__ float weight_of(sl_type type, const unsigned char *row, uint32_t k, uint32_t i, defect d) {
    switch (type) {
    case SL_F32: return weight<SL_F32>(row, k, i, d);
    case SL_F16: return weight<SL_F16>(row, k, i, d);
    case SL_BF16: return weight<SL_BF16>(row, k, i, d);
    case SL_Q8: return weight<SL_Q8>(row, k, i, d);
    default: return weight<SL_Q4>(row, k, i, d);
    }
}

__device__ float input(const sl_product_args &p, uint32_t t, uint32_t i) {
    const size_t at = t * p.x_stride + i;
    return p.act == SL_ACT_F32 ? ((const float *)p.x)[at] : sl_load((const sl_f16 *)p.x + at);
}

__device__ float product(const sl_product_args &p, uint32_t t, uint32_t r, uint32_t n, defect d) {
    const unsigned char *row =
        (const unsigned char *)p.w + (d == ROWS_MIXED && r > 0 ? r - 1 : r) * p.w_row_bytes;
    const uint32_t n_used = d == TAIL && p.k > 8 ? p.k / 8 * 8 : d == PAST_END ? (p.k + 1) / 2 * 2 : p.k;
    float sum = 0;
    for (uint32_t i = 0; i < n_used; i++) {
        const uint32_t at = d == ORDER && n > 1 ? n_used - 1 - i : i;
        const float w = weight_of(p.type, row, p.k, at, d);
        sum = fmaf(p.act == SL_ACT_F32 ? w : sl_half_to_float(sl_float_to_f16(w)), input(p, t, at), sum);
    }
    return sum;
}

__global__ void product_kernel(mutant_args a) {
    sl_begin();
    const uint32_t n = a.d == NOT_COUNTED ? a.p.rows.max : sl_row_count(a.p.rows);
    const uint32_t r = blockIdx.x * N_THREAD + threadIdx.x;
    for (uint32_t t = 0; t < n && r < a.p.n_row; t++) {
        float sum = product(a.p, t, r, n, a.d);
        if (a.d == ROUNDED_DOWN) sum -= fabsf(sum) * 0x1p-11f;
        if (a.d == NO_RHO) a.p.rho = nullptr;
        sl_put_sum(a.p, t, r, r, sum);
    }
}

int launch(const sl_product_args *args, defect d, sl_cuda_stream stream) {
    const mutant_args a = {*args, d};
    return sl_launch(product_kernel, dim3((args->n_row + N_THREAD - 1) / N_THREAD), dim3(N_THREAD), 0, stream,
                     a);
}

struct expand_args {
    sl_expand_args e;
    defect d;
};

__global__ void expand_kernel(expand_args a) {
    sl_begin();
    const sl_expand_args &e = a.e;
    for (uint32_t r = threadIdx.x; r < e.n_row; r += N_THREAD) {
        for (uint32_t i = 0; i < e.k; i++) {
            float v = weight_of(e.type, (const unsigned char *)e.w + r * e.w_row_bytes, e.k, i, a.d);
            if (a.d == ROUNDED_DOWN) v -= fabsf(v) * 0x1p-11f;
            if (e.act == SL_ACT_F32) ((float *)e.dst)[r * e.dst_stride + i] = v;
            else sl_store((sl_f16 *)e.dst + r * e.dst_stride + i, v);
        }
    }
}

int launch(const sl_expand_args *args, defect d, sl_cuda_stream stream) {
    return sl_launch(expand_kernel, dim3(1), dim3(N_THREAD), 0, stream, expand_args{*args, d});
}

} // namespace

#define DEFINE_MUTANT(name, args_type, defect)                                                                \
    extern "C" int name(const args_type *args, sl_cuda_stream stream) { return launch(args, defect, stream); }

/* With all its parts in order; not registered. */
DEFINE_MUTANT(sl_sound_product, sl_product_args, SOUND)
DEFINE_MUTANT(sl_sound_expand, sl_expand_args, SOUND)

/* The elements after the last whole eight are left out. */
DEFINE_MUTANT(mutant_cuda_gemv_tail, sl_product_args, TAIL)
/* The first scale of a row serves for all. */
DEFINE_MUTANT(mutant_cuda_gemv_scale, sl_product_args, ONE_SCALE)
/* The count of rows on the device is not read, so that weights are without a row to use them. */
DEFINE_MUTANT(mutant_cuda_gemv_not_counted, sl_product_args, NOT_COUNTED)
/* Sums for several rows take another order than that for one. */
DEFINE_MUTANT(mutant_cuda_gemv_order, sl_product_args, ORDER)
/* An odd row is read to an even end. */
DEFINE_MUTANT(mutant_cuda_gemv_past_end, sl_product_args, PAST_END)
/* Each row but the first has its neighbour's weights. */
DEFINE_MUTANT(mutant_cuda_gemm_rows, sl_product_args, ROWS_MIXED)
/* Rounded downwards by half a unit of f16. */
DEFINE_MUTANT(mutant_cuda_gemm_rounded_down, sl_product_args, ROUNDED_DOWN)
/* What is added is not scaled. */
DEFINE_MUTANT(mutant_cuda_gemm_rho, sl_product_args, NO_RHO)
DEFINE_MUTANT(mutant_cuda_expand_scale, sl_expand_args, ONE_SCALE)
DEFINE_MUTANT(mutant_cuda_expand_rounded_down, sl_expand_args, ROUNDED_DOWN)
