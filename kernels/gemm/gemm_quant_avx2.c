/* Products with q8 and q4 weights in 256-bit vectors.
 *
 * A tile is 8 rows x 1, 2 or 4 tokens, a step one group, a unit one of its two blocks. Four rows are transposed
 * by dwords within 128-bit lanes, so that register j holds bytes 4 j .. 4 j + 3 of 16 elements of all four rows
 * side by side; the inputs need only repeat one dword in each lane. The dot products leave the sums over 16
 * elements of four rows in each half; one addition across halves completes the block for all 8 rows, and
 * lane r of a token's accumulator is row r.
 *
 * maddubs multiplies unsigned by signed bytes and adds pairs into int16. q4 is offset by 8 (the sums start
 * from 8 times minus the sum of the inputs, which activation rows carry), and four pairs of at most
 * 15 * 127 * 2 fit; q8 moves the sign of the weights to the inputs and widens each pair (127 * 127 * 2). */
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile with -mavx2 -mfma -mf16c"
#endif
#include "kernels/prototypes.h"

#include <immintrin.h>

#include "kernels/gemm/gemm_tiles.h"

#define SL_INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 8, MAX_TOKENS = 4 };

/* Four rows of dwords within 128-bit lanes: out[j] takes dword j of rows 0, 1, 2, 3. */
SL_INLINE void transpose(const __m256i *in, __m256i *out) {
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

/* 32 bytes of each of four rows */
SL_INLINE void load_rows(const char *const *row, size_t offset, __m256i *turned) {
    __m256i bytes[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) bytes[r] = _mm256_loadu_si256((const __m256i *)(row[r] + offset));
    transpose(bytes, turned);
}

/* The two f16 scales of a group for four rows: block 0 of the rows, then block 1. */
SL_INLINE __m128i load_scales(const char *const *row, size_t offset) {
    __m128i s[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) s[r] = _mm_loadu_si32(row[r] + offset);
    return _mm_unpacklo_epi32(_mm_unpacklo_epi16(s[0], s[1]), _mm_unpacklo_epi16(s[2], s[3]));
}

SL_INLINE __m256i dot_q4(const __m256i *q, const __m256i *x, __m256i sums) {
    __m256i pairs = _mm256_maddubs_epi16(q[0], x[0]);
#pragma GCC unroll 3
    for (int j = 1; j < 4; j++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(q[j], x[j]));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

SL_INLINE __m256i dot_q8(const __m256i *q, const __m256i *x) {
    __m256i sums = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q[j]), _mm256_sign_epi8(x[j], q[j]));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return sums;
}

/* Adds block b (0 or 1 of a group) of all 8 rows for one token; x: its activation row at this group. */
SL_INLINE __m256 add_block(bool is_q4, __m256i (*q)[4], __m256 w_scale, const char *x, const char *sums,
                           float x_scale, __m256 acc) {
    const __m256i in = _mm256_loadu_si256((const __m256i *)x);
    const __m256i dword[4] = { _mm256_shuffle_epi32(in, 0x00), _mm256_shuffle_epi32(in, 0x55),
                               _mm256_shuffle_epi32(in, 0xaa), _mm256_shuffle_epi32(in, 0xff) };
    const __m256i start = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)sums), 3);
    const __m256i a = is_q4 ? dot_q4(q[0], dword, start) : dot_q8(q[0], dword);
    const __m256i b = is_q4 ? dot_q4(q[1], dword, start) : dot_q8(q[1], dword);
    const __m256i first = _mm256_permute2x128_si256(a, b, 0x20), second = _mm256_permute2x128_si256(a, b, 0x31);
    const __m256i whole = _mm256_add_epi32(first, second);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(w_scale, _mm256_set1_ps(x_scale)), acc);
}

