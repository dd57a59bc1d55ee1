/* The CPU's table of micro-kernels: single-threaded, without allocation or globals, shapes checked by the
 * caller. sl_kernels_select fills it from kernels.def, reference first, then each variant the processor
 * has, oldest first.
 *
 * The rule all of them keep: what is computed for one token, row or channel does not depend on how many
 * others are computed in the same call, and a sequence cut into any chunks gives the same bits. So a
 * kernel may tile over rows and tokens, but the chain of operations behind each output stays the same:
 * gemm with 1 token equals that column of gemm with 8, and a scan of 8 tokens equals 8 scans of one.
 * Channel ranges handed to a kernel start at multiples of 16 channels of the whole, except for heads.
 * Strides are in elements of the pointed-to type unless named _bytes. Nothing may alias unless said. */
#ifndef SL_KERNELS_H
#define SL_KERNELS_H

#include "kernels/types.h"

/* y[t * y_stride + r] = sum_i w[r][i] * x[t][i]; w: [n_row] rows of k elements, w_stride_bytes apart;
 * x: [n_tok] rows, x_stride_bytes apart: f32 for f32/f16/bf16 weights, activation rows (types.h) for q8/q4;
 * accumulation in f32 (int32 inside a block of 32 for q8/q4). n_tok 1 is the matrix-vector product. */
typedef void (*sl_gemm_fn)(const void *w, size_t w_stride_bytes, const void *x, size_t x_stride_bytes, float *y,
                           size_t y_stride, size_t n_row, size_t n_tok, size_t k);
/* x [n] f32 to one activation row at out (sl_act_bytes(n), 64-byte aligned): scale = max|x| / 127 of each
 * block of 32, quants to nearest even; a block of zeros (or with a scale below 1e-30) gets scale 0, quants 0. */
typedef void (*sl_quant_act_fn)(const float *x, size_t n, void *out);
/* One stored row (see types.h) of n elements to f32. */
typedef void (*sl_expand_fn)(const void *row, size_t n, float *y);

/* n_group groups of n: y = x / sqrt(mean(x^2) + eps) * w; group g uses w + g * w_step (0: shared).
 * y may be x. */
typedef void (*sl_rmsnorm_fn)(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                              float eps);
/* y = silu(g) * u; y may be g or u. */
typedef void (*sl_silu_mul_fn)(const float *g, const float *u, float *y, size_t n);
/* y = silu(a + b); y may be a or b. */
typedef void (*sl_silu_add_fn)(const float *a, const float *b, float *y, size_t n);
/* y += alpha * x. */
typedef void (*sl_add_scaled_fn)(float *y, const float *x, float alpha, size_t n);
/* y = alpha * softplus(x + b), softplus(z) = max(z, 0) + log1p(exp(-|z|)); y may be x. */
typedef void (*sl_softplus_fn)(const float *x, const float *b, float *y, float alpha, size_t n);

/* Half-split rotary embedding in place: x [n_head][head_dim]; cos, sin [n_rot / 2]; components past n_rot
 * stay. x'_j = x_j c_j - x_{j+h} s_j, x'_{j+h} = x_{j+h} c_j + x_j s_j with h = n_rot / 2. */
typedef void (*sl_rope_fn)(float *x, const float *cos, const float *sin, size_t n_head, size_t head_dim,
                           size_t n_rot);

/* Gated causal depthwise convolution of bridge.md step 3, before its norm: z_t = p_t * v_t,
 * s_t = bias + sum_j taps[j] * z_{t-(k-1)+j}, in the order j = 0 .. k-1 starting from the bias. */
typedef struct sl_conv_args {
    const float *p, *v; /* [n_tok, in_stride], n channels each */
    float *s;           /* [n_tok, out_stride] */
    const float *taps;  /* [k, taps_stride], last row multiplies the present sample */
    const float *bias;  /* [n] */
    float *state;       /* [k - 1, state_stride] rows of z, oldest first; advanced in place */
    size_t in_stride, out_stride, taps_stride, state_stride;
    size_t n, n_tok, k;
} sl_conv_args;
typedef void (*sl_conv_gate_fn)(const sl_conv_args *args);

/* S6 scan of one head, bridge.md step 4: with D = delta[t], a = exp(-decay * D):
 * S = a S + (D r_t) (x) B_t, y_t = S C_t + skip * r_t. The state is [n_state][head_dim] so that vector lanes
 * are channels; y sums over n_state in increasing order. */
typedef struct sl_scan_s6_args {
    const float *r;       /* [n_tok, r_stride], head_dim channels */
    const float *b, *c;   /* [n_tok, bc_stride], n_state each */
    const float *delta;   /* [n_tok], delta_stride apart; already rho * softplus(...) */
    const float *skip;    /* [head_dim] D of the paper */
    float *state;         /* [n_state, head_dim], advanced in place */
    float *y;             /* [n_tok, y_stride] */
    float decay;          /* exp(A_log) of the head, > 0 */
    size_t r_stride, bc_stride, delta_stride, y_stride;
    size_t head_dim, n_state, n_tok;
} sl_scan_s6_args;
typedef void (*sl_scan_s6_fn)(const sl_scan_s6_args *args);

/* S4D scan of n channels, M complex poles each: s = a s + r_t (complex), y_t = sum_m (k_re s_re - k_im s_im)
 * + skip * r_t, with k = 2 C (A_bar - 1) / A. Arrays [m][2: re, im][stride], lanes are channels. */
