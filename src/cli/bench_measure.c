/* The clock runs only while sl_session_eval does. Every repetition starts from the same state: the empty
 * one, or the depth, which is computed where that takes seconds and made up where it would take longer. A
 * made-up depth is not restored between repetitions; it is so large that they do not change it. */
#include "cli/bench_measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "os/os.h"
#include "os/process.h"
#include "run/session.h"

enum { RANDOM_TOKENS = 4099, WARM_TOKENS = 16, DEPTH_PIECE = 2048 };
static const double depth_seconds = 5; /* a depth that takes longer is made up */

/* ---- what is fed --------------------------------------------------------------------------------- */

static const char story[] =
    "Once upon a time a miller lived beside a slow brown river with his daughter and a grey cat. Every "
    "morning the girl carried a basket of bread over the wooden bridge to the market, and every "
    "evening she came home with a story. One day she found a small brass key in the grass. \"What does "
    "it open?\" she asked. The miller did not know, and the cat only yawned. So she tried the church "
    "door, the baker's cupboard and the old chest in the tower, but the key was too small for all of "
    "them. In the end she sat down under the willow tree and laughed. \"Perhaps it opens nothing,\" "
    "she said, \"and I have had a whole day of walking for it.\" Then she saw a tiny lock in the bark, "
    "no larger than a fingernail. The key turned without a sound, and behind the little door there was "
    "a room full of light, with a table, two chairs, and a kettle that had just begun to sing.\n";

static sl_status fill_from_text(sl_bench_model *m, sl_error *err) {
    size_t n = 0;
    SL_TRY(sl_tokenize(m->model, story, sizeof story - 1, 0, NULL, 0, &n, err));
    SL_TRY(sl_alloc((void **)&m->tokens, n, sizeof *m->tokens, "tokens", err));
    return sl_tokenize(m->model, story, sizeof story - 1, 0, m->tokens, n, &m->n_token, err);
}

static sl_status fill_random(sl_bench_model *m, sl_error *err) {
    uint32_t x = 2463534242u; /* xorshift32, Marsaglia 2003 */
    SL_TRY(sl_alloc((void **)&m->tokens, RANDOM_TOKENS, sizeof *m->tokens, "tokens", err));
    for (size_t i = 0; i < RANDOM_TOKENS; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        m->tokens[i] = (int32_t)(x % m->info.n_vocab);
    }
    m->n_token = RANDOM_TOKENS;
    return SL_OK;
}

sl_status sl_bench_model_init(sl_bench_model *model, sl_error *err) {
    sl_model_get_info(model->model, &model->info);
    return model->info.has_tokenizer ? fill_from_text(model, err) : fill_random(model, err);
}

void sl_bench_model_release(sl_bench_model *model) {
    sl_session_destroy(model->holder);
    free(model->tokens);
    sl_model_close(model->model);
    *model = (sl_bench_model){ 0 };
}

/* ---- one row ------------------------------------------------------------------------------------- */

typedef struct bench {
    const sl_bench_model *model;
    const sl_bench_config *config;
    sl_session *session;
    sl_sampler *greedy;     /* on a GPU: the token is taken there, as a user would have it */
    sl_sampler **samplers;  /* [n_seq] all greedy */
    int32_t *drawn;         /* [n_seq] */
    sl_run *runs;      /* [n_seq] */
    int32_t *tokens;   /* [n_seq][n_run_token] */
    size_t n_run_token;
    bool made_up;      /* the depth */
} bench;

static size_t tokens_per_repeat(const sl_bench_config *c) { return c->n_prompt + c->n_gen; }

/* Positions that the KV stores get room for, so that they do not grow while the clock runs. */
static uint64_t positions(const sl_bench_config *c) {
    return c->depth + (c->n_repeat + 1 + c->profile) * (uint64_t)tokens_per_repeat(c) + 2 * WARM_TOKENS;
}

