/* The CUDA kernels for rows and sequences behind the signatures of the CPU's table (cuda_check.h). The steps
 * that have no place in those signatures are left out as cuda_kernels.h says, and are the subject of
 * cuda_rows.c and cuda_runs.c. */
#include "cuda_check.h"
#include "cuda_sequence.h"

#include <stdlib.h>
#include <string.h>

/* ---- runs and states ---------------------------------------------------------------------------- */

sl_runs cuda_put_runs(const uint32_t *slot, const uint32_t *start, uint32_t n) {
    uint64_t *pos = calloc(n, sizeof *pos);
    sl_runs runs = { .n = n, .max_tok = 1 };
    if (!pos) abort();
    for (uint32_t r = 0; r < n; r++)
        if (start[r + 1] - start[r] > runs.max_tok) runs.max_tok = start[r + 1] - start[r];
    runs.slot = cuda_put(slot, n * sizeof *slot, 4);
    runs.start = cuda_put(start, (n + 1) * sizeof *start, 4);
    runs.pos = cuda_put(pos, n * sizeof *pos, 8);
    free(pos);
    return runs;
}

/* One run of all tokens, in the second slot. */
static sl_runs one_run(size_t n_tok) {
    const uint32_t slot = 1, start[2] = { 0, (uint32_t)n_tok };
    return cuda_put_runs(&slot, start, 1);
}

/* Two slots of n_row x n floats, the second filled, gap floats after each. */
static sl_slab put_state(const float *from, size_t stride, size_t n_row, size_t n) {
    const size_t gap = n % 3, size = n_row * n + gap; /* aligned for four floats now and then */
    float *slots = malloc((2 * size + 1) * sizeof *slots);
    if (!slots) abort();
    memset(slots, 0xff, 2 * size * sizeof *slots);
    for (size_t r = 0; r < n_row; r++) memcpy(slots + size + r * n, from + r * stride, n * sizeof *from);
    const sl_slab slab = { cuda_put(slots, 2 * size * sizeof *slots, 16), size };
    free(slots);
    return slab;
}

static void get_state(float *to, size_t stride, size_t n_row, size_t n, sl_slab slab) {
    for (size_t r = 0; r < n_row; r++)
        cuda_get(to + r * stride, slab.data + slab.slot_stride + r * n, n * sizeof *to);
}

/* Rows of several parts side by side as an activation row has them; a part without a source is NaN. */
typedef struct part { const float *at; size_t stride, n; } part;
static const float *put_parts(const part *parts, size_t n_part, size_t n_row, uint64_t *stride) {
    size_t width = 0;
    for (size_t i = 0; i < n_part; i++) width += parts[i].n;
    float *rows = malloc(n_row * width * sizeof *rows);
    if (!rows) abort();
    memset(rows, 0xff, n_row * width * sizeof *rows);
    for (size_t t = 0; t < n_row; t++) {
        float *to = rows + t * width;
        for (size_t i = 0; i < n_part; to += parts[i++].n)
            if (parts[i].at) memcpy(to, parts[i].at + t * parts[i].stride, parts[i].n * sizeof *to);
    }
    const float *device = cuda_put_rows(SL_ACT_F32, rows, width, width, n_row, stride);
    free(rows);
    return device;
}

static float *put_floats(const float *from, size_t n) { return cuda_put(from, n * sizeof *from, 4); }

/* Rows of n floats, stride apart, packed. */
static float *put_packed(const float *from, size_t stride, size_t n_row, size_t n) {
    float *packed = malloc(n_row * n * sizeof *packed);
    if (!packed) abort();
    for (size_t r = 0; r < n_row; r++) memcpy(packed + r * n, from + r * stride, n * sizeof *from);
    float *device = put_floats(packed, n_row * n);
    free(packed);
    return device;
}

/* ---- adapters ----------------------------------------------------------------------------------- */

