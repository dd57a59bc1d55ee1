/* Rows of an embedding table, expanded to f32: one block per token. */
#include "kernels/cuda_kernels.h"
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"

namespace {

enum { N_THREAD = 256 };

template <sl_type type>
__device__ __forceinline__ void expand_row(const sl_embed_args &a, const unsigned char *row, float *x) {
    const uint32_t groups = (a.d + SL_GROUP - 1) / SL_GROUP;
    for (uint32_t i = threadIdx.x; i < a.d; i += N_THREAD) x[i] = sl_weight<type>(row, groups, i);
}

__global__ void __launch_bounds__(N_THREAD) embed_kernel(sl_embed_args a) {
    sl_begin();
    const uint32_t t = blockIdx.x;
    if (t >= sl_row_count(a.rows)) return;
    const unsigned char *row = (const unsigned char *)a.table + (size_t)a.tokens[t] * a.table_row_bytes;
    float *x = a.x + t * a.x_stride;
    switch (a.type) {
    case SL_F32: expand_row<SL_F32>(a, row, x); break;
    case SL_F16: expand_row<SL_F16>(a, row, x); break;
    case SL_BF16: expand_row<SL_BF16>(a, row, x); break;
    case SL_Q8: expand_row<SL_Q8>(a, row, x); break;
    default: expand_row<SL_Q4>(a, row, x); break;
    }
}

} // namespace

int sl_embed_cuda(const sl_embed_args *args, sl_cuda_stream stream) {
    return sl_launch(embed_kernel, dim3(args->rows.max), dim3(N_THREAD), 0, stream, *args);
}