/* Adds group g for all tokens. */
SL_INLINE void add_group(bool is_q4, const char *const *row, const char *const *x, size_t n_group, size_t g,
                         size_t n_tok, __m256 *acc) {
    const __m256i low = _mm256_set1_epi8(15);
    const size_t scales = (is_q4 ? 32 : 64) * n_group + 4 * g;
    const __m128i s[2] = { load_scales(row, scales), load_scales(row + 4, scales) };
    __m256i q[2][4], turned[2][4];
    for (int side = 0; is_q4 && side < 2; side++) load_rows(row + 4 * side, 32 * g, turned[side]);
#pragma GCC unroll 2
    for (size_t b = 0; b < 2; b++) {
#pragma GCC unroll 2
        for (int side = 0; side < 2; side++) {
            if (!is_q4) load_rows(row + 4 * side, 64 * g + 32 * b, q[side]);
            for (int j = 0; is_q4 && j < 4; j++) {
                q[side][j] = _mm256_and_si256(b ? _mm256_srli_epi16(turned[side][j], 4) : turned[side][j], low);
            }
        }
        const __m128i halves = b ? _mm_unpackhi_epi64(s[0], s[1]) : _mm_unpacklo_epi64(s[0], s[1]);
        const __m256 w_scale = _mm256_cvtph_ps(halves);
#pragma GCC unroll 4
        for (size_t t = 0; t < n_tok; t++) {
            const float *x_scale = (const float *)(x[t] + 128 * n_group) + 2 * g + b;
            acc[t] = add_block(is_q4, q, w_scale, x[t] + 64 * g + 32 * b, x[t] + 64 * n_group + 64 * g + 32 * b,
                               *x_scale, acc[t]);
        }
    }
}

/* Rows past n_row repeat the last and are not stored. */
SL_INLINE void quant_tile(bool is_q4, size_t n_tok, const operands *o, size_t n_row) {
    const size_t n_group = sl_groups(o->k), group_bytes = is_q4 ? 36 : 68;
    const char *row[TILE_ROWS], *x[MAX_TOKENS];
    __m256 acc[MAX_TOKENS];
    for (size_t r = 0; r < TILE_ROWS; r++) row[r] = o->w + (r < n_row ? r : n_row - 1) * o->w_stride;
    for (size_t t = 0; t < n_tok; t++) x[t] = o->x + t * o->x_stride;
#pragma GCC unroll 4
    for (size_t t = 0; t < n_tok; t++) acc[t] = _mm256_setzero_ps();
    for (size_t g = 0; g < n_group; g++) {
        fetch_ahead(o, g * group_bytes * TILE_ROWS, group_bytes * TILE_ROWS);
        add_group(is_q4, row, x, n_group, g, n_tok, acc);
    }
    for (size_t t = 0; t < n_tok; t++) {
        float out[TILE_ROWS];
        _mm256_storeu_ps(out, acc[t]);
        for (size_t r = 0; r < n_row; r++) o->y[t * o->y_stride + r] = out[r];
    }
}

#define DEFINE_QUANT_GEMM(name, is_q4)                                                                       \
    static void name##_one(const operands *o, size_t n_row) { quant_tile(is_q4, 1, o, n_row); }              \
    static void name##_two(const operands *o, size_t n_row) { quant_tile(is_q4, 2, o, n_row); }              \
    static void name##_four(const operands *o, size_t n_row) { quant_tile(is_q4, 4, o, n_row); }             \
    void sl_gemm_##name##_avx2(const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes,   \
                               float *y, size_t y_stride, size_t n_row, size_t n_tok, size_t k) {            \
        const operands o = { w, x, y, w_stride_bytes, x_stride_bytes, y_stride, k, true,                     \
                             sl_cpu_fetches_to_first() };                                                    \
        static const tile_set set = { 3, { name##_one, name##_two, name##_four } };                          \
        walk_tiles(&o, n_row, n_tok, TILE_ROWS, &set);                                                       \
    }

DEFINE_QUANT_GEMM(q8, false)
DEFINE_QUANT_GEMM(q4, true)
