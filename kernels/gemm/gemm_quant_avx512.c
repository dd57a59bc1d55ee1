/* Products with q8 and q4 weights, AVX-512 without VNNI: see gemm_quant_avx512_body.h. */
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "compile with -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
#include "kernels/gemm/gemm_quant_avx512_body.h"

DEFINE_QUANT_GEMM(q8, false, avx512)
DEFINE_QUANT_GEMM(q4, true, avx512)
