/* Sessions: cutting runs into passes, and slots as things that can be reset, forked, marked and rewound.
 *
 * A slot's result does not depend on how its tokens are cut (kernels/kernels.h), so passes are filled
 * greedily in the order of the runs. On a GPU it does, by rounding: where that is not to be, a run is cut as it
 * would be alone. */
#include "run/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "backend/devices.h"
#include "os/os.h"
#include "run/sampler.h"

sl_session_params sl_session_params_default(void) {
    return (sl_session_params){ .n_slot = 1, .n_batch = 512, .route_threshold = NAN };
}

/* ---- creation ----------------------------------------------------------------------------------- */

static sl_status check_params(const sl_session_params *p, sl_error *err) {
    if (p->n_slot < 1 || p->n_slot > 65536)
        return sl_fail(err, SL_E_ARG, "n_slot is %zu, expected 1 to 65536", p->n_slot);
    if (p->n_batch < 1 || p->n_batch > 65536)
        return sl_fail(err, SL_E_ARG, "n_batch is %zu, expected 1 to 65536", p->n_batch);
    if (p->n_thread > 1024) return sl_fail(err, SL_E_ARG, "n_thread is %zu, expected 0 to 1024", p->n_thread);
    if (!isnan(p->route_threshold) && !(p->route_threshold >= 0 && p->route_threshold <= 1))
        return sl_fail(err, SL_E_ARG, "route_threshold is %g, expected 0 to 1", (double)p->route_threshold);
    if ((unsigned)p->activations > SL_ACTIVATIONS_F16)
        return sl_fail(err, SL_E_ARG, "activations is %d, expected 0 to %d", (int)p->activations, SL_ACTIVATIONS_F16);
    return SL_OK;
}

static sl_status session_memory(sl_session *s, sl_error *err) {
    const size_t n_vocab = s->model->n_vocab;
    SL_TRY(sl_alloc((void **)&s->slots, s->n_slot, sizeof *s->slots, "slots", err));
    SL_TRY(sl_alloc((void **)&s->run_first, s->n_slot, sizeof *s->run_first, "runs", err));
    SL_TRY(sl_alloc((void **)&s->runs, s->n_slot, sizeof *s->runs, "runs", err));
    SL_TRY(sl_alloc((void **)&s->tokens, s->n_batch, sizeof *s->tokens, "a batch", err));
    SL_TRY(sl_alloc((void **)&s->out_rows, s->n_batch, sizeof *s->out_rows, "a batch", err));
    SL_TRY(sl_alloc((void **)&s->out, s->n_batch, sizeof *s->out, "a batch", err));
    SL_TRY(sl_alloc((void **)&s->draws, s->n_slot, sizeof *s->draws, "drawing tokens", err));
    SL_TRY(sl_alloc((void **)&s->drawn, s->n_slot, sizeof *s->drawn, "drawing tokens", err));
    SL_TRY(sl_alloc((void **)&s->draw_run, s->n_slot, sizeof *s->draw_run, "drawing tokens", err));
    SL_TRY(sl_alloc((void **)&s->slot_logits, s->n_slot, n_vocab * sizeof(float), "logits", err));
    for (size_t i = 0; i < s->n_slot; i++) s->slots[i].logits = s->slot_logits + i * n_vocab;
    return SL_OK;
}

/* Of all tokens of a batch: much for a large vocabulary, and seldom asked for. */
static sl_status reserve_run_logits(sl_session *s, sl_error *err) {
    if (s->run_logits) return SL_OK;
    s->run_logits_bytes = (uint64_t)s->n_batch * s->model->n_vocab * sizeof(float);
    s->run_logits = sl_os_pages(s->run_logits_bytes);
    if (s->run_logits) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "out of memory: %llu bytes for logits", (unsigned long long)s->run_logits_bytes);
}