void check_cuda_rmsnorm(const float *x, const float *w, float *y, size_t n_group, size_t n, size_t w_step,
                        float eps) {
    const size_t width = n_group * n;
    sl_norm_args a = { .n_group = (uint32_t)n_group, .n = (uint32_t)n, .w_step = (uint32_t)w_step, .eps = eps,
                       .x_f32 = n % 2 == 0, .act = SL_ACT_F32, .rows = { .max = 1 } };
    void *in = cuda_put_rows(SL_ACT_F32, x, width, width, 1, &a.x_stride);
    a.x = in;
    a.y = in;
    a.y_stride = a.x_stride;
    if (x != y) a.y = cuda_new_rows(SL_ACT_F32, width, 1, &a.y_stride);
    a.w = put_floats(w, (n_group - 1) * w_step + n);
    cuda_run(cuda.rmsnorm(&a, NULL));
    cuda_get_rows(SL_ACT_F32, y, width, width, 1, a.y, a.y_stride);
    cuda_free();
}

void check_cuda_silu_mul(const float *g, const float *u, float *y, size_t n) {
    sl_silu_args a = { .n = (uint32_t)n, .act = SL_ACT_F32, .rows = { .max = 1 } };
    a.gate = cuda_put_rows(SL_ACT_F32, g, n, n, 1, &a.gate_stride);
    a.up = cuda_put_rows(SL_ACT_F32, u, n, n, 1, &a.up_stride);
    cuda_run(cuda.silu_mul(&a, NULL));
    cuda_get_rows(SL_ACT_F32, y, n, n, 1, a.gate, a.gate_stride);
    cuda_free();
}

void check_cuda_conv_gate(const sl_conv_args *c) {
    const part parts[] = { { c->p, c->in_stride, c->n }, { NULL, 0, c->n }, { c->v, c->in_stride, c->n } };
    sl_conv_cuda_args a = { .e = (uint32_t)c->n,
                            .head_dim = (uint32_t)c->n,
                            .k = (uint32_t)c->k,
                            .act = SL_ACT_F32,
                            .runs = one_run(c->n_tok) };
    a.pqv = put_parts(parts, 3, c->n_tok, &a.in_stride);
    a.s = cuda_new_rows(SL_ACT_F32, c->n, c->n_tok, &a.s_stride);
    a.taps = put_packed(c->taps, c->taps_stride, c->k, c->n);
    a.bias = put_floats(c->bias, c->n);
    a.state = put_state(c->state, c->state_stride, c->k - 1, c->n);
    cuda_run(cuda.conv_gate(&a, NULL));
    cuda_get_rows(SL_ACT_F32, c->s, c->out_stride, c->n, c->n_tok, a.s, a.s_stride);
    get_state(c->state, c->state_stride, c->k - 1, c->n, a.state);
    cuda_free();
}

void check_cuda_s6(const sl_scan_s6_args *s) {
    const size_t e = s->head_dim, n = s->n_state;
    const part parts[] = { { NULL, 0, e },
                           { s->r, s->r_stride, e },
                           { s->b, s->bc_stride, n },
                           { s->c, s->bc_stride, n },
                           { s->delta, s->delta_stride, 1 } };
    sl_s6_cuda_args a = { .e = (uint32_t)e, .head_dim = (uint32_t)e, .n_state = (uint32_t)n, .n_group = 1,
                          .act = SL_ACT_F32, .runs = one_run(s->n_tok) };
    a.in = put_parts(parts, 5, s->n_tok, &a.in_stride);
    a.decay = put_floats(&s->decay, 1);
    a.skip = put_floats(s->skip, e);
    a.m = cuda_new_rows(SL_ACT_F32, e, s->n_tok, &a.m_stride);
    a.state = put_state(s->state, e, n, e);
    cuda_run(cuda.s6(&a, NULL));
    cuda_get_rows(SL_ACT_F32, s->y, s->y_stride, e, s->n_tok, a.m, a.m_stride);
    get_state(s->state, e, n, e, a.state);
    cuda_free();
}

