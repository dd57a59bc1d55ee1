/* The CUDA kernels for sequences over ragged batches: several runs with slots of their own, empty ones among
 * them, light tokens, every fused step, f32 and f16, against float64.
 *
 * Each case is computed four times: all runs in one call, every run alone, token by token over all runs (decode
 * steps), and cut in two at different places. Outputs and states must agree to the bit. Values are held against
 * float64 within TOLERANCE of the largest in their head or state (sums of at most 130 products; single steps
 * have exact bounds in the harness), and of the bridge within TOLERANCE of the sizes of their own summands too, which
 * alone count where one channel is all there is and its terms may cancel; and half a unit of f16 where the output is f16.
 *
 * The chunked S6 scan is held to equal bits only alone against in company: another cut makes other chunks. What its
 * split operands lose is below 2^-16 of each summand. Its states are held to TOLERANCE too; its outputs have beside
 * it what was lost of their summands' sizes, followed through gate and norm, which enlarges what a head has left
 * where its summands cancel. */
#include "cuda_sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef SL_TEST_DEVICE
#include "test_device.h"
/* Other orders of blocks and threads. */
static void shuffle_device(check *c) { sl_device_seed(check_random(c) % 1000); }
#else
static void shuffle_device(check *c) { (void)c; }
#endif

#define TOLERANCE 2e-5
#define LOST 0x1p-15 /* of a summand: two split operands */
enum { MAX_RUN = 200, MAX_INPUT = 5, MAX_PARAM = 6 };

/* ---- a case ------------------------------------------------------------------------------------- */

/* Rows of the whole batch, packed. */
typedef struct tensor { float *at; size_t width; bool deep; /* only deep rows reach the kernel */ } tensor;

typedef struct call call;
typedef struct batch {
    check *c;
    sl_act act;
    uint32_t n_run, n_slot, n_row, slot[MAX_RUN], start[MAX_RUN + 1];
    bool routed;
    float *rho;                              /* [n_row], 0: light */
    tensor in[MAX_INPUT], out;
    float *param[MAX_PARAM];                 /* f32 constants, of param_n each */
    size_t param_n[MAX_PARAM], n_input, n_param;
    float *state, *start_state, *result, *final; /* [n_slot, state_n]; result: out of the whole batch */
    size_t state_n;
    uint32_t e, head_dim, n_state, n_group, k;
    double *lost;                            /* of out; NULL: nothing is */
    double *size, *out_size;                 /* of the summands of states and of out; NULL: nobody asks */
    void (*launch)(const struct batch *b, call *k);
} batch;

/* What one call computes: rows of the batch, in pieces of runs; and what of it is on the device. */
struct call {
    uint32_t n_run, n_row, n_deep;
    uint32_t slot[MAX_RUN], start[MAX_RUN + 1], deep_start[MAX_RUN + 1];
    uint32_t *row, *deep; /* batch row of each, place of each deep row */
    int32_t *row_of;
    const void *in[MAX_INPUT];
    uint64_t in_stride[MAX_INPUT], out_stride;
    void *out;
    const float *param[MAX_PARAM], *rho;
    const uint32_t *index;
    const int32_t *device_row_of;
    sl_slab state;
    sl_runs runs, deep_runs;
};

/* Memory of the case, until it ends. */
typedef struct block { struct block *next; float at[]; } block;
static block *blocks;
static float *floats(size_t n) {
    block *made = malloc(sizeof *made + (n + 1) * sizeof *made->at);
    if (!made) abort();
    made->next = blocks;
    blocks = made;
    return made->at;
}
static uint32_t *words(size_t n) { return (uint32_t *)floats(n); }

static void end_case(check *c) {
    for (block *at = blocks, *next; at; at = next) next = at->next, free(at);
    blocks = NULL;
    check_end(c);
}

static float *random_floats(batch *b, size_t n, float low, float high) {
    float *x = floats(n);
    check_fill_range(b->c, x, n, low, high);
    return x;
}

/* Lengths of runs as given, or NULL: none, one token, a few, and for one run more than any tile. */
static void make_runs(batch *b, uint32_t n_run, const uint32_t *length, uint32_t longest) {
    b->n_run = n_run;
    b->n_slot = n_run + 4;
    for (uint32_t r = 0; r < n_run; r++) {
        const uint32_t few = length ? length[r] : (uint32_t)check_index(b->c, 4);
        b->slot[r] = (r * 7 + 1) % b->n_slot; /* no multiple of 7 for the numbers of runs below */
        b->start[r + 1] = b->start[r] + (!length && r == n_run / 2 ? longest : few);
    }
    b->n_row = b->start[n_run];
    b->rho = floats(b->n_row);
    for (uint32_t t = 0; t < b->n_row; t++)
        b->rho[t] = check_index(b->c, 3) ? check_uniform(b->c, 0.01f, 1) : 0;
}

static void add_input(batch *b, size_t width, bool deep, float low, float high) {
    tensor *v = &b->in[b->n_input++];
    *v = (tensor){ random_floats(b, b->n_row * width, low, high), width, deep };
    for (size_t i = 0; i < b->n_row * width; i++) v->at[i] = cuda_rounded(b->act, v->at[i]);
}

