/* How a CUDA kernel reads stored weights (kernels/types.h) of any type.
 *
 * Three grains. An element, for tails and odd alignments. Eight consecutive elements, at once or asked for
 * first and expanded later. A chunk: what one lane reads at a time in a matrix-vector product, 16 stored
 * bytes (32 of f32) in pieces of 8 elements; chunk c of a row always holds the same elements, so that the
 * order of a sum depends on the number of elements only, not on alignment.
 *
 * Bytes become floats by their bits: 0x47000000 | u << 8 is the float 2^15 + u, so one multiply-add takes
 * the offset away and applies the scale. It is exact: (2^15 + 8) and (2^15 + 128) times the 11 bits of a
 * scale fit the 24 of a float, and so does the result. The conversion instruction has a quarter of that
 * rate. (An infinite scale gives NaN here, and infinities where elements are expanded one by one.) */
#ifndef SL_KERNELS_GEMM_WEIGHTS_CUDA_H
#define SL_KERNELS_GEMM_WEIGHTS_CUDA_H

#include "kernels/cuda.h"
#include "kernels/types.h"

template <sl_type type> constexpr bool sl_is_scaled = type == SL_Q8 || type == SL_Q4;

__device__ __forceinline__ uint32_t sl_groups_of(uint32_t k) { return (k + SL_GROUP - 1) / SL_GROUP; }

/* ---- one element -------------------------------------------------------------------------------- */

/* A block's scale: 1 for types without. groups: sl_groups of the row. */
template <sl_type type>
__device__ __forceinline__ float sl_weight_scale(const void *row, uint32_t groups, uint32_t i) {
    if constexpr (!sl_is_scaled<type>) return 1;
    const size_t quant_bytes = (size_t)groups * (type == SL_Q8 ? SL_GROUP : SL_GROUP / 2);
    const uint16_t *scales = (const uint16_t *)((const char *)row + quant_bytes);
    return sl_half_to_float(scales[i / SL_BLOCK]);
}

/* Element i before its scale. */
template <sl_type type> __device__ __forceinline__ float sl_weight_quant(const void *row, uint32_t i) {
    if constexpr (type == SL_F32) return ((const float *)row)[i];
    if constexpr (type == SL_F16) return sl_half_to_float(((const uint16_t *)row)[i]);
    if constexpr (type == SL_BF16) return sl_bf16_bits_to_float(((const uint16_t *)row)[i]);
    if constexpr (type == SL_Q8) return (float)((const int8_t *)row)[i];
    if constexpr (type == SL_Q4) {
        const uint8_t pair = ((const uint8_t *)row)[i / SL_GROUP * SL_BLOCK + i % SL_BLOCK];
        return (float)((i % SL_GROUP < SL_BLOCK ? pair & 15 : pair >> 4) - 8);
    }
}

template <sl_type type>
__device__ __forceinline__ float sl_weight(const void *row, uint32_t groups, uint32_t i) {
    const float q = sl_weight_quant<type>(row, i);
    return sl_is_scaled<type> ? q * sl_weight_scale<type>(row, groups, i) : q; /* exact: 8 bits times 11 */
}

/* ---- packed words ------------------------------------------------------------------------------- */

/* Two halves of a word. */
template <sl_type type> __device__ __forceinline__ void sl_unpack_halves(uint32_t word, float v[2]) {
    if constexpr (type == SL_F16) sl_unpack_half(word, v);
    else {
        v[0] = __uint_as_float(word << 16);
        v[1] = __uint_as_float(word & 0xffff0000u);
    }
}

/* Four unsigned bytes, less offset, times scale. */
__device__ __forceinline__ void sl_unpack_bytes(uint32_t word, float offset, float scale, float v[4]) {
    const float origin = -(0x1p15f + offset) * scale;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t byte = i == 0 ? word << 8 : word >> 8 * (i - 1);
        v[i] = fmaf(__uint_as_float(0x47000000u | (byte & 0xff00)), scale, origin);
    }
}

/* The bytes 0x64uu 0x64uu are the f16 numbers 1024 + u: less offset (exact), times scale (rounded once). */
__device__ __forceinline__ uint32_t sl_scale_bytes(uint32_t raised, uint32_t offset, uint32_t scale) {
#ifdef __CUDACC__
    const __half2 *r = reinterpret_cast<const __half2 *>(&raised), *o = reinterpret_cast<const __half2 *>(&offset);
    const __half2 v = __hmul2(__hsub2(*r, *o), *reinterpret_cast<const __half2 *>(&scale));
    return *reinterpret_cast<const uint32_t *>(&v);
#else
    float r[2], o[2], s[2];
    sl_unpack_half(raised, r), sl_unpack_half(offset, o), sl_unpack_half(scale, s);
    return sl_pack_half((r[0] - o[0]) * s[0], (r[1] - o[1]) * s[1]);
#endif
}

