/* Element types of stored tensors and the layout of their rows.
 *
 * f32, f16, bf16: plain arrays. q8 and q4: a row of n elements is padded with zeros to groups of 64
 * elements and stored as all its quants, then all its scales:
 *   q8: [64 * g] int8 quants, then [2 * g] f16 scales; element i is q[i] * scale[i / 32]
 *   q4: [32 * g] bytes, then [2 * g] f16 scales; byte j of group g holds element 64 g + j in its low and
 *       64 g + 32 + j in its high half, as value + 8; element i is (q - 8) * scale[i / 32]
 * so that a 256-bit load and two masks give the 64 elements of a group in order, one scale per half.
 * q8 quants lie in -127..127. */
#ifndef SL_KERNELS_TYPES_H
#define SL_KERNELS_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum sl_type { SL_F32, SL_F16, SL_BF16, SL_Q8, SL_Q4, SL_N_TYPE } sl_type;

enum { SL_GROUP = 64, SL_BLOCK = 32 }; /* elements per group and per scale */

static inline size_t sl_groups(size_t n) { return (n + SL_GROUP - 1) / SL_GROUP; }

/* Bytes of one stored row of n elements; n < 2^56. */
static inline uint64_t sl_row_bytes(sl_type type, uint64_t n) {
    uint64_t g = (n + SL_GROUP - 1) / SL_GROUP;
    switch (type) {
    case SL_F32: return 4 * n;
    case SL_F16:
    case SL_BF16: return 2 * n;
    case SL_Q8: return (SL_GROUP + 4) * g;
    case SL_Q4: return (SL_GROUP / 2 + 4) * g;
    default: return 0;
    }
}

const char *sl_type_name(sl_type type);                    /* "f32" ...; "?" if out of range */
bool sl_type_parse(const char *name, sl_type *type);       /* false: unknown */

/* An activation row prepared for q8/q4 products (sl_quant_act_fn): n elements padded with zeros to
 * groups of 64, then
 *   [64 * g] int8 quants,
 *   [16 * g] int32 sums: minus the sum of 16 quants, four times over (entry i belongs to quants 16 (i / 4) ..
 *     + 15): what removes the offset of unsigned weights, ready for four rows side by side,
 *   [2 * g] f32 scales (element i is q[i] * scale[i / 32]), then zeros to a multiple of 64 bytes. */
static inline size_t sl_act_bytes(size_t n) { return sl_groups(n) * 128 + (sl_groups(n) * 8 + 63) / 64 * 64; }
/* byte offsets inside such a row; each part starts at a multiple of 64 */
static inline size_t sl_act_sums_offset(size_t n) { return sl_groups(n) * 64; }
static inline size_t sl_act_scales_offset(size_t n) { return sl_groups(n) * 128; }

static inline float sl_bf16_to_f32(uint16_t v) {
    union { uint32_t u; float f; } c = { (uint32_t)v << 16 };
    return c.f;
}
uint16_t sl_f32_to_bf16(float v); /* to nearest even */
float sl_f16_to_f32(uint16_t v);  /* exact, also subnormals, infinities and NaN */
uint16_t sl_f32_to_f16(float v);  /* to nearest even */

#endif
