/* The nodes' launches on a CUDA device: arguments from the graph, rows and runs from the pass. */
#include <assert.h>
#include <math.h>

#include "backend/cuda.h"
#include "base/mem.h"

typedef int (*launch_fn)(const sl_cuda_pass *pass, const sl_node *node);

static const void *find(const sl_cuda_pass *pass, const void *host) {
    return sl_cuda_weights_find(pass->device->weights, host);
}
static const float *find_floats(const sl_cuda_pass *pass, const float *host) { return find(pass, host); }

static sl_rows rows_of(const sl_cuda_pass *pass, uint32_t domain) {
    const sl_cuda_domain *d = &pass->device->domains[domain];
    const uint32_t n_tok = (uint32_t)pass->batch->n_tok;
    if (domain == SL_ALL) return (sl_rows){ NULL, NULL, n_tok, false };
    if (domain == SL_OUTPUTS)
        return (sl_rows){ NULL, pass->device->input.out_rows, (uint32_t)pass->batch->n_out, false };
    return (sl_rows){ d->n, d->index, n_tok, false };
}

static sl_runs runs_of(const sl_cuda_pass *pass, uint32_t domain) {
    const sl_cuda_input *in = &pass->device->input;
    const uint32_t *start = domain == SL_ALL ? in->run_start : pass->device->domains[domain].deep_start;
    return (sl_runs){ in->run_slot, start, in->run_pos, (uint32_t)pass->batch->n_run, pass->max_tok };
}

static sl_slab slab_of(const sl_cuda_pass *pass, const sl_node *node) {
    return (sl_slab){ pass->device->states + pass->graph->states[node->state].offset,
                      pass->graph->state_floats };
}

/* Short names for a value's address and stride. */
static void *at(const sl_cuda_pass *pass, int32_t value) { return sl_cuda_value(pass->device, value); }
static size_t stride(const sl_cuda_pass *pass, int32_t value) { return sl_cuda_stride(pass->device, value); }
static sl_act act(const sl_cuda_pass *pass) { return pass->device->plan.act; }
static sl_cuda_stream stream(const sl_cuda_pass *pass) { return pass->device->stream; }
/* Are the rows of v, which a gather would put side by side, read where they lie in this pass? */
static bool is_in_place(const sl_cuda_pass *pass, int32_t v) {
    const sl_cuda_plan *plan = &pass->device->plan;
    return plan->origin[plan->alias[v]] != SL_NO_VALUE &&
           (!plan->is_copied[plan->alias[v]] || (pass->batch->n_tok <= SL_GEMV_ROWS && !pass->device->invariant));
}
/* The value that a node reads for v, and where in it the rows are. */
static int32_t read_for(const sl_cuda_pass *pass, int32_t v, sl_rows *rows) {
    const sl_cuda_plan *plan = &pass->device->plan;
    rows->in_place = is_in_place(pass, v);
    return rows->in_place ? plan->origin[plan->alias[v]] : v;
}
/* Elements of a value of activations, from channel c on. */
static const void *from_channel(const sl_cuda_pass *pass, int32_t value, size_t c) {
    return (const uint8_t *)at(pass, value) + c * sl_act_size(act(pass));
}

/* ---- rows --------------------------------------------------------------------------------------- */

static int launch_embed(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_tensor *t = node->u.table;
    const sl_embed_args args = {
        .table = find(pass, t->data), .table_row_bytes = sl_cuda_row_bytes(t->row_bytes),
        .type = sl_cuda_weight_type(act(pass), t),
        .tokens = pass->device->input.tokens, .x = at(pass, node->out), .x_stride = stride(pass, node->out),
        .d = (uint32_t)sl_spec_width(&t->spec), .rows = rows_of(pass, SL_ALL),
    };
    return sl_embed_cuda(&args, stream(pass));
}

/* A router computes the norm in front of it. */
static bool is_before_router(const sl_cuda_pass *pass, const sl_node *norm) {
    const sl_node *next = norm + 1;
    return next < pass->graph->nodes + pass->graph->n_node && next->op == SL_OP_ROUTE_SCORE && next->in[0] == norm->out;
}