/* Eight values from the words that hold them: f32 8, f16 and bf16 4, q8 2, q4 2 (high: of the upper half
 * bytes). */
template <sl_type type>
__device__ __forceinline__ void sl_unpack8(const uint32_t *words, bool high, float scale, float v[8]) {
    if constexpr (type == SL_F32) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __uint_as_float(words[i]);
    } else if constexpr (type == SL_F16 || type == SL_BF16) {
#pragma unroll
        for (int i = 0; i < 4; i++) sl_unpack_halves<type>(words[i], v + 2 * i);
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t bytes = type == SL_Q8 ? words[i] ^ 0x80808080u : (high ? words[i] >> 4 : words[i])
                & 0x0f0f0f0fu;
            sl_unpack_bytes(bytes, type == SL_Q8 ? 128 : 8, scale, v + 4 * i);
        }
    }
}

/* once: nobody else reads it soon, so that it need not take the place of what is read again (x). */
template <bool once, class T> __device__ __forceinline__ T sl_load_as(const T *p) {
    if constexpr (once) return __ldcs(p);
    else return *p;
}

/* n words from p, aligned to 16 bytes (2 words: to 8) or to the type's element only. */
template <sl_type type, int n, bool once = false>
__device__ __forceinline__ void sl_load_words(const void *p, bool aligned, uint32_t *words) {
    if constexpr (n == 2) {
        if (aligned) {
            const uint2 v = sl_load_as<once>((const uint2 *)p);
            words[0] = v.x, words[1] = v.y;
            return;
        }
    }
    if (aligned) {
#pragma unroll
        for (int i = 0; i < n / 4; i++) {
            const uint4 v = sl_load_as<once>((const uint4 *)p + i);
            words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
    } else if constexpr (type == SL_F16 || type == SL_BF16) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            const uint16_t *half = (const uint16_t *)p + 2 * i;
            words[i] = half[0] | (uint32_t)half[1] << 16;
        }
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) words[i] = ((const uint32_t *)p)[i];
    }
}

/* Eight quants as the same words hold them, rounded to f16, two to a word. A scale with which quants would be beyond f16
 * counts as the largest without: 65504 / 128, 65504 / 8. */
template <sl_type type>
__device__ __forceinline__ void sl_quants_to_halves(const uint32_t *words, bool high, uint32_t scale, uint32_t h[4]) {
    constexpr uint32_t offset = type == SL_Q8 ? 0x64806480u : 0x64086408u; /* 1024 + 128 and 1024 + 8, twice */
    constexpr uint32_t most = type == SL_Q8 ? 0x5fffu : 0x6fffu;
    if ((scale & 0x7fffu) > most) scale = (scale & 0x8000u) | most;
    scale |= scale << 16;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t bytes = type == SL_Q8 ? words[i] ^ 0x80808080u : (high ? words[i] >> 4 : words[i]) & 0x0f0f0f0fu;
        h[2 * i] = sl_scale_bytes(__byte_perm(bytes, 0x64646464u, 0x4140), offset, scale);
        h[2 * i + 1] = sl_scale_bytes(__byte_perm(bytes, 0x64646464u, 0x4342), offset, scale);
    }
}

/* ---- eight elements ----------------------------------------------------------------------------- */

/* Elements i .. i + 7 (i a multiple of 8) of a row of k; zeros from k on. */
template <sl_type type>
__device__ __forceinline__ void sl_weight8(const unsigned char *row, uint32_t groups, uint32_t k, uint32_t i,
        float v[8]) {
    if constexpr (!sl_is_scaled<type>) {
        constexpr int size = type == SL_F32 ? 4 : 2;
        const unsigned char *p = row + (size_t)i * size;
        if (i + 8 <= k && (uintptr_t)p % 16 == 0) {
            uint32_t words[2 * size];
            sl_load_words<type, 2 * size>(p, true, words);
            sl_unpack8<type>(words, false, 1, v);
            return;
        }
    }
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) v[j] = i + j < k ? sl_weight<type>(row, groups, i + j) : 0;
}

/* Elements i .. i + 7 as they are stored, i a multiple of 8, all of them there: to be asked for before they are
 * needed. */
