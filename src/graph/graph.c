/* Building a graph: nodes, values, state tensors; then liveness and the plan of the values' memory. */
#include "graph/graph.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static const char *const op_names[SL_OP_N] = {
    "embed", "rope_table", "norm", "quant", "linear", "block_linear", "silu_mul", "route_score", "route_split",
    "gather", "shift", "conv_gate", "ssm_input", "s6", "s4d", "bridge", "rope", "kv_store", "attention",
};

const char *sl_op_name(sl_op op) { return op < SL_OP_N ? op_names[op] : "?"; }

/* ---- weights ------------------------------------------------------------------------------------ */

const sl_tensor *sl_weights_get(const sl_weights *weights, const char *name_format, size_t layer) {
    char name[SL_MAX_NAME];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, sizeof name, name_format, layer);
#pragma GCC diagnostic pop
    size_t low = 0, high = weights->n; /* sorted by name */
    while (low < high) {
        size_t mid = (low + high) / 2;
        int order = strcmp(weights->tensors[mid].spec.name, name);
        if (!order) return &weights->tensors[mid];
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    assert(!"a tensor of the schema is missing");
    return NULL;
}

const float *sl_weights_floats(const sl_weights *weights, const char *name_format, size_t layer) {
    const sl_tensor *tensor = sl_weights_get(weights, name_format, layer);
    assert(tensor->type == SL_F32);
    return tensor->data;
}

/* ---- parts -------------------------------------------------------------------------------------- */

void sl_graph_init(sl_graph *g) {
    memset(g, 0, sizeof *g);
    g->n_domain = 2;
    g->rope_table = SL_NO_VALUE;
}

void sl_graph_release(sl_graph *g) {
    for (size_t i = 0; i < g->n_constant; i++) free(g->constants[i]);
    free(g->constants);
    free(g->nodes);
    free(g->values);
    free(g->states);
    sl_graph_init(g);
}

static void *add_constant(sl_graph *g, size_t n, size_t size) {
    void *data = sl_grow((void **)&g->constants, &g->cap_constant, g->n_constant + 1, sizeof *g->constants)
                     ? sl_calloc(n, size)
                     : NULL;
    if (data) g->constants[g->n_constant++] = data;
    else g->failed = true;
    return data;
}

float *sl_graph_constants(sl_graph *g, size_t n) { return add_constant(g, n, sizeof(float)); }

const sl_tensor *sl_graph_rows(sl_graph *g, const sl_tensor *w, size_t first, size_t n) {
    assert(w->spec.n_dim == 2 && first + n <= w->spec.shape[0]);
    sl_tensor *rows = add_constant(g, 1, sizeof *rows);
    if (!rows) return NULL;
    *rows = *w;
    rows->spec.shape[0] = n;
    rows->data = (const uint8_t *)w->data + first * w->row_bytes;
    rows->bytes = n * w->row_bytes;
    return rows;
}

static int32_t add_value(sl_graph *g, uint32_t domain, size_t width, size_t row_bytes) {
    if (!sl_grow((void **)&g->values, &g->cap_value, g->n_value + 1, sizeof *g->values)) {
        g->failed = true;
        return SL_NO_VALUE;
    }
    g->values[g->n_value] = (sl_value){ domain, width, sl_round_up(row_bytes, 64), g->n_node, g->n_node, 0, SL_NO_VALUE };
    return (int32_t)g->n_value++;
}

static int32_t add_floats(sl_graph *g, uint32_t domain, size_t width) {
    return add_value(g, domain, width, width * sizeof(float));
}

/* A node to fill in; after a failure one that nobody sees. */
static sl_node *add_node(sl_graph *g, sl_op op, uint32_t domain) {
    static sl_node nowhere;
    sl_node *node = &nowhere;
    if (sl_grow((void **)&g->nodes, &g->cap_node, g->n_node + 1, sizeof *g->nodes)) node = &g->nodes[g->n_node++];
    else g->failed = true;
    memset(node, 0, sizeof *node);
    node->op = op;
    node->domain = domain;
    node->layer = (uint32_t)g->layer;
    for (size_t i = 0; i < 6; i++) node->in[i] = SL_NO_VALUE;
    node->out = node->state = SL_NO_VALUE;
    return node;
}

static int32_t add_state(sl_graph *g, const char *name, size_t n) {
    if (!sl_grow((void **)&g->states, &g->cap_state, g->n_state + 1, sizeof *g->states)) {
        g->failed = true;
        return SL_NO_VALUE;
    }
    g->states[g->n_state] = (sl_state_tensor){ name, (uint32_t)g->layer, n, g->state_floats };
    g->state_floats += sl_round_up(n, 16);
    return (int32_t)g->n_state++;
}

