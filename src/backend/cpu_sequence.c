/* The CPU's sequence nodes: for every run of the batch, channels or heads are split over the threads, and
 * each thread walks its channels through all tokens of the run, the state staying in its cache. */
#include <math.h>
#include <string.h>

#include "backend/cpu.h"
#include "base/mem.h"

/* The heads a thread owns. */
static void share_heads(const sl_pass *pass, size_t n_head, size_t thread, size_t *from, size_t *to) {
    sl_share(n_head, 1, thread, pass->n_thread, from, to);
}

void sl_cpu_shift(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t c, end;
    sl_share(pass->graph->values[node->out].width, 16, thread, pass->n_thread, &c, &end);
    const size_t bytes = (end - c) * sizeof(float);
    for (size_t r = 0; r < pass->batch->n_run && bytes; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        float *before = sl_slot_state(pass, node, run->slot) + c;
        for (size_t t = 0; t < run->n_tok; t++) {
            memcpy(sl_row(pass, node->out, run->start + t) + c, before, bytes);
            before = sl_row(pass, node->in[0], run->start + t) + c;
        }
        memmove(sl_slot_state(pass, node, run->slot) + c, before, bytes);
    }
}

void sl_cpu_conv_gate(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_conv *p = &node->u.conv;
    size_t from, to;
    share_heads(pass, p->e / p->head_dim, thread, &from, &to);
    const size_t c = from * p->head_dim, n = (to - from) * p->head_dim;
    for (size_t r = 0; r < pass->batch->n_run && n; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        const float *pqv = sl_row(pass, node->in[0], run->start) + c;
        float *s = sl_row(pass, node->out, run->start) + c;
        const sl_conv_args args = {
            .p = pqv, .v = pqv + 2 * p->e, .s = s, .taps = p->taps + c, .bias = p->bias + c,
            .state = sl_slot_state(pass, node, run->slot) + c,
            .in_stride = sl_row_stride(pass, node->in[0]), .out_stride = sl_row_stride(pass, node->out),
            .taps_stride = p->e, .state_stride = p->e, .n = n, .n_tok = run->n_tok, .k = p->k,
        };
        pass->kernels->conv_gate(&args);
        for (size_t t = 0; t < run->n_tok; t++, s += args.out_stride)
            pass->kernels->rmsnorm(s, p->norm + c, s, to - from, p->head_dim, p->head_dim, p->eps);
    }
}

void sl_cpu_ssm_input(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_s6 *p = &node->u.s6;
    const sl_domain *domain = sl_domain_of(pass, node->domain);
    size_t from, to;
    sl_share(domain->n, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++) {
        size_t at = sl_batch_row(domain, t);
        float *r = sl_row(pass, node->in[0], t) + p->e;
        float *delta = r + p->e + 2 * p->n_group * p->n_state;
        pass->kernels->silu_add(r, sl_row(pass, node->in[1], at), r, p->e);
        if (p->n_state)
            pass->kernels->softplus(delta, p->dt_bias, delta, domain->rho ? domain->rho[at] : 1.0f,
                                    p->e / p->head_dim);
    }
}

/* m = RMSNorm_head(y silu(g)) for some heads of one token, in place. */
static void gate_and_norm(const sl_pass *pass, float *y, const float *g, const float *norm, size_t n_head,
                          size_t head_dim, float eps) {
    pass->kernels->silu_mul(g, y, y, n_head * head_dim);
    pass->kernels->rmsnorm(y, norm, y, n_head, head_dim, head_dim, eps);
}

static void s6_head(const sl_pass *pass, const sl_node *node, size_t head, size_t slot, size_t first,
                    size_t n_tok) {
    const sl_s6 *p = &node->u.s6;
    const size_t c = head * p->head_dim, group = head / (p->e / p->head_dim / p->n_group);
    const float *in = sl_row(pass, node->in[0], first), *b = in + 2 * p->e + group * p->n_state;
    float *y = sl_row(pass, node->out, first) + c;
    const size_t in_stride = sl_row_stride(pass, node->in[0]), out_stride = sl_row_stride(pass, node->out);
    const sl_scan_s6_args args = {
        .r = in + p->e + c, .b = b, .c = b + p->n_group * p->n_state,
        .delta = in + 2 * p->e + 2 * p->n_group * p->n_state + head, .skip = p->skip + c,
        .state = sl_slot_state(pass, node, slot) + c * p->n_state, .y = y, .decay = p->decay[head],
        .r_stride = in_stride, .bc_stride = in_stride, .delta_stride = in_stride, .y_stride = out_stride,
        .head_dim = p->head_dim, .n_state = p->n_state, .n_tok = n_tok,
    };
    pass->kernels->scan_s6(&args);
    for (size_t t = 0; t < n_tok; t++)
        gate_and_norm(pass, y + t * out_stride, in + t * in_stride + c, p->norm + c, 1, p->head_dim, p->eps);
}

