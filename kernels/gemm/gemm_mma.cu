/* The product on the matrix units (gemm_mma_body.h) for every type of weights. */
#include "kernels/gemm/gemm_mma_body.h"

#ifdef SL_HAS_90A
/* Whether the current device is one of those that gemm_wgmma.cu is compiled for. */
static cudaError_t has_warpgroups(bool *has) {
    int device = 0, major = 0, minor = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *has = major == 9 && minor == 0;
    return status;
}
#endif

int sl_gemm_mma_blocks_cuda(const sl_blocks_args &a, sl_cuda_stream stream) {
#ifdef SL_HAS_90A
    bool by_group;
    const cudaError_t status = has_warpgroups(&by_group);
    if (status != cudaSuccess) return static_cast<int>(status);
    if (by_group) return sl_gemm_wgmma_blocks_cuda(a, stream);
#endif
    switch (a.p.type) {
    case SL_F32: return launch<SL_F32>(a, stream);
    case SL_F16: return launch<SL_F16>(a, stream);
    case SL_BF16: return launch<SL_BF16>(a, stream);
    case SL_Q8: return launch<SL_Q8>(a, stream);
    default: return launch<SL_Q4>(a, stream);
    }
}