static int launch_norm(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_norm *p = &node->u.norm;
    sl_rows rows = rows_of(pass, node->domain);
    const int32_t x = read_for(pass, node->in[0], &rows);
    const sl_norm_args args = {
        .x = at(pass, x),
        .w = find_floats(pass, p->w),
        .y = at(pass, node->out),
        .x_stride = stride(pass, x),
        .y_stride = stride(pass, node->out),
        .n_group = (uint32_t)p->n_group,
        .n = (uint32_t)p->n,
        .w_step = (uint32_t)p->w_step,
        .eps = p->eps,
        .x_f32 = sl_cuda_value_size(pass->device, x) == 4,
        .act = act(pass),
        .rows = rows,
    };
    return sl_rmsnorm_cuda(&args, stream(pass));
}

/* What a value is kept smaller by, as a power of two. */
static uint32_t lift_of(const sl_cuda_pass *pass, int32_t value) {
    const bool hidden = pass->device->plan.is_hidden[sl_cuda_alias(pass->device, value)];
    return hidden ? SL_HIDDEN_LIFT : 0;
}

static int launch_silu_mul(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_silu_args args = {
        .gate = at(pass, node->in[0]),
        .up = at(pass, node->in[1]),
        .gate_stride = stride(pass, node->in[0]),
        .up_stride = stride(pass, node->in[1]),
        .n = (uint32_t)pass->graph->values[node->in[0]].width,
        .lift = lift_of(pass, node->in[0]),
        .act = act(pass),
        .rows = rows_of(pass, node->domain),
    };
    return sl_silu_mul_cuda(&args, stream(pass));
}

static int launch_gather(const sl_cuda_pass *pass, const sl_node *node) {
    const size_t size = sl_cuda_value_size(pass->device, node->out);
    const sl_gather_args args = {
        .src = at(pass, node->in[0]),
        .dst = at(pass, node->out),
        .src_stride_bytes = stride(pass, node->in[0]) * size,
        .dst_stride_bytes = stride(pass, node->out) * size,
        .bytes = (uint32_t)sl_round_up(pass->graph->values[node->out].width * size, 16),
        .rows = rows_of(pass, node->domain),
    };
    return sl_gather_cuda(&args, stream(pass));
}

/* ---- routing ------------------------------------------------------------------------------------ */

static sl_split_args split_args(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_cuda_domain *d = &pass->device->domains[node->u.router.domain];
    return (sl_split_args){
        .rho = d->rho,
        .start = pass->device->input.run_start,
        .n = d->n,
        .index = d->index,
        .row_of = d->row_of,
        .deep_start = d->deep_start,
        .tally = d->tally,
        .n_tok = (uint32_t)pass->batch->n_tok,
        .n_run = (uint32_t)pass->batch->n_run,
    };
}

/* A router's input is the norm of the residual stream in front of it. It computes that itself, its score in f32; of a
 * single row it knows as well what is deep. */
static int launch_route_score(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_router *p = &node->u.router;
    const sl_node *norm = node - 1;
    const sl_route_args args = {
        .x = at(pass, norm->in[0]),
        .norm = find_floats(pass, norm->u.norm.w),
        .w = find_floats(pass, p->w),
        .b = find_floats(pass, p->b),
        .rho = pass->device->domains[p->domain].rho,
        .y = at(pass, norm->out),
        .x_stride = stride(pass, norm->in[0]),
        .y_stride = stride(pass, norm->out),
        .d = (uint32_t)norm->u.norm.n,
        .eps = norm->u.norm.eps,
        .tau = isnan(pass->batch->tau) ? p->tau : pass->batch->tau,
        .act = act(pass),
        .rows = rows_of(pass, SL_ALL),
        .split = split_args(pass, node),
    };
    assert(norm->op == SL_OP_NORM && is_before_router(pass, norm) && norm->u.norm.n_group == 1 &&
           norm->domain == SL_ALL && sl_cuda_value_size(pass->device, norm->in[0]) == 4);
    return sl_route_score_cuda(&args, stream(pass));
}
static int launch_norm_and_score(const sl_cuda_pass *pass, const sl_node *node) {
    return launch_route_score(pass, node + 1);
}