static const sl_value *value(const sl_graph *g, int32_t v) {
    static const sl_value none = { .quant = SL_NO_VALUE };
    return v == SL_NO_VALUE ? &none : &g->values[v];
}

static size_t width_of(const sl_graph *g, int32_t v) { return value(g, v)->width; }
static uint32_t domain_of(const sl_graph *g, int32_t v) { return value(g, v)->domain; }

/* ---- stateless nodes ---------------------------------------------------------------------------- */

int32_t sl_graph_embed(sl_graph *g, const sl_tensor *table) {
    sl_node *node = add_node(g, SL_OP_EMBED, SL_ALL);
    node->u.table = table;
    g->n_vocab = (size_t)sl_spec_rows(&table->spec);
    return node->out = add_floats(g, SL_ALL, (size_t)sl_spec_width(&table->spec));
}

int32_t sl_graph_norm(sl_graph *g, int32_t x, const float *w, size_t n_group, size_t n, size_t w_step, float eps) {
    assert(g->failed || width_of(g, x) == n_group * n);
    uint32_t domain = domain_of(g, x);
    sl_node *node = add_node(g, SL_OP_NORM, domain);
    node->in[0] = x;
    node->u.norm = (sl_norm){ w, n_group, n, w_step, eps };
    return node->out = add_floats(g, domain, n_group * n);
}

/* The quantised form of x, made once and shared by all products that read it. */
static int32_t quantised(sl_graph *g, int32_t x) {
    if (g->failed || value(g, x)->quant != SL_NO_VALUE) return value(g, x)->quant;
    sl_node *node = add_node(g, SL_OP_QUANT, domain_of(g, x));
    node->in[0] = x;
    int32_t out = add_value(g, domain_of(g, x), width_of(g, x), sl_act_bytes(width_of(g, x)));
    node->out = out;
    if (out != SL_NO_VALUE) g->values[x].quant = out;
    return out;
}

static sl_node *add_linear(sl_graph *g, int32_t x, const sl_tensor *w, const float *bias) {
    assert(g->failed || width_of(g, x) == sl_spec_width(&w->spec));
    uint32_t domain = domain_of(g, x);
    if (w->type == SL_Q8 || w->type == SL_Q4) x = quantised(g, x);
    sl_node *node = add_node(g, SL_OP_LINEAR, domain);
    node->in[0] = x;
    node->u.linear = (sl_linear){ w, bias, x, SL_NO_VALUE, SL_NO_VALUE, false, 0 };
    g->products += sl_spec_rows(&w->spec) * sl_spec_width(&w->spec);
    return node;
}

int32_t sl_graph_linear(sl_graph *g, int32_t x, const sl_tensor *w, const float *bias) {
    uint32_t domain = domain_of(g, x);
    sl_node *node = add_linear(g, x, w, bias);
    return node->out = add_floats(g, domain, (size_t)sl_spec_rows(&w->spec));
}

void sl_graph_linear_add(sl_graph *g, int32_t acc, int32_t x, const sl_tensor *w, const float *bias, int32_t rho) {
    assert(g->failed || width_of(g, acc) == sl_spec_rows(&w->spec));
    sl_node *node = add_linear(g, x, w, bias);
    node->u.linear.acc = node->in[1] = acc;
    node->u.linear.rho = rho;
    if (!g->failed) g->values[acc].quant = SL_NO_VALUE; /* what was quantised before is out of date */
}

int32_t sl_graph_columns(sl_graph *g, int32_t x, size_t width) { return add_floats(g, domain_of(g, x), width); }

void sl_graph_linear_into(sl_graph *g, int32_t out, size_t column, int32_t x, const sl_tensor *w) {
    if (!w) return; /* out of memory, which finish reports */
    assert(g->failed || column + sl_spec_rows(&w->spec) <= width_of(g, out));
    sl_node *node = add_linear(g, x, w, NULL);
    node->u.linear.column = column;
    node->out = out;
}

void sl_graph_head(sl_graph *g, int32_t x, const sl_tensor *w) { add_linear(g, x, w, NULL)->u.linear.head = true; }

int32_t sl_graph_block_linear(sl_graph *g, int32_t x, const sl_tensor *w) {
    uint32_t domain = domain_of(g, x);
    size_t width = width_of(g, x);
    sl_node *node = add_node(g, SL_OP_BLOCK_LINEAR, domain);
    node->in[0] = x;
    node->u.linear = (sl_linear){ w, NULL, x, SL_NO_VALUE, SL_NO_VALUE, false, 0 };
    return node->out = add_floats(g, domain, width);
}

