/* Stored weights as plain f32 or f16 rows, for products by another library: eight elements per thread, bound
 * by memory. */
#include "kernels/cuda_kernels.h"
#include "kernels/gemm/weights_cuda.h"

namespace {

enum { N_THREAD = 256 };
constexpr unsigned max_grid_y = 65535;

template <class Y> __device__ __forceinline__ void put8(Y *y, uint32_t n, const float v[8]) {
    if (n >= 8 && (uintptr_t)y % 16 == 0) {
        sl_store4(y, v);
        sl_store4(y + 4, v + 4);
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        if (j < n) sl_store(y + j, v[j]);
    }
}

template <sl_type type> __global__ void __launch_bounds__(N_THREAD) expand_kernel(sl_expand_args a) {
    sl_begin();
    const uint32_t i = (blockIdx.x * N_THREAD + threadIdx.x) * 8, groups = (a.k + SL_GROUP - 1) / SL_GROUP;
    if (i >= a.k) return;
    for (uint32_t r = blockIdx.y; r < a.n_row; r += gridDim.y) {
        float v[8];
        sl_weight8<type>((const unsigned char *)a.w + r * a.w_row_bytes, groups, a.k, i, v);
        const size_t at = r * a.dst_stride + i;
        if (a.act == SL_ACT_F32) put8((float *)a.dst + at, a.k - i, v);
        else put8((sl_f16 *)a.dst + at, a.k - i, v);
    }
}

template <sl_type type> int launch(const sl_expand_args &a, sl_cuda_stream stream) {
    const dim3 grid((a.k + 8 * N_THREAD - 1) / (8 * N_THREAD), a.n_row < max_grid_y ? a.n_row : max_grid_y);
    return sl_launch(expand_kernel<type>, grid, dim3(N_THREAD), 0, stream, a);
}

} // namespace

int sl_expand_cuda(const sl_expand_args *args, sl_cuda_stream stream) {
    switch (args->type) {
    case SL_F32: return launch<SL_F32>(*args, stream);
    case SL_F16: return launch<SL_F16>(*args, stream);
    case SL_BF16: return launch<SL_BF16>(*args, stream);
    case SL_Q8: return launch<SL_Q8>(*args, stream);
    default: return launch<SL_Q4>(*args, stream);
    }
}
