/* Products with q8 and q4 weights in 512-bit vectors, for two translation units: with VNNI and without.
 *
 * A tile is 8 rows x 1, 2, 4 or 8 tokens. Four rows are transposed by dwords within 128-bit lanes, so that
 * register j holds bytes 4 j .. 4 j + 3 of 16 elements of all four rows side by side; the inputs need only
 * repeat one dword in each lane. Four dot products then leave, in lane l, the sums over 16 elements of four
 * rows: no horizontal additions, and the transposition serves all tokens of the tile. One addition across
 * lanes completes the blocks of 32 of 2 x 4 rows.
 *
 * A step is two groups (128 elements), two units of 64: for q8 a unit is a group; for q4 it is the low halves
 * of both (the first blocks) or the high halves. A unit holds two blocks of each row, and the accumulator of a
 * token has lanes [rows 0-3: first, second block][rows 4-7: first, second block]; the two are added at the end.
 *
 * vpdpbusd multiplies unsigned by signed bytes: weights are offset by 8 or 128 and the sums start from the
 * offset times minus the sum of the inputs, which activation rows carry. Without VNNI, maddubs adds pairs into
 * int16: four of q4's (at most 15 * 127 * 2 each) fit; q8 moves the sign of the weights to the inputs and
 * widens each pair (127 * 127 * 2). */
#include "kernels/prototypes.h"

#include <immintrin.h>

#include "kernels/gemm/gemm_tiles.h"

#define SL_INLINE static inline __attribute__((always_inline, unused))

enum { TILE_ROWS = 8, MAX_TOKENS = 8 };

/* Quants and scales of 8 rows in one step. */
typedef struct weights {
    __m512i q[2][2][4]; /* [unit][rows 0-3, 4-7][dword] */
    __m512 scale[2];    /* [unit], in the order of the accumulator */
} weights;

#ifdef __AVX512VNNI__
/* sums + the dot products of the bytes of each lane */
SL_INLINE __m512i dot_bytes(bool is_q4, const __m512i *q, const __m512i *x, __m512i sums) {
    (void)is_q4;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sums = _mm512_dpbusd_epi32(sums, q[j], x[j]);
    return sums;
}
enum { Q8_OFFSET_BITS = 7 };
#else
SL_INLINE __m512i dot_bytes(bool is_q4, const __m512i *q, const __m512i *x, __m512i sums) {
    const __m512i ones = _mm512_set1_epi16(1);
    if (is_q4) {
        __m512i pairs = _mm512_maddubs_epi16(q[0], x[0]);
#pragma GCC unroll 3
        for (int j = 1; j < 4; j++) pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(q[j], x[j]));
        return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, ones));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __mmask64 negative = _mm512_movepi8_mask(q[j]);
        const __m512i signed_x = _mm512_mask_sub_epi8(x[j], negative, _mm512_setzero_si512(), x[j]);
        const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(q[j]), signed_x);
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, ones));
    }
    return sums;
}
enum { Q8_OFFSET_BITS = 0 }; /* none */
#endif

/* 64 bytes, or 32 and zeros */
SL_INLINE __m512i load_part(const void *p, bool is_half) {
    return is_half ? _mm512_zextsi256_si512(_mm256_loadu_si256(p)) : _mm512_loadu_si512(p);
}

/* Four rows of dwords within 128-bit lanes: out[j] takes dword j of rows 0, 1, 2, 3. */
SL_INLINE void transpose(const __m512i *in, __m512i *out) {
    const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
    const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm512_unpacklo_epi64(a, c);
    out[1] = _mm512_unpackhi_epi64(a, c);
    out[2] = _mm512_unpacklo_epi64(b, d);
    out[3] = _mm512_unpackhi_epi64(b, d);
}

/* Of the bytes that a step reads the share that part i of n fetches: all at once are more than the queue takes. */
SL_INLINE void fetch_part(const operands *o, bool is_q4, size_t step, size_t i, size_t n) {
    const size_t bytes = (is_q4 ? 72 : 136) * TILE_ROWS / n;
    fetch_ahead(o, (step * n + i) * bytes, bytes);
}

SL_INLINE void load_q4(const operands *o, const char *const *row, size_t step, bool is_half, weights *w) {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 2
    for (int side = 0; side < 2; side++) {
        __m512i bytes[4], turned[4];
        fetch_part(o, true, step, (size_t)side, 2);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) bytes[r] = load_part(row[4 * side + r] + 64 * step, is_half);
        transpose(bytes, turned);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            w->q[0][side][j] = _mm512_and_si512(turned[j], low);
            w->q[1][side][j] = _mm512_and_si512(_mm512_srli_epi16(turned[j], 4), low);
        }
    }
}

