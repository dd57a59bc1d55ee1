/* The CPU's stateless nodes: each splits its outputs (rows of a matrix, or tokens) over the threads, never a
 * sum, so that results do not depend on the number of threads. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "backend/cpu.h"
#include "base/mem.h"

static void run_embed(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_kernels *k = pass->kernels;
    const sl_expand_fn expand[SL_N_TYPE] = { k->expand_f32, k->expand_f16, k->expand_bf16, k->expand_q8,
                                             k->expand_q4 };
    const sl_tensor *table = node->u.table;
    size_t from, to;
    sl_share(pass->batch->n_tok, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++) {
        const uint8_t *row = (const uint8_t *)table->data + (size_t)pass->batch->tokens[t] * table->row_bytes;
        expand[table->type](row, (size_t)sl_spec_width(&table->spec), sl_row(pass, node->out, t));
    }
}

static void run_norm(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_norm *p = &node->u.norm;
    size_t from, to;
    sl_share(sl_domain_of(pass, node->domain)->n, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++)
        pass->kernels->rmsnorm(sl_row(pass, node->in[0], t), p->w, sl_row(pass, node->out, t), p->n_group, p->n,
                               p->w_step, p->eps);
}

static void run_quant(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t from, to;
    sl_share(sl_domain_of(pass, node->domain)->n, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++)
        pass->kernels->quant_act(sl_row(pass, node->in[0], t), pass->graph->values[node->in[0]].width,
                                 sl_row(pass, node->out, t));
}

static void run_silu_mul(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t from, to, width = pass->graph->values[node->in[0]].width;
    size_t n = sl_domain_of(pass, node->domain)->n, first, last;
    /* Few tokens: split the channels; many: the tokens. */
    sl_share(n, 1, n < pass->n_thread ? 0 : thread, n < pass->n_thread ? 1 : pass->n_thread, &from, &to);
    sl_share(width, 16, n < pass->n_thread ? thread : 0, n < pass->n_thread ? pass->n_thread : 1, &first,
             &last);
    for (size_t t = from; t < to && first < last; t++) {
        float *gate = sl_row(pass, node->in[0], t) + first;
        pass->kernels->silu_mul(gate, sl_row(pass, node->in[1], t) + first, gate, last - first);
    }
}

static void run_gather(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_domain *domain = sl_domain_of(pass, node->domain);
    size_t from, to, bytes = pass->graph->values[node->out].width * sizeof(float);
    sl_share(domain->n, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++)
        memcpy(sl_row(pass, node->out, t), sl_row(pass, node->in[0], sl_batch_row(domain, t)), bytes);
}

/* ---- products ----------------------------------------------------------------------------------- */

/* A tile of a product: TILE_ROWS rows of weights stay in cache while TILE_TOKENS tokens pass. */
enum { TILE_ROWS = 64, TILE_TOKENS = 32 };

static sl_gemm_fn gemm_of(const sl_kernels *k, sl_type type) {
    const sl_gemm_fn gemm[SL_N_TYPE] = { k->gemm_f32, k->gemm_f16, k->gemm_bf16, k->gemm_q8, k->gemm_q4 };
    return gemm[type];
}

static void add_bias(float *tile, size_t stride, const float *bias, size_t n_row, size_t n_tok) {
    for (size_t t = 0; t < n_tok; t++)
        for (size_t r = 0; r < n_row; r++) tile[t * stride + r] += bias[r];
}

/* Where a finished tile goes: a logits row, or rho times added to the residual stream. */
static void store_tile(const sl_pass *pass, const sl_node *node, const float *tile, size_t row, size_t n_row,
                       size_t tok, size_t n_tok) {
    const sl_linear *p = &node->u.linear;
    const sl_domain *domain = sl_domain_of(pass, node->domain);
    const float *rho = p->rho == SL_NO_VALUE ? NULL : sl_domain_of(pass, (uint32_t)p->rho)->rho;
    for (size_t t = 0; t < n_tok; t++) {
        const float *y = tile + t * TILE_ROWS;
        if (p->head) {
            memcpy(pass->batch->out[tok + t] + row, y, n_row * sizeof *y);
            continue;
        }
        size_t at = sl_batch_row(domain, tok + t);
        pass->kernels->add_scaled(sl_row(pass, p->acc, at) + row, y, rho ? rho[at] : 1.0f, n_row);
    }
}

static void linear_tile(const sl_pass *pass, const sl_node *node, float *tile, size_t row, size_t n_row,
                        size_t tok, size_t n_tok) {
    const sl_linear *p = &node->u.linear;
    const uint8_t *w = (const uint8_t *)p->w->data + row * p->w->row_bytes;
    bool direct = !p->head && p->acc == SL_NO_VALUE;
    float *y = direct ? sl_row(pass, node->out, tok) + p->column + row : tile;
    size_t stride = direct ? sl_row_stride(pass, node->out) : TILE_ROWS;
    gemm_of(pass->kernels, p->w->type)(w, p->w->row_bytes, sl_row(pass, p->x, tok),
                                       pass->graph->values[p->x].row_bytes, y, stride, n_row, n_tok,
                                       (size_t)sl_spec_width(&p->w->spec));
    if (p->bias) add_bias(y, stride, p->bias + row, n_row, n_tok);
    if (!direct) store_tile(pass, node, tile, row, n_row, tok, n_tok);
}

