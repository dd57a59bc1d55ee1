/* Broken products on the matrix units: the kernel's own source, each with one thing replaced. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"
#include "kernels/mma_cuda.h"
#include "kernels/wgmma_cuda.h"

/* Threads do not wait for each other. */
#define __syncthreads() ((void)0)
namespace no_barrier {
#include "kernels/gemm/gemm_mma_body.h"
}
namespace few_no_barrier {
#include "kernels/gemm/gemv_mma_body.h"
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

/* Weights are cut to f16, not rounded. */
namespace {
__device__ float cut_to_f16(float v) { return __uint_as_float(__float_as_uint(v) & ~0x1fffu); }
} // namespace
#define sl_pack_f16(low, high) sl_pack_f16(cut_to_f16(low), cut_to_f16(high))
namespace cut {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_pack_f16

/* What is too large becomes infinite. */
#define sl_pack_f16 sl_pack_half
namespace infinite {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_pack_f16

/* Fragments of x and w as they would be of transposed tiles. */
#define sl_mma_load sl_mma_load_transposed
namespace turned {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_mma_load

/* Rows beyond the count are computed and written. */
#define sl_row_count(rows) ((rows).max)
namespace all_rows {
#include "kernels/gemm/gemm_mma_body.h"
}
namespace few_all_rows {
#include "kernels/gemm/gemv_mma_body.h"
}
#undef sl_row_count

/* A warpgroup does not wait for the products of the step before: their tiles are written while they are read. */
namespace {
template <int n> __device__ void group_wait_less() { sl_wgmma_wait<n == 0 ? 0 : n + 2>(); }
} // namespace
#define sl_wgmma_wait group_wait_less
namespace group_no_wait {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_wgmma_wait

/* Nor for the last ones, before their sums leave. */
namespace {
template <int n> __device__ void group_wait_for_none() { if (n) sl_wgmma_wait<n>(); }
} // namespace
#define sl_wgmma_wait group_wait_for_none
namespace group_too_early {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_wgmma_wait

/* Every part of a step is its first. */
#define sl_wgmma_f16(d, x, w) sl_wgmma_f16(d, (x) & ~7ull, (w) & ~7ull)
namespace group_first_part {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_wgmma_f16

/* All warpgroups of a block take the first one's rows. */
namespace {
__device__ uint64_t first_tile(const void *tile) {
    const size_t at = static_cast<const char *>(tile) - static_cast<const char *>(sl_device_shared());
    return sl_wgmma_tile(static_cast<const char *>(tile) - (at % (32 << 10) == 8 << 10 ? 8 << 10 : 0));
}
} // namespace
#define sl_wgmma_tile first_tile
namespace group_same_rows {
#include "kernels/gemm/gemm_mma_body.h"
}
#undef sl_wgmma_tile

/* The second part of each step is the first once more. */
namespace {
__device__ void multiply_first(float d[4], const uint32_t a[4], const uint32_t *b, bool second) {
    sl_mma_f16(d, a, second ? b - 2 : b);
}
} // namespace
#define sl_mma_f16(d, a, b) multiply_first(d, a, b, half != 0)
namespace few_first_half {
#include "kernels/gemm/gemv_mma_body.h"
}
#undef sl_mma_f16

/* Each for one type of weights, so that they compile in reasonable time. */
#define DEFINE_MUTANT(name, weights)                                                                           \
    extern "C" int mutant_cuda_units_##name(const sl_product_args *args, sl_cuda_stream stream) {              \
        const bool broken = args->act == SL_ACT_F16 && args->type == weights;                                 \
        return broken ? name::launch<weights>({*args, 1, 0, 0}, stream) : sl_gemm_cuda(args, stream);          \
    }
#define DEFINE_GROUP_MUTANT(name, weights)                                                                     \
    extern "C" int mutant_cuda_units_##name(const sl_product_args *args, sl_cuda_stream stream) {              \
        const bool broken = args->act == SL_ACT_F16 && args->type == weights;                                 \
        return broken ? name::launch<weights, name::group_tiles<weights>>({*args, 1, 0, 0}, stream)            \
                      : sl_gemm_cuda(args, stream);                                                           \
    }
#define DEFINE_FEW_MUTANT(name, weights)                                                                       \
    extern "C" int mutant_cuda_units_##name(const sl_product_args *args, sl_cuda_stream stream) {              \
        const bool broken = args->act == SL_ACT_F16 && args->type == weights;                                 \
        const sl_pair_args pair = sl_pair_of({*args, 1, 0, 0}, nullptr, nullptr);                              \
        return broken ? name::launch<weights>(pair, stream) : sl_gemv_cuda(args, stream);                      \
    }
DEFINE_MUTANT(no_barrier, SL_F16)
DEFINE_MUTANT(no_wait, SL_F16)
DEFINE_MUTANT(cut, SL_Q8)
DEFINE_MUTANT(infinite, SL_Q4)
DEFINE_MUTANT(turned, SL_F16)
DEFINE_MUTANT(all_rows, SL_F16)
DEFINE_GROUP_MUTANT(group_no_wait, SL_F16)
DEFINE_GROUP_MUTANT(group_too_early, SL_Q8)
DEFINE_GROUP_MUTANT(group_first_part, SL_F16)
DEFINE_GROUP_MUTANT(group_same_rows, SL_BF16)
DEFINE_FEW_MUTANT(few_no_barrier, SL_F16)
DEFINE_FEW_MUTANT(few_all_rows, SL_Q4)
DEFINE_FEW_MUTANT(few_first_half, SL_Q8)