sl_status sl_session_create(const sl_model *model, const sl_session_params *params, sl_session **out, sl_error *err) {
    *out = NULL;
    SL_TRY(check_params(params, err));
    sl_session *s;
    SL_TRY(sl_alloc((void **)&s, 1, sizeof *s, "a session", err));
    s->model = model;
    s->n_slot = params->n_slot;
    s->n_batch = params->n_batch;
    s->tau = params->route_threshold;
    s->kv_f16 = model->type != SL_F32;
    const bool by_type = params->activations == SL_ACTIVATIONS_AUTO && model->type == SL_F32;
    sl_device_params device = {
        .n_slot = s->n_slot, .n_batch = s->n_batch, .n_thread = params->n_thread, .kv_f16 = s->kv_f16,
        .exact = params->activations == SL_ACTIVATIONS_F32 || by_type, .exact_by_type = by_type,
        .invariant = params->batch_invariant, .progress = params->progress, .progress_arg = params->progress_arg,
    };
    sl_status status = session_memory(s, err);
    if (status == SL_OK) status = sl_device_choose(params->device, &model->graph, &device, &s->choice, err);
    s->backend = s->choice.backend;
    s->invariant = params->batch_invariant && s->backend != &sl_backend_cpu; /* which is so anyway */
    if (status == SL_OK) status = s->backend->open(&model->graph, &device, &s->device, err);
    if (status == SL_OK) *out = s;
    else sl_session_destroy(s);
    return status;
}

static void drop_marks(sl_slot *slot, size_t keep) {
    while (slot->n_mark > keep) free(slot->marks[--slot->n_mark].state);
}

void sl_session_destroy(sl_session *s) {
    if (!s) return;
    for (size_t i = 0; s->slots && i < s->n_slot; i++) {
        drop_marks(&s->slots[i], 0);
        free(s->slots[i].tokens);
    }
    if (s->device) s->backend->close(s->device);
    sl_os_pages_free(s->run_logits, s->run_logits_bytes);
    free(s->slot_logits);
    free(s->slots);
    free(s->run_first);
    free(s->runs);
    free(s->tokens);
    free(s->out_rows);
    free(s->out);
    free(s->draws);
    free(s->drawn);
    free(s->draw_run);
    free(s);
}

/* ---- evaluation --------------------------------------------------------------------------------- */

static uint64_t position(const sl_slot *slot) { return slot->skipped + slot->n_token; }

static sl_status check_run(const sl_session *s, const sl_run *runs, size_t i, sl_error *err) {
    const sl_run *run = &runs[i];
    if (run->slot >= s->n_slot)
        return sl_fail(err, SL_E_ARG, "run %zu: slot %zu, expected 0 to %zu", i, run->slot, s->n_slot - 1);
    if (!run->n_token) return sl_fail(err, SL_E_ARG, "run %zu has no tokens, expected at least 1", i);
    if ((unsigned)run->logits > SL_LOGITS_ALL)
        return sl_fail(err, SL_E_ARG, "run %zu: logits is %d, expected 0 to %d", i, (int)run->logits, SL_LOGITS_ALL);
    for (size_t t = 0; t < run->n_token; t++)
        if (run->tokens[t] < 0 || (size_t)run->tokens[t] >= s->model->n_vocab)
            return sl_fail(err, SL_E_ARG, "run %zu: token %zu is %d, expected 0 to %zu", i, t, run->tokens[t],
                           s->model->n_vocab - 1);
    return SL_OK;
}

/* One call of sl_session_eval_draw. */
typedef struct call {
    const sl_run *runs;
    size_t n_run;
    sl_sampler *const *samplers; /* NULL: none */
    int32_t *tokens;
} call;

static sl_sampler *sampler_of(const call *c, size_t i) { return c->samplers ? c->samplers[i] : NULL; }

static sl_status check_sampler(const sl_session *s, const call *c, size_t i, sl_error *err) {
    const size_t n = sampler_of(c, i) ? sl_sampler_vocabulary(sampler_of(c, i)) : s->model->n_vocab;
    if (n == s->model->n_vocab) return SL_OK;
    return sl_fail(err, SL_E_ARG, "run %zu: its sampler is for %zu tokens, expected %zu", i, n, s->model->n_vocab);
}

