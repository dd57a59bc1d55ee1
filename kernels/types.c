/* Names and scalar conversions of the element types. */
#include "kernels/types.h"

#include <string.h>

static const char *const type_names[SL_N_TYPE] = { "f32", "f16", "bf16", "q8", "q4" };

const char *sl_type_name(sl_type type) {
    return (unsigned)type < SL_N_TYPE ? type_names[type] : "?";
}

bool sl_type_parse(const char *name, sl_type *type) {
    for (unsigned i = 0; i < SL_N_TYPE; i++) {
        if (strcmp(name, type_names[i]) != 0) continue;
        *type = (sl_type)i;
        return true;
    }
    return false;
}

static uint32_t float_bits(float v) {
    union { float f; uint32_t u; } c = { v };
    return c.u;
}

static float bits_float(uint32_t u) {
    union { uint32_t u; float f; } c = { u };
    return c.f;
}

uint16_t sl_f32_to_bf16(float v) {
    const uint32_t u = float_bits(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40); /* stays NaN, quiet */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float sl_f16_to_f32(uint16_t v) {
    const uint32_t sign = (uint32_t)(v & 0x8000) << 16;
    const uint32_t exponent = v >> 10 & 31, mantissa = v & 1023;
    if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float subnormal = (float)mantissa * 0x1p-24f; /* exact */
    return sign ? -subnormal : subnormal;
}

/* Rounding is left to the processor. For normal results the addition of 0.5 ulp and the tie bit in integers
 * carries into the exponent as it should; for subnormals, adding 0.5 aligns the last bit kept, 2^-24, with the
 * last bit of a float in [0.5, 1). */
uint16_t sl_f32_to_f16(float v) {
    const uint32_t u = float_bits(v);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    const uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 1023));
    if (a >= 0x47800000u) return (uint16_t)(sign | 0x7c00); /* 65536 and above, before rounding */
    if (a < 0x38800000u) return (uint16_t)(sign | (float_bits(bits_float(a) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfff + (a >> 13 & 1)) >> 13));
}
