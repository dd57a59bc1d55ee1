/* The plan of a graph's values on a CUDA device: types, lifetimes and places, and what the nodes read. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda.h"
#include "base/mem.h"

/* ---- types -------------------------------------------------------------------------------------- */

/* The residual stream and the rotary table are f32; rows gathered from f32 stay so. */
static bool makes_f32(const sl_cuda_plan *plan, const sl_node *node) {
    if (node->op == SL_OP_EMBED || node->op == SL_OP_ROPE_TABLE) return true;
    return node->op == SL_OP_GATHER && plan->is_f32[plan->alias[node->in[0]]];
}

static void find_types(const sl_graph *g, sl_cuda_plan *plan) {
    for (size_t i = 0; i < g->n_value; i++) plan->alias[i] = (int32_t)i;
    for (size_t i = 0; i < g->n_node; i++) {
        const sl_node *node = &g->nodes[i];
        if (node->op == SL_OP_SILU_MUL) plan->is_hidden[node->in[0]] = plan->act == SL_ACT_F16;
        if (node->out == SL_NO_VALUE) continue;
        if (node->op == SL_OP_QUANT) plan->alias[node->out] = plan->alias[node->in[0]];
        plan->is_f32[node->out] = plan->act == SL_ACT_F32 || makes_f32(plan, node);
    }
}

/* ---- gathers ------------------------------------------------------------------------------------ */

/* Values that a node takes: the last of the bridge is a domain. */
static size_t n_in(const sl_node *node) { return node->op == SL_OP_BRIDGE ? 5 : 6; }

/* v stands for itself. Quantising is not done here, its result stands for v as well. */
static bool reads(const sl_cuda_plan *plan, const sl_node *node, int32_t v) {
    for (size_t i = 0; i < n_in(node) && node->op != SL_OP_QUANT; i++)
        if (node->in[i] != SL_NO_VALUE && plan->alias[node->in[i]] == v) return true;
    return false;
}

/* In place, or as a sum. */
static bool changes(const sl_node *node, int32_t v) {
    const bool in_place = node->op == SL_OP_SILU_MUL || node->op == SL_OP_ROPE;
    return (in_place && node->in[0] == v) || (node->op == SL_OP_LINEAR && node->u.linear.acc == v);
}

/* May all that read the gather's rows take them from its input, which is the same until then? */
static bool find_readers(const sl_graph *g, const sl_node *gather, sl_cuda_plan *plan) {
    bool is_changed = false;
    for (const sl_node *node = gather + 1; node < g->nodes + g->n_node; node++) {
        if (reads(plan, node, gather->out)) {
            const bool product = node->op == SL_OP_LINEAR && plan->act == SL_ACT_F16;
            if (is_changed || node->domain != gather->domain || (!product && node->op != SL_OP_NORM)) return false;
            plan->is_copied[gather->out] |= product;
        }
        is_changed |= changes(node, gather->in[0]);
    }
    return true;
}

static void find_origins(const sl_graph *g, sl_cuda_plan *plan) {
    for (size_t i = 0; i < g->n_value; i++) plan->origin[i] = SL_NO_VALUE;
    for (size_t i = 0; i < g->n_node; i++) {
        const sl_node *node = &g->nodes[i];
        if (node->op == SL_OP_GATHER && find_readers(g, node, plan)) plan->origin[node->out] = node->in[0];
    }
}

/* ---- lifetimes ---------------------------------------------------------------------------------- */

static void use(sl_cuda_plan *plan, int32_t v, size_t node) {
    if (v == SL_NO_VALUE) return;
    sl_value *value = &plan->values[plan->alias[v]];
    value->last = node;
    if (value->first == SIZE_MAX) value->first = node;
    use(plan, plan->origin[plan->alias[v]], node);
}

/* As the graph's, but quantised forms and gathers lengthen the life of what they stand for, and the scan reads what the
 * node in front of it (which is not launched) would have prepared. */
static void find_lifetimes(const sl_graph *g, sl_cuda_plan *plan) {
    for (size_t i = 0; i < g->n_value; i++) plan->values[i].first = SIZE_MAX;
    for (size_t i = 0; i < g->n_node; i++) {
        const sl_node *node = &g->nodes[i];
        for (size_t j = 0; j < n_in(node); j++) use(plan, node->in[j], i + (node->op == SL_OP_SSM_INPUT));
        use(plan, node->out, i);
    }
}

