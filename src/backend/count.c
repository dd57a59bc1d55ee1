/* What a node reads and computes, for the bench: bytes of weights once per pass, of states and KV stores per
 * run, and multiply-adds as two operations. */
#include "backend/count.h"

static void count_attention(const sl_counted *n, const sl_attention *p, sl_counters *c) {
    const uint64_t row = p->n_kv_head * p->head_dim * (n->kv_f16 ? 2u : 4u);
    for (size_t r = 0; r < n->batch->n_run; r++) {
        const sl_batch_run *run = &n->batch->runs[r];
        uint64_t end = run->pos + run->n_tok, from = 0, keys = 0;
        if (p->window && run->pos + 1 > p->window) from = run->pos + 1 - p->window;
        for (uint64_t t = run->pos + 1; t <= end; t++) keys += p->window && t > p->window ? p->window : t;
        c->kv_bytes += 2 * row * (end - from); /* once per pass: queries share the blocks they see */
        c->flops += 4 * keys * p->n_head * p->head_dim;
    }
}

static void count_linear(const sl_counted *n, const sl_node *node, sl_counters *c) {
    const sl_tensor *w = node->u.linear.w;
    c->weight_bytes += w->bytes * n->passes;
    c->flops += 2 * sl_spec_rows(&w->spec) * sl_spec_width(&w->spec) * n->rows;
}

void sl_count_node(const sl_graph *graph, const sl_node *node, const sl_counted *n, sl_counters *c) {
    if (node->state != SL_NO_VALUE) /* read and written */
        c->state_bytes += 2 * sizeof(float) * graph->states[node->state].n * n->runs;
    switch (node->op) {
    case SL_OP_EMBED: c->weight_bytes += node->u.table->row_bytes * n->rows; break;
    case SL_OP_LINEAR:
    case SL_OP_BLOCK_LINEAR: count_linear(n, node, c); break;
    case SL_OP_NORM: c->weight_bytes += sizeof(float) * node->u.norm.n * n->passes; break;
    case SL_OP_S6: c->flops += 5 * n->rows * node->u.s6.e * node->u.s6.n_state; break;
    case SL_OP_S4D: /* poles and their inputs, two numbers each, for every channel: as large as the state */
        c->weight_bytes += 4 * sizeof(float) * node->u.s4d.e * node->u.s4d.n_pole * n->passes;
        c->flops += 12 * n->rows * node->u.s4d.e * node->u.s4d.n_pole;
        break;
    case SL_OP_ATTENTION: count_attention(n, &node->u.attention, c); break;
    default: break;
    }
}