void sl_cpu_s6(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_s6 *p = &node->u.s6;
    const sl_domain *domain = sl_domain_of(pass, node->domain);
    size_t from, to, first, last;
    share_heads(pass, p->e / p->head_dim, thread, &from, &to);
    for (size_t r = 0; r < pass->batch->n_run; r++) {
        sl_run_rows(pass, domain, r, &first, &last);
        for (size_t head = from; head < to && first < last; head++)
            s6_head(pass, node, head, pass->batch->runs[r].slot, first, last - first);
    }
}

void sl_cpu_s4d(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_s4d *p = &node->u.s4d;
    size_t from, to;
    share_heads(pass, p->e / p->head_dim, thread, &from, &to);
    const size_t c = from * p->head_dim, n = (to - from) * p->head_dim;
    for (size_t r = 0; r < pass->batch->n_run && n; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        const float *in = sl_row(pass, node->in[0], run->start) + c;
        float *y = sl_row(pass, node->out, run->start) + c;
        const sl_scan_s4d_args args = {
            .r = in + p->e, .a = p->a + c, .k = p->k + c, .skip = p->skip + c,
            .state = sl_slot_state(pass, node, run->slot) + c, .y = y,
            .r_stride = sl_row_stride(pass, node->in[0]), .y_stride = sl_row_stride(pass, node->out),
            .pole_stride = p->e, .n = n, .n_pole = p->n_pole, .n_tok = run->n_tok,
        };
        pass->kernels->scan_s4d(&args);
        for (size_t t = 0; t < run->n_tok; t++)
            gate_and_norm(pass, y + t * args.y_stride, in + t * args.r_stride, p->norm + c, to - from,
                          p->head_dim, p->eps);
    }
}

void sl_cpu_bridge(const sl_pass *pass, const sl_node *node, size_t thread) {
    const sl_bridge *p = &node->u.bridge;
    const sl_domain *deep = sl_domain_of(pass, (uint32_t)node->in[5]);
    const bool routed = deep->rho != NULL;
    size_t c, end;
    sl_share(p->e, 16, thread, pass->n_thread, &c, &end);
    for (size_t r = 0; r < pass->batch->n_run && c < end; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        const sl_bridge_args args = {
            .s = sl_row(pass, node->in[0], run->start) + c,
            .q = sl_row(pass, node->in[1], run->start) + p->e + c,
            .gate_i = sl_row(pass, node->in[2], run->start) + c,
            .gate_f = sl_row(pass, node->in[3], run->start) + c,
            .bias_i = p->bias_i + c,
            .bias_f = p->bias_f + c,
            .lambda = p->lambda + c,
            .kappa = p->kappa + c,
            .omega = p->omega + c,
            .gamma = p->gamma + c,
            .m = sl_row(pass, node->in[4], routed ? 0 : run->start) + c,
            .rho = routed ? deep->rho + run->start : NULL,
            .deep_row = routed ? deep->row_of + run->start : NULL,
            .h = sl_slot_state(pass, node, run->slot) + c,
            .o = sl_row(pass, node->out, run->start) + c,
            .s_stride = sl_row_stride(pass, node->in[0]),
            .q_stride = sl_row_stride(pass, node->in[1]),
            .gate_stride = sl_row_stride(pass, node->in[2]),
            .m_stride = sl_row_stride(pass, node->in[4]),
            .o_stride = sl_row_stride(pass, node->out),
            .n = end - c,
            .n_tok = run->n_tok,
        };
        pass->kernels->bridge(&args);
    }
}

/* ---- attention ---------------------------------------------------------------------------------- */