static void add_param(batch *b, size_t n, float low, float high) {
    b->param[b->n_param] = random_floats(b, n, low, high);
    b->param_n[b->n_param++] = n;
}

static void set_out(batch *b, size_t width, bool deep, size_t state_n) {
    b->out = (tensor){ NULL, width, deep };
    b->state_n = state_n;
    b->start_state = random_floats(b, b->n_slot * state_n, -1, 1);
    b->state = floats(b->n_slot * state_n);
}

/* ---- a call ------------------------------------------------------------------------------------- */

/* Rows from[r] .. to[r] (of the batch) of each run. */
static void choose(const batch *b, call *k, const uint32_t *from, const uint32_t *to) {
    k->row = words(b->n_row), k->deep = words(b->n_row), k->row_of = (int32_t *)words(b->n_row);
    for (uint32_t r = 0; r < b->n_run; r++) {
        for (uint32_t t = from[r]; t < to[r]; t++) {
            const bool deep = !b->routed || b->rho[t] > 0;
            k->row_of[k->n_row] = deep ? (int32_t)k->n_deep : -1;
            if (deep) k->deep[k->n_deep++] = k->n_row;
            k->row[k->n_row++] = t;
        }
        k->slot[r] = b->slot[r];
        k->start[r + 1] = k->n_row;
        k->deep_start[r + 1] = k->n_deep;
    }
    k->n_run = b->n_run;
}

/* Batch row of the i-th row of a tensor in the call. */
static uint32_t row_at(const call *k, bool deep, uint32_t i) { return k->row[deep ? k->deep[i] : i]; }
static uint32_t count(const call *k, bool deep) { return deep ? k->n_deep : k->n_row; }

static const void *put_input(const batch *b, const call *k, const tensor *v, uint64_t *stride) {
    const uint32_t n = count(k, v->deep);
    float *packed = floats(n * v->width);
    for (uint32_t i = 0; i < n; i++)
        memcpy(packed + i * v->width, v->at + row_at(k, v->deep, i) * v->width, v->width * sizeof *packed);
    if (n == 0) return cuda_new_rows(b->act, v->width, 1, stride);
    return cuda_put_rows(b->act, packed, v->width, v->width, n, stride);
}

static sl_slab put_state(const batch *b) {
    const size_t stride = b->state_n + b->n_row % 5; /* now and then aligned for four floats */
    float *slots = floats(b->n_slot * stride);
    memset(slots, 0xff, b->n_slot * stride * sizeof *slots);
    for (size_t s = 0; s < b->n_slot; s++)
        memcpy(slots + s * stride, b->state + s * b->state_n, b->state_n * sizeof *slots);
    return (sl_slab){ cuda_put(slots, b->n_slot * stride * sizeof *slots, 16), stride };
}

static void get_state(const batch *b, sl_slab state) {
    for (size_t s = 0; s < b->n_slot; s++)
        cuda_get(b->state + s * b->state_n, state.data + s * state.slot_stride, b->state_n * sizeof(float));
}

static void get_out(const batch *b, const call *k, float *to) {
    const uint32_t n = count(k, b->out.deep);
    float *packed = floats(n * b->out.width);
    if (n) cuda_get_rows(b->act, packed, b->out.width, b->out.width, n, k->out, k->out_stride);
    for (uint32_t i = 0; i < n; i++)
        memcpy(to + row_at(k, b->out.deep, i) * b->out.width, packed + i * b->out.width,
               b->out.width * sizeof *to);
}

static const float *put_rho(const batch *b, const call *k) {
    float *rho = floats(k->n_row);
    for (uint32_t i = 0; i < k->n_row; i++) rho[i] = b->rho[k->row[i]];
    return cuda_put(rho, k->n_row * sizeof *rho, 4);
}

/* Computes the rows; the states of b advance. A long call is told more tokens than there are, as a captured
 * pass is. */
static void compute(batch *b, const uint32_t *from, const uint32_t *to, float *out) {
    call k;
    memset(&k, 0, sizeof k);
    choose(b, &k, from, to);
    for (size_t i = 0; i < b->n_input; i++) k.in[i] = put_input(b, &k, &b->in[i], &k.in_stride[i]);
    for (size_t i = 0; i < b->n_param; i++)
        k.param[i] = cuda_put(b->param[i], b->param_n[i] * sizeof(float), 4);
    k.out =
        cuda_new_rows(b->act, b->out.width, count(&k, b->out.deep) ? count(&k, b->out.deep) : 1, &k.out_stride);
    k.state = put_state(b);
    k.runs = cuda_put_runs(k.slot, k.start, k.n_run);
    k.deep_runs = cuda_put_runs(k.slot, k.deep_start, k.n_run);
    k.deep_runs.max_tok = k.runs.max_tok; /* what the host knows */
    if (b->routed) {
        k.rho = put_rho(b, &k);
        k.index = cuda_put(k.deep, k.n_deep * sizeof *k.deep, 4);
        k.device_row_of = cuda_put(k.row_of, k.n_row * sizeof *k.row_of, 4);
    }
    b->launch(b, &k);
    get_out(b, &k, out);
    get_state(b, k.state);
    cuda_free();
}

/* ---- the four ways ------------------------------------------------------------------------------ */

static void reset(batch *b) { memcpy(b->state, b->start_state, b->n_slot * b->state_n * sizeof(float)); }