const char *sl_bench_activations(const sl_bench_model *model, const sl_bench_config *config) {
    const bool is_auto = config->activations == SL_ACTIVATIONS_AUTO;
    const bool is_f32 = is_auto ? !strcmp(model->info.type, "f32") : config->activations == SL_ACTIVATIONS_F32;
    return is_f32 || !strcmp(config->device, "cpu") ? "f32" : "f16";
}

uint64_t sl_bench_bytes(const sl_bench_model *model, const sl_bench_config *config) {
    uint64_t logits = sizeof(float) * (uint64_t)model->info.n_vocab;
    return config->n_seq * (model->info.kv_token_bytes * positions(config) + model->info.state_bytes + logits);
}

/* Lets every sequence go on by n tokens. The sequences are at different places of the text. */
static sl_status advance(bench *b, size_t n, sl_error *err) {
    for (size_t s = 0; s < b->config->n_seq; s++) {
        uint64_t at = sl_slot_position(b->session, s) + s * 101;
        int32_t *tokens = b->tokens + s * b->n_run_token;
        for (size_t i = 0; i < n; i++) tokens[i] = b->model->tokens[(at + i) % b->model->n_token];
        b->runs[s] = (sl_run){ s, tokens, n, b->greedy ? SL_LOGITS_NONE : SL_LOGITS_LAST };
    }
    return sl_session_eval_draw(b->session, b->runs, b->config->n_seq, b->greedy ? b->samplers : NULL, b->drawn, err);
}

static sl_status restore(bench *b, sl_error *err) {
    if (b->made_up) return SL_OK;
    for (size_t s = 0; s < b->config->n_seq; s++) {
        if (!b->config->depth) sl_slot_reset(b->session, s);
        else SL_TRY(sl_slot_rewind(b->session, s, b->config->depth, err));
    }
    return SL_OK;
}

/* Seconds that computing the depth of one sequence would take, from a short prompt (which also wakes the
 * threads). With attention the cost per token grows; a factor of two covers what is worth computing. */
static sl_status estimate_depth(bench *b, double *seconds, sl_error *err) {
    sl_run run = { 0, b->model->tokens, sl_min(4 * WARM_TOKENS, b->model->n_token), SL_LOGITS_NONE };
    SL_TRY(sl_session_eval(b->session, &run, 1, err));
    SL_TRY(sl_session_wait(b->session, err));
    double start = sl_os_seconds();
    SL_TRY(sl_session_eval(b->session, &run, 1, err));
    SL_TRY(sl_session_wait(b->session, err));
    *seconds = (sl_os_seconds() - start) / (double)run.n_token * (double)b->config->depth;
    if (b->model->info.kv_token_bytes) *seconds *= 2;
    sl_slot_reset(b->session, 0);
    return SL_OK;
}

/* One sequence computes the depth, the others are forks of it. */
static sl_status compute_depth(bench *b, sl_error *err) {
    const uint64_t depth = b->config->depth;
    for (uint64_t at = 0; at < depth && !sl_interrupted();) {
        size_t from = (size_t)(at % b->model->n_token);
        size_t n = sl_min(sl_min(DEPTH_PIECE, b->model->n_token - from), (size_t)(depth - at));
        sl_run run = { 0, b->model->tokens + from, n, SL_LOGITS_LAST };
        SL_TRY(sl_session_eval(b->session, &run, 1, err));
        at += n;
    }
    for (size_t s = 1; s < b->config->n_seq; s++) SL_TRY(sl_slot_fork(b->session, 0, s, err));
    for (size_t s = 0; s < b->config->n_seq; s++) SL_TRY(sl_slot_mark(b->session, s, err));
    return SL_OK;
}