/* The old place stays until the call ends. */
static sl_status reserve_tokens(sl_slot *slot, size_t n, sl_error *err) {
    int32_t *grown = NULL;
    size_t cap = 0;
    if (n <= slot->cap_token) return SL_OK;
    if (!sl_grow((void **)&grown, &cap, n, sizeof *grown))
        return sl_fail(err, SL_E_MEMORY, "out of memory for %zu tokens", n);
    if (slot->n_token) memcpy(grown, slot->tokens, slot->n_token * sizeof *grown);
    slot->replaced = slot->tokens;
    slot->tokens = grown;
    slot->cap_token = cap;
    return SL_OK;
}

static void release_replaced(sl_session *s, const sl_run *runs, size_t n_run) {
    for (size_t i = 0; i < n_run; i++) {
        if (runs[i].slot >= s->n_slot) continue;
        free(s->slots[runs[i].slot].replaced);
        s->slots[runs[i].slot].replaced = NULL;
    }
}

/* Everything that can fail, before anything changes. */
static sl_status prepare_runs(sl_session *s, const call *c, sl_error *err) {
    const sl_run *runs = c->runs;
    const size_t n_run = c->n_run;
    size_t all = 0, last = 0;
    if (n_run > s->n_slot) return sl_fail(err, SL_E_ARG, "%zu runs, expected at most %zu (one per slot)", n_run, s->n_slot);
    for (size_t i = 0; i < s->n_slot; i++) s->run_first[i] = SIZE_MAX; /* first: which run uses the slot */
    for (size_t i = 0; i < n_run; i++) {
        SL_TRY(check_run(s, runs, i, err));
        SL_TRY(check_sampler(s, c, i, err));
        if (s->run_first[runs[i].slot] != SIZE_MAX)
            return sl_fail(err, SL_E_ARG, "run %zu: slot %zu is used by another run of the call", i, runs[i].slot);
        s->run_first[runs[i].slot] = i;
        if (runs[i].logits == SL_LOGITS_ALL) all += runs[i].n_token;
        else last += runs[i].logits == SL_LOGITS_LAST || sampler_of(c, i);
    }
    if (all > s->n_batch)
        return sl_fail(err, SL_E_ARG, "logits of %zu tokens, expected at most n_batch (%zu)", all, s->n_batch);
    for (size_t i = 0; i < n_run; i++) {
        sl_slot *slot = &s->slots[runs[i].slot];
        SL_TRY(reserve_tokens(slot, slot->n_token + runs[i].n_token, err));
        SL_TRY(s->backend->reserve(s->device, runs[i].slot, position(slot) + runs[i].n_token, err));
    }
    if (all) SL_TRY(reserve_run_logits(s, err));
    return s->backend->reserve_rows(s->device, sl_min(all + last, s->n_batch), err);
}

/* Where the logits of token t of run i go, or NULL. */
static float *logits_place(const sl_session *s, const call *c, size_t i, size_t t) {
    const sl_run *run = &c->runs[i];
    if (run->logits == SL_LOGITS_ALL) return s->run_logits + (s->run_first[i] + t) * s->model->n_vocab;
    bool wanted = run->logits == SL_LOGITS_LAST || sampler_of(c, i);
    return wanted && t + 1 == run->n_token ? s->slots[run->slot].logits : NULL;
}

/* Whether the token after run i is drawn on the device; then how. */
static bool add_draw(sl_session *s, const call *c, size_t i, sl_batch *batch) {
    sl_sampler *sampler = sampler_of(c, i);
    if (!sampler || !s->backend->draws || c->runs[i].logits != SL_LOGITS_NONE) return false;
    if (!sl_sampler_draw(sampler, &s->draws[batch->n_draw])) return false;
    s->draw_run[batch->n_draw++] = i;
    return true;
}