void sl_graph_silu_mul(sl_graph *g, int32_t gate, int32_t up) {
    sl_node *node = add_node(g, SL_OP_SILU_MUL, domain_of(g, gate));
    node->in[0] = gate;
    node->in[1] = up;
    if (!g->failed) g->values[gate].quant = SL_NO_VALUE;
}

/* ---- domains ------------------------------------------------------------------------------------ */

sl_route sl_graph_no_route(void) { return (sl_route){ SL_ALL, SL_NO_VALUE }; }

sl_route sl_graph_route(sl_graph *g, int32_t u, const float *w, const float *b, float tau) {
    uint32_t domain = g->n_domain++;
    for (int i = 0; i < 2; i++) {
        sl_node *node = add_node(g, i ? SL_OP_ROUTE_SPLIT : SL_OP_ROUTE_SCORE, SL_ALL);
        node->in[0] = u;
        node->u.router = (sl_router){ w, b, tau, domain };
    }
    return (sl_route){ domain, (int32_t)domain };
}

static int32_t gather(sl_graph *g, int32_t x, uint32_t domain) {
    size_t width = width_of(g, x);
    sl_node *node = add_node(g, SL_OP_GATHER, domain);
    node->in[0] = x;
    return node->out = add_floats(g, domain, width);
}

int32_t sl_graph_gather(sl_graph *g, int32_t x, sl_route route) {
    return route.domain == SL_ALL ? x : gather(g, x, route.domain);
}

int32_t sl_graph_outputs(sl_graph *g, int32_t x) { return gather(g, x, SL_OUTPUTS); }

/* ---- sequence nodes ----------------------------------------------------------------------------- */

int32_t sl_graph_shift(sl_graph *g, int32_t x) {
    assert(g->failed || domain_of(g, x) == SL_ALL);
    size_t width = width_of(g, x);
    sl_node *node = add_node(g, SL_OP_SHIFT, SL_ALL);
    node->in[0] = x;
    node->state = add_state(g, "shift", width);
    return node->out = add_floats(g, SL_ALL, width);
}

int32_t sl_graph_conv_gate(sl_graph *g, int32_t pqv, const sl_conv *p) {
    assert(g->failed || width_of(g, pqv) == 3 * p->e);
    sl_node *node = add_node(g, SL_OP_CONV_GATE, SL_ALL);
    node->in[0] = pqv;
    node->u.conv = *p;
    node->state = add_state(g, "conv", (p->k - 1) * p->e);
    return node->out = add_floats(g, SL_ALL, p->e);
}

/* r <- silu(r + s) and, for S6, delta <- rho softplus(delta + b), in place in the product's rows. */
static void add_ssm_input(sl_graph *g, int32_t in, int32_t s, uint32_t domain, const sl_s6 *p) {
    sl_node *node = add_node(g, SL_OP_SSM_INPUT, domain);
    node->in[0] = in;
    node->in[1] = s;
    node->u.s6 = *p;
}

int32_t sl_graph_s6(sl_graph *g, int32_t in, int32_t s, sl_route route, const sl_s6 *p) {
    assert(g->failed || width_of(g, in) == 2 * p->e + 2 * p->n_group * p->n_state + p->e / p->head_dim);
    add_ssm_input(g, in, s, route.domain, p);
    sl_node *node = add_node(g, SL_OP_S6, route.domain);
    node->in[0] = in;
    node->u.s6 = *p;
    node->state = add_state(g, "s6", p->e * p->n_state);
    return node->out = add_floats(g, route.domain, p->e);
}

int32_t sl_graph_s4d(sl_graph *g, int32_t in, int32_t s, const sl_s4d *p) {
    assert(g->failed || width_of(g, in) == 2 * p->e);
    const sl_s6 input = { .e = p->e, .head_dim = p->head_dim };
    add_ssm_input(g, in, s, SL_ALL, &input);
    sl_node *node = add_node(g, SL_OP_S4D, SL_ALL);
    node->in[0] = in;
    node->u.s4d = *p;
    node->state = add_state(g, "s4d", p->e * p->n_pole * 2);
    return node->out = add_floats(g, SL_ALL, p->e);
}

int32_t sl_graph_bridge(sl_graph *g, int32_t s, int32_t pqv, int32_t gate_i, int32_t gate_f, int32_t m, sl_route route,
                        const sl_bridge *p) {
    sl_node *node = add_node(g, SL_OP_BRIDGE, SL_ALL);
    const int32_t in[] = { s, pqv, gate_i, gate_f, m, (int32_t)route.domain };
    memcpy(node->in, in, sizeof in);
    node->u.bridge = *p;
    node->state = add_state(g, "bridge", p->e);
    return node->out = add_floats(g, SL_ALL, p->e);
}