static int launch_route_split(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_split_args args = split_args(pass, node);
    return sl_route_split_cuda(&args, stream(pass));
}

/* ---- products ----------------------------------------------------------------------------------- */

static sl_product_args product_args(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_linear *p = &node->u.linear;
    sl_rows rows = rows_of(pass, node->domain);
    const int32_t x = read_for(pass, p->x, &rows);
    sl_product_args a = {
        .w = find(pass, p->w->data), .w_row_bytes = sl_cuda_row_bytes(p->w->row_bytes),
        .type = sl_cuda_weight_type(act(pass), p->w), .act = act(pass),
        .x = at(pass, x), .x_stride = stride(pass, x), .bias = find_floats(pass, p->bias),
        .n_row = (uint32_t)sl_spec_rows(&p->w->spec), .k = (uint32_t)sl_spec_width(&p->w->spec),
        .gain = ldexpf(1, (int)lift_of(pass, p->x)), .rows = rows,
    };
    if (p->head) {
        a.out = SL_OUT_F32;
        a.y = pass->device->logits;
        a.y_stride = pass->graph->n_vocab;
    } else {
        int32_t y = p->acc == SL_NO_VALUE ? node->out : p->acc;
        a.out = p->acc == SL_NO_VALUE ? SL_OUT_ACT : SL_OUT_ADD;
        a.y = (uint8_t *)at(pass, y) + p->column * sl_cuda_value_size(pass->device, y);
        a.y_stride = stride(pass, y);
        a.rho = p->rho == SL_NO_VALUE ? NULL : pass->device->domains[p->rho].rho;
    }
    return a;
}

/* Rows row .. row + n - 1 of the product. */
static sl_product_args part_of(const sl_product_args *a, uint32_t row, uint32_t n) {
    sl_product_args part = *a;
    const size_t size = a->out == SL_OUT_ACT ? sl_act_size(a->act) : sizeof(float);
    part.w = (const uint8_t *)a->w + row * a->w_row_bytes;
    part.y = (uint8_t *)a->y + row * size;
    part.bias = a->bias ? a->bias + row : NULL;
    part.n_row = n;
    return part;
}

/* One piece through cuBLAS: weights expanded if they must be, the result finished if cuBLAS cannot do it. */
static int blas_part(const sl_cuda_pass *pass, const sl_product_args *a, bool plain) {
    sl_device *d = pass->device;
    const void *w = a->w;
    size_t w_stride = a->w_row_bytes / sl_act_size(a->act);
    if (!plain) {
        w = d->expanded;
        w_stride = sl_round_up(a->k, 8);
        const sl_expand_args expand = { .w = a->w,
                                        .w_row_bytes = a->w_row_bytes,
                                        .type = a->type,
                                        .act = a->act,
                                        .dst = d->expanded,
                                        .dst_stride = w_stride,
                                        .n_row = a->n_row,
                                        .k = a->k };
        int e = sl_expand_cuda(&expand, d->stream);
        if (e) return e;
    }
    const bool direct = !a->bias && (a->out != SL_OUT_ADD || (!a->rho && !a->rows.index));
    int e = d->blas.product(&d->blas, a->act, !direct || a->out != SL_OUT_ACT, a->n_row, a->rows.max, a->k, w, w_stride,
                            a->x, a->x_stride, direct ? a->y : d->sums, direct ? a->y_stride : a->n_row,
                            direct ? a->gain : 1, direct && a->out == SL_OUT_ADD);
    if (e) return SL_BLAS_FAILED;
    return direct ? 0 : sl_store_cuda(a, d->sums, a->n_row, d->stream);
}

