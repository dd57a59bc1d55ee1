/* A model as a list of nodes over values of shape [tokens, width].
 *
 * Values live in a domain, which is a set of the batch's tokens: all of them (SL_ALL), those whose logits
 * are wanted (SL_OUTPUTS), or the deep tokens of one router. A node runs over the rows of its domain; with no
 * row it is skipped and its weights are not read. Sequence nodes own state tensors, one copy per slot.
 *
 * Building: the functions append nodes and check shapes with the asserts of a programmer's error (weights
 * were held against the schema before); running out of memory is remembered and reported by
 * sl_graph_finish, which also plans the memory of values. */
#ifndef SL_GRAPH_GRAPH_H
#define SL_GRAPH_GRAPH_H

#include "kernels/kernels.h"
#include "models/arch.h"

#define SL_NO_VALUE (-1)
enum { SL_MAX_ROT = 1024 /* rotary components of a head */, SL_ALL = 0, SL_OUTPUTS = 1 };

/* A tensor with its data, row-major in its type's row layout. */
typedef struct sl_tensor {
    sl_tensor_spec spec;
    sl_type type;
    const void *data;
    uint64_t row_bytes, bytes;
    float random; /* > 0: no data behind the address; a device makes values within +-random (for measurements) */
} sl_tensor;

typedef struct sl_weights { sl_tensor *tensors; size_t n; } sl_weights;

/* By name, printf-formatted with layer; it must be there. floats: an f32 tensor's data. */
const sl_tensor *sl_weights_get(const sl_weights *weights, const char *name_format, size_t layer);
const float *sl_weights_floats(const sl_weights *weights, const char *name_format, size_t layer);

typedef enum sl_op {
    SL_OP_EMBED, SL_OP_ROPE_TABLE, SL_OP_NORM, SL_OP_QUANT, SL_OP_LINEAR, SL_OP_BLOCK_LINEAR, SL_OP_SILU_MUL,
    SL_OP_ROUTE_SCORE, SL_OP_ROUTE_SPLIT, SL_OP_GATHER, SL_OP_SHIFT, SL_OP_CONV_GATE, SL_OP_SSM_INPUT, SL_OP_S6, SL_OP_S4D,
    SL_OP_BRIDGE, SL_OP_ROPE, SL_OP_KV_STORE, SL_OP_ATTENTION, SL_OP_N
} sl_op;

/* Parameters of the larger nodes; pointers are borrowed and live as long as the graph. */
typedef struct sl_conv { size_t e, head_dim, k; const float *taps, *bias, *norm; float eps; } sl_conv;
typedef struct sl_s6 {
    size_t e, head_dim, n_state, n_group;
    const float *decay, *dt_bias, *skip, *norm;
    float eps;
} sl_s6;
typedef struct sl_s4d { size_t e, head_dim, n_pole; const float *a, *k, *skip, *norm; float eps; } sl_s4d;
typedef struct sl_bridge { size_t e; const float *bias_i, *bias_f, *lambda, *kappa, *omega, *gamma; } sl_bridge;

typedef struct sl_norm { const float *w; size_t n_group, n, w_step; float eps; } sl_norm;
typedef struct sl_linear {
    const sl_tensor *w;
    const float *bias;  /* NULL: none */
    int32_t x;          /* the f32 value or its quantised form */
    int32_t acc;        /* acc += rho * y in domain SL_ALL instead of writing out; or SL_NO_VALUE */
    int32_t rho;        /* the router's domain whose rho weighs each token, or SL_NO_VALUE: 1 */
    bool head;          /* y goes to the batch's logits rows */
    size_t column;      /* of out, where y begins */
} sl_linear;
typedef struct sl_router { const float *w, *b; float tau; uint32_t domain; } sl_router;
typedef struct sl_attention { size_t n_head, n_kv_head, head_dim, window, kv; /* kv: index of the store */ } sl_attention;

typedef struct sl_node {
    sl_op op;
    uint32_t domain;    /* whose rows it runs over */
    uint32_t layer;
    int32_t in[6], out; /* values; SL_NO_VALUE where unused */
    int32_t state;      /* index of its state tensor, or SL_NO_VALUE */
    union {
        const sl_tensor *table;
        sl_norm norm;
        sl_linear linear;
        sl_router router;
        sl_conv conv;
        sl_s6 s6;
        sl_s4d s4d;
        sl_bridge bridge;
        sl_attention attention;
        struct { size_t n_head, head_dim; } rope;
    } u;
} sl_node;

/* A value: f32 rows, or activation rows of a quantised product. */
typedef struct sl_value {
    uint32_t domain;
    size_t width;        /* elements */
    size_t row_bytes;    /* distance of rows, a multiple of 64 */
    size_t first, last;  /* nodes that write it first and use it last */
    size_t offset_rows;  /* planned offset in bytes per batch token (times n_batch) */
    int32_t quant;       /* its quantised form, or SL_NO_VALUE */
} sl_value;

typedef struct sl_state_tensor {
    const char *name;    /* "shift", "conv", "s6", "s4d", "bridge" */
    uint32_t layer;
    size_t n;            /* floats */
    size_t offset;       /* floats from the start of the slot's block, a multiple of 16 */
} sl_state_tensor;

