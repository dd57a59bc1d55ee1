/* Vectors of SL_LANES floats, AVX2 with FMA and F16C: the names kernels/<family>/<name>_body.h are written in.
 * simd_avx512.h gives the same names for 16 lanes; a translation unit includes exactly one of them.
 *
 * Partial vectors (v_load_n, v_store_n) never touch memory past n elements; their other lanes are zero. With a
 * constant n = SL_LANES they are plain loads and stores, so one body serves whole vectors and tails, and a
 * channel gets the same operations, hence the same bits, in either. */
#ifndef SL_KERNELS_SIMD_AVX2_H
#define SL_KERNELS_SIMD_AVX2_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SL_ISA(name) name##_avx2
#define SL_INLINE static inline __attribute__((always_inline, unused))
enum { SL_LANES = 8 };

typedef __m256 vf;     /* eight floats */
typedef __m256i vmask; /* a lane is on when its sign bit is set */

SL_INLINE vf v_set1(float x) { return _mm256_set1_ps(x); }
SL_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
SL_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
SL_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SL_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SL_INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
SL_INLINE vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
SL_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }   /* a b + c */
SL_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a b */
/* if either is NaN, b: so that with a constant first NaN passes through */
SL_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
SL_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
SL_INLINE vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
SL_INLINE vf v_minus_abs(vf a) { return _mm256_or_ps(a, _mm256_set1_ps(-0.0f)); }
/* neg where x has its sign bit set, else pos */
SL_INLINE vf v_by_sign(vf x, vf neg, vf pos) { return _mm256_blendv_ps(pos, neg, x); }
SL_INLINE vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* 2^n for whole n in -126 .. 127 */
SL_INLINE vf v_power2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
/* x 2^n for whole n in -252 .. 254, rounded once also where the result is subnormal: two factors, of which
 * the first leaves x normal for the callers' |x| near 1. */
SL_INLINE vf v_scale2(vf x, vf n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return v_mul(v_mul(x, v_power2(half)), v_power2(_mm256_sub_epi32(whole, half)));
}

/* what lies n bytes behind p will be read soon, or is not there */
SL_INLINE void v_prefetch(const void *p, size_t n) { _mm_prefetch((const char *)((uintptr_t)p + n), _MM_HINT_T0); }
SL_INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
SL_INLINE void v_store(float *p, vf x) { _mm256_storeu_ps(p, x); }

/* the first n lanes, n <= SL_LANES */
SL_INLINE vmask v_mask(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SL_INLINE vf v_load_n(const float *p, size_t n) {
    return n == SL_LANES ? v_load(p) : _mm256_maskload_ps(p, v_mask(n));
}
SL_INLINE void v_store_n(float *p, vf x, size_t n) {
    if (n == SL_LANES) v_store(p, x);
    else _mm256_maskstore_ps(p, v_mask(n), x);
}
SL_INLINE vf v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SL_INLINE vf v_load_f16_n(const uint16_t *p, size_t n) {
    if (n == SL_LANES) return v_load_f16(p);
    uint16_t padded[SL_LANES] = { 0 };
    memcpy(padded, p, n * sizeof *p);
    return v_load_f16(padded);
}

SL_INLINE vf v_load_bf16(const uint16_t *p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
SL_INLINE vf v_load_bf16_n(const uint16_t *p, size_t n) {
    if (n == SL_LANES) return v_load_bf16(p);
    uint16_t padded[SL_LANES] = { 0 };
    memcpy(padded, p, n * sizeof *p);
    return v_load_bf16(padded);
}

/* to f16, to nearest even; the first n lanes */
SL_INLINE void v_store_f16_n(uint16_t *p, vf x, size_t n) {
    const __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (n == SL_LANES) {
        _mm_storeu_si128((__m128i *)p, half);
    } else {
        uint16_t all[SL_LANES];
        _mm_storeu_si128((__m128i *)all, half);
        memcpy(p, all, n * sizeof *p);
    }
}
/* int8 to floats and whole floats in -128 .. 127 back */
SL_INLINE vf v_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
SL_INLINE void v_store_i8(int8_t *p, vf whole) {
    const __m256i wide = _mm256_cvtps_epi32(whole);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}
/* the low (shift 0) or high (4) halves of bytes, 0 .. 15 */
SL_INLINE vf v_load_u4(const uint8_t *p, int shift) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(wide, shift), _mm256_set1_epi32(15)));
}

/* lanes from .. to - 1 of x, fill in the others */
SL_INLINE vf v_keep(vf x, ptrdiff_t from, ptrdiff_t to, vf fill) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i on = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)from), lane),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32((int)to), lane));
    return _mm256_blendv_ps(fill, x, _mm256_castsi256_ps(on));
}

SL_INLINE float v_first(vf x) { return _mm256_cvtss_f32(x); }
/* Sum and maximum of all lanes, always in the same tree. */
SL_INLINE float v_sum(vf x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
SL_INLINE float v_top(vf x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* Lane j of the result is the sum of the lanes of x[j], the same tree for each: three rounds of adding
 * neighbours, after which the halves of a register belong to one vector each. */
SL_INLINE vf v_sum_each(const vf x[SL_LANES]) {
    const vf a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const vf b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return v_add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

#include "kernels/simd/vmath.h"

#endif
