/* The CUDA backend's kernels: host functions that put launches on a stream and return at once.
 *
 * Each returns a cudaError_t as an int, 0 if the launches were accepted. Pointers inside the argument
 * structs are device pointers unless said otherwise; numbers are checked by the caller as on the CPU
 * (kernels.h): every shape that the models allow must work. Nothing allocates, nothing synchronises, and a
 * launch's grid depends on host numbers only, so that a pass can be captured as a graph and replayed with other
 * tokens, slots, positions and numbers of deep rows.
 *
 * Types. Activations are f32 or f16 (sl_act; what is beyond 65504 is stored as that), the residual stream and
 * everything recurrent is f32, sums are f32. In f32 mode the results meet the bounds of the CPU's variants.
 *
 * The rule of kernels.h holds here as well: what is computed for one token, row or channel does not depend on
 * what else is in the launch. Sums have a fixed order; there are no atomic float additions.
 *
 * Strides are in elements of the pointed-to type unless named _bytes. Rows of activations start at multiples of
 * 16 bytes; rows of weights only at multiples of their element (f32 4, f16 and bf16 2, q8 and q4 4 bytes). */
#ifndef SL_KERNELS_CUDA_KERNELS_H
#define SL_KERNELS_CUDA_KERNELS_H

#include "kernels/draw.h"
#include "kernels/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *sl_cuda_stream; /* cudaStream_t */
typedef enum sl_act { SL_ACT_F32, SL_ACT_F16 } sl_act;
static inline size_t sl_act_size(sl_act act) { return act == SL_ACT_F32 ? 4 : 2; }

/* The rows of a domain in this pass. */
typedef struct sl_rows {
    const uint32_t *n;     /* [1] how many there are, never more than max; NULL: max */
    const uint32_t *index; /* [max] the batch row of each, increasing; NULL: row i is i */
    uint32_t max;          /* what the host knows: the grid. >= 1 */
    bool in_place;         /* row i of what is read lies at row index[i], too (what is written lies where it does otherwise) */
} sl_rows;

/* The runs of a pass: consecutive rows of one slot. */
typedef struct sl_runs {
    const uint32_t *slot;  /* [n] */
    const uint32_t *start; /* [n + 1] first row of each run in the domain at hand; a run may be empty */
    const uint64_t *pos;   /* [n] tokens the slot has seen before this pass */
    uint32_t n;            /* >= 1 */
    uint32_t max_tok;      /* no run has more rows; 1: a decode step */
} sl_runs;

/* A state tensor in the slab of all slots: slot s has it at data + s * slot_stride. */
typedef struct sl_slab { float *data; uint64_t slot_stride; } sl_slab;

/* ---- products (kernels/gemm) -------------------------------------------------------------------- */

/* x[t] = expanded row tokens[t] of the table. */
typedef struct sl_embed_args {
    const void *table;
    uint64_t table_row_bytes;
    sl_type type;
    const int32_t *tokens; /* [rows.max] */
    float *x;              /* [rows.max, x_stride] */
    uint64_t x_stride;
    uint32_t d;
    sl_rows rows;
} sl_embed_args;
int sl_embed_cuda(const sl_embed_args *args, sl_cuda_stream stream);

typedef enum sl_product_out {
    SL_OUT_ACT, /* y[t][r] = sum, in the type of the activations */
    SL_OUT_F32, /* the same in f32 */
    SL_OUT_ADD  /* f32, y[b][r] += rho[b] * sum with b the batch row of t */
} sl_product_out;

/* sum[t][r] = bias[r] + gain sum_i w[r][i] x[t][i], t < rows, r < n_row, weights of any type (types.h) expanded
 * exactly, or rounded to f16 beside f16 activations. */