/* Up to how many rows a product is one of few. */
static uint32_t few_rows(const sl_cuda_pass *pass, const sl_node *node) {
    if (pass->device->invariant) return 0;
    if (node->op == SL_OP_BLOCK_LINEAR) return sl_block_rows(act(pass));
    return sl_gemv_rows(act(pass), sl_cuda_weight_type(act(pass), node->u.linear.w));
}

/* Many rows: cuBLAS, if it is there and the host knows how many. */
static int launch_linear(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_product_args a = product_args(pass, node);
    const sl_tensor *w = node->u.linear.w;
    if (a.rows.max <= few_rows(pass, node)) return sl_gemv_cuda(&a, stream(pass));
    if (!pass->device->blas.product || sl_cuda_is_counted(&pass->device->plan, node))
        return sl_gemm_cuda(&a, stream(pass));
    const uint32_t piece = (uint32_t)sl_cuda_piece(&pass->device->plan, w);
    int e = 0;
    for (uint32_t row = 0; row < a.n_row && !e; row += piece) {
        const sl_product_args part = part_of(&a, row, (uint32_t)sl_min(piece, a.n_row - row));
        e = blas_part(pass, &part, sl_cuda_is_plain(&pass->device->plan, w));
    }
    return e;
}

static sl_block_args block_args(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_tensor *w = node->u.linear.w;
    return (sl_block_args){
        .w = find(pass, w->data),
        .w_row_bytes = sl_cuda_row_bytes(w->row_bytes),
        .type = sl_cuda_weight_type(act(pass), w),
        .act = act(pass),
        .x = at(pass, node->in[0]),
        .y = at(pass, node->out),
        .x_stride = stride(pass, node->in[0]),
        .y_stride = stride(pass, node->out),
        .n_block = (uint32_t)w->spec.shape[0],
        .b = (uint32_t)w->spec.shape[1],
        .n_few = few_rows(pass, node),
        .rows = rows_of(pass, node->domain),
    };
}

static int launch_block_linear(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_block_args args = block_args(pass, node);
    return sl_block_linear_cuda(&args, stream(pass));
}

/* Are node and the one behind it products of the same x with matrices alike, to values alike, of few rows? They take one
 * launch, which a decode step has hundreds of: gate and up of an MLP, k and v, the gates of a bridge. */
static bool is_pair(const sl_cuda_pass *pass, const sl_node *node, const sl_node *end) {
    const sl_node *next = node + 1;
    if (next == end || (node->op != SL_OP_LINEAR && node->op != SL_OP_BLOCK_LINEAR) || next->op != node->op ||
        next->domain != node->domain || pass->batch->n_tok > few_rows(pass, node))
        return false;
    const sl_linear *a = &node->u.linear, *b = &next->u.linear;
    /* A value that nobody reads later may share its place with what the next node writes. */
    const sl_cuda_plan *plan = &pass->device->plan;
    if (node->out == SL_NO_VALUE || plan->values[plan->alias[node->out]].last <= (size_t)(next - pass->graph->nodes))
        return false;
    return a->x == b->x && !a->bias && !b->bias && !a->head && !b->head && a->acc == SL_NO_VALUE &&
           b->acc == SL_NO_VALUE && a->w->type == b->w->type && a->w->row_bytes == b->w->row_bytes &&
           sl_spec_rows(&a->w->spec) == sl_spec_rows(&b->w->spec) &&
           sl_spec_width(&a->w->spec) == sl_spec_width(&b->w->spec) && a->column == 0 && b->column == 0 &&
           node->in[0] == next->in[0] && stride(pass, node->out) == stride(pass, next->out);
}

static int launch_pair(const sl_cuda_pass *pass, const sl_node *node) {
    if (node->op == SL_OP_LINEAR) {
        const sl_product_args args = product_args(pass, node), next = product_args(pass, node + 1);
        return sl_gemv_pair_cuda(&args, next.w, next.y, stream(pass));
    }
    sl_block_args args = block_args(pass, node);
    const sl_block_args next = block_args(pass, node + 1);
    args.w2 = next.w, args.y2 = next.y;
    return sl_block_linear_cuda(&args, stream(pass));
}