static sl_status reach_depth(bench *b, sl_error *err) {
    double seconds = 0;
    if (!b->config->depth) return SL_OK;
    SL_TRY(estimate_depth(b, &seconds, err));
    b->made_up = seconds > depth_seconds;
    if (!b->made_up) return compute_depth(b, err);
    for (size_t s = 0; s < b->config->n_seq; s++)
        SL_TRY(sl_session_fake_depth(b->session, s, b->config->depth, err));
    return SL_OK;
}

/* One repetition. *first: seconds of its first evaluation. */
static sl_status repeat(bench *b, double *seconds, double *first, sl_error *err) {
    const sl_bench_config *c = b->config;
    *seconds = *first = 0;
    for (size_t i = 0; i < (c->n_prompt ? 1 : c->n_gen); i++) {
        double start = sl_os_seconds();
        SL_TRY(advance(b, c->n_prompt ? c->n_prompt : 1, err));
        double took = sl_os_seconds() - start;
        if (!i) *first = took;
        *seconds += took;
    }
    return SL_OK;
}

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(double *values, size_t n) {
    qsort(values, n, sizeof *values, by_value);
    return n ? (values[(n - 1) / 2] + values[n / 2]) / 2 : 0;
}

static void fill_row(bench *b, double *rates, double *firsts, sl_bench_row *row) {
    const sl_bench_config *c = b->config;
    const sl_counters *counted = sl_session_counters(b->session);
    double n_token = (double)(row->n_repeat * tokens_per_repeat(c) * c->n_seq);
    row->median = median(rates, row->n_repeat);
    row->min = rates[0];
    row->max = rates[row->n_repeat - 1];
    row->first_seconds = median(firsts, row->n_repeat);
    row->bytes_per_token = (double)(counted->weight_bytes + counted->state_bytes + counted->kv_bytes) / n_token;
    row->flops_per_token = (double)counted->flops / n_token;
    row->deep_share = row->replayed_share = (double)NAN;
    if (counted->routed_tokens) row->deep_share = (double)counted->deep_tokens / (double)counted->routed_tokens;
    if (b->greedy) row->replayed_share = (double)counted->replayed / (double)counted->passes;
    row->state_bytes = b->model->info.state_bytes * c->n_seq;
    row->kv_bytes = b->model->info.kv_token_bytes * c->n_seq * (c->depth + tokens_per_repeat(c));
    row->depth_synthetic = b->made_up;
}

static sl_status run_repeats(bench *b, sl_bench_row *row, sl_error *err) {
    const sl_bench_config *c = b->config;
    double *rates, begun = sl_os_seconds();
    sl_status status = SL_OK;
    SL_TRY(sl_alloc((void **)&rates, 2 * c->n_repeat, sizeof *rates, "times", err));
    double *firsts = rates + c->n_repeat;
    memset(sl_session_counters(b->session), 0, sizeof(sl_counters));
    while (row->n_repeat < c->n_repeat && status == SL_OK && !sl_interrupted()) {
        double seconds;
        if (row->n_repeat && c->max_seconds > 0 && sl_os_seconds() - begun > c->max_seconds) break;
        status = restore(b, err); /* rewinds to a checkpoint without a pass, so nothing is counted */
        if (status == SL_OK) status = repeat(b, &seconds, &firsts[row->n_repeat], err);
        if (status == SL_OK) rates[row->n_repeat++] = (double)(tokens_per_repeat(c) * c->n_seq) / seconds;
    }
    if (row->n_repeat) fill_row(b, rates, firsts, row);
    free(rates);
    return status;
}

static sl_status run_profiled(bench *b, sl_node_time *nodes, sl_bench_row *row, sl_error *err) {
    double seconds, first;
    SL_TRY(restore(b, err));
    SL_TRY(sl_session_profile(b->session, nodes, err));
    const uint64_t before = sl_session_counters(b->session)->passes;
    SL_TRY(repeat(b, &seconds, &first, err));
    const uint64_t n_pass = sl_session_counters(b->session)->passes - before;
    SL_TRY(sl_session_profile(b->session, NULL, err));
    return sl_bench_profile_make(b->session, nodes, seconds, n_pass, &row->profile, err);
}