static void all_at_once(batch *b) {
    reset(b);
    b->result = floats(b->n_row * b->out.width);
    memset(b->result, 0, b->n_row * b->out.width * sizeof(float));
    compute(b, b->start, b->start + 1, b->result);
    b->final = floats(b->n_slot * b->state_n);
    memcpy(b->final, b->state, b->n_slot * b->state_n * sizeof(float));
}

static void expect_same(const batch *b, const float *out, const char *name) {
    check_same(b->c, name, out, b->result, b->n_row * b->out.width * sizeof *out);
    check_same(b->c, "state after it", b->state, b->final, b->n_slot * b->state_n * sizeof *out);
}

static void one_by_one(batch *b) {
    float *out = floats(b->n_row * b->out.width);
    memset(out, 0, b->n_row * b->out.width * sizeof *out);
    reset(b);
    for (uint32_t r = 0; r < b->n_run; r++) {
        uint32_t to[MAX_RUN];
        memcpy(to, b->start, b->n_run * sizeof *to);
        to[r] = b->start[r + 1];
        if (to[r] > b->start[r] && (b->n_run < 20 || r % 16 == b->n_run / 2 % 16))
            compute(b, b->start, to, out);
        else if (to[r] > b->start[r]) { /* of many runs a few will do */
            memcpy(out + b->start[r] * b->out.width, b->result + b->start[r] * b->out.width,
                   (to[r] - b->start[r]) * b->out.width * sizeof *out);
            memcpy(b->state + b->slot[r] * b->state_n, b->final + b->slot[r] * b->state_n,
                   b->state_n * sizeof *out);
        }
    }
    expect_same(b, out, "each run alone");
}

/* Calls of n tokens of each run, or the first cut of it at places of its own (n 0); what comes out. */
static float *in_steps(batch *b, uint32_t n) {
    uint32_t from[MAX_RUN], to[MAX_RUN], left = 1;
    float *out = floats(b->n_row * b->out.width);
    memset(out, 0, b->n_row * b->out.width * sizeof *out);
    reset(b);
    memcpy(from, b->start, b->n_run * sizeof *from);
    for (uint32_t pass = 0; left; pass++) {
        left = 0;
        for (uint32_t r = 0; r < b->n_run; r++) {
            const uint32_t end = b->start[r + 1], size = n      ? n
                                                         : pass ? end
                                                                : (end - b->start[r]) * (r % 3 + 1) / 4;
            to[r] = end - from[r] < size ? end : from[r] + size;
            left += to[r] - from[r];
        }
        if (left || pass == 0) compute(b, from, to, out), left = 1;
        memcpy(from, to, b->n_run * sizeof *from);
    }
    return out;
}

static void four_ways(batch *b) {
    shuffle_device(b->c);
    all_at_once(b);
    shuffle_device(b->c);
    one_by_one(b);
    expect_same(b, in_steps(b, 1), "token by token");
    expect_same(b, in_steps(b, 0), "cut in two");
}

/* ---- against float64 ---------------------------------------------------------------------------- */

/* Each of n values within a tolerance of its group's largest and, where sizes are given, of its own; of its own alone
 * where it is the group. */
static bool expect_near(const batch *b, const char *name, const float *got, const double *want, size_t n,
                        size_t group, const double *size, sl_act act, const double *lost) {
    for (size_t at = 0; at < n; at += group) {
        double largest = 0;
        for (size_t i = 0; i < group; i++) largest = fmax(largest, fabs(want[at + i]));
        for (size_t i = 0; i < group; i++) {
            const double own = size ? size[at + i] : largest, of = group == 1 ? own : fmin(own, largest);
            const double w = want[at + i], bound = TOLERANCE * of + cuda_rounding(act, w);
            const double allowed = bound + (lost ? lost[at + i] : 0) + 0x1p-140;
            if (!check_near(b->c, name, at + i, got[at + i], w, allowed)) return false;
        }
    }
    return true;
}

/* out [n_row, width], state [n_slot, state_n]. */
typedef void (*truth_fn)(const batch *b, uint32_t r, uint32_t t, double *state, double *out);

static void expect_truth(const batch *b, truth_fn truth, size_t group) {
    const size_t n = b->n_slot * b->state_n, width = b->out.width;
    double *state = calloc(n + 1, sizeof *state), *out = calloc(b->n_row * width + 1, sizeof *out);
    if (!state || !out) abort();
    for (size_t i = 0; i < n; i++) state[i] = b->start_state[i];
    for (size_t i = 0; b->size && i < n; i++) b->size[i] = fabs(state[i]);
    for (uint32_t r = 0; r < b->n_run; r++)
        for (uint32_t t = b->start[r]; t < b->start[r + 1]; t++)
            truth(b, r, t, state + b->slot[r] * b->state_n, out + t * width);
    const double *size = b->out_size ? b->size : NULL;
    expect_near(b, "out", b->result, out, b->n_row * width, group, b->out_size, b->act, b->lost);
    if (b->state_n) expect_near(b, "state", b->final, state, n, b->state_n, size, SL_ACT_F32, NULL);
    free(state), free(out);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }
static double softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static const float EPS = 1e-5f;

