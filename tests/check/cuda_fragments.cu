/* See cuda_fragments.h. */
#include "cuda_fragments.h"
#include "kernels/approx_cuda.h"
#include "kernels/mma_cuda.h"

namespace {

__global__ void __launch_bounds__(32) fragments_kernel(sl_fragments_args a) {
    sl_begin();
    __shared__ uint4 rows[N_FRAGMENT_ROW];
    const uint32_t lane = threadIdx.x;
    for (uint32_t i = lane; i < N_FRAGMENT_ROW; i += 32) {
        const uint4 *from = reinterpret_cast<const uint4 *>(a.rows) + i;
        if (a.n_valid == N_FRAGMENT_ROW) sl_copy_async16(rows + i, from);
        else sl_copy_async16_zero(rows + i, from, i < a.n_valid);
    }
    sl_copy_async_commit();

    float d[4];
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; i++) d[i] = a.d[4 * lane + i], fa[i] = a.a[4 * lane + i];
    for (int i = 0; i < 2; i++) fb[i] = a.b[2 * lane + i];
    if (a.f16) sl_mma_f16(d, fa, fb);
    else sl_mma_bf16(d, fa, fb);

    sl_copy_async_wait<0>();
    __syncthreads();
    uint32_t plain[4], turned[4];
    sl_mma_load(plain, rows + a.row[lane]);
    sl_mma_load_transposed(turned, rows + a.row[lane]);
    for (int i = 0; i < 4; i++) {
        a.d[4 * lane + i] = d[i];
        a.loaded[4 * lane + i] = plain[i];
        a.transposed[4 * lane + i] = turned[i];
    }
    a.f16_pair[lane] = sl_pack_f16(a.pair[2 * lane], a.pair[2 * lane + 1]);
    a.power[lane] = sl_exp2_approx(a.exponent[lane]);
    a.reciprocal[lane] = sl_reciprocal_approx(1 + fabsf(a.exponent[lane]));
    a.half_pair[lane] = sl_pack_half(a.pair[2 * lane], a.pair[2 * lane + 1]);
}

} // namespace

int sl_fragments_cuda(const sl_fragments_args *args, sl_cuda_stream stream) {
    return sl_launch(fragments_kernel, dim3(1), dim3(32), 0, stream, *args);
}