static void find_rows(const sl_graph *g, sl_cuda_plan *plan) {
    for (size_t i = 0; i < g->n_value; i++) {
        sl_value *v = &plan->values[i];
        size_t size = plan->is_f32[i] ? 4 : sl_act_size(plan->act);
        v->offset_rows = 0;
        v->row_bytes = plan->alias[i] == (int32_t)i ? sl_round_up(v->width * size, 64) : 0;
        if (v->first == SIZE_MAX) v->first = v->last = 0; /* an alias lives nowhere */
    }
}

/* ---- scratch ------------------------------------------------------------------------------------ */

sl_type sl_cuda_weight_type(sl_act act, const sl_tensor *w) {
    return act == SL_ACT_F16 && w->type == SL_BF16 ? SL_F16 : w->type;
}

bool sl_cuda_is_plain(const sl_cuda_plan *plan, const sl_tensor *w) {
    return sl_cuda_weight_type(plan->act, w) == (plan->act == SL_ACT_F32 ? SL_F32 : SL_F16);
}

bool sl_cuda_is_counted(const sl_cuda_plan *plan, const sl_node *node) {
    return plan->act == SL_ACT_F16 && node->domain != SL_ALL && node->domain != SL_OUTPUTS;
}

uint64_t sl_cuda_piece(const sl_cuda_plan *plan, const sl_tensor *w) {
    const uint64_t rows = sl_spec_rows(&w->spec), row = (sl_spec_width(&w->spec) + 8) * sl_act_size(plan->act);
    const uint64_t piece = SL_CUDA_EXPAND_BYTES / row / 64 * 64;
    return sl_cuda_is_plain(plan, w) || piece >= rows ? rows : piece ? piece : 64;
}

/* A product over many rows goes through cuBLAS, which wants weights in the type of the activations, and where
 * the result has a bias or is added to some rows or by a factor of theirs, a place for the sums. */
static void add_scratch(const sl_cuda_plan *plan, const sl_node *node, uint64_t *expand, uint64_t *sums) {
    const sl_linear *p = &node->u.linear;
    const uint64_t row = sl_round_up((size_t)sl_spec_width(&p->w->spec), 8) * sl_act_size(plan->act);
    const uint64_t piece = sl_cuda_piece(plan, p->w);
    if (!sl_cuda_is_plain(plan, p->w) && piece * row > *expand) *expand = piece * row;
    const bool finished = p->bias || (p->acc != SL_NO_VALUE && (p->rho != SL_NO_VALUE || node->domain != SL_ALL));
    if (finished && piece > *sums) *sums = piece;
}

/* shared: bytes that a block can have on the device. */
static void find_scratch(const sl_graph *g, const sl_device_params *params, int shared, sl_cuda_plan *plan) {
    for (size_t i = 0; i < g->n_node; i++) {
        const sl_node *node = &g->nodes[i];
        if (node->op == SL_OP_LINEAR && !sl_cuda_is_counted(plan, node) && !params->invariant)
            add_scratch(plan, node, &plan->expand_bytes, &plan->sum_floats);
        if (node->op == SL_OP_S6 && plan->act == SL_ACT_F16) {
            const sl_s6 *p = &node->u.s6;
            const bool fits = sl_s6_shared_cuda((uint32_t)p->head_dim, (uint32_t)p->n_state) <= (size_t)shared;
            const uint64_t floats = sl_s6_scratch_cuda((uint32_t)params->n_batch, (uint32_t)p->e,
                                                       (uint32_t)p->head_dim, (uint32_t)p->n_state);
            if (fits && floats > plan->scan_floats) plan->scan_floats = floats;
        }
        if (node->op != SL_OP_ATTENTION) continue;
        uint64_t floats = sl_attention_scratch_cuda(
            (uint32_t)params->n_slot, (uint32_t)node->u.attention.n_head, (uint32_t)node->u.attention.head_dim);
        if (floats > plan->attention_floats) plan->attention_floats = floats;
    }
}