SL_INLINE void load_q8(const operands *o, const char *const *row, size_t step, bool is_half, weights *w) {
    const __m512i offset = _mm512_set1_epi8(Q8_OFFSET_BITS ? -128 : 0); /* + 128 is an exclusive or */
#pragma GCC unroll 2
    for (int unit = 0; unit < 2; unit++) {
#pragma GCC unroll 2
        for (int side = 0; side < 2; side++) {
            __m512i bytes[4];
            fetch_part(o, false, step, (size_t)(2 * unit + side), 4);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                const char *p = row[4 * side + r] + 128 * step + 64 * unit;
                bytes[r] = is_half && unit ? _mm512_setzero_si512() : _mm512_loadu_si512(p);
                bytes[r] = _mm512_xor_si512(bytes[r], offset);
            }
            transpose(bytes, w->q[unit][side]);
        }
    }
}

/* The four (or two) f16 scales of a step for four rows, by blocks: first takes block 0 of rows 0 .. 3, then
 * block 1; second takes blocks 2 and 3. */
SL_INLINE void load_scales(const char *const *row, size_t offset, bool is_half, __m128i *first,
                           __m128i *second) {
    __m128i s[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        s[r] = is_half ? _mm_loadu_si32(row[r] + offset) : _mm_loadl_epi64((const __m128i *)(row[r] + offset));
    }
    const __m128i a = _mm_unpacklo_epi16(s[0], s[1]), b = _mm_unpacklo_epi16(s[2], s[3]);
    *first = _mm_unpacklo_epi32(a, b);
    *second = _mm_unpackhi_epi32(a, b);
}

SL_INLINE __m512 widen(__m128i rows_0_3, __m128i rows_4_7) {
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(rows_0_3), rows_4_7, 1));
}

SL_INLINE void load_weights(bool is_q4, const operands *o, const char *const *row, size_t n_group, size_t step,
                            bool is_half, weights *w) {
    const size_t offset = (is_q4 ? 32 : 64) * n_group + 8 * step;
    __m128i a01, a23, b01, b23;
    load_scales(row, offset, is_half, &a01, &a23);
    load_scales(row + 4, offset, is_half, &b01, &b23);
    if (is_q4) {
        load_q4(o, row, step, is_half, w);
        w->scale[0] = widen(_mm_unpacklo_epi64(a01, a23), _mm_unpacklo_epi64(b01, b23));
        w->scale[1] = widen(_mm_unpackhi_epi64(a01, a23), _mm_unpackhi_epi64(b01, b23));
    } else {
        load_q8(o, row, step, is_half, w);
        w->scale[0] = widen(a01, b01);
        w->scale[1] = widen(a23, b23);
    }
}

/* Quants (or the sums, which lie alike) of a unit from those of the two groups of a step. */
SL_INLINE __m512i select_unit(bool is_q4, int unit, __m512i first, __m512i second) {
    if (!is_q4) return unit ? second : first;
    return unit ? _mm512_shuffle_i64x2(first, second, 0xee) : _mm512_shuffle_i64x2(first, second, 0x44);
}

/* Adds one unit of one token. scales: the step's four input scales, repeated. */
SL_INLINE __m512 add_unit(bool is_q4, int unit, const weights *w, __m512i x, __m512i sums, __m512 scales,
                          __m512 acc) {
    const int a0 = is_q4 ? unit : 2 * unit, a1 = is_q4 ? unit + 2 : 2 * unit + 1; /* blocks of the step */
    const __m512i order = _mm512_setr_epi32(a0, a0, a0, a0, a1, a1, a1, a1, a0, a0, a0, a0, a1, a1, a1, a1);
    const int bits = is_q4 ? 3 : Q8_OFFSET_BITS;
    const __m512i start = bits ? _mm512_slli_epi32(sums, (unsigned)bits) : _mm512_setzero_si512();
    const __m512i dword[4] = { _mm512_shuffle_epi32(x, 0x00), _mm512_shuffle_epi32(x, 0x55),
                               _mm512_shuffle_epi32(x, 0xaa), _mm512_shuffle_epi32(x, 0xff) };
    const __m512i a = dot_bytes(is_q4, w->q[unit][0], dword, start);
    const __m512i b = dot_bytes(is_q4, w->q[unit][1], dword, start);
    const __m512i whole = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    const __m512 scale = _mm512_mul_ps(w->scale[unit], _mm512_permutexvar_ps(order, scales));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, acc);
}

