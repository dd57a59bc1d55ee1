/* Products with q8 and q4 weights, AVX-512 with VNNI: see gemm_quant_avx512_body.h. */
#if !defined(__AVX512VL__) || !defined(__AVX512BW__) || !defined(__AVX512VNNI__)
#error "compile with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"
#endif
#include "kernels/gemm/gemm_quant_avx512_body.h"

DEFINE_QUANT_GEMM(q8, false, vnni)
DEFINE_QUANT_GEMM(q4, true, vnni)