/* Is the pair that node begins gate and up of an MLP, whose product follows, and up read by nothing else? */
static bool is_gated(const sl_cuda_pass *pass, const sl_node *node, const sl_node *end) {
    const sl_node *up = node + 1, *mul = node + 2;
    const sl_cuda_plan *plan = &pass->device->plan;
    return mul < end && node->op == SL_OP_LINEAR && mul->op == SL_OP_SILU_MUL && act(pass) == SL_ACT_F16 &&
           mul->in[0] == node->out && mul->in[1] == up->out && mul->domain == node->domain &&
           plan->values[plan->alias[up->out]].last == (size_t)(mul - pass->graph->nodes);
}

static int launch_gated(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_product_args gate = product_args(pass, node), up = product_args(pass, node + 1);
    return sl_gemv_gated_cuda(&gate, up.w, lift_of(pass, node->out), stream(pass));
}

/* ---- sequences ---------------------------------------------------------------------------------- */

static int launch_shift(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_shift_args args = {
        .x = at(pass, node->in[0]), .y = at(pass, node->out), .state = slab_of(pass, node),
        .x_stride = stride(pass, node->in[0]), .y_stride = stride(pass, node->out),
        .n = (uint32_t)pass->graph->values[node->out].width, .act = act(pass), .runs = runs_of(pass, SL_ALL),
    };
    return sl_shift_cuda(&args, stream(pass));
}

static int launch_conv(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_conv *p = &node->u.conv;
    const sl_conv_cuda_args args = {
        .pqv = at(pass, node->in[0]), .s = at(pass, node->out), .taps = find_floats(pass, p->taps),
        .bias = find_floats(pass, p->bias), .norm = find_floats(pass, p->norm), .state = slab_of(pass, node),
        .in_stride = stride(pass, node->in[0]), .s_stride = stride(pass, node->out), .e = (uint32_t)p->e,
        .head_dim = (uint32_t)p->head_dim, .k = (uint32_t)p->k, .eps = p->eps, .act = act(pass),
        .runs = runs_of(pass, SL_ALL),
    };
    return sl_conv_gate_cuda(&args, stream(pass));
}

/* The node in front of a scan prepares r and Delta on the CPU; here the scan does it, and takes s from there.
 */
static int32_t input_of(const sl_node *node) {
    assert(node[-1].op == SL_OP_SSM_INPUT);
    return node[-1].in[1];
}

static int launch_s6(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_s6 *p = &node->u.s6;
    const int32_t s = input_of(node);
    const bool routed = node->domain != SL_ALL;
    const sl_cuda_domain *d = &pass->device->domains[node->domain];
    const sl_s6_cuda_args args = {
        .in = at(pass, node->in[0]),
        .s = at(pass, s),
        .rho = routed ? d->rho : NULL,
        .decay = find_floats(pass, p->decay),
        .dt_bias = find_floats(pass, p->dt_bias),
        .skip = find_floats(pass, p->skip),
        .norm = find_floats(pass, p->norm),
        .m = at(pass, node->out),
        .state = slab_of(pass, node),
        .in_stride = stride(pass, node->in[0]),
        .s_stride = stride(pass, s),
        .m_stride = stride(pass, node->out),
        .e = (uint32_t)p->e,
        .head_dim = (uint32_t)p->head_dim,
        .n_state = (uint32_t)p->n_state,
        .n_group = (uint32_t)p->n_group,
        .eps = p->eps,
        .act = act(pass),
        .runs = runs_of(pass, node->domain),
        .index = routed ? d->index : NULL,
        .scratch = pass->device->plan.scan_floats ? pass->device->scan : NULL,
        .max_row = (uint32_t)pass->batch->n_tok,
    };
    const int e = sl_s6_cuda(&args, stream(pass));
    return e ? e : sl_s6_chunk_cuda(&args, stream(pass));
}