typedef struct sl_scan_s4d_args {
    const float *r;         /* [n_tok, r_stride] */
    const float *a, *k;     /* [n_pole][2][pole_stride] */
    const float *skip;      /* [n] */
    float *state;           /* [n_pole][2][pole_stride], advanced in place */
    float *y;               /* [n_tok, y_stride] */
    size_t r_stride, y_stride, pole_stride;
    size_t n, n_pole, n_tok;
} sl_scan_s4d_args;
typedef void (*sl_scan_s4d_fn)(const sl_scan_s4d_args *args);

/* Recurrent gating bridge of n channels, bridge.md steps 5 and 6. Per channel and token:
 *   i = sigma(gate_i + bias_i), f = sigma(gate_f + bias_f), la = lambda * f (lambda = -8 softplus(Lambda) <= 0)
 *   h = h + expm1(la) h + sqrt(-expm1(2 la)) i s      (Griffin, De et al. 2024, eq. 3-4)
 *   cc = q (s + kappa h), beta = sigma(omega h + gamma)
 *   o = (1 - beta) cc + beta rho m       (m, rho only where deep_row[t] >= 0)
 * expm1 must keep its relative accuracy near 0. */
typedef struct sl_bridge_args {
    const float *s;             /* [n_tok, s_stride] */
    const float *q;             /* [n_tok, q_stride] */
    const float *gate_i, *gate_f; /* [n_tok, gate_stride]: the block-diagonal products */
    const float *bias_i, *bias_f, *lambda, *kappa, *omega, *gamma; /* [n] each */
    const float *m;             /* [n_deep, m_stride] compact rows of the deep tokens */
    const float *rho;           /* [n_tok], or NULL: 1 */
    const int32_t *deep_row;    /* [n_tok] row of m or -1 for a light token; NULL: row t */
    float *h;                   /* [n] state, advanced in place */
    float *o;                   /* [n_tok, o_stride] */
    size_t s_stride, q_stride, gate_stride, m_stride, o_stride;
    size_t n, n_tok;
} sl_bridge_args;
typedef void (*sl_bridge_fn)(const sl_bridge_args *args);

/* Causal attention of n_tok consecutive queries of the heads that share one key/value head, one pass with
 * online softmax. Query t (position pos + t) sees keys max(0, pos + t + 1 - window) .. pos + t (window 0: all).
 * Keys are walked in blocks of SL_ATTN_BLOCK absolute positions, so that a query's result does not depend
 * on its neighbours. scratch: sl_attn_scratch floats. */
enum { SL_ATTN_BLOCK = 32, SL_ATTN_QUERIES = 16 /* at most this many n_tok per call */ };
typedef struct sl_attention_args {
    const float *q;     /* [n_tok, q_stride], n_head heads of head_dim */
    const void *k, *v;  /* [positions, kv_stride], head_dim each; f32 or f16 by kernel; kv_stride elements */
    float *y;           /* [n_tok, y_stride], n_head heads of head_dim */
    float *scratch;
    float scale;
    size_t q_stride, kv_stride, y_stride;
    size_t head_dim, n_head, n_tok;
    size_t pos, window;
} sl_attention_args;
typedef void (*sl_attention_fn)(const sl_attention_args *args);
static inline size_t sl_attn_scratch(size_t n_head, size_t head_dim) {
    return 2 * SL_ATTN_QUERIES * n_head + 2 * SL_ATTN_BLOCK * head_dim;
}

/* f32 to f16, to nearest even. */
typedef void (*sl_narrow_fn)(const float *x, uint16_t *y, size_t n);

typedef struct sl_kernels {
    sl_gemm_fn gemm_f32, gemm_f16, gemm_bf16, gemm_q8, gemm_q4;
    sl_quant_act_fn quant_act;
    sl_expand_fn expand_f32, expand_f16, expand_bf16, expand_q8, expand_q4;
    sl_rmsnorm_fn rmsnorm;
    sl_silu_mul_fn silu_mul;
    sl_silu_add_fn silu_add;
    sl_add_scaled_fn add_scaled;
    sl_softplus_fn softplus;
    sl_rope_fn rope;
    sl_conv_gate_fn conv_gate;
    sl_scan_s6_fn scan_s6;
    sl_scan_s4d_fn scan_s4d;
    sl_bridge_fn bridge;
    sl_attention_fn attention_f32, attention_f16;
    sl_narrow_fn narrow_f16;
    unsigned features; /* SL_CPU_* bits in use */
} sl_kernels;

enum { SL_CPU_REF = 0, SL_CPU_AVX2 = 1, SL_CPU_AVX512 = 2, SL_CPU_VNNI = 4 /* AVX-512 VNNI */ };

/* What the processor and the system offer: AVX2 means AVX2, FMA and F16C; AVX512 means F, BW, DQ and VL too,
 * with their registers enabled in XCR0. */
unsigned sl_cpu_features(void);
/* Whether weights on their way from memory are best fetched into the first cache (gemm_tiles.h). */
bool sl_cpu_fetches_to_first(void);
/* Narrowed by SLUICE_CPU=ref|avx2|avx512. *bad (which may be NULL) is the variable's text if it is none
 * of these, else NULL. */
unsigned sl_cpu_features_allowed(const char **bad);
const char *sl_cpu_features_name(unsigned features); /* "ref", "avx2", "avx512", "avx512+vnni" */
sl_kernels sl_kernels_select(unsigned features);

/* f32 row of n elements to a stored row of any type, exact or with searched scales (quantisation error,
 * weighted by x^2, is least over a grid of scales). Used by convert, quantize and synthetic models. */
void sl_pack_row(sl_type type, const float *x, size_t n, void *row);

#endif