/* RMS norm of each head, with e weights. */
static void norm_heads(const batch *b, const float *w, double *y) {
    for (size_t at = 0; at < b->e; at += b->head_dim) {
        double sum = 0;
        for (size_t i = 0; i < b->head_dim; i++) sum += y[at + i] * y[at + i];
        const double scale = 1 / sqrt(sum / b->head_dim + (double)EPS);
        for (size_t i = 0; i < b->head_dim; i++) y[at + i] *= scale * w[at + i];
    }
}

static bool is_deep(const batch *b, uint32_t t) { return !b->routed || b->rho[t] > 0; }
static const float *row_of(const batch *b, size_t input, uint32_t t) {
    return b->in[input].at + t * b->in[input].width;
}

static batch start_case(check *c, sl_act act, uint32_t n_run, uint32_t longest, bool routed) {
    batch b;
    memset(&b, 0, sizeof b);
    b.c = c, b.act = act, b.routed = routed;
    make_runs(&b, n_run, NULL, longest);
    return b;
}

/* ---- shift -------------------------------------------------------------------------------------- */

static void launch_shift(const batch *b, call *k) {
    const sl_shift_args a = { .x = k->in[0], .y = k->out, .state = k->state, .x_stride = k->in_stride[0],
                              .y_stride = k->out_stride, .n = b->e, .act = b->act, .runs = k->runs };
    cuda_run(cuda.shift(&a, NULL));
}

static void truth_shift(const batch *b, uint32_t r, uint32_t t, double *state, double *out) {
    (void)r;
    for (size_t i = 0; i < b->e; i++) out[i] = state[i], state[i] = row_of(b, 0, t)[i];
}

static void shift_case(check *c, sl_act act, uint32_t n_run, uint32_t n) {
    check_case(c, "%s runs=%u n=%u", cuda_act_name(act), n_run, n);
    batch b = start_case(c, act, n_run, n_run > 20 ? 5 : 70, false);
    b.e = b.head_dim = n;
    add_input(&b, n, false, -1.5f, 1.5f);
    set_out(&b, n, false, n);
    b.launch = launch_shift;
    four_ways(&b);
    expect_truth(&b, truth_shift, n);
    end_case(c);
}

void check_cuda_shift_runs(check *c) {
    static const uint32_t sizes[] = { 1, 20, 127, 128, 300 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes && !c->failed; s++)
        for (int act = 0; act < 2; act++) shift_case(c, (sl_act)act, 5, sizes[s]);
    shift_case(c, SL_ACT_F32, MAX_RUN, 9);
}

/* ---- convolution -------------------------------------------------------------------------------- */

static void launch_conv(const batch *b, call *k) {
    const sl_conv_cuda_args a = { .pqv = k->in[0],
                                  .s = k->out,
                                  .taps = k->param[0],
                                  .bias = k->param[1],
                                  .norm = k->param[2],
                                  .state = k->state,
                                  .in_stride = k->in_stride[0],
                                  .s_stride = k->out_stride,
                                  .e = b->e,
                                  .head_dim = b->head_dim,
                                  .k = b->k,
                                  .eps = EPS,
                                  .act = b->act,
                                  .runs = k->runs };
    cuda_run(cuda.conv_gate(&a, NULL));
}

static void truth_conv(const batch *b, uint32_t r, uint32_t t, double *state, double *out) {
    const float *in = row_of(b, 0, t), *taps = b->param[0];
    const size_t e = b->e, k = b->k;
    (void)r;
    for (size_t i = 0; i < e; i++) {
        const double z = in[i] * in[2 * e + i];
        out[i] = b->param[1][i] + taps[(k - 1) * e + i] * z;
        for (size_t j = 0; j + 1 < k; j++) out[i] += taps[j * e + i] * state[j * e + i];
        for (size_t j = 0; j + 2 < k; j++) state[j * e + i] = state[(j + 1) * e + i];
        if (k > 1) state[(k - 2) * e + i] = z;
    }
    norm_heads(b, b->param[2], out);
}

static void conv_case(check *c, sl_act act, uint32_t n_run, uint32_t n_head, uint32_t head_dim, uint32_t k) {
    check_case(c, "%s runs=%u heads=%u head_dim=%u k=%u", cuda_act_name(act), n_run, n_head, head_dim, k);
    batch b = start_case(c, act, n_run, n_run > 20 ? 5 : 70, false);
    b.e = n_head * head_dim, b.head_dim = head_dim, b.k = k;
    add_input(&b, 3 * b.e, false, -1.5f, 1.5f);
    add_param(&b, k * b.e, -1, 1);
    add_param(&b, b.e, -1, 1);
    add_param(&b, b.e, 0.5f, 1.5f);
    set_out(&b, b.e, false, (k - 1) * b.e);
    b.launch = launch_conv;
    four_ways(&b);
    expect_truth(&b, truth_conv, head_dim);
    end_case(c);
}

void check_cuda_conv_runs(check *c) {
    static const uint32_t shapes[][3] = { { 3, 3, 4 }, { 9, 8, 2 }, { 2, 64, 4 }, { 2, 100, 1 }, { 1, 300, 7 },
                                          { 4, 5, 40 }, { 5, 4, 3 }, { 5, 8, 4 }, { 17, 64, 4 }, { 3, 256, 4 }, { 9, 24, 4 } };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes && !c->failed; s++)
        for (int act = 0; act < 2; act++)
            conv_case(c, (sl_act)act, 5, shapes[s][0], shapes[s][1], shapes[s][2]);
    conv_case(c, SL_ACT_F32, MAX_RUN, 2, 4, 4);
}

