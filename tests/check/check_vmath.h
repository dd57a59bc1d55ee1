/* The vector functions under test, by name and instruction set. */
#ifndef SL_TESTS_CHECK_CHECK_VMATH_H
#define SL_TESTS_CHECK_CHECK_VMATH_H

#include <stddef.h>

typedef enum vmath_function {
    VMATH_EXP, VMATH_EXPM1, VMATH_LOG1P_UNIT, VMATH_SIGMOID, VMATH_SILU, VMATH_SOFTPLUS, VMATH_N
} vmath_function;

void vmath_avx2(vmath_function f, const float *x, float *y, size_t n);
void vmath_avx512(vmath_function f, const float *x, float *y, size_t n);

#endif