sl_status sl_cuda_plan_make(const sl_graph *g, const sl_device_params *params, sl_cuda_plan *plan,
                            sl_error *err) {
    *plan = (sl_cuda_plan){ .act = params->exact ? SL_ACT_F32 : SL_ACT_F16 };
    int shared = 0;
    cudaError_t e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, params->ordinal);
    if (e != cudaSuccess)
        return sl_fail(err, SL_E_DEVICE, "cuda:%d: asking for its shared memory: %s", params->ordinal,
                       cudaGetErrorString(e));
    sl_status status = sl_alloc((void **)&plan->values, g->n_value, sizeof *plan->values, "the plan", err);
    if (status == SL_OK)
        status = sl_alloc((void **)&plan->alias, g->n_value, sizeof *plan->alias, "the plan", err);
    if (status == SL_OK)
        status = sl_alloc((void **)&plan->is_f32, g->n_value, sizeof *plan->is_f32, "the plan", err);
    if (status == SL_OK)
        status = sl_alloc((void **)&plan->is_hidden, g->n_value, sizeof *plan->is_hidden, "the plan", err);
    if (status == SL_OK) status = sl_alloc((void **)&plan->origin, g->n_value, sizeof *plan->origin, "the plan", err);
    if (status == SL_OK)
        status = sl_alloc((void **)&plan->is_copied, g->n_value, sizeof *plan->is_copied, "the plan", err);
    if (status == SL_OK) {
        memcpy(plan->values, g->values, g->n_value * sizeof *plan->values);
        find_types(g, plan);
        find_origins(g, plan);
        find_lifetimes(g, plan);
        find_rows(g, plan);
        find_scratch(g, params, shared, plan);
        if (!sl_graph_place(plan->values, g->n_value, &plan->arena_bytes))
            status = sl_fail(err, SL_E_MEMORY, "out of memory for the plan of %zu values", g->n_value);
    }
    if (status != SL_OK) sl_cuda_plan_release(plan);
    return status;
}

void sl_cuda_plan_release(sl_cuda_plan *plan) {
    free(plan->values);
    free(plan->alias);
    free(plan->is_f32);
    free(plan->is_hidden);
    free(plan->origin);
    free(plan->is_copied);
    *plan = (sl_cuda_plan){ 0 };
}

/* ---- what the nodes read ------------------------------------------------------------------------ */

typedef struct visit { sl_cuda_constant_fn f; void *arg; } visit;

static void matrix(const visit *v, const sl_tensor *w) { v->f(v->arg, w->data, w->bytes, w); }
static void floats(const visit *v, const float *data, size_t n) {
    if (data && n) v->f(v->arg, data, n * sizeof *data, NULL);
}

static void visit_sequence(const visit *v, const sl_node *node) {
    switch (node->op) {
    case SL_OP_CONV_GATE: {
        const sl_conv *p = &node->u.conv;
        floats(v, p->taps, p->k * p->e);
        floats(v, p->bias, p->e);
        floats(v, p->norm, p->e);
        break;
    }
    case SL_OP_S6: {
        const sl_s6 *p = &node->u.s6;
        floats(v, p->decay, p->e / p->head_dim);
        floats(v, p->dt_bias, p->e / p->head_dim);
        floats(v, p->skip, p->e);
        floats(v, p->norm, p->e);
        break;
    }
    case SL_OP_S4D: {
        const sl_s4d *p = &node->u.s4d;
        floats(v, p->a, 2 * p->n_pole * p->e);
        floats(v, p->k, 2 * p->n_pole * p->e);
        floats(v, p->skip, p->e);
        floats(v, p->norm, p->e);
        break;
    }
    case SL_OP_BRIDGE: {
        const sl_bridge *p = &node->u.bridge;
        const float *const parts[] = { p->bias_i, p->bias_f, p->lambda, p->kappa, p->omega, p->gamma };
        for (size_t i = 0; i < 6; i++) floats(v, parts[i], p->e);
        break;
    }
    default: break;
    }
}

static void visit_node(const sl_graph *g, const visit *v, const sl_node *node) {
    switch (node->op) {
    case SL_OP_EMBED: matrix(v, node->u.table); break;
    case SL_OP_LINEAR:
        matrix(v, node->u.linear.w);
        floats(v, node->u.linear.bias, (size_t)sl_spec_rows(&node->u.linear.w->spec));
        break;
    case SL_OP_BLOCK_LINEAR: matrix(v, node->u.linear.w); break;
    case SL_OP_NORM:
        floats(v, node->u.norm.w, node->u.norm.w_step * (node->u.norm.n_group - 1) + node->u.norm.n);
        break;
    case SL_OP_ROUTE_SCORE:
        floats(v, node->u.router.w, g->values[node->in[0]].width);
        floats(v, node->u.router.b, 1);
        break;
    case SL_OP_ROPE_TABLE: floats(v, g->inv_freq, g->n_rot / 2); break;
    default: visit_sequence(v, node);
    }
}

void sl_cuda_constants(const sl_graph *g, sl_cuda_constant_fn f, void *arg) {
    const visit v = { f, arg };
    for (size_t i = 0; i < g->n_node; i++) visit_node(g, &v, &g->nodes[i]);
}