static void run_linear(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t n_tok = sl_domain_of(pass, node->domain)->n, from, to;
    sl_share((size_t)sl_spec_rows(&node->u.linear.w->spec), 16, thread, pass->n_thread, &from, &to);
    for (size_t row = from; row < to; row += TILE_ROWS)
        for (size_t tok = 0; tok < n_tok; tok += TILE_TOKENS)
            linear_tile(pass, node, sl_scratch(pass, thread), row, sl_min(TILE_ROWS, to - row), tok,
                        sl_min(TILE_TOKENS, n_tok - tok));
}

static void run_block_linear(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_tensor *w = node->u.linear.w;
    const size_t b = (size_t)w->spec.shape[1], n_tok = sl_domain_of(pass, node->domain)->n;
    size_t from, to;
    sl_share((size_t)w->spec.shape[0], 1, thread, pass->n_thread, &from, &to);
    for (size_t i = from; i < to; i++)
        gemm_of(pass->kernels,
                w->type)((const uint8_t *)w->data + i * b * w->row_bytes, w->row_bytes,
                         sl_row(pass, node->in[0], 0) + i * b, pass->graph->values[node->in[0]].row_bytes,
                         sl_row(pass, node->out, 0) + i * b, sl_row_stride(pass, node->out), b, n_tok, b);
}

/* ---- routing ------------------------------------------------------------------------------------ */

/* rho = max(0, (sigma(z) - tau) / (1 - tau)) in the form that is exact near tau = 1 (docs/bridge.md, step 2).
 */
static float router_rho(float z, float tau) {
    if (tau >= 1) return 0;
    float rho = 1 - 1 / (1 + expf(z)) / (1 - tau);
    return rho > 0 ? rho : 0;
}

static void run_route_score(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_router *p = &node->u.router;
    const sl_value *u = &pass->graph->values[node->in[0]];
    float tau = isnan(pass->batch->tau) ? p->tau : pass->batch->tau;
    float *rho = pass->device->domains[p->domain].rho;
    size_t from, to;
    sl_share(pass->batch->n_tok, 1, thread, pass->n_thread, &from, &to);
    if (from < to)
        pass->kernels->gemm_f32(p->w, u->width * sizeof(float), sl_row(pass, node->in[0], from), u->row_bytes,
                                rho + from, 1, 1, to - from, u->width);
    for (size_t t = from; t < to; t++) rho[t] = router_rho(rho[t] + p->b[0], tau);
}

/* Compacts the deep tokens; one thread does it. */
static void run_route_split(const sl_pass *pass, const sl_node *node, size_t thread) {
    if (thread) return;
    sl_domain *domain = &pass->device->domains[node->u.router.domain];
    domain->n = 0;
    for (size_t r = 0; r < pass->batch->n_run; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        domain->run_start[r] = (uint32_t)domain->n;
        for (size_t t = run->start; t < run->start + run->n_tok; t++) {
            bool deep = domain->rho[t] > 0;
            domain->row_of[t] = deep ? (int32_t)domain->n : -1;
            if (deep) domain->index[domain->n++] = (uint32_t)t;
        }
    }
    domain->run_start[pass->batch->n_run] = (uint32_t)domain->n;
    pass->device->counters.deep_tokens += domain->n;
    pass->device->counters.routed_tokens += pass->batch->n_tok;
}

const sl_node_fn sl_cpu_nodes[SL_OP_N] = {
    [SL_OP_EMBED] = run_embed,
    [SL_OP_ROPE_TABLE] = sl_cpu_rope_table,
    [SL_OP_NORM] = run_norm,
    [SL_OP_QUANT] = run_quant,
    [SL_OP_LINEAR] = run_linear,
    [SL_OP_BLOCK_LINEAR] = run_block_linear,
    [SL_OP_SILU_MUL] = run_silu_mul,
    [SL_OP_ROUTE_SCORE] = run_route_score,
    [SL_OP_ROUTE_SPLIT] = run_route_split,
    [SL_OP_GATHER] = run_gather,
    [SL_OP_SHIFT] = sl_cpu_shift,
    [SL_OP_CONV_GATE] = sl_cpu_conv_gate,
    [SL_OP_SSM_INPUT] = sl_cpu_ssm_input,
    [SL_OP_S6] = sl_cpu_s6,
    [SL_OP_S4D] = sl_cpu_s4d,
    [SL_OP_BRIDGE] = sl_cpu_bridge,
    [SL_OP_ROPE] = sl_cpu_rope,
    [SL_OP_KV_STORE] = sl_cpu_kv_store,
    [SL_OP_ATTENTION] = sl_cpu_attention,
};

/* Tile of a product, or what attention asks for. */
size_t sl_cpu_scratch_bytes(const sl_graph *graph) {
    size_t floats = TILE_ROWS * TILE_TOKENS;
    for (size_t i = 0; i < graph->n_node; i++) {
        const sl_attention *p = &graph->nodes[i].u.attention;
        if (graph->nodes[i].op == SL_OP_ATTENTION)
            floats = sl_max(floats, sl_attn_scratch(p->n_head / p->n_kv_head, p->head_dim));
    }
    return sl_round_up(floats * sizeof(float), 4096);
}