/* Calls f for each token of the thread's share with its run. */
typedef void (*token_fn)(const sl_pass *pass, const sl_node *node, const sl_batch_run *run, size_t row);
static void each_token(const sl_pass *pass, const sl_node *node, size_t thread, token_fn f) {
    size_t from, to;
    sl_share(pass->batch->n_tok, 1, thread, pass->n_thread, &from, &to);
    for (size_t r = 0; r < pass->batch->n_run; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        size_t end = sl_min(to, run->start + run->n_tok);
        for (size_t t = sl_max(from, run->start); t < end; t++) f(pass, node, run, t);
    }
}

static void rope_angles(const sl_pass *pass, const sl_node *node, const sl_batch_run *run, size_t row) {
    float *out = sl_row(pass, node->out, row), position = (float)(run->pos + row - run->start);
    size_t half = pass->graph->n_rot / 2;
    for (size_t j = 0; j < half; j++) {
        double angle = position * pass->graph->inv_freq[j]; /* the product in f32, as in the references */
        out[j] = (float)cos(angle) * pass->graph->rope_gain;
        out[half + j] = (float)sin(angle) * pass->graph->rope_gain;
    }
}

void sl_cpu_rope_table(const sl_pass *pass, const sl_node *node, size_t thread) {
    each_token(pass, node, thread, rope_angles);
}

void sl_cpu_rope(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t from, to, n_rot = pass->graph->n_rot;
    sl_share(pass->batch->n_tok, 1, thread, pass->n_thread, &from, &to);
    for (size_t t = from; t < to; t++) {
        const float *table = sl_row(pass, node->in[1], t);
        pass->kernels->rope(sl_row(pass, node->in[0], t), table, table + n_rot / 2, node->u.rope.n_head,
                            node->u.rope.head_dim, n_rot);
    }
}

static void store_kv(const sl_pass *pass, const sl_node *node, const sl_batch_run *run, size_t row) {
    const sl_attention *p = &node->u.attention;
    const sl_device *device = pass->device;
    size_t position = (size_t)run->pos + row - run->start, hd = p->head_dim, size = device->kv_f16 ? 2 : 4;
    for (size_t v = 0; v < 2; v++)
        for (size_t head = 0; head < p->n_kv_head; head++) {
            const float *x = sl_row(pass, node->in[v], row) + head * hd;
            uint8_t *to = sl_kv_head(device, run->slot, p, v, head) + position * hd * size;
            if (device->kv_f16) pass->kernels->narrow_f16(x, (uint16_t *)(void *)to, hd);
            else memcpy(to, x, hd * size);
        }
}

void sl_cpu_kv_store(const sl_pass *pass, const sl_node *node, size_t thread) {
    each_token(pass, node, thread, store_kv);
}

static void attend(const sl_pass *pass, const sl_node *node, size_t thread, const sl_batch_run *run,
                   size_t head, size_t first) {
    const sl_attention *p = &node->u.attention;
    const sl_device *device = pass->device;
    size_t group = p->n_head / p->n_kv_head, row = run->start + first;
    const sl_attention_args args = {
        .q = sl_row(pass, node->in[0], row) + head * group * p->head_dim,
        .k = sl_kv_head(device, run->slot, p, 0, head), .v = sl_kv_head(device, run->slot, p, 1, head),
        .y = sl_row(pass, node->out, row) + head * group * p->head_dim, .scratch = sl_scratch(pass, thread),
        .scale = 1 / sqrtf((float)p->head_dim), .q_stride = sl_row_stride(pass, node->in[0]),
        .kv_stride = p->head_dim, .y_stride = sl_row_stride(pass, node->out), .head_dim = p->head_dim,
        .n_head = group, .n_tok = sl_min(SL_ATTN_QUERIES, run->n_tok - first), .pos = (size_t)run->pos + first,
        .window = p->window,
    };
    (device->kv_f16 ? pass->kernels->attention_f16 : pass->kernels->attention_f32)(&args);
}

/* Blocks of queries are dealt out in turn, since later ones see more keys. */
void sl_cpu_attention(const sl_pass *pass, const sl_node *node, size_t thread) {
    size_t turn = 0;
    for (size_t r = 0; r < pass->batch->n_run; r++) {
        const sl_batch_run *run = &pass->batch->runs[r];
        for (size_t head = 0; head < node->u.attention.n_kv_head; head++)
            for (size_t first = 0; first < run->n_tok; first += SL_ATTN_QUERIES)
                if (turn++ % pass->n_thread == thread) attend(pass, node, thread, run, head, first);
    }
}