/* Adds up to room tokens of run i, from token t on, to the pass; returns how many. */
static size_t add_tokens(sl_session *s, const call *c, size_t i, size_t t, sl_batch *batch) {
    const sl_run *run = &c->runs[i];
    sl_slot *slot = &s->slots[run->slot];
    size_t n = sl_min(run->n_token - t, s->n_batch - batch->n_tok);
    s->runs[batch->n_run++] = (sl_batch_run){ run->slot, batch->n_tok, n, position(slot) };
    memcpy(s->tokens + batch->n_tok, run->tokens + t, n * sizeof *s->tokens);
    for (size_t j = 0; j < n; j++) {
        float *place = logits_place(s, c, i, t + j);
        if (!place) continue;
        s->out_rows[batch->n_out] = (uint32_t)(batch->n_tok + j);
        s->out[batch->n_out++] = add_draw(s, c, i, batch) ? NULL : place;
    }
    memmove(slot->tokens + slot->n_token, run->tokens + t, n * sizeof *slot->tokens); /* may be the same place */
    slot->n_token += n;
    batch->n_tok += n;
    return n;
}

/* A pass that failed has moved no state: its tokens have not been seen, and nothing was drawn. */
static void take_back(sl_session *s, const call *c, const sl_batch *batch) {
    for (size_t d = 0; d < batch->n_draw; d++) sl_sampler_undraw(sampler_of(c, s->draw_run[d]));
    for (size_t r = 0; r < batch->n_run; r++) s->slots[batch->runs[r].slot].n_token -= batch->runs[r].n_tok;
}

/* May the run begin in a pass that has tokens already? */
static bool may_join(const sl_session *s, const sl_run *run, size_t n_tok) {
    return !s->invariant || !n_tok || run->n_token <= s->n_batch - n_tok;
}

/* Fills passes with what is left of the runs and executes them. */
static sl_status run_passes(sl_session *s, const call *c, sl_error *err) {
    for (size_t i = 0, t = 0; i < c->n_run;) {
        sl_batch batch = { .tokens = s->tokens, .runs = s->runs, .out_rows = s->out_rows, .out = s->out,
                           .draws = s->draws, .drawn = s->drawn, .tau = s->tau };
        while (i < c->n_run && batch.n_tok < s->n_batch && (t || may_join(s, &c->runs[i], batch.n_tok))) {
            t += add_tokens(s, c, i, t, &batch);
            if (t == c->runs[i].n_token) i++, t = 0;
        }
        sl_status status = s->backend->execute(s->device, &batch, err);
        if (status != SL_OK) {
            take_back(s, c, &batch);
            return status;
        }
        for (size_t r = 0; r < batch.n_run; r++) s->slots[batch.runs[r].slot].has_logits = false; /* so far */
        for (size_t d = 0; d < batch.n_draw; d++) c->tokens[s->draw_run[d]] = s->drawn[d];
    }
    return SL_OK;
}

/* tokens[i] >= 0: drawn on the device. */
static void finish_run(sl_session *s, const call *c, size_t i) {
    const sl_run *run = &c->runs[i];
    sl_slot *slot = &s->slots[run->slot];
    sl_sampler *sampler = sampler_of(c, i);
    bool drawn = sampler && c->tokens[i] >= 0;
    slot->has_logits = run->logits != SL_LOGITS_NONE || (sampler && !drawn);
    if (run->logits == SL_LOGITS_ALL)
        memcpy(slot->logits, logits_place(s, c, i, run->n_token - 1), s->model->n_vocab * sizeof(float));
    if (sampler && !drawn) c->tokens[i] = sl_sampler_sample(sampler, slot->logits);
}

static sl_status evaluate(sl_session *s, const call *c, sl_error *err) {
    SL_TRY(prepare_runs(s, c, err));
    size_t all = 0;
    for (size_t i = 0; i < c->n_run; i++) { /* from here on: the first row of each run's logits */
        s->run_first[i] = c->runs[i].logits == SL_LOGITS_ALL ? all : SIZE_MAX;
        all += c->runs[i].logits == SL_LOGITS_ALL ? c->runs[i].n_token : 0;
    }
    SL_TRY(run_passes(s, c, err));
    s->n_run = c->n_run;
    for (size_t i = 0; i < c->n_run; i++) finish_run(s, c, i);
    return SL_OK;
}