typedef struct sl_product_args {
    const void *w;
    uint64_t w_row_bytes;
    sl_type type;
    sl_act act;
    const void *x; /* [rows.max, x_stride] act */
    uint64_t x_stride;
    const float *bias; /* [n_row] or NULL */
    void *y;
    uint64_t y_stride;
    sl_product_out out;
    float gain;        /* a power of two, mostly 1; here it does not make the struct larger, which cost spills */
    const float *rho; /* by batch row; NULL: 1 */
    uint32_t n_row, k;
    sl_rows rows;
} sl_product_args;
/* For 1 to sl_gemv_rows rows: reads each weight once (for more than 32 rows twice), straight from its stored form; with no
 * row it reads none. A row's sums have the same bits whatever others are beside it. Of f16 activations rows may be in
 * place. */
enum { SL_GEMV_ROWS = 16, SL_GEMV_MOST_ROWS = 64 };
static inline uint32_t sl_gemv_rows(sl_act act, sl_type weights) {
    return act == SL_ACT_F16 && (weights == SL_Q8 || weights == SL_Q4) ? SL_GEMV_MOST_ROWS : SL_GEMV_ROWS;
}
int sl_gemv_cuda(const sl_product_args *args, sl_cuda_stream stream);
/* And x times a second matrix like the first to y2, otherwise as the first to y; with f16 activations in the same launch.
 */
int sl_gemv_pair_cuda(const sl_product_args *args, const void *w2, void *y2, sl_cuda_stream stream);
/* y = silu(sum) * sum2 / 2^lift, sum2 with w2, one launch for f16 activations (and SL_OUT_ACT, no bias) only. */
int sl_gemv_gated_cuda(const sl_product_args *args, const void *w2, uint32_t lift, sl_cuda_stream stream);
/* Any number of rows, tiles in shared memory: where cuBLAS is absent or the number of rows is known to the
 * device only. f16 activations: on the matrix units. */
int sl_gemm_cuda(const sl_product_args *args, sl_cuda_stream stream);
/* What remains after cuBLAS has put x W^T into sum [rows.max, sum_stride] (f32): bias and the three kinds of
 * output. */
int sl_store_cuda(const sl_product_args *args, const float *sum, uint64_t sum_stride, sl_cuda_stream stream);

/* Rows of stored weights to dst [n_row, dst_stride] in f32 or f16; bf16 to f16 also in place. */
typedef struct sl_expand_args {
    const void *w;
    uint64_t w_row_bytes;
    sl_type type;
    sl_act act;
    void *dst;
    uint64_t dst_stride;
    uint32_t n_row, k;
} sl_expand_args;
int sl_expand_cuda(const sl_expand_args *args, sl_cuda_stream stream);

/* y[t][i * b + r] = sum_j w[i][r][j] x[t][i * b + j]: blocks of b x b, f32, f16 or bf16. A second time with w2 to y2, if
 * they are not NULL; in the same launch as sl_gemv_pair_cuda. */
/* One launch for both matrices up to so many rows. */
static inline uint32_t sl_block_rows(sl_act act) { return act == SL_ACT_F16 ? SL_GEMV_MOST_ROWS : SL_GEMV_ROWS; }
typedef struct sl_block_args {
    const void *w;
    uint64_t w_row_bytes;
    sl_type type;
    sl_act act;
    const void *x;
    void *y;
    uint64_t x_stride, y_stride;
    uint32_t n_block, b;
    uint32_t n_few; /* up to so many rows the kernel of few: sl_block_rows, or less */
    sl_rows rows;
    const void *w2;
    void *y2;
} sl_block_args;
int sl_block_linear_cuda(const sl_block_args *args, sl_cuda_stream stream);

/* Random weights for measurements: stored rows of any type, values about uniform in -scale .. scale, from the
 * seed. */
typedef struct sl_random_args {
    void *w;
    uint64_t w_row_bytes, n_row;
    sl_type type;
    float scale;
    uint64_t seed;
    uint32_t k;
} sl_random_args;
int sl_random_cuda(const sl_random_args *args, sl_cuda_stream stream);

