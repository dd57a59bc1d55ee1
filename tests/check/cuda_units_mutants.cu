/* Broken products on the matrix units: the kernel's own source, each with one thing replaced. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"
#include "kernels/mma_cuda.h"

/* Threads do not wait for each other. */
#define __syncthreads() ((void)0)
namespace no_barrier {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef __syncthreads

/* The last copies may still be under way when their tile is multiplied. */
namespace {
template <int n> __device__ void wait_less() { sl_copy_async_wait<n == 0 ? 0 : n + 1>(); }
} // namespace
#define sl_copy_async_wait wait_less
namespace no_wait {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_copy_async_wait

/* Weights are cut to bf16, not rounded. */
#define sl_pack_bf16(low, high) (__float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u))
namespace cut {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_pack_bf16

/* Fragments of x and w as they would be of transposed tiles. */
#define sl_mma_load sl_mma_load_transposed
namespace turned {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_mma_load

/* Rows beyond the count are computed and written. */
#define sl_rows_count(rows) ((rows).max)
namespace all_rows {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_rows_count

/* Each for one type of weights, so that they compile in reasonable time. */
#define DEFINE_MUTANT(name, weights)                                                                           \
    extern "C" int mutant_cuda_units_##name(const sl_product_args *args, sl_cuda_stream stream) {              \
        const bool broken = args->act == SL_ACT_BF16 && args->type == weights;                                 \
        return broken ? name::launch<weights>({*args, 1, 0, 0}, stream) : sl_gemm_cuda(args, stream);          \
    }
DEFINE_MUTANT(no_barrier, SL_BF16)
DEFINE_MUTANT(no_wait, SL_BF16)
DEFINE_MUTANT(cut, SL_Q8)
DEFINE_MUTANT(turned, SL_BF16)
DEFINE_MUTANT(all_rows, SL_BF16)