typedef struct sl_graph {
    sl_node *nodes;
    size_t n_node, cap_node;
    sl_value *values;
    size_t n_value, cap_value;
    sl_state_tensor *states;
    size_t n_state, cap_state;
    void **constants;
    size_t n_constant, cap_constant;
    uint32_t n_domain;
    size_t layer;            /* of the nodes being added */
    size_t n_vocab;
    size_t max_context;      /* 0: none */
    size_t state_floats;     /* of one slot */
    size_t arena_bytes;      /* of values, per batch token */
    uint64_t products;       /* multiply-adds of a token in all matrix products */
    size_t n_kv;             /* KV stores */
    size_t kv_width, kv_head_dim; /* elements per position of K (and V) and of one head, equal in all stores */
    int32_t rope_table;      /* value [cos n_rot/2 | sin n_rot/2], or SL_NO_VALUE */
    const float *inv_freq;
    size_t n_rot;
    float rope_gain;
    bool failed;
} sl_graph;

/* What a router decides: the domain of deep tokens, which also names its rho. Unrouted: all, SL_NO_VALUE. */
typedef struct sl_route { uint32_t domain; int32_t rho; } sl_route;

void sl_graph_init(sl_graph *graph);
void sl_graph_release(sl_graph *graph);
sl_status sl_graph_finish(sl_graph *graph, sl_error *err);
/* Gives values places by first, last and row_bytes; *bytes per batch token
 * are enough for all. Backends with other rows than the graph's plan for themselves. False: out of memory. */
bool sl_graph_place(sl_value *values, size_t n, size_t *bytes);

/* n floats that live as long as the graph, zeroed, 64-byte aligned; NULL when out of memory. */
float *sl_graph_constants(sl_graph *graph, size_t n);

int32_t sl_graph_embed(sl_graph *graph, const sl_tensor *table);
/* Norm of n_group groups of n; group i uses w + i * w_step. */
int32_t sl_graph_norm(sl_graph *graph, int32_t x, const float *w, size_t n_group, size_t n, size_t w_step, float eps);
int32_t sl_graph_linear(sl_graph *graph, int32_t x, const sl_tensor *w, const float *bias);
/* Rows first .. first + n - 1 of a matrix, as a matrix; NULL when out of memory. */
const sl_tensor *sl_graph_rows(sl_graph *graph, const sl_tensor *w, size_t first, size_t n);
/* A product whose output is put together from several: an empty value for the rows of x, and W x in its columns
 * column .. column + rows of W - 1. */
int32_t sl_graph_columns(sl_graph *graph, int32_t x, size_t width);
void sl_graph_linear_into(sl_graph *graph, int32_t out, size_t column, int32_t x, const sl_tensor *w);
/* acc (all tokens) += rho * (W x + bias), x in any domain. */
void sl_graph_linear_add(sl_graph *graph, int32_t acc, int32_t x, const sl_tensor *w, const float *bias, int32_t rho);
/* Block-diagonal product: w [blocks, b, b], not quantised. */
int32_t sl_graph_block_linear(sl_graph *graph, int32_t x, const sl_tensor *w);
/* gate = silu(gate) * up. */
void sl_graph_silu_mul(sl_graph *graph, int32_t gate, int32_t up);

sl_route sl_graph_no_route(void);
sl_route sl_graph_route(sl_graph *graph, int32_t u, const float *w, const float *b, float tau);
/* The deep tokens' rows of x; x itself when unrouted. */
int32_t sl_graph_gather(sl_graph *graph, int32_t x, sl_route route);
/* Rows whose logits are wanted. */
int32_t sl_graph_outputs(sl_graph *graph, int32_t x);

/* Each token's x is that of the token before it in its sequence, zero at the first. x: all tokens. */
int32_t sl_graph_shift(sl_graph *graph, int32_t x);
int32_t sl_graph_conv_gate(sl_graph *graph, int32_t pqv, const sl_conv *p);
/* in: [g | r | B | C | delta] of the deep tokens; s: all tokens. */
int32_t sl_graph_s6(sl_graph *graph, int32_t in, int32_t s, sl_route route, const sl_s6 *p);
int32_t sl_graph_s4d(sl_graph *graph, int32_t in, int32_t s, const sl_s4d *p); /* in: [g | r] */
int32_t sl_graph_bridge(sl_graph *graph, int32_t s, int32_t pqv, int32_t gate_i, int32_t gate_f, int32_t m,
                        sl_route route, const sl_bridge *p);

void sl_graph_rope_table(sl_graph *graph, const float *inv_freq, size_t n_rot, float gain);
void sl_graph_rope(sl_graph *graph, int32_t x, size_t n_head, size_t head_dim); /* in place */
int32_t sl_graph_attention(sl_graph *graph, int32_t q, int32_t k, int32_t v, size_t n_head, size_t n_kv_head,
                           size_t head_dim, size_t window);
void sl_graph_head(sl_graph *graph, int32_t x, const sl_tensor *w);

const char *sl_op_name(sl_op op);

#endif