/* ---- S6 ----------------------------------------------------------------------------------------- */

enum { S6_DECAY, S6_DT_BIAS, S6_SKIP, S6_NORM };

static sl_s6_cuda_args s6_args(const batch *b, const call *k) {
    return (sl_s6_cuda_args){
        .in = k->in[0], .s = k->in[1], .rho = k->rho, .decay = k->param[S6_DECAY],
        .dt_bias = k->param[S6_DT_BIAS], .skip = k->param[S6_SKIP], .norm = k->param[S6_NORM], .m = k->out,
        .state = k->state, .in_stride = k->in_stride[0], .s_stride = k->in_stride[1],
        .m_stride = k->out_stride, .e = b->e, .head_dim = b->head_dim, .n_state = b->n_state,
        .n_group = b->n_group, .eps = EPS, .act = b->act, .runs = k->deep_runs, .index = k->index,
    };
}

static void launch_s6(const batch *b, call *k) {
    const sl_s6_cuda_args a = s6_args(b, k);
    cuda_run(cuda.s6(&a, NULL));
}

/* As the backend does: long runs in chunks where those fit a block, the others token by token. */
static void launch_s6_chunk(const batch *b, call *k) {
    sl_s6_cuda_args a = s6_args(b, k);
    const uint64_t n = sl_s6_scratch_cuda(k->n_row, b->e, b->head_dim, b->n_state);
    a.scratch = n && sl_s6_shared_cuda(b->head_dim, b->n_state) <= cuda_shared() ? cuda_new(n * sizeof *a.scratch, 16) : NULL;
    a.max_row = k->n_row;
    cuda_run(cuda.s6(&a, NULL));
    cuda_run(cuda.s6_chunk(&a, NULL));
}

/* What the norm of a head makes of errors that its channels bring along: to first order, and twice that. */
static void norm_lost(const batch *b, const float *w, const double *y, double *lost) {
    for (size_t at = 0; at < b->e; at += b->head_dim) {
        double squares = 0, common = 0;
        for (size_t i = at; i < at + b->head_dim; i++) squares += y[i] * y[i], common += fabs(y[i]) * lost[i];
        const double square = squares / b->head_dim + (double)EPS, scale = 1 / sqrt(square);
        common /= b->head_dim * square;
        for (size_t i = at; i < at + b->head_dim; i++)
            lost[i] = 2 * scale * fabs((double)w[i]) * (lost[i] + fabs(y[i]) * common);
    }
}

static void truth_s6(const batch *b, uint32_t run, uint32_t t, double *state, double *out) {
    const size_t e = b->e, width = b->head_dim, n_head = e / width, gn = (size_t)b->n_group * b->n_state;
    const float *g = row_of(b, 0, t), *s = row_of(b, 1, t), *delta = g + 2 * e + 2 * gn;
    if (!is_deep(b, t)) return;
    for (size_t c = 0; c < e; c++) {
        const size_t h = c / width, first = h / (n_head / b->n_group) * b->n_state;
        const double r = silu((double)g[e + c] + s[c]);
        const double step = (b->routed ? b->rho[t] : 1) * softplus((double)delta[h] + b->param[S6_DT_BIAS][h]);
        double y = b->param[S6_SKIP][c] * r, size = fabs(y);
        for (size_t n = 0; n < b->n_state; n++) {
            const size_t at = (h * b->n_state + n) * width + c % width;
            const double fade = expm1(-b->param[S6_DECAY][h] * step), in = step * r * g[2 * e + first + n];
            double *v = state + at, *of = b->size ? b->size + b->slot[run] * b->state_n + at : NULL;
            *v += fade * *v + in;
            y += *v * g[2 * e + gn + first + n];
            if (of) *of += fade * *of + fabs(in), size += *of * fabs((double)g[2 * e + gn + first + n]);
        }
        out[c] = y * silu(g[c]);
        if (b->lost) b->lost[t * e + c] = LOST * size * fabs(silu(g[c]));
    }
    if (b->lost) norm_lost(b, b->param[S6_NORM], out, b->lost + t * e);
    norm_heads(b, b->param[S6_NORM], out);
}

/* Inputs and parameters of a shape {heads, head_dim, n_state, groups}; a decay is 2 to the power of slow .. fast.
 */
static void s6_fill(batch *b, const uint32_t *shape, float slow, float fast) {
    b->e = shape[0] * shape[1], b->head_dim = shape[1], b->n_state = shape[2], b->n_group = shape[3];
    add_input(b, 2 * b->e + 2 * b->n_group * b->n_state + shape[0], true, -2, 2);
    add_input(b, b->e, false, -1, 1);
    add_param(b, shape[0], slow, fast);
    for (uint32_t h = 0; h < shape[0]; h++) b->param[S6_DECAY][h] = exp2f(b->param[S6_DECAY][h]);
    add_param(b, shape[0], -3, 1);
    add_param(b, b->e, -1, 1);
    add_param(b, b->e, 0.5f, 1.5f);
    set_out(b, b->e, true, (size_t)b->n_state * b->e);
}