void check_cuda_s4d(const sl_scan_s4d_args *s) {
    const size_t e = s->n;
    const part parts[] = { { NULL, 0, e }, { s->r, s->r_stride, e } };
    sl_s4d_cuda_args a = { .e = (uint32_t)e,
                           .head_dim = (uint32_t)e,
                           .n_pole = (uint32_t)s->n_pole,
                           .act = SL_ACT_F32,
                           .runs = one_run(s->n_tok) };
    a.in = put_parts(parts, 2, s->n_tok, &a.in_stride);
    a.a = put_packed(s->a, s->pole_stride, 2 * s->n_pole, e);
    a.k = put_packed(s->k, s->pole_stride, 2 * s->n_pole, e);
    a.skip = put_floats(s->skip, e);
    a.m = cuda_new_rows(SL_ACT_F32, e, s->n_tok, &a.m_stride);
    a.state = put_state(s->state, s->pole_stride, 2 * s->n_pole, e);
    cuda_run(cuda.s4d(&a, NULL));
    cuda_get_rows(SL_ACT_F32, s->y, s->y_stride, e, s->n_tok, a.m, a.m_stride);
    get_state(s->state, s->pole_stride, 2 * s->n_pole, e, a.state);
    cuda_free();
}

/* Rows of m that the tokens name. */
static size_t deep_rows(const sl_bridge_args *b) {
    size_t n = 0;
    if (!b->m) return 0;
    for (size_t t = 0; t < b->n_tok; t++) {
        const size_t row = b->deep_row ? (size_t)(b->deep_row[t] + 1) : t + 1;
        if (row > n) n = row;
    }
    return n;
}

static void put_parameters(sl_bridge_cuda_args *a, const sl_bridge_args *b) {
    a->bias_i = put_floats(b->bias_i, b->n);
    a->bias_f = put_floats(b->bias_f, b->n);
    a->lambda = put_floats(b->lambda, b->n);
    a->kappa = put_floats(b->kappa, b->n);
    a->omega = put_floats(b->omega, b->n);
    a->gamma = put_floats(b->gamma, b->n);
    if (b->rho) a->rho = put_floats(b->rho, b->n_tok);
    if (b->deep_row) a->row_of = cuda_put(b->deep_row, b->n_tok * sizeof *b->deep_row, 4);
}

void check_cuda_bridge(const sl_bridge_args *b) {
    sl_bridge_cuda_args a = { .e = (uint32_t)b->n, .act = SL_ACT_F32, .runs = one_run(b->n_tok) };
    const size_t n_deep = deep_rows(b);
    a.s = cuda_put_rows(SL_ACT_F32, b->s, b->s_stride, b->n, b->n_tok, &a.s_stride);
    a.q = cuda_put_rows(SL_ACT_F32, b->q, b->q_stride, b->n, b->n_tok, &a.q_stride);
    a.gate_i = cuda_put_rows(SL_ACT_F32, b->gate_i, b->gate_stride, b->n, b->n_tok, &a.gate_stride);
    a.gate_f = cuda_put_rows(SL_ACT_F32, b->gate_f, b->gate_stride, b->n, b->n_tok, &a.gate_stride);
    if (n_deep) a.m = cuda_put_rows(SL_ACT_F32, b->m, b->m_stride, b->n, n_deep, &a.m_stride);
    put_parameters(&a, b);
    a.state = put_state(b->h, b->n, 1, b->n);
    a.o = cuda_new_rows(SL_ACT_F32, b->n, b->n_tok, &a.o_stride);
    cuda_run(cuda.bridge(&a, NULL));
    cuda_get_rows(SL_ACT_F32, b->o, b->o_stride, b->n, b->n_tok, a.o, a.o_stride);
    get_state(b->h, b->n, 1, b->n, a.state);
    cuda_free();
}