static int launch_s4d(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_s4d *p = &node->u.s4d;
    const int32_t s = input_of(node);
    const sl_s4d_cuda_args args = {
        .in = at(pass, node->in[0]),
        .s = at(pass, s),
        .a = find_floats(pass, p->a),
        .k = find_floats(pass, p->k),
        .skip = find_floats(pass, p->skip),
        .norm = find_floats(pass, p->norm),
        .m = at(pass, node->out),
        .state = slab_of(pass, node),
        .in_stride = stride(pass, node->in[0]),
        .s_stride = stride(pass, s),
        .m_stride = stride(pass, node->out),
        .e = (uint32_t)p->e,
        .head_dim = (uint32_t)p->head_dim,
        .n_pole = (uint32_t)p->n_pole,
        .eps = p->eps,
        .act = act(pass),
        .runs = runs_of(pass, SL_ALL),
    };
    return sl_s4d_cuda(&args, stream(pass));
}

static int launch_bridge(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_bridge *p = &node->u.bridge;
    const uint32_t domain = (uint32_t)node->in[5];
    const bool routed = domain != SL_ALL;
    const sl_cuda_domain *d = &pass->device->domains[domain];
    const sl_bridge_cuda_args args = {
        .s = at(pass, node->in[0]),
        .q = from_channel(pass, node->in[1], p->e),
        .gate_i = at(pass, node->in[2]),
        .gate_f = at(pass, node->in[3]),
        .m = at(pass, node->in[4]),
        .bias_i = find_floats(pass, p->bias_i),
        .bias_f = find_floats(pass, p->bias_f),
        .lambda = find_floats(pass, p->lambda),
        .kappa = find_floats(pass, p->kappa),
        .omega = find_floats(pass, p->omega),
        .gamma = find_floats(pass, p->gamma),
        .rho = routed ? d->rho : NULL,
        .row_of = routed ? d->row_of : NULL,
        .o = at(pass, node->out),
        .state = slab_of(pass, node),
        .s_stride = stride(pass, node->in[0]),
        .q_stride = stride(pass, node->in[1]),
        .gate_stride = stride(pass, node->in[2]),
        .m_stride = stride(pass, node->in[4]),
        .o_stride = stride(pass, node->out),
        .e = (uint32_t)p->e,
        .act = act(pass),
        .runs = runs_of(pass, SL_ALL),
    };
    return sl_bridge_cuda(&args, stream(pass));
}

/* ---- attention ---------------------------------------------------------------------------------- */

static int launch_rope_table(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_graph *g = pass->graph;
    const sl_rope_table_args args = { .inv_freq = find_floats(pass, g->inv_freq),
                                      .table = at(pass, node->out),
                                      .stride = stride(pass, node->out),
                                      .n_rot = (uint32_t)g->n_rot,
                                      .gain = g->rope_gain,
                                      .runs = runs_of(pass, SL_ALL) };
    return sl_rope_table_cuda(&args, stream(pass));
}

static int launch_rope(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_rope_args args = {
        .x = at(pass, node->in[0]), .table = at(pass, node->in[1]), .x_stride = stride(pass, node->in[0]),
        .table_stride = stride(pass, node->in[1]), .n_head = (uint32_t)node->u.rope.n_head,
        .head_dim = (uint32_t)node->u.rope.head_dim, .n_rot = (uint32_t)pass->graph->n_rot, .act = act(pass),
        .rows = rows_of(pass, SL_ALL),
    };
    return sl_rope_cuda(&args, stream(pass));
}

static sl_kv_table kv_of(const sl_cuda_pass *pass, const sl_attention *p) {
    return (sl_kv_table){ pass->device->kv_slots, (uint32_t)p->kv, (uint32_t)p->n_kv_head,
                          (uint32_t)p->head_dim, pass->device->kv_f16 };
}

