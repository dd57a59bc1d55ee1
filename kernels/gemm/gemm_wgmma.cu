/* The product by warpgroups (gemm_mma_body.h), for devices of compute capability 9.0. Compiled for sm_90a only. */
#include "kernels/gemm/gemm_mma_body.h"

int sl_gemm_wgmma_blocks_cuda(const sl_blocks_args &a, sl_cuda_stream stream) {
    switch (a.p.type) {
    case SL_F32: return launch<SL_F32, group_tiles<SL_F32>>(a, stream);
    case SL_F16: return launch<SL_F16, group_tiles<SL_F16>>(a, stream);
    case SL_BF16: return launch<SL_BF16, group_tiles<SL_BF16>>(a, stream);
    case SL_Q8: return launch<SL_Q8, group_tiles<SL_Q8>>(a, stream);
    default: return launch<SL_Q4, group_tiles<SL_Q4>>(a, stream);
    }
}