/* Adds one step for all tokens. half: only the first of its groups exists. */
SL_INLINE void add_step(bool is_q4, const operands *o, const char *const *row, const char *const *x, size_t n_group,
                        size_t step, bool is_half, size_t n_tok, __m512 *acc) {
    weights w;
    load_weights(is_q4, o, row, n_group, step, is_half, &w);
#pragma GCC unroll 8
    for (size_t t = 0; t < n_tok; t++) {
        const char *q = x[t] + 128 * step, *sums = q + 64 * n_group, *scales = x[t] + 128 * n_group + 16 * step;
        const __m512i none = _mm512_setzero_si512();
        const __m512i q0 = _mm512_loadu_si512(q), q1 = is_half ? none : _mm512_loadu_si512(q + 64);
        const __m512i s0 = _mm512_loadu_si512(sums), s1 = is_half ? none : _mm512_loadu_si512(sums + 64);
        const __m128i *four = (const __m128i *)scales;
        const __m128i packed = is_half ? _mm_loadl_epi64(four) : _mm_loadu_si128(four);
        const __m512 xs = _mm512_castsi512_ps(_mm512_broadcast_i32x4(packed));
#pragma GCC unroll 2
        for (int unit = 0; unit < 2; unit++) {
            const __m512i in = select_unit(is_q4, unit, q0, q1), start = select_unit(is_q4, unit, s0, s1);
            acc[t] = add_unit(is_q4, unit, &w, in, start, xs, acc[t]);
        }
    }
}

/* Rows past n_row repeat the last and are not stored. */
SL_INLINE void quant_tile(bool is_q4, size_t n_tok, const operands *o, size_t n_row) {
    const size_t n_group = sl_groups(o->k);
    const char *row[TILE_ROWS], *x[MAX_TOKENS];
    __m512 acc[MAX_TOKENS];
    for (size_t r = 0; r < TILE_ROWS; r++) row[r] = o->w + (r < n_row ? r : n_row - 1) * o->w_stride;
    for (size_t t = 0; t < n_tok; t++) x[t] = o->x + t * o->x_stride;
#pragma GCC unroll 8
    for (size_t t = 0; t < n_tok; t++) acc[t] = _mm512_setzero_ps();
    for (size_t step = 0; step < n_group / 2; step++) add_step(is_q4, o, row, x, n_group, step, false, n_tok, acc);
    if (n_group % 2) add_step(is_q4, o, row, x, n_group, n_group / 2, true, n_tok, acc);
    const __mmask8 kept = (__mmask8)((1u << n_row) - 1);
#pragma GCC unroll 8
    for (size_t t = 0; t < n_tok; t++) {
        const __m256 first = _mm512_castps512_ps256(_mm512_shuffle_f32x4(acc[t], acc[t], 0x88));
        const __m256 second = _mm512_castps512_ps256(_mm512_shuffle_f32x4(acc[t], acc[t], 0xdd));
        _mm256_mask_storeu_ps(o->y + t * o->y_stride, kept, _mm256_add_ps(first, second));
    }
}

#define DEFINE_QUANT_GEMM(name, is_q4, isa)                                                                  \
    static void name##_one(const operands *o, size_t n_row) { quant_tile(is_q4, 1, o, n_row); }              \
    static void name##_two(const operands *o, size_t n_row) { quant_tile(is_q4, 2, o, n_row); }              \
    static void name##_four(const operands *o, size_t n_row) { quant_tile(is_q4, 4, o, n_row); }             \
    static void name##_eight(const operands *o, size_t n_row) { quant_tile(is_q4, 8, o, n_row); }            \
    void sl_gemm_##name##_##isa(const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes,  \
                                float *y, size_t y_stride, size_t n_row, size_t n_tok, size_t k) {           \
        const operands o = { w, x, y, w_stride_bytes, x_stride_bytes, y_stride, k, true,                     \
                             sl_cpu_fetches_to_first() };                                                    \
        static const tile_set set = { 4, { name##_one, name##_two, name##_four, name##_eight } };            \
        walk_tiles(&o, n_row, n_tok, TILE_ROWS, &set);                                                       \
    }
