/* Vectors of SL_LANES floats, AVX-512 (F, BW, DQ, VL): the same names and promises as simd_avx2.h. */
#ifndef SL_KERNELS_SIMD_AVX512_H
#define SL_KERNELS_SIMD_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SL_ISA(name) name##_avx512
#define SL_INLINE static inline __attribute__((always_inline, unused))
enum { SL_LANES = 16 };

typedef __m512 vf;
typedef __mmask16 vmask;

SL_INLINE vf v_set1(float x) { return _mm512_set1_ps(x); }
SL_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
SL_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
SL_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SL_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SL_INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
SL_INLINE vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
SL_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
SL_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
/* if either is NaN, b */
SL_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
SL_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
SL_INLINE vf v_abs(vf a) { return _mm512_abs_ps(a); }
SL_INLINE vf v_minus_abs(vf a) { return _mm512_or_ps(a, _mm512_set1_ps(-0.0f)); }
/* neg where x has its sign bit set, else pos */
SL_INLINE vf v_by_sign(vf x, vf neg, vf pos) {
    return _mm512_mask_mov_ps(pos, _mm512_movepi32_mask(_mm512_castps_si512(x)), neg);
}
SL_INLINE vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* x 2^n for whole n, rounded once */
SL_INLINE vf v_scale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }

/* what lies n bytes behind p will be read soon, or is not there */
SL_INLINE void v_prefetch(const void *p, size_t n) { _mm_prefetch((const char *)((uintptr_t)p + n), _MM_HINT_T0); }
SL_INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
SL_INLINE void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }

/* the first n lanes, n <= SL_LANES */
SL_INLINE vmask v_mask(size_t n) { return (vmask)((1u << n) - 1); }
SL_INLINE vf v_load_n(const float *p, size_t n) {
    return n == SL_LANES ? v_load(p) : _mm512_maskz_loadu_ps(v_mask(n), p);
}
SL_INLINE void v_store_n(float *p, vf x, size_t n) {
    if (n == SL_LANES) v_store(p, x);
    else _mm512_mask_storeu_ps(p, v_mask(n), x);
}
SL_INLINE vf v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SL_INLINE vf v_load_f16_n(const uint16_t *p, size_t n) {
    return n == SL_LANES ? v_load_f16(p) : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_mask(n), p));
}

SL_INLINE vf v_load_bf16_n(const uint16_t *p, size_t n) {
    const __m256i half = n == SL_LANES ? _mm256_loadu_si256((const __m256i *)p) : _mm256_maskz_loadu_epi16(v_mask(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
SL_INLINE vf v_load_bf16(const uint16_t *p) { return v_load_bf16_n(p, SL_LANES); }

/* to f16, to nearest even; the first n lanes */
SL_INLINE void v_store_f16_n(uint16_t *p, vf x, size_t n) {
    const __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (n == SL_LANES) _mm256_storeu_si256((__m256i *)p, half);
    else _mm256_mask_storeu_epi16(p, v_mask(n), half);
}
/* int8 to floats and whole floats in -128 .. 127 back */
SL_INLINE vf v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
SL_INLINE void v_store_i8(int8_t *p, vf whole) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole)));
}
/* the low (shift 0) or high (4) halves of bytes, 0 .. 15 */
SL_INLINE vf v_load_u4(const uint8_t *p, int shift) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(_mm512_and_epi32(_mm512_srli_epi32(wide, (unsigned)shift), _mm512_set1_epi32(15)));
}

/* lanes from .. to - 1 of x, fill in the others */
SL_INLINE vf v_keep(vf x, ptrdiff_t from, ptrdiff_t to, vf fill) {
    const size_t first = from < 0 ? 0 : from > SL_LANES ? SL_LANES : (size_t)from;
    const size_t end = to < 0 ? 0 : to > SL_LANES ? SL_LANES : (size_t)to;
    return _mm512_mask_mov_ps(fill, (vmask)(v_mask(end) & ~v_mask(first)), x);
}

SL_INLINE float v_first(vf x) { return _mm512_cvtss_f32(x); }
/* Sum and maximum of all lanes, always in the same tree. */
SL_INLINE float v_sum(vf x) { return _mm512_reduce_add_ps(x); }
SL_INLINE float v_top(vf x) { return _mm512_reduce_max_ps(x); }

/* Neighbouring pairs of a and b added, within each 128-bit lane: a01 a23 b01 b23. */
SL_INLINE vf v_add_pairs(vf a, vf b) {
    return v_add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
/* Lane j of the result is the sum of the lanes of x[j], the same tree for each: pairs inside 128-bit lanes,
 * then lanes 0 + 1 and 2 + 3, then those two. */
SL_INLINE vf v_sum_each(const vf x[SL_LANES]) {
    const vf a = v_add_pairs(v_add_pairs(x[0], x[1]), v_add_pairs(x[2], x[3]));
    const vf b = v_add_pairs(v_add_pairs(x[4], x[5]), v_add_pairs(x[6], x[7]));
    const vf c = v_add_pairs(v_add_pairs(x[8], x[9]), v_add_pairs(x[10], x[11]));
    const vf d = v_add_pairs(v_add_pairs(x[12], x[13]), v_add_pairs(x[14], x[15]));
    const vf ab = v_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    const vf cd = v_add(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
    return v_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

#include "kernels/simd/vmath.h"

#endif
