/* The product of few rows on the matrix units (gemv_mma_body.h) for every type of weights. */
#include "kernels/gemm/gemv_mma_body.h"

int sl_gemv_mma_blocks_cuda(const sl_pair_args &a, sl_cuda_stream stream) {
    switch (a.first.p.type) {
    case SL_F32: return launch<SL_F32>(a, stream);
    case SL_F16: return launch<SL_F16>(a, stream);
    case SL_BF16: return launch<SL_BF16>(a, stream);
    case SL_Q8: return launch<SL_Q8>(a, stream);
    default: return launch<SL_Q4>(a, stream);
    }
}