static void s6_case(check *c, sl_act act, uint32_t n_run, const uint32_t *shape, bool routed) {
    check_case(c, "%s runs=%u heads=%u head_dim=%u n_state=%u groups=%u%s", cuda_act_name(act), n_run, shape[0],
               shape[1], shape[2], shape[3], routed ? " routed" : "");
    batch b = start_case(c, act, n_run, n_run > 20 ? 5 : 55, routed);
    s6_fill(&b, shape, -6, 1);
    b.launch = launch_s6;
    four_ways(&b);
    expect_truth(&b, truth_s6, b.head_dim);
    end_case(c);
}

void check_cuda_s6_runs(check *c) {
    static const uint32_t shapes[][4] = { { 4, 16, 8, 2 },  { 3, 5, 3, 3 },   { 2, 64, 64, 1 },
                                          { 6, 20, 20, 3 }, { 1, 280, 5, 1 }, { 2, 4, 130, 1 },
                                          { 2, 68, 70, 2 }, { 8, 4, 1, 4 } };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes && !c->failed; s++)
        for (int act = 0; act < 2; act++) s6_case(c, (sl_act)act, 5, shapes[s], (s + (size_t)act) % 2 == 0);
    s6_case(c, SL_ACT_F32, MAX_RUN, shapes[1], true);
}

/* Alone and beside others a run has the same bits; cut elsewhere its chunks are others, and float64 decides. */
static void s6_chunk_case(check *c, const uint32_t *shape, const uint32_t *length, uint32_t n_run, bool routed,
                          float slow, float fast) {
    check_case(c, "runs=%u of %u.. heads=%u head_dim=%u n_state=%u groups=%u decay=2^%g..2^%g%s", n_run,
               length[0], shape[0], shape[1], shape[2], shape[3], (double)slow, (double)fast,
               routed ? " routed" : "");
    batch b = start_case(c, SL_ACT_F16, 0, 0, routed);
    make_runs(&b, n_run, length, 0);
    s6_fill(&b, shape, slow, fast);
    b.launch = launch_s6_chunk;
    b.lost = calloc((size_t)b.n_row * b.e + 1, sizeof *b.lost);
    b.size = calloc(b.n_slot * b.state_n + 1, sizeof *b.size);
    if (!b.lost || !b.size) abort();
    shuffle_device(c);
    all_at_once(&b);
    expect_truth(&b, truth_s6, b.head_dim);
    shuffle_device(c);
    one_by_one(&b);
    b.result = in_steps(&b, 0);
    memcpy(b.final, b.state, b.n_slot * b.state_n * sizeof *b.final);
    expect_truth(&b, truth_s6, b.head_dim);
    free(b.lost), free(b.size);
    end_case(c);
}

/* Runs of a token more and less than a chunk, none, short ones between long ones, light tokens that make a run
 * shorter; steps decay Delta from below 1e-6 to above 50; every kind of alignment, states of more than
 * one slab, and a shape that only scan_s6.cu takes. */