sl_status sl_session_eval_draw(sl_session *s, const sl_run *runs, size_t n_run, sl_sampler *const *samplers,
                               int32_t *tokens, sl_error *err) {
    const call c = { runs, n_run, samplers, tokens };
    for (size_t i = 0; i < n_run; i++)
        if (sampler_of(&c, i)) tokens[i] = -1;
    s->n_run = 0; /* prepare_runs writes over what the last call's logits are found by */
    const sl_status status = evaluate(s, &c, err);
    release_replaced(s, runs, n_run);
    return status;
}

sl_status sl_session_eval(sl_session *s, const sl_run *runs, size_t n_run, sl_error *err) {
    return sl_session_eval_draw(s, runs, n_run, NULL, NULL, err);
}

const char *sl_session_device(const sl_session *s) { return s->choice.id; }

const char *sl_session_note(const sl_session *s) {
    return s->choice.note[0] ? s->choice.note : s->backend->note(s->device);
}

const float *sl_slot_logits(const sl_session *s, size_t slot) {
    return slot < s->n_slot && s->slots[slot].has_logits ? s->slots[slot].logits : NULL;
}

const float *sl_run_logits(const sl_session *s, size_t run, size_t t) {
    if (run >= s->n_run || s->run_first[run] == SIZE_MAX) return NULL;
    return s->run_logits + (s->run_first[run] + t) * s->model->n_vocab;
}

/* ---- slots -------------------------------------------------------------------------------------- */

uint64_t sl_slot_position(const sl_session *s, size_t slot) { return slot < s->n_slot ? position(&s->slots[slot]) : 0; }

const int32_t *sl_slot_tokens(const sl_session *s, size_t slot, size_t *n_token) {
    *n_token = slot < s->n_slot ? s->slots[slot].n_token : 0;
    return slot < s->n_slot ? s->slots[slot].tokens : NULL;
}

void sl_slot_reset(sl_session *s, size_t slot) {
    if (slot >= s->n_slot) return;
    sl_slot *p = &s->slots[slot];
    s->backend->reset(s->device, slot, NULL); /* a device that fails here fails again in the next pass */
    drop_marks(p, 0);
    p->n_token = 0;
    p->skipped = 0;
    p->has_logits = false;
}

static sl_status check_slot(const sl_session *s, size_t slot, sl_error *err) {
    if (slot < s->n_slot) return SL_OK;
    return sl_fail(err, SL_E_ARG, "slot %zu, expected 0 to %zu", slot, s->n_slot - 1);
}

sl_status sl_slot_fork(sl_session *s, size_t src, size_t dst, sl_error *err) {
    SL_TRY(check_slot(s, src, err));
    SL_TRY(check_slot(s, dst, err));
    if (src == dst) return SL_OK;
    const sl_slot *from = &s->slots[src];
    sl_slot *to = &s->slots[dst];
    if (!sl_grow((void **)&to->tokens, &to->cap_token, from->n_token, sizeof *to->tokens))
        return sl_fail(err, SL_E_MEMORY, "out of memory for %zu tokens", from->n_token);
    SL_TRY(s->backend->reserve(s->device, dst, position(from), err));
    SL_TRY(s->backend->copy(s->device, src, dst, position(from), err));
    drop_marks(to, 0);
    if (from->n_token) memcpy(to->tokens, from->tokens, from->n_token * sizeof *to->tokens);
    to->n_token = from->n_token;
    to->skipped = from->skipped;
    to->has_logits = from->has_logits;
    memcpy(to->logits, from->logits, s->model->n_vocab * sizeof(float));
    return SL_OK;
}