template <sl_type type> struct sl_eight {
    static constexpr int n_word = type == SL_F32 ? 8 : sl_is_scaled<type> ? 2 : 4;
    uint32_t words[n_word];
    uint16_t scale;

    /* aligned: the row is known to begin at a multiple of 16 bytes. */
    template <bool aligned>
    __device__ __forceinline__ void load(const unsigned char *row, uint32_t groups, uint32_t i) {
        if constexpr (sl_is_scaled<type>) {
            const size_t quant_bytes = (size_t)groups * (type == SL_Q8 ? SL_GROUP : SL_GROUP / 2);
            const uint32_t at = type == SL_Q8 ? i : i / SL_GROUP * SL_BLOCK + i % SL_BLOCK;
            sl_load_words<type, 2>(row + at, aligned || (uintptr_t)(row + at) % 8 == 0, words);
            scale = ((const uint16_t *)(row + quant_bytes))[i / SL_BLOCK];
        } else {
            const unsigned char *p = row + (size_t)i * (type == SL_F32 ? 4 : 2);
            sl_load_words<type, n_word>(p, aligned || (uintptr_t)p % 16 == 0, words);
        }
    }
    /* Rounded to f16, two to a word. */
    __device__ __forceinline__ void halves(uint32_t i, uint32_t h[4]) const {
        if constexpr (sl_is_scaled<type>) {
            sl_quants_to_halves<type>(words, type == SL_Q4 && i % SL_GROUP >= SL_BLOCK, scale, h);
        } else {
            float v[8];
            sl_unpack8<type>(words, false, 1, v);
#pragma unroll
            for (int j = 0; j < 4; j++) h[j] = sl_pack_f16(v[2 * j], v[2 * j + 1]);
        }
    }
};

/* ---- chunks ------------------------------------------------------------------------------------- */

template <sl_type type> struct sl_chunk {
    static constexpr int n_word = type == SL_F32 ? 8 : 4;
    static constexpr int n_piece = type == SL_Q4 ? 4 : type == SL_Q8 ? 2 : 1; /* of 8 elements */
    static constexpr int piece_words = type == SL_Q4 ? 2 : n_word / n_piece;
    uint32_t words[n_word];
    uint32_t scales; /* q8: one f16; q4: two, of the low and of the high halves */

    /* Chunks of a row of k, and how many of them have all their elements. */
    static __device__ __forceinline__ uint32_t count(uint32_t k) {
        return type == SL_Q4 ? (k + 63) / 64 * 2 : (k + 8 * n_piece - 1) / (8 * n_piece);
    }
    static __device__ __forceinline__ uint32_t count_full(uint32_t k) {
        return type == SL_Q4 ? k / 64 * 2 + (k % 64 >= 48) : k / (8 * n_piece);
    }

    /* First element of piece p of chunk c. Half a group of q4 is 16 bytes: its low halves, then its high
     * ones. */
    static __device__ __forceinline__ uint32_t start(uint32_t c, int p) {
        if (type == SL_Q4) return c / 2 * 64 + c % 2 * 16 + p % 2 * 8 + p / 2 * 32;
        return (c * n_piece + p) * 8;
    }

    template <bool once> /* see sl_load_as */
    __device__ __forceinline__ void load(const unsigned char *row, uint32_t groups, uint32_t c, bool aligned) {
        sl_load_words<type, n_word, once>(row + (size_t)c * (4 * n_word), aligned, words);
        if constexpr (type == SL_Q8) scales = ((const uint16_t *)(row + (size_t)groups * SL_GROUP))[c / 2];
        if constexpr (type == SL_Q4) scales = ((const uint32_t *)(row + (size_t)groups * SL_GROUP / 2))[c / 2];
    }
    __device__ __forceinline__ void unpack(int p, float v[8]) const {
        const bool high = type == SL_Q4 && p >= 2;
        const float scale =
            sl_is_scaled<type> ? sl_half_to_float((uint16_t)(high ? scales >> 16 : scales & 0xffff)) : 1;
        sl_unpack8<type>(words + (type == SL_Q4 ? p % 2 : p) * piece_words, high, scale, v);
    }
    /* Piece p rounded to f16, two to a word. */
    __device__ __forceinline__ void halves(int p, uint32_t h[4]) const {
        if constexpr (type == SL_F16) {
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] = words[i];
        } else if constexpr (sl_is_scaled<type>) {
            const bool high = type == SL_Q4 && p >= 2;
            sl_quants_to_halves<type>(words + (type == SL_Q4 ? p % 2 : p) * piece_words, high,
                                      high ? scales >> 16 : scales & 0xffffu, h);
        } else {
            float v[8];
            unpack(p, v);
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] = sl_pack_f16(v[2 * i], v[2 * i + 1]);
        }
    }
};

#endif
