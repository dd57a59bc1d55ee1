/* Inside of the CPU backend: the device, one pass over it, and the nodes' functions. */
#ifndef SL_BACKEND_CPU_H
#define SL_BACKEND_CPU_H

#include "backend/backend.h"

/* The tokens of a domain in this pass. */
typedef struct sl_domain {
    size_t n;
    uint32_t *index;     /* [n] batch rows, increasing; NULL: row i is i */
    int32_t *row_of;     /* [n_tok] row in the domain or -1; NULL unless a router's */
    float *rho;          /* [n_tok]; NULL unless a router's */
    uint32_t *run_start; /* [n_run + 1] first row of each run; NULL: as in the batch */
} sl_domain;

/* One slot's KV stores: [store][k, v][kv head][cap][head_dim]. */
typedef struct sl_kv { uint8_t *data; uint64_t cap; } sl_kv;

struct sl_device {
    const sl_graph *graph;
    sl_kernels kernels;
    size_t n_slot, n_batch, n_thread;
    bool few_threads;    /* for small passes: see cpu_execute */
    bool kv_f16;
    uint8_t *arena;      /* values */
    uint64_t arena_bytes;
    float *states;       /* [n_slot][state_floats] */
    uint64_t states_bytes;
    sl_kv *kv;           /* [n_slot] */
    sl_domain *domains;  /* [n_domain] */
    uint8_t *scratch;    /* [n_thread][scratch_bytes] */
    size_t scratch_bytes;
    sl_counters counters;
    sl_node_time *profile; /* [n_node], or NULL */
};

typedef struct sl_pass {
    sl_device *device;
    const sl_graph *graph;
    const sl_kernels *kernels;
    const sl_batch *batch;
    size_t n_thread;
    struct sl_barrier *barrier; /* shared by the threads; the rest is each thread's copy */
} sl_pass;

/* Splits 0 .. n-1 into consecutive shares whose borders are multiples of unit. */
static inline void sl_share(size_t n, size_t unit, size_t thread, size_t n_thread, size_t *from, size_t *to) {
    size_t units = (n + unit - 1) / unit;
    *from = units * thread / n_thread * unit;
    *to = units * (thread + 1) / n_thread * unit;
    if (*to > n) *to = n;
    if (*from > n) *from = n;
}

static inline float *sl_row(const sl_pass *pass, int32_t value, size_t row) {
    const sl_value *v = &pass->graph->values[value];
    return (float *)(void *)(pass->device->arena + v->offset_rows * pass->device->n_batch + row * v->row_bytes);
}
static inline size_t sl_row_stride(const sl_pass *pass, int32_t value) { /* in floats */
    return pass->graph->values[value].row_bytes / sizeof(float);
}
static inline const sl_domain *sl_domain_of(const sl_pass *pass, uint32_t domain) {
    return &pass->device->domains[domain];
}
/* The batch row of a domain's row. */
static inline size_t sl_batch_row(const sl_domain *domain, size_t row) {
    return domain->index ? domain->index[row] : row;
}
/* The rows of run in a domain: *from .. *to-1. */
static inline void sl_run_rows(const sl_pass *pass, const sl_domain *domain, size_t run, size_t *from,
                               size_t *to) {
    const sl_batch_run *r = &pass->batch->runs[run];
    *from = domain->run_start ? domain->run_start[run] : r->start;
    *to = domain->run_start ? domain->run_start[run + 1] : r->start + r->n_tok;
}
static inline float *sl_slot_state(const sl_pass *pass, const sl_node *node, size_t slot) {
    return pass->device->states + slot * pass->graph->state_floats + pass->graph->states[node->state].offset;
}
static inline void *sl_scratch(const sl_pass *pass, size_t thread) {
    return pass->device->scratch + thread * pass->device->scratch_bytes;
}

/* Positions of one key/value head: what is 0 for K, 1 for V. */
static inline uint8_t *sl_kv_head(const sl_device *device, size_t slot, const sl_attention *p, size_t what,
                                  size_t head) {
    const sl_kv *kv = &device->kv[slot];
    return kv->data +
           ((2 * p->kv + what) * p->n_kv_head + head) * kv->cap * p->head_dim * (device->kv_f16 ? 2 : 4);
}

/* A node's work of one thread. All threads call it; a barrier follows. */
typedef void (*sl_node_fn)(const sl_pass *pass, const sl_node *node, size_t thread);
extern const sl_node_fn sl_cpu_nodes[SL_OP_N];
size_t sl_cpu_scratch_bytes(const sl_graph *graph); /* per thread */

/* Sequence nodes, in cpu_sequence.c. */
void sl_cpu_shift(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_conv_gate(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_ssm_input(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_s6(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_s4d(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_bridge(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_rope_table(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_rope(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_kv_store(const sl_pass *pass, const sl_node *node, size_t thread);
void sl_cpu_attention(const sl_pass *pass, const sl_node *node, size_t thread);

#endif
