/* Quantisation, expansion and narrowing, sixteen lanes: see quant_body.h. */
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "compile with -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
#include "kernels/prototypes.h"
#include "kernels/simd/simd_avx512.h"

#include "kernels/quant/quant_body.h"
