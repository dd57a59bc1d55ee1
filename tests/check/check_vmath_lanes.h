/* The vector functions of kernels/simd/vmath.h over arrays, for check_vmath.c; n is a multiple of SL_LANES. */
#include "check_vmath.h"

void SL_ISA(vmath)(vmath_function f, const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i += SL_LANES) {
        const vf v = v_load(x + i);
        switch (f) {
        case VMATH_EXP: v_store(y + i, v_exp(v)); break;
        case VMATH_EXPM1: v_store(y + i, v_expm1(v)); break;
        case VMATH_LOG1P_UNIT: v_store(y + i, v_log1p_unit(v)); break;
        case VMATH_SIGMOID: v_store(y + i, v_sigmoid(v)); break;
        case VMATH_SILU: v_store(y + i, v_silu(v)); break;
        case VMATH_SOFTPLUS: v_store(y + i, v_softplus(v)); break;
        default: break;
        }
    }
}