static sl_status profile(bench *b, sl_bench_row *row, sl_error *err) {
    sl_node_time *nodes;
    if (!b->config->profile || sl_interrupted()) return SL_OK;
    SL_TRY(sl_alloc((void **)&nodes, b->session->model->graph.n_node, sizeof *nodes, "a profile", err));
    const sl_status status = run_profiled(b, nodes, row, err);
    if (status != SL_OK) sl_session_profile(b->session, NULL, NULL);
    free(nodes);
    return status;
}

static sl_status open_samplers(bench *b, sl_error *err) {
    sl_sampler_params params = sl_sampler_params_default();
    params.temperature = 0;
    params.repeat_penalty = 1;
    SL_TRY(sl_alloc((void **)&b->samplers, b->config->n_seq, sizeof *b->samplers, "samplers", err));
    SL_TRY(sl_alloc((void **)&b->drawn, b->config->n_seq, sizeof *b->drawn, "tokens", err));
    SL_TRY(sl_sampler_create(&params, b->model->info.n_vocab, &b->greedy, err));
    for (size_t s = 0; s < b->config->n_seq; s++) b->samplers[s] = b->greedy;
    return SL_OK;
}

static sl_status open_bench(bench *b, sl_error *err) {
    const sl_bench_config *c = b->config;
    sl_session_params params = { .n_slot = c->n_seq, .n_batch = c->n_batch, .n_thread = c->n_thread,
                                 .route_threshold = c->tau, .device = c->device, .activations = c->activations,
                                 .batch_invariant = c->batch_invariant };
    b->n_run_token = sl_max(c->n_prompt, WARM_TOKENS);
    SL_TRY(sl_alloc((void **)&b->runs, c->n_seq, sizeof *b->runs, "runs", err));
    SL_TRY(sl_alloc((void **)&b->tokens, c->n_seq, b->n_run_token * sizeof *b->tokens, "tokens", err));
    SL_TRY(sl_session_create(b->model->model, &params, &b->session, err));
    if (strcmp(c->device, "cpu")) SL_TRY(open_samplers(b, err));
    for (size_t s = 0; s < c->n_seq; s++)
        SL_TRY(b->session->backend->reserve(b->session->device, s, positions(c), err));
    return SL_OK;
}

/* The code paths of the row, the weights in memory, the threads awake; on a GPU the pass's very shape, which is captured
 * the second time. */
static sl_status warm(bench *b, sl_error *err) {
    const size_t n_prompt = b->config->n_prompt;
    size_t n = n_prompt ? b->greedy ? n_prompt : sl_min(n_prompt, WARM_TOKENS) : 1;
    for (size_t i = 0; i < (b->greedy && !n_prompt ? 3 : 1); i++) SL_TRY(advance(b, n, err));
    return SL_OK;
}

sl_status sl_bench_measure(sl_bench_model *model, const sl_bench_config *config, uint64_t other_bytes,
                           sl_bench_row *row, sl_error *err) {
    bench b = { .model = model, .config = config };
    *row = (sl_bench_row){ .model = model, .config = *config, .ratio = (double)NAN };
    sl_os_peak_rss_reset();
    sl_status status = open_bench(&b, err);
    if (status == SL_OK) status = reach_depth(&b, err);
    if (status == SL_OK) status = warm(&b, err);
    if (status == SL_OK) status = run_repeats(&b, row, err);
    if (status == SL_OK) status = profile(&b, row, err);
    uint64_t peak = sl_os_peak_rss();
    row->peak_rss_bytes = peak > other_bytes ? peak - other_bytes : peak;
    model->resident = true;
    sl_session_destroy(b.session);
    sl_sampler_destroy(b.greedy);
    free(b.samplers);
    free(b.drawn);
    free(b.tokens);
    free(b.runs);
    return status;
}