static int launch_kv_store(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_kv_store_args args = { .k = at(pass, node->in[0]),
                                    .v = at(pass, node->in[1]),
                                    .k_stride = stride(pass, node->in[0]),
                                    .v_stride = stride(pass, node->in[1]),
                                    .kv = kv_of(pass, &node->u.attention),
                                    .act = act(pass),
                                    .runs = runs_of(pass, SL_ALL) };
    return sl_kv_store_cuda(&args, stream(pass));
}

static int launch_attention(const sl_cuda_pass *pass, const sl_node *node) {
    const sl_attention *p = &node->u.attention;
    const sl_attention_cuda_args args = {
        .q = at(pass, node->in[0]), .y = at(pass, node->out), .scratch = pass->device->attention,
        .q_stride = stride(pass, node->in[0]), .y_stride = stride(pass, node->out), .kv = kv_of(pass, p),
        .n_head = (uint32_t)p->n_head, .window = (uint32_t)p->window, .scale = 1 / sqrtf((float)p->head_dim),
        .act = act(pass), .runs = runs_of(pass, SL_ALL),
    };
    return sl_attention_cuda(&args, stream(pass));
}

/* ---- all ---------------------------------------------------------------------------------------- */

/* NULL: nothing to launch. */
static const launch_fn launches[SL_OP_N] = {
    [SL_OP_EMBED] = launch_embed,
    [SL_OP_ROPE_TABLE] = launch_rope_table,
    [SL_OP_NORM] = launch_norm,
    [SL_OP_LINEAR] = launch_linear,
    [SL_OP_BLOCK_LINEAR] = launch_block_linear,
    [SL_OP_SILU_MUL] = launch_silu_mul,
    [SL_OP_ROUTE_SCORE] = NULL, /* with the norm in front of it */
    [SL_OP_ROUTE_SPLIT] = launch_route_split,
    [SL_OP_GATHER] = launch_gather,
    [SL_OP_SHIFT] = launch_shift,
    [SL_OP_CONV_GATE] = launch_conv,
    [SL_OP_S6] = launch_s6,
    [SL_OP_S4D] = launch_s4d,
    [SL_OP_BRIDGE] = launch_bridge,
    [SL_OP_ROPE] = launch_rope,
    [SL_OP_KV_STORE] = launch_kv_store,
    [SL_OP_ATTENTION] = launch_attention,
};

/* Nodes that take one launch, or NULL: none. */
typedef struct step { launch_fn launch; size_t n_node; } step;

/* Of a single token the router's launch splits as well. */
static step step_of_router(const sl_cuda_pass *pass, const sl_node *norm, const sl_node *end) {
    const bool splits = pass->batch->n_tok == 1 && norm + 2 < end && norm[2].op == SL_OP_ROUTE_SPLIT;
    return (step){ launch_norm_and_score, splits ? 3 : 2 };
}

static step step_of(const sl_cuda_pass *pass, const sl_node *node, const sl_node *end) {
    if (node->op == SL_OP_NORM && is_before_router(pass, node)) return step_of_router(pass, node, end);
    if (node->op == SL_OP_GATHER && is_in_place(pass, node->out)) return (step){ NULL, 1 };
    if (!is_pair(pass, node, end)) return (step){ launches[node->op], 1 };
    if (is_gated(pass, node, end)) return (step){ launch_gated, 3 };
    return (step){ launch_pair, 2 };
}

int sl_cuda_launch_nodes(const sl_cuda_pass *pass, const sl_node **failed) {
    const sl_node *end = pass->graph->nodes + pass->graph->n_node;
    for (const sl_node *node = pass->graph->nodes; node < end;) {
        const step now = step_of(pass, node, end);
        *failed = node;
        node += now.n_node;
        if (!now.launch || ((*failed)->domain == SL_OUTPUTS && !pass->batch->n_out)) continue;
        int e = now.launch(pass, *failed);
        if (!e) e = (int)sl_cuda_profile_launch(pass->device, *failed, now.n_node);
        if (e) return e;
    }
    return 0;
}
