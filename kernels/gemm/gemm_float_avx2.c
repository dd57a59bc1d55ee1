/* Products with float weights, eight lanes: see gemm_float_body.h. */
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile with -mavx2 -mfma -mf16c"
#endif
#include "kernels/prototypes.h"
#include "kernels/simd/simd_avx2.h"

#include "kernels/gemm/gemm_float_body.h"