/* ---- rows: norms, routing, activations (kernels/norm, kernels/elementwise) ------------------------ */

/* RMS norm of n_group groups of n: group g uses w + g * w_step. x f32 or act (x_f32), y act; y may be x. Rows may be in
 * place. */
typedef struct sl_norm_args {
    const void *x;
    const float *w;
    void *y;
    uint64_t x_stride, y_stride;
    uint32_t n_group, n, w_step;
    float eps;
    bool x_f32;
    sl_act act;
    sl_rows rows;
} sl_norm_args;
int sl_rmsnorm_cuda(const sl_norm_args *args, sl_cuda_stream stream);

/* Compacts the rows with rho > 0. One block. tally[0] += deep rows, tally[1] += 1 if there were any. */
typedef struct sl_split_args {
    const float *rho;      /* [n_tok] */
    const uint32_t *start; /* [n_run + 1] first batch row of each run */
    uint32_t *n;           /* [1] deep rows */
    uint32_t *index;       /* [n] their batch rows */
    int32_t *row_of;       /* [n_tok] place in index, or -1 */
    uint32_t *deep_start;  /* [n_run + 1] first deep row of each run */
    unsigned long long *tally; /* [2] */
    uint32_t n_tok, n_run;
} sl_split_args;
int sl_route_split_cuda(const sl_split_args *args, sl_cuda_stream stream);

/* rho[t] of docs/bridge.md step 2 in f32 from the residual stream: u = RMSNorm(x[t]; norm), z = <w, u> + b,
 * rho = tau < 1 ? max(0, 1 - sigma(-z) / (1 - tau)) : 0. And u itself, and of a single row what sl_route_split_cuda
 * would do after it. */
typedef struct sl_route_args {
    const float *x, *norm, *w, *b;
    float *rho; /* [rows.max] */
    void *y;    /* [rows.max, y_stride] act: u */
    uint64_t x_stride, y_stride;
    uint32_t d;
    float eps, tau;
    sl_act act;
    sl_rows rows;        /* all of the batch */
    sl_split_args split; /* read where rows.max is 1 */
} sl_route_args;
int sl_route_score_cuda(const sl_route_args *args, sl_cuda_stream stream);

/* dst row i = src row rows.index[i]; bytes a multiple of 16. */
typedef struct sl_gather_args {
    const void *src;
    void *dst;
    uint64_t src_stride_bytes, dst_stride_bytes;
    uint32_t bytes;
    sl_rows rows;
} sl_gather_args;
int sl_gather_cuda(const sl_gather_args *args, sl_cuda_stream stream);

/* gate = silu(gate) * up / 2^lift. */
typedef struct sl_silu_args {
    void *gate;
    const void *up;
    uint64_t gate_stride, up_stride;
    uint32_t n, lift;
    sl_act act;
    sl_rows rows;
} sl_silu_args;
int sl_silu_mul_cuda(const sl_silu_args *args, sl_cuda_stream stream);

/* ---- sequences (kernels/conv, kernels/scan, kernels/bridge) --------------------------------------- */

/* Steps that another kernel of the CPU's table does are left out where their parameter is NULL, so that the
 * harness holds the same kernel against the same reference: no norm (then no gate either), no s (r as it is),
 * no dt_bias (delta as it is). */

/* docs/bridge.md step 4, shifted keys: y of a token is x of the token before it in its sequence, the state at the first
 * row of a run. */
typedef struct sl_shift_args {
    const void *x;
    void *y;
    sl_slab state; /* [n] x of the last token */
    uint64_t x_stride, y_stride;
    uint32_t n;
    sl_act act;
    sl_runs runs; /* all rows */
} sl_shift_args;
int sl_shift_cuda(const sl_shift_args *args, sl_cuda_stream stream);