sl_status sl_slot_mark(sl_session *s, size_t slot, sl_error *err) {
    SL_TRY(check_slot(s, slot, err));
    sl_slot *p = &s->slots[slot];
    const size_t n_state = s->model->graph.state_floats, n_vocab = s->model->n_vocab;
    sl_mark mark = { position(p), NULL, p->has_logits };
    SL_TRY(sl_alloc((void **)&mark.state, n_state + n_vocab, sizeof(float), "a checkpoint", err));
    sl_status status = s->backend->read_state(s->device, slot, mark.state, err);
    if (status != SL_OK) {
        free(mark.state);
        return status;
    }
    memcpy(mark.state + n_state, p->logits, n_vocab * sizeof(float));
    if (p->n_mark && p->marks[p->n_mark - 1].position == mark.position) drop_marks(p, p->n_mark - 1);
    if (p->n_mark == SL_MAX_MARK) {
        free(p->marks[0].state);
        memmove(p->marks, p->marks + 1, --p->n_mark * sizeof *p->marks);
    }
    p->marks[p->n_mark++] = mark;
    return SL_OK;
}

/* The last checkpoint from which position n_token can be reached with its logits; NULL: the beginning. */
static const sl_mark *mark_before(sl_slot *slot, uint64_t n_token) {
    size_t i = slot->n_mark;
    while (i && slot->marks[i - 1].position > n_token) i--;
    drop_marks(slot, i);
    while (i && slot->marks[i - 1].position == n_token && !slot->marks[i - 1].has_logits) i--;
    return i ? &slot->marks[i - 1] : NULL;
}

sl_status sl_slot_rewind(sl_session *s, size_t slot, uint64_t n_token, sl_error *err) {
    SL_TRY(check_slot(s, slot, err));
    sl_slot *p = &s->slots[slot];
    const size_t n_state = s->model->graph.state_floats;
    if (n_token > p->n_token || p->skipped)
        return sl_fail(err, SL_E_ARG, "rewind to %llu tokens, expected at most %zu", (unsigned long long)n_token,
                       p->skipped ? 0 : p->n_token);
    if (n_token == p->n_token && (p->has_logits || !n_token)) return SL_OK;
    const sl_mark *mark = mark_before(p, n_token);
    size_t from = mark ? (size_t)mark->position : 0;
    if (!n_state && n_token > from + 1) { /* all that was is in the KV store: only the logits are computed again */
        mark = NULL;
        from = (size_t)n_token - 1;
    }
    if (mark) {
        SL_TRY(s->backend->write_state(s->device, slot, mark->state, err));
        memcpy(p->logits, mark->state + n_state, s->model->n_vocab * sizeof(float));
    } else SL_TRY(s->backend->reset(s->device, slot, err));
    p->has_logits = mark && mark->has_logits;
    p->n_token = from;
    const sl_run run = { slot, p->tokens + from, (size_t)n_token - from, SL_LOGITS_LAST };
    return run.n_token ? sl_session_eval(s, &run, 1, err) : SL_OK;
}

/* ---- for the bench ------------------------------------------------------------------------------ */

sl_counters *sl_session_counters(sl_session *s) { return s->backend->counters(s->device); }

sl_status sl_session_profile(sl_session *s, sl_node_time *nodes, sl_error *err) {
    return s->backend->profile(s->device, nodes, err);
}

sl_status sl_session_wait(sl_session *s, sl_error *err) { return s->backend->wait(s->device, err); }

size_t sl_session_threads(const sl_session *s) { return s->backend->threads(s->device); }

static void fill_pattern(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = 0.01f * (float)((int)(i * 2654435761u >> 16 & 255) - 128) / 128;
}

sl_status sl_session_fake_depth(sl_session *s, size_t slot, uint64_t n, sl_error *err) {
    const sl_graph *g = &s->model->graph;
    sl_slot_reset(s, slot);
    SL_TRY(s->backend->reserve(s->device, slot, n, err));
    float *state;
    SL_TRY(sl_alloc((void **)&state, g->state_floats, sizeof *state, "a made-up state", err));
    fill_pattern(state, g->state_floats);
    sl_status status = s->backend->write_state(s->device, slot, state, err);
    free(state);
    if (status == SL_OK) status = s->backend->fill_kv(s->device, slot, n, err);
    s->slots[slot].skipped = n;
    return status;
}
