/* Level 1 of the dispatch: what a device does for a session. One struct of functions per kind of device. A
 * device owns the recurrent state of all slots (one slab), their growing KV stores and the memory of the
 * graph's values; a session owns everything else. Functions that reach the device can fail (SL_E_MEMORY,
 * SL_E_DEVICE); after SL_E_DEVICE a device only fails and can only be closed. */
#ifndef SL_BACKEND_BACKEND_H
#define SL_BACKEND_BACKEND_H

#include "graph/graph.h"
#include "kernels/draw.h"

typedef struct sl_device sl_device; /* each backend has its own */

typedef struct sl_device_params {
    size_t n_slot, n_batch, n_thread; /* n_thread 0: as many as there are processors and work */
    bool kv_f16;                      /* KV elements are f16 instead of f32 */
    int ordinal;                      /* which of the devices of this kind */
    uint64_t weights_to_come;         /* bytes, for a choice of device before there is a graph */
    bool exact;                       /* f32 activations where the device would take f16 */
    bool exact_by_type;               /* only because the weights are f32 */
    bool invariant;                   /* a run's results must not depend on how many rows a pass has */
    void (*progress)(void *arg, uint64_t done, uint64_t all); /* bytes of weights uploaded; may be NULL */
    void *progress_arg;
} sl_device_params;

/* A run of tokens of one slot inside a batch. */
typedef struct sl_batch_run {
    size_t slot, start, n_tok; /* rows start .. start + n_tok - 1 of the batch */
    uint64_t pos;              /* tokens the slot has seen before */
} sl_batch_run;

/* One pass: at most n_batch tokens; each slot at most once. */
typedef struct sl_batch {
    const int32_t *tokens;   /* [n_tok] */
    const sl_batch_run *runs;
    const uint32_t *out_rows; /* [n_out] rows whose logits are wanted, increasing */
    float *const *out; /* [n_out] where each goes, [n_vocab]; NULL: nowhere, a token is drawn on the device */
    const sl_draw *draws;    /* [n_draw] how, for those with out NULL in their order */
    int32_t *drawn;          /* [n_draw] the tokens */
    size_t n_tok, n_run, n_out, n_draw;
    float tau;               /* NAN: each router's own */
} sl_batch;

/* What passes have read and computed, counted, not assumed. */
typedef struct sl_counters {
    uint64_t weight_bytes, state_bytes, kv_bytes, flops;
    uint64_t deep_tokens, routed_tokens; /* over all routed layers */
    uint64_t passes, replayed; /* of them from a graph of their launches, in one call */
} sl_counters;

/* What a node has taken since its profile began. */
typedef struct sl_node_time {
    double seconds;
    uint64_t n;       /* how often it ran */
    uint32_t with;    /* the node in whose launch it is, and whose time is that of both; else its own number */
    sl_counters work; /* bytes and operations */
} sl_node_time;

typedef struct sl_backend {
    const char *name;
    bool draws; /* can draw tokens itself */
    sl_status (*open)(const sl_graph *graph, const sl_device_params *params, sl_device **out, sl_error *err);
    void (*close)(sl_device *device);
    /* Room for n_pos positions in the slot's KV stores; contents stay. */
    sl_status (*reserve)(sl_device *device, size_t slot, uint64_t n_pos, sl_error *err);
    /* Room for the logits of n tokens of a pass. */
    sl_status (*reserve_rows)(sl_device *device, size_t n, sl_error *err);
    /* Runs the graph and advances the states. KV stores and rows must have been reserved. SL_E_MEMORY: it has not begun. */
    sl_status (*execute)(sl_device *device, const sl_batch *batch, sl_error *err);
    sl_status (*reset)(sl_device *device, size_t slot, sl_error *err);
    /* dst gets src's state after n_pos tokens; dst's KV must have been reserved. */
    sl_status (*copy)(sl_device *device, size_t src, size_t dst, uint64_t n_pos, sl_error *err);
    /* The recurrent state, [graph->state_floats] in the order of graph->states. */
    sl_status (*read_state)(sl_device *device, size_t slot, float *out, sl_error *err);
    sl_status (*write_state)(sl_device *device, size_t slot, const float *in, sl_error *err);
    /* The KV store of n_pos positions: [store][k, v][kv head][n_pos][head_dim] elements. */
    sl_status (*read_kv)(sl_device *device, size_t slot, uint64_t n_pos, void *out, sl_error *err);
    sl_status (*write_kv)(sl_device *device, size_t slot, uint64_t n_pos, const void *in, sl_error *err);
    /* Fills n_pos positions with small numbers (bench). */
    sl_status (*fill_kv)(sl_device *device, size_t slot, uint64_t n_pos, sl_error *err);
    /* Waits until all passes are done: for clocks. */
    sl_status (*wait)(sl_device *device, sl_error *err);
    size_t (*threads)(const sl_device *device);
    /* What it has to do without, and what it does instead, in one line; NULL: nothing. */
    const char *(*note)(const sl_device *device);
    sl_counters *(*counters)(sl_device *device); /* the caller may zero them */
    /* From here on passes add to nodes [graph->n_node], each node by itself: they take longer than usual where nodes
     * else overlap. NULL: no more; nodes are complete only then. */
    sl_status (*profile)(sl_device *device, sl_node_time *nodes, sl_error *err);
} sl_backend;

extern const sl_backend sl_backend_cpu;
#ifdef SL_CUDA
extern const sl_backend sl_backend_cuda;
#endif

/* Bytes of K and V of all stores per position. */
static inline uint64_t sl_kv_token_bytes(const sl_graph *graph, bool f16) {
    return 2 * (uint64_t)graph->n_kv * graph->kv_width * (f16 ? 2 : 4);
}

#endif