/* docs/bridge.md step 3: gated convolution and its norm by heads. pqv: [p e | q e | v e] per row. */
typedef struct sl_conv_cuda_args {
    const void *pqv;
    void *s;
    const float *taps;  /* [k, e], last row for the present sample */
    const float *bias, *norm;
    sl_slab state;      /* [k - 1, e] rows of z, oldest first */
    uint64_t in_stride, s_stride;
    uint32_t e, head_dim, k;
    float eps;
    sl_act act;
    sl_runs runs;       /* all rows */
} sl_conv_cuda_args;
int sl_conv_gate_cuda(const sl_conv_cuda_args *args, sl_cuda_stream stream);

/* docs/bridge.md step 4, S6, of the deep rows: r = silu(r + s), Delta = rho softplus(delta + dt_bias), the
 * scan, + skip r, gate silu(g), norm by heads. in: [g e | r e | B G N | C G N | delta H]. */
typedef struct sl_s6_cuda_args {
    const void *in;
    const void *s;         /* [batch rows, s_stride] */
    const float *rho;      /* by batch row, or NULL: 1 */
    const float *decay;    /* [H] exp(A_log) */
    const float *dt_bias, *skip, *norm;
    void *m;               /* [deep rows, m_stride] */
    sl_slab state;         /* [H][N][head_dim] */
    uint64_t in_stride, s_stride, m_stride;
    uint32_t e, head_dim, n_state, n_group;
    float eps;
    sl_act act;
    sl_runs runs;          /* of the deep rows */
    const uint32_t *index; /* batch row of each deep row, or NULL: the same */
    float *scratch;        /* sl_s6_scratch_cuda floats, or NULL: all runs are short */
    uint32_t max_row;      /* there are never more deep rows; read only with scratch */
} sl_s6_cuda_args;
/* A run of how many rows is long: what both of the following ask. UINT32_MAX: none. */
uint32_t sl_s6_chunked(const sl_s6_cuda_args *args);
/* The short runs, token by token: the same bits however a sequence is cut. */
int sl_s6_cuda(const sl_s6_cuda_args *args, sl_cuda_stream stream);
/* The long runs, in chunks of SL_S6_CHUNK rows from the first of each. Splits operands where that keeps
 * f32 digits: results agree with those of the short runs to about 2^-16 of the summands. */
enum { SL_S6_CHUNK = 64 };
int sl_s6_chunk_cuda(const sl_s6_cuda_args *args, sl_cuda_stream stream);
/* Floats for passes of at most max_row rows; 0 where no run can be long. Bytes of shared memory that a block takes:
 * on a device that has less there is to be no scratch, and all runs count as short. */
uint64_t sl_s6_scratch_cuda(uint32_t max_row, uint32_t e, uint32_t head_dim, uint32_t n_state);
size_t sl_s6_shared_cuda(uint32_t head_dim, uint32_t n_state);

/* The same for S4D: in [g e | r e]; arrays [pole][2][e] as in kernels.h. */
typedef struct sl_s4d_cuda_args {
    const void *in, *s;
    const float *a, *k, *skip, *norm;
    void *m;
    sl_slab state; /* [n_pole][2][e] */
    uint64_t in_stride, s_stride, m_stride;
    uint32_t e, head_dim, n_pole;
    float eps;
    sl_act act;
    sl_runs runs;
} sl_s4d_cuda_args;
int sl_s4d_cuda(const sl_s4d_cuda_args *args, sl_cuda_stream stream);

/* docs/bridge.md steps 5 and 6 (sl_bridge_args of kernels.h says the equations). */
typedef struct sl_bridge_cuda_args {
    const void *s, *q, *gate_i, *gate_f, *m; /* m: deep rows */
    const float *bias_i, *bias_f, *lambda, *kappa, *omega, *gamma; /* [e] */
    const float *rho;      /* by batch row, or NULL: 1 */
    const int32_t *row_of; /* deep row of a batch row or -1; NULL: the same row */
    void *o;
    sl_slab state;         /* [e] */
    uint64_t s_stride, q_stride, gate_stride, m_stride, o_stride;
    uint32_t e;
    sl_act act;
    sl_runs runs;          /* all rows */
} sl_bridge_cuda_args;
int sl_bridge_cuda(const sl_bridge_cuda_args *args, sl_cuda_stream stream);

