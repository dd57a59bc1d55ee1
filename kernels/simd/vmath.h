/* exp, expm1, log1p and the sigmoid family on vectors, written in the names of simd_avx2.h and simd_avx512.h,
 * which include this file. Largest errors seen over every 211th float, in ulp of the result, the same in both:
 * exp 1.01, expm1 1.54, log1p 1.96, sigmoid 2.29, softplus 2.57, silu 3.07. Where e^-|x| is subnormal
 * (|x| > 87) silu inherits its absolute error, |x| 2^-150.
 *
 * exp and expm1 share x = n log 2 + r, |r| <= log(2) / 2, with log 2 in two parts so that r is exact to an ulp
 * of x, and expm1(r) = r + r^2 q(r). q is the minimax polynomial of degree 4 for the relative error of expm1
 * on that interval (1.7e-8 after rounding of its coefficients, a seventh of an ulp).
 * log1p(u) = 2 atanh(s), s = u / (2 + u) <= 1/3, = 2 s + 2 s^3 g(s^2) with g minimax of degree 3 (5e-9). */
#ifndef SL_KERNELS_SIMD_VMATH_H
#define SL_KERNELS_SIMD_VMATH_H

/* r of the reduction above; *n the whole number of log 2 taken out. Needs |x| < 2^16. */
SL_INLINE vf v_reduce(vf x, vf *n) {
    *n = v_round(v_mul(x, v_set1(0x1.715476p+0f))); /* log2(e) */
    const vf high = v_fnma(*n, v_set1(0x1.62e4p-1f), x); /* log 2 to 15 bits: n times it is exact */
    return v_fnma(*n, v_set1(0x1.7f7d1cp-20f), high);
}

SL_INLINE vf v_expm1_reduced(vf r) {
    vf q = v_set1(0x1.6bebfep-10f);
    q = v_fma(q, r, v_set1(0x1.1227bp-7f));
    q = v_fma(q, r, v_set1(0x1.555674p-5f));
    q = v_fma(q, r, v_set1(0x1.5554bp-3f));
    q = v_fma(q, r, v_set1(0x1.fffffep-2f));
    return v_fma(v_mul(r, r), q, r);
}

/* e^x over the whole range: 0 below -103.97, subnormal above it, infinity above 88.73; NaN stays. */
SL_INLINE vf v_exp(vf x) {
    vf n;
    x = v_min(v_set1(89.0f), v_max(v_set1(-105.0f), x));
    const vf r = v_reduce(x, &n);
    return v_scale2(v_add(v_set1(1.0f), v_expm1_reduced(r)), n);
}

/* e^x - 1, relatively accurate also near 0 (results below 2^-125 excepted), -1 at -infinity; NaN stays.
 * With s = 2^(n-1): e^x - 1 = 2 (s expm1(r) + (s - 1/2)); the half keeps n = 128 in range, and for n = 0 the
 * bracket is expm1(r) / 2 with nothing lost. */
SL_INLINE vf v_expm1(vf x) {
    vf n;
    x = v_min(v_set1(89.0f), v_max(v_set1(-64.0f), x));
    const vf r = v_reduce(x, &n), half = v_set1(0.5f), s = v_scale2(half, n);
    const vf y = v_fma(s, v_expm1_reduced(r), v_sub(s, half));
    return v_add(y, y);
}

/* log(1 + u) for 0 <= u <= 1, relatively accurate near 0. */
SL_INLINE vf v_log1p_unit(vf u) {
    const vf s = v_div(u, v_add(u, v_set1(2.0f))), s2 = v_mul(s, s), twice = v_add(s, s);
    vf g = v_set1(0x1.1f015ep-3f);
    g = v_fma(g, s2, v_set1(0x1.1eb464p-3f));
    g = v_fma(g, s2, v_set1(0x1.99d294p-3f));
    g = v_fma(g, s2, v_set1(0x1.5555p-2f));
    return v_fma(v_mul(twice, s2), g, twice);
}

/* 1 / (1 + e^-x). Only e^-|x| is ever formed, so large |x| neither overflow nor lose the small side. */
SL_INLINE vf v_sigmoid(vf x) {
    const vf one = v_set1(1.0f), e = v_exp(v_minus_abs(x));
    return v_div(v_by_sign(x, e, one), v_add(one, e));
}

SL_INLINE vf v_silu(vf x) { return v_mul(x, v_sigmoid(x)); }

/* log(1 + e^x) = max(x, 0) + log1p(e^-|x|) */
SL_INLINE vf v_softplus(vf x) {
    return v_add(v_max(v_zero(), x), v_log1p_unit(v_exp(v_minus_abs(x))));
}

#endif