/* ---- attention ---------------------------------------------------------------------------------- */

void sl_graph_rope_table(sl_graph *g, const float *inv_freq, size_t n_rot, float gain) {
    sl_node *node = add_node(g, SL_OP_ROPE_TABLE, SL_ALL);
    g->inv_freq = inv_freq;
    g->n_rot = n_rot;
    g->rope_gain = gain;
    g->rope_table = node->out = add_floats(g, SL_ALL, n_rot);
}

void sl_graph_rope(sl_graph *g, int32_t x, size_t n_head, size_t head_dim) {
    assert(g->failed || (width_of(g, x) == n_head * head_dim && g->rope_table != SL_NO_VALUE));
    sl_node *node = add_node(g, SL_OP_ROPE, SL_ALL);
    node->in[0] = x;
    node->in[1] = g->rope_table;
    node->u.rope.n_head = n_head;
    node->u.rope.head_dim = head_dim;
}

int32_t sl_graph_attention(sl_graph *g, int32_t q, int32_t k, int32_t v, size_t n_head, size_t n_kv_head,
                           size_t head_dim, size_t window) {
    const sl_attention p = { n_head, n_kv_head, head_dim, window, g->n_kv++ };
    g->kv_width = n_kv_head * head_dim;
    g->kv_head_dim = head_dim;
    sl_node *store = add_node(g, SL_OP_KV_STORE, SL_ALL);
    store->in[0] = k;
    store->in[1] = v;
    store->u.attention = p;
    sl_node *node = add_node(g, SL_OP_ATTENTION, SL_ALL);
    node->in[0] = q;
    node->u.attention = p;
    return node->out = add_floats(g, SL_ALL, n_head * head_dim);
}

/* ---- plan --------------------------------------------------------------------------------------- */

static void find_lifetimes(sl_graph *g) {
    for (size_t i = 0; i < g->n_value; i++) g->values[i].first = SIZE_MAX;
    for (size_t i = 0; i < g->n_node; i++) {
        const sl_node *node = &g->nodes[i];
        size_t n_in = node->op == SL_OP_BRIDGE ? 5 : 6; /* the last of the bridge is a domain */
        for (size_t j = 0; j <= n_in; j++) {
            int32_t v = j < n_in ? node->in[j] : node->out;
            if (v == SL_NO_VALUE) continue;
            g->values[v].last = i;
            if (g->values[v].first == SIZE_MAX) g->values[v].first = i;
        }
    }
}

/* Moves v up past every living value it overlaps, until it overlaps none. */
static void place_value(const sl_value *values, sl_value *v, const size_t *living, size_t n_living) {
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t j = 0; j < n_living; j++) {
            const sl_value *o = &values[living[j]];
            if (o->offset_rows + o->row_bytes <= v->offset_rows || v->offset_rows + v->row_bytes <= o->offset_rows)
                continue;
            v->offset_rows = o->offset_rows + o->row_bytes;
            moved = true;
        }
    }
}

/* Values in the order in which their lives begin. Most are numbered so, but for outputs that are put together from
 * several products: they are there before what the first product makes of its input. */
static void order_by_first(const sl_value *values, size_t *order, size_t n) {
    for (size_t i = 0; i < n; i++) {
        size_t j = i;
        for (; j && values[order[j - 1]].first > values[i].first; j--) order[j] = order[j - 1];
        order[j] = i;
    }
}

/* First fit: each value takes the lowest place free for its whole life. Row counts of all domains are at most the
 * batch's, so places are planned in bytes per batch token. */
bool sl_graph_place(sl_value *values, size_t n, size_t *bytes) {
    size_t n_living = 0, *living = malloc((2 * n + 1) * sizeof *living), *order = living + n;
    if (!living) return false;
    order_by_first(values, order, n);
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        sl_value *v = &values[order[i]];
        size_t kept = 0;
        for (size_t j = 0; j < n_living; j++)
            if (values[living[j]].last >= v->first) living[kept++] = living[j];
        n_living = kept;
        place_value(values, v, living, n_living);
        living[n_living++] = order[i];
        *bytes = sl_max(*bytes, v->offset_rows + v->row_bytes);
    }
    free(living);
    return true;
}

sl_status sl_graph_finish(sl_graph *g, sl_error *err) {
    if (g->failed) return sl_fail(err, SL_E_MEMORY, "out of memory for the graph of %zu nodes", g->n_node);
    find_lifetimes(g);
    return sl_graph_place(g->values, g->n_value, &g->arena_bytes)
               ? SL_OK
               : sl_fail(err, SL_E_MEMORY, "out of memory for the plan of %zu values", g->n_value);
}
