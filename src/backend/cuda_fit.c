/* What a session would need of a CUDA device, and where that is more than is free, what would fit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda.h"
#include "backend/devices.h"
#include "base/mem.h"

/* What the driver takes later on by itself: for kernels, of which each is loaded with its first launch, cuBLAS and its
 * kernels, and graphs. A guess on the safe side; the test device takes nothing. */
static uint64_t driver_bytes(void) { return sl_cuda_is_test_device() ? 0 : 256 << 20; }

sl_status sl_cuda_needs(const sl_graph *graph, const sl_device_params *params, sl_cuda_need *need,
                        sl_error *err) {
    sl_cuda_weights weights = { 0 };
    sl_device device = { .graph = graph, .n_slot = params->n_slot, .n_batch = params->n_batch, .invariant = params->invariant };
    SL_TRY(sl_cuda_plan_make(graph, params, &device.plan, err));
    sl_status status = sl_cuda_weights_lay_out(graph, &weights, err);
    *need = (sl_cuda_need){
        .weights = weights.n_bytes, .states = (uint64_t)graph->state_floats * sizeof(float) * params->n_slot,
    };
    const uint64_t stores = sl_cuda_kv_bytes(graph, params->kv_f16, SL_CUDA_FIRST_KV) * params->n_slot;
    uint64_t block = 0;
    if (status == SL_OK) status = sl_cuda_lay_out(&device, &block, err);
    need->activations = driver_bytes() + block - need->states +
                        (uint64_t)graph->n_vocab * sizeof(float) * sl_min(params->n_slot, params->n_batch);
    need->states += stores; /* which are allocated with the first token of each */
    need->all = need->weights + need->states + need->activations;
    bool resident = sl_cuda_weights_resident(graph, params->ordinal, device.plan.act);
    need->missing = need->all - (resident ? need->weights : 0);
    sl_cuda_plan_release(&device.plan);
    sl_cuda_weights_release_layout(&weights);
    return status;
}

/* ---- what would fit ------------------------------------------------------------------------------ */

/* The graph as if its weights were stored in another type; they have no other data. */
typedef struct retyped {
    sl_graph graph;
    sl_node *nodes;
    sl_tensor *tensors; /* [n_node] */
} retyped;

static const sl_tensor **tensor_of(sl_node *node) {
    switch (node->op) {
    case SL_OP_EMBED: return &node->u.table;
    case SL_OP_LINEAR:
    case SL_OP_BLOCK_LINEAR: return &node->u.linear.w;
    default: return NULL;
    }
}

static sl_tensor as_type(const sl_tensor *w, sl_type type) {
    sl_tensor t = *w;
    t.type = sl_class_type(w->spec.class_, type);
    t.row_bytes = sl_row_bytes(t.type, sl_spec_width(&w->spec));
    t.bytes = w->bytes / w->row_bytes * t.row_bytes;
    return t;
}

static void release_retyped(retyped *r) {
    free(r->nodes);
    free(r->tensors);
}

static sl_status retype(const sl_graph *graph, sl_type type, retyped *r) {
    *r = (retyped){ .graph = *graph };
    SL_TRY(sl_alloc((void **)&r->nodes, graph->n_node, sizeof *r->nodes, "nodes", NULL));
    SL_TRY(sl_alloc((void **)&r->tensors, graph->n_node, sizeof *r->tensors, "tensors", NULL));
    memcpy(r->nodes, graph->nodes, graph->n_node * sizeof *r->nodes);
    r->graph.nodes = r->nodes;
    for (size_t i = 0; i < graph->n_node; i++) {
        const sl_tensor **w = tensor_of(&r->nodes[i]);
        if (!w) continue;
        r->tensors[i] = as_type(*w, type);
        *w = &r->tensors[i];
    }
    return SL_OK;
}