void check_cuda_s6_chunk(check *c) {
    static const uint32_t lengths[][4] = { { 64, 0, 65, 3 },  { 129, 63, 128, 0 }, { 1, 300, 2, 100 },
                                           { 97, 95, 96, 64 }, { 191, 66, 0, 140 } };
    static const uint32_t shapes[][4] = { { 2, 64, 64, 1 }, { 4, 4, 8, 2 },  { 3, 5, 3, 1 }, { 2, 12, 10, 2 },
                                          { 1, 100, 72, 1 }, { 1, 128, 128, 1 }, { 2, 40, 24, 1 },
                                          { 1, 132, 4, 1 }, { 1, 24, 260, 1 }, { 2, 10, 133, 2 },
                                          { 1, 64, 256, 1 } };
    static const float decays[][2] = { { -6, 1 }, { -20, -14 }, { 2, 5 }, { -20, 5 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !c->failed; i++)
        s6_chunk_case(c, shapes[i], lengths[i % 5], i < 5 ? 4 : 2, i > 0 && i % 2 == 0, decays[i % 4][0],
                      decays[i % 4][1]);
    for (size_t i = 0; i < 4 && !c->failed; i++)
        s6_chunk_case(c, shapes[3], lengths[(i + 1) % 5], 4, i % 2 == 0, decays[i][0], decays[i][1]);
    s6_chunk_case(c, shapes[0], lengths[2], 4, false, -20, -14);
}

/* ---- S4D ---------------------------------------------------------------------------------------- */

enum { S4D_A, S4D_K, S4D_SKIP, S4D_NORM };

static void launch_s4d(const batch *b, call *k) {
    const sl_s4d_cuda_args a = { .in = k->in[0],
                                 .s = k->in[1],
                                 .a = k->param[S4D_A],
                                 .k = k->param[S4D_K],
                                 .skip = k->param[S4D_SKIP],
                                 .norm = k->param[S4D_NORM],
                                 .m = k->out,
                                 .state = k->state,
                                 .in_stride = k->in_stride[0],
                                 .s_stride = k->in_stride[1],
                                 .m_stride = k->out_stride,
                                 .e = b->e,
                                 .head_dim = b->head_dim,
                                 .n_pole = b->n_state,
                                 .eps = EPS,
                                 .act = b->act,
                                 .runs = k->runs };
    cuda_run(cuda.s4d(&a, NULL));
}

static void truth_s4d(const batch *b, uint32_t run, uint32_t t, double *state, double *out) {
    const size_t e = b->e;
    const float *g = row_of(b, 0, t), *s = row_of(b, 1, t);
    (void)run;
    for (size_t c = 0; c < e; c++) {
        const double r = silu((double)g[e + c] + s[c]);
        double y = b->param[S4D_SKIP][c] * r;
        for (size_t n = 0; n < b->n_state; n++) {
            const size_t re = 2 * n * e + c, im = re + e;
            const float *a = b->param[S4D_A], *k = b->param[S4D_K];
            const double old = state[re];
            state[re] = a[re] * old - a[im] * state[im] + r;
            state[im] = a[re] * state[im] + a[im] * old;
            y += k[re] * state[re] - k[im] * state[im];
        }
        out[c] = y * silu(g[c]);
    }
    norm_heads(b, b->param[S4D_NORM], out);
}

static void s4d_case(check *c, sl_act act, uint32_t n_run, uint32_t n_head, uint32_t head_dim,
                     uint32_t n_pole) {
    check_case(c, "%s runs=%u heads=%u head_dim=%u n_pole=%u", cuda_act_name(act), n_run, n_head, head_dim, n_pole);
    batch b = start_case(c, act, n_run, n_run > 20 ? 5 : 40, false);
    b.e = n_head * head_dim, b.head_dim = head_dim, b.n_state = n_pole;
    add_input(&b, 2 * b.e, false, -2, 2);
    add_input(&b, b.e, false, -1, 1);
    add_param(&b, 2 * n_pole * b.e, -0.7f, 0.7f); /* radius below 1 */
    add_param(&b, 2 * n_pole * b.e, -1, 1);
    add_param(&b, b.e, -1, 1);
    add_param(&b, b.e, 0.5f, 1.5f);
    set_out(&b, b.e, false, 2 * (size_t)n_pole * b.e);
    b.launch = launch_s4d;
    four_ways(&b);
    expect_truth(&b, truth_s4d, head_dim);
    end_case(c);
}

void check_cuda_s4d_runs(check *c) {
    static const uint32_t shapes[][3] = {
        { 2, 64, 32 }, { 3, 5, 3 }, { 1, 270, 9 }, { 4, 4, 1 }, { 2, 33, 70 }
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes && !c->failed; s++)
        for (int act = 0; act < 2; act++) s4d_case(c, (sl_act)act, 5, shapes[s][0], shapes[s][1], shapes[s][2]);
    s4d_case(c, SL_ACT_F32, MAX_RUN, 2, 4, 2);
}

/* ---- bridge ------------------------------------------------------------------------------------- */

enum { IN_S, IN_Q, IN_GATE_I, IN_GATE_F, IN_M };
enum { BIAS_I, BIAS_F, LAMBDA, KAPPA, OMEGA, GAMMA };

static void launch_bridge(const batch *b, call *k) {
    const sl_bridge_cuda_args a = { .s = k->in[IN_S],
                                    .q = k->in[IN_Q],
                                    .gate_i = k->in[IN_GATE_I],
                                    .gate_f = k->in[IN_GATE_F],
                                    .m = k->in[IN_M],
                                    .bias_i = k->param[BIAS_I],
                                    .bias_f = k->param[BIAS_F],
                                    .lambda = k->param[LAMBDA],
                                    .kappa = k->param[KAPPA],
                                    .omega = k->param[OMEGA],
                                    .gamma = k->param[GAMMA],
                                    .rho = k->rho,
                                    .row_of = k->device_row_of,
                                    .o = k->out,
                                    .state = k->state,
                                    .s_stride = k->in_stride[IN_S],
                                    .q_stride = k->in_stride[IN_Q],
                                    .gate_stride = k->in_stride[IN_GATE_I],
                                    .m_stride = k->in_stride[IN_M],
                                    .o_stride = k->out_stride,
                                    .e = b->e,
                                    .act = b->act,
                                    .runs = k->runs };
    cuda_run(cuda.bridge(&a, NULL));
}

static void truth_bridge(const batch *b, uint32_t r, uint32_t t, double *state, double *out) {
    float *const *p = b->param;
    double *size = b->size + b->slot[r] * b->state_n;
    for (size_t c = 0; c < b->e; c++) {
        const double s = row_of(b, IN_S, t)[c], q = row_of(b, IN_Q, t)[c];
        const double in = sigmoid((double)row_of(b, IN_GATE_I, t)[c] + p[BIAS_I][c]);
        const double la = p[LAMBDA][c] * sigmoid((double)row_of(b, IN_GATE_F, t)[c] + p[BIAS_F][c]);
        const double fade = expm1(la), entering = sqrt(-expm1(2 * la)) * in * s;
        state[c] += fade * state[c] + entering;
        size[c] += fade * size[c] + fabs(entering);
        const double beta = sigmoid(p[OMEGA][c] * state[c] + p[GAMMA][c]);
        const double m = is_deep(b, t) ? beta * (b->routed ? b->rho[t] : 1) * row_of(b, IN_M, t)[c] : 0;
        out[c] = (1 - beta) * q * (s + p[KAPPA][c] * state[c]) + m;
        b->out_size[t * b->e + c] = (1 - beta) * fabs(q) * (fabs(s) + fabs(p[KAPPA][c]) * size[c]) + fabs(m);
    }
}

static void bridge_case(check *c, sl_act act, uint32_t n_run, uint32_t e, bool routed) {
    check_case(c, "%s runs=%u e=%u%s", cuda_act_name(act), n_run, e, routed ? " routed" : "");
    batch b = start_case(c, act, n_run, n_run > 20 ? 5 : 140, routed);
    b.e = e;
    for (int i = IN_S; i <= IN_M; i++) add_input(&b, e, i == IN_M, -2, 2);
    add_param(&b, e, -1, 1);
    add_param(&b, e, -1, 1);
    add_param(&b, e, -4, -0.001f);
    for (int i = KAPPA; i <= GAMMA; i++) add_param(&b, e, -1, 1);
    set_out(&b, e, false, e);
    b.launch = launch_bridge;
    b.size = calloc(b.n_slot * b.state_n + 1, sizeof *b.size);
    b.out_size = calloc((size_t)b.n_row * e + 1, sizeof *b.out_size);
    if (!b.size || !b.out_size) abort();
    four_ways(&b);
    expect_truth(&b, truth_bridge, e);
    free(b.size), free(b.out_size);
    end_case(c);
}

void check_cuda_bridge_runs(check *c) {
    static const uint32_t widths[] = { 1, 31, 96, 300 };
    for (size_t s = 0; s < 4 && !c->failed; s++)
        for (int act = 0; act < 2; act++) bridge_case(c, (sl_act)act, 5, widths[s], (s + (size_t)act) % 2 == 0);
    bridge_case(c, SL_ACT_F32, MAX_RUN, 40, true);
}

/* ---- broken kernels; those of another kind are in cuda_sequence_mutants.cu ------------------------ */

/* One norm over all channels. */
/* Runs after the first are forgotten. */
int mutant_cuda_shift_first_run(const sl_shift_args *args, sl_cuda_stream stream) {
    sl_shift_args a = *args;
    a.runs.n = 1;
    return sl_shift_cuda(&a, stream);
}

int mutant_cuda_shift_no_tail(const sl_shift_args *args, sl_cuda_stream stream) {
    sl_shift_args a = *args;
    a.n = a.n > 4 ? a.n / 4 * 4 : a.n;
    return sl_shift_cuda(&a, stream);
}

/* All slots share the first one's state. */
int mutant_cuda_shift_one_state(const sl_shift_args *args, sl_cuda_stream stream) {
    sl_shift_args a = *args;
    a.state.slot_stride = 0;
    return sl_shift_cuda(&a, stream);
}

int mutant_cuda_conv_one_norm(const sl_conv_cuda_args *args, sl_cuda_stream stream) {
    sl_conv_cuda_args a = *args;
    a.head_dim = a.e;
    return sl_conv_gate_cuda(&a, stream);
}

int mutant_cuda_s4d_one_norm(const sl_s4d_cuda_args *args, sl_cuda_stream stream) {
    sl_s4d_cuda_args a = *args;
    a.head_dim = a.e;
    return sl_s4d_cuda(&a, stream);
}

/* Deep rows take s and rho of the first rows of the batch. */
int mutant_cuda_s6_not_indexed(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    sl_s6_cuda_args a = *args;
    a.index = NULL;
    return sl_s6_cuda(&a, stream);
}

int mutant_cuda_s6_chunk_not_indexed(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    sl_s6_cuda_args a = *args;
    a.index = NULL;
    return sl_s6_chunk_cuda(&a, stream);
}

/* Light tokens move the state as deep ones do: here, the deep ones once more. */
int mutant_cuda_s6_light_writes(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    const int status = sl_s6_cuda(args, stream);
    return status ? status : sl_s6_cuda(args, stream);
}

/* Every head reads B of the next group. */
int mutant_cuda_s6_next_group(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    sl_s6_cuda_args a = *args;
    uint32_t n_row;
    cuda_get(&n_row, a.runs.start + a.runs.n, sizeof n_row);
    if (n_row == 0) return sl_s6_cuda(&a, stream);
    const size_t size = sl_act_size(a.act), group = a.n_state * size, rest = (a.n_group - 1) * group;
    const size_t width = 2 * (a.e + (size_t)a.n_group * a.n_state) + a.e / a.head_dim;
    const size_t n_bytes = ((n_row - 1) * a.in_stride + width) * size;
    unsigned char *in = malloc(n_bytes), *first = malloc(group);
    if (!in || !first) abort();
    cuda_get(in, a.in, n_bytes);
    for (uint32_t t = 0; t < n_row; t++) {
        unsigned char *b = in + (t * a.in_stride + 2 * (size_t)a.e) * size;
        memcpy(first, b, group);
        memmove(b, b + group, rest);
        memcpy(b + rest, first, group);
    }
    a.in = cuda_put(in, n_bytes, 16);
    free(in), free(first);
    return sl_s6_cuda(&a, stream);
}

/* A light token takes m of the row with its own number. */
int mutant_cuda_bridge_light_is_deep(const sl_bridge_cuda_args *args, sl_cuda_stream stream) {
    sl_bridge_cuda_args a = *args;
    a.row_of = NULL;
    return sl_bridge_cuda(&a, stream);
}