/* ---- attention (kernels/rope, kernels/attention) -------------------------------------------------- */

/* Table row of each token: [cos n_rot/2 | sin n_rot/2], times gain. The angle is the product position *
 * inv_freq rounded to f32, its cosine and sine then taken in float64, as on the CPU. */
typedef struct sl_rope_table_args {
    const float *inv_freq; /* [n_rot / 2] */
    float *table;          /* [rows, stride] */
    uint64_t stride;
    uint32_t n_rot;
    float gain;
    sl_runs runs;
} sl_rope_table_args;
int sl_rope_table_cuda(const sl_rope_table_args *args, sl_cuda_stream stream);

/* Half-split rotation in place of n_head heads (kernels.h). */
typedef struct sl_rope_args {
    void *x;
    const float *table;
    uint64_t x_stride, table_stride;
    uint32_t n_head, head_dim, n_rot;
    sl_act act;
    sl_rows rows;
} sl_rope_args;
int sl_rope_cuda(const sl_rope_args *args, sl_cuda_stream stream);

/* One slot's KV memory: [store][k, v][kv head][cap][head_dim] f32 or f16. The table of slots lies on the
 * device, so that a captured graph stays valid when a store grows. */
typedef struct sl_kv_slot { void *data; uint64_t cap; } sl_kv_slot;
typedef struct sl_kv_table {
    const sl_kv_slot *slots; /* [n_slot] */
    uint32_t store, n_kv_head, head_dim;
    bool f16;
} sl_kv_table;

/* Rows of k and v to the positions pos + i of their slots. */
typedef struct sl_kv_store_args {
    const void *k, *v;
    uint64_t k_stride, v_stride;
    sl_kv_table kv;
    sl_act act;
    sl_runs runs;
} sl_kv_store_args;
int sl_kv_store_cuda(const sl_kv_store_args *args, sl_cuda_stream stream);

/* Causal attention with online softmax; query i of a run stands at pos + i and sees the last window keys (0:
 * all). The keys of a run of one row are cut into at most 64 chunks, by its position and the window only, which are
 * dealt out to blocks and folded together in order. Of f16 rows over f16 keys of up to 256 components, runs longer than
 * SL_GEMV_ROWS have the same bits for any cut into such runs, shorter ones those of single queries; of others all have. */
typedef struct sl_attention_cuda_args {
    const void *q;
    void *y;
    float *scratch;        /* sl_attention_scratch_cuda floats */
    uint64_t q_stride, y_stride;
    sl_kv_table kv;
    uint32_t n_head, window;
    float scale;
    sl_act act;
    sl_runs runs;
} sl_attention_cuda_args;
int sl_attention_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream);
uint64_t sl_attention_scratch_cuda(uint32_t n_run, uint32_t n_head, uint32_t head_dim);

/* Fills n_pos positions of every store of a slot with small numbers (bench): kv_width elements per position and
 * part. */
int sl_fill_kv_cuda(void *data, uint64_t cap, uint64_t n_pos, uint64_t n_rows, uint32_t head_dim, bool f16,
                    sl_cuda_stream stream);

/* ---- sampling (kernels/sample) -------------------------------------------------------------------- */

typedef struct sl_sample_args {
    const float *logits; /* [n_row, stride] */
    const sl_draw *draws; /* [n_row] */
    int32_t *tokens;      /* [n_row] */
    uint64_t stride;
    uint32_t n_row, n_vocab;
} sl_sample_args;
int sl_sample_cuda(const sl_sample_args *args, sl_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