/* A model of the same shape, of a 16-bit or quantised type. */
static bool fits_as(const sl_graph *graph, const sl_device_params *params, sl_type type, uint64_t free_bytes,
                    uint64_t *needed) {
    sl_device_params smaller = *params;
    sl_cuda_need need = { 0 };
    retyped r;
    smaller.kv_f16 = true;
    smaller.exact = params->exact && !params->exact_by_type;
    sl_status status = retype(graph, type, &r);
    if (status == SL_OK) status = sl_cuda_needs(&r.graph, &smaller, &need, NULL);
    release_retyped(&r);
    *needed = need.all;
    return status == SL_OK && need.all <= free_bytes;
}

/* The largest type that fits. how: what else would be different. */
static bool suggest_type(const sl_graph *graph, const sl_device_params *params, const char *how, uint64_t free_bytes,
                         char *text, size_t size) {
    static const sl_type types[] = { SL_BF16, SL_Q8, SL_Q4 };
    sl_size_buf buf;
    uint64_t needed;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!fits_as(graph, params, types[i], free_bytes, &needed)) continue;
        snprintf(text, size, "; as %s%s it would need %s", sl_type_name(types[i]), how, sl_size(needed, &buf));
        return true;
    }
    return false;
}

/* In a smaller type; as it is for one sequence and few tokens a pass; or both. */
static void suggest(const sl_graph *graph, const sl_device_params *params, uint64_t free_bytes, char *text, size_t size) {
    enum { FEW = 64 };
    sl_device_params least = *params;
    sl_cuda_need alone;
    sl_size_buf buf;
    char how[64];
    least.n_slot = 1, least.n_batch = sl_min(params->n_batch, FEW);
    snprintf(how, sizeof how, ", for one sequence, %zu tokens a pass,", least.n_batch);
    if (suggest_type(graph, params, "", free_bytes, text, size)) return;
    if (sl_cuda_needs(graph, &least, &alone, NULL) == SL_OK && alone.missing <= free_bytes)
        snprintf(text, size, ";%s it would need %s", how + 1, sl_size(alone.all, &buf));
    else if (!suggest_type(graph, &least, how, free_bytes, text, size)) snprintf(text, size, "; no type of it would fit");
}

/* ---- checks -------------------------------------------------------------------------------------- */

sl_status sl_cuda_check_sizes(const sl_device_params *params, sl_error *err) {
    const bool batch = params->n_batch > SL_CUDA_MAX_GRID;
    if (!batch && params->n_slot <= SL_CUDA_MAX_GRID) return SL_OK;
    return sl_fail(err, SL_E_ARG, "cuda:%d: %s is %zu, expected 1 to %d on a CUDA device", params->ordinal,
                   batch ? "n_batch" : "n_slot", batch ? params->n_batch : params->n_slot, SL_CUDA_MAX_GRID);
}

sl_status sl_cuda_check_fit(const sl_graph *graph, const sl_device_params *params, sl_error *err) {
    sl_cuda_need need;
    size_t free_bytes = 0, all = 0;
    char hint[120];
    SL_TRY(sl_cuda_needs(graph, params, &need, err));
    cudaError_t e = cudaMemGetInfo(&free_bytes, &all);
    if (e != cudaSuccess)
        return sl_fail(err, SL_E_DEVICE, "cuda:%d: asking for free memory: %s", params->ordinal,
                       cudaGetErrorString(e));
    if (need.missing <= free_bytes) return SL_OK;
    suggest(graph, params, free_bytes, hint, sizeof hint);
    sl_size_buf sizes[5];
    return sl_fail(err, SL_E_MEMORY,
                   "cuda:%d: out of memory: the model needs %s (weights %s, states of %zu sequences %s, activations %s), "
                   "%s are free%s",
                   params->ordinal, sl_size(need.all, &sizes[0]), sl_size(need.weights, &sizes[1]), params->n_slot,
                   sl_size(need.states, &sizes[2]), sl_size(need.activations, &sizes[3]),
                   sl_size(free_bytes, &sizes[4]), hint);
}
