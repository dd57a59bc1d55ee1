/* Sessions on a CUDA device against the CPU's: ragged batches, replayed passes, states that move between them,
 * KV stores that grow, drawn tokens, and rounding that does not build up. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include <cmocka.h>

#include "kernels/cuda_kernels.h"
#include "made_model.h"
#include "run/sampler.h"
#include "run/session.h"
#include "test_device.h"

enum { N_VOCAB = 101 };

/* Of the range of the logits, with f32 activations; where keys and values are rounded to f16, a sum's last bit
 * may decide which way. */
static double limit;
static char model_name[32]; /* of messages */

static void must(sl_status status, const sl_error *err) {
    if (status != SL_OK) fail_msg("%s", err->text);
}

static void sequence(int32_t *tokens, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % N_VOCAB;
}

/* ---- sessions ----------------------------------------------------------------------------------- */

static sl_session *session_with(const sl_model *model, const char *device, size_t n_slot, size_t n_batch,
                                float tau, sl_activations activations) {
    sl_session_params p = sl_session_params_default();
    sl_session *s;
    sl_error err;
    p.device = device;
    p.n_slot = n_slot;
    p.n_batch = n_batch;
    p.n_thread = 1;
    p.route_threshold = tau;
    p.activations = activations;
    must(sl_session_create(model, &p, &s, &err), &err);
    return s;
}

static sl_session *on_cuda(const sl_model *model, size_t n_slot, size_t n_batch) {
    return session_with(model, "cuda", n_slot, n_batch, NAN, SL_ACTIVATIONS_F32);
}
static sl_session *on_cpu(const sl_model *twin, size_t n_slot) {
    return session_with(twin, "cpu", n_slot, 512, NAN, SL_ACTIVATIONS_F32);
}

static void eval(sl_session *s, size_t slot, const int32_t *tokens, size_t n) {
    sl_error err;
    const sl_run run = { slot, tokens, n, SL_LOGITS_LAST };
    must(sl_session_eval(s, &run, 1, &err), &err);
}

static void near_to(const float *got, const float *expected, const char *what) {
    float low = expected[0], high = expected[0], worst = 0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        low = fminf(low, expected[i]);
        high = fmaxf(high, expected[i]);
        float error = fabsf(got[i] - expected[i]);
        worst = isnan(error) ? INFINITY : fmaxf(worst, error);
    }
    if (!((double)worst <= limit * (double)(high - low)))
        fail_msg("%s, %s: logits differ by %g of the range", model_name, what, (double)(worst / (high - low)));
}

static void near_logits(const sl_session *got, const sl_session *expected, size_t slot, const char *what) {
    assert_non_null(sl_slot_logits(got, slot));
    near_to(sl_slot_logits(got, slot), sl_slot_logits(expected, slot), what);
}

static void same_logits(const sl_session *a, size_t slot_a, const sl_session *b, size_t slot_b) {
    assert_non_null(sl_slot_logits(a, slot_a));
    assert_non_null(sl_slot_logits(b, slot_b));
    assert_memory_equal(sl_slot_logits(a, slot_a), sl_slot_logits(b, slot_b), N_VOCAB * sizeof(float));
}

/* A body is called for every kind and type, with the f32 model of the same weights for the CPU (which would
 * round the activations of quantised products). */
typedef void (*body_fn)(const sl_model *model, const sl_model *twin);
static void with_model(made_kind kind, sl_type type, body_fn body) {
    static const char *const kinds[] = { "bridge", "bridge without routing", "llama" };
    sl_model *model = make_model(kind, type, 7 + (uint64_t)type), *twin = make_f32_twin(kind, model);
    snprintf(model_name, sizeof model_name, "%s %s", kinds[kind], sl_type_name(type));
    limit = kind == MADE_LLAMA && type != SL_F32 ? 2e-4 : 1e-5;
    model->fingerprint = twin->fingerprint = 1; /* made models have none of their own */
    const size_t n_before = sl_device_leaks();
    body(model, twin);
    sl_model_close(model);
    sl_model_close(twin);
    assert_int_equal(sl_device_leaks(), n_before);
}
static void every_model(body_fn body) {
    for (int kind = 0; kind < MADE_KINDS; kind++)
        for (int type = 0; type < SL_N_TYPE; type++) with_model((made_kind)kind, (sl_type)type, body);
}

/* Every kind and every type, but not all of both. */
static void some_models(body_fn body) {
    for (int type = 0; type < SL_N_TYPE; type++) with_model(MADE_BRIDGE, (sl_type)type, body);
    with_model(MADE_BRIDGE_PLAIN, SL_BF16, body);
    with_model(MADE_LLAMA, SL_F32, body);
    with_model(MADE_LLAMA, SL_Q8, body);
}

/* ---- batches ------------------------------------------------------------------------------------ */

enum { MAX_SLOT = 20, LONG = 200 };

/* Rounds of runs over all slots: pieces of different lengths, single tokens and slots that rest. */
static void ragged_rounds(sl_session *cuda, sl_session *cpu, size_t n_slot, size_t n_round) {
    int32_t tokens[LONG];
    uint32_t seed = 3;
    sl_error err;
    sequence(tokens, LONG, 1);
    for (size_t round = 0; round < n_round; round++) {
        sl_run runs[MAX_SLOT];
        size_t n = 0;
        for (size_t slot = 0; slot < n_slot; slot++) {
            uint32_t dice = (seed = seed * 1664525u + 1013904223u) >> 16;
            if (dice % 5 == 0) continue;
            size_t n_token = dice % 5 < 3 ? 1 : 1 + dice / 5 % 23;
            runs[n++] = (sl_run){ slot, tokens + dice % (LONG - 23), n_token, SL_LOGITS_LAST };
            if (dice % 7 == 0) runs[n - 1].logits = SL_LOGITS_NONE;
            if (dice % 7 == 1 && n_token < 6) runs[n - 1].logits = SL_LOGITS_ALL;
        }
        must(sl_session_eval(cuda, runs, n, &err), &err);
        must(sl_session_eval(cpu, runs, n, &err), &err);
        for (size_t i = 0; i < n; i++) {
            if (runs[i].logits != SL_LOGITS_NONE) near_logits(cuda, cpu, runs[i].slot, "ragged");
            for (size_t t = 0; runs[i].logits == SL_LOGITS_ALL && t < runs[i].n_token; t++)
                near_to(sl_run_logits(cuda, i, t), sl_run_logits(cpu, i, t), "ragged, all rows");
        }
    }
}

static void ragged(const sl_model *model, const sl_model *twin) {
    static const struct { size_t n_slot, n_batch, n_round; float tau; } ways[] = {
        { 5, 17, 3, NAN }, { MAX_SLOT, 64, 1, NAN }, { 3, 1, 1, NAN }, { 6, 512, 1, 0.0f }, { 6, 33, 1, 1.0f },
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (!isnan(ways[i].tau) && model->graph.n_domain <= SL_OUTPUTS + 1) continue; /* no routers */
        const size_t n_slot = ways[i].n_slot;
        const float tau = ways[i].tau;
        sl_session *cuda = session_with(model, "cuda", n_slot, ways[i].n_batch, tau, SL_ACTIVATIONS_F32);
        sl_session *cpu = session_with(twin, "cpu", n_slot, 512, tau, SL_ACTIVATIONS_F32);
        ragged_rounds(cuda, cpu, n_slot, ways[i].n_round);
        sl_session_destroy(cuda);
        sl_session_destroy(cpu);
    }
}
static void test_ragged_batches(void **state) { (void)state; every_model(ragged); }

/* What was counted of the deep rows is what the CPU counted: none, all, or some. */
static void test_deep_rows_are_counted(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 7);
    const float taus[] = { 1.0f, 0.0f, NAN };
    int32_t tokens[40];
    sequence(tokens, 40, 2);
    for (size_t i = 0; i < 3; i++) {
        sl_session *cuda = session_with(model, "cuda", 1, 32, taus[i], SL_ACTIVATIONS_F32);
        sl_session *cpu = session_with(model, "cpu", 1, 32, taus[i], SL_ACTIVATIONS_F32);
        eval(cuda, 0, tokens, 39);
        eval(cuda, 0, tokens + 39, 1);
        eval(cpu, 0, tokens, 39);
        eval(cpu, 0, tokens + 39, 1);
        const sl_counters *got = sl_session_counters(cuda), *expected = sl_session_counters(cpu);
        assert_int_equal(got->deep_tokens, expected->deep_tokens);
        assert_int_equal(got->routed_tokens, expected->routed_tokens);
        if (i < 2) assert_int_equal(got->deep_tokens, i ? 80 : 0);
        if (i < 2) assert_int_equal(got->weight_bytes, expected->weight_bytes);
        sl_session_destroy(cuda);
        sl_session_destroy(cpu);
    }
    sl_model_close(model);
}

/* n sequences together: their prompts, eight to a pass of up to 64 tokens (where single products are for 16, one),
 * then token by token; and some of them alone: the same bits. */
static void cobatched_of(const sl_model *model, sl_activations activations, size_t n, size_t n_prompt) {
    enum { STEPS = 3, MOST = 64 }; /* launched, captured, replayed */
    int32_t tokens[LONG];
    sl_error err;
    sl_run runs[MOST];
    sequence(tokens, LONG, 4);
    sl_session *all = session_with(model, "cuda", n, 64, NAN, activations);
    sl_session *alone = session_with(model, "cuda", 1, 64, NAN, activations);
    for (size_t i = 0; i < n; i += n_prompt) {
        for (size_t j = 0; j < n_prompt; j++) runs[j] = (sl_run){ i + j, tokens + i + j, 1 + (i + j) % 8, SL_LOGITS_LAST };
        must(sl_session_eval(all, runs, n_prompt, &err), &err);
    }
    const size_t row_bytes = N_VOCAB * sizeof(float);
    float *kept = malloc(n * STEPS * row_bytes);
    for (size_t step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < n; i++) runs[i] = (sl_run){ i, tokens + 70 + i + step, 1, SL_LOGITS_LAST };
        must(sl_session_eval(all, runs, n, &err), &err);
        for (size_t i = 0; i < n; i++)
            memcpy(kept + (i * STEPS + step) * N_VOCAB, sl_slot_logits(all, i), row_bytes);
    }
    for (size_t i = 0; i < n; i += n / 3) {
        sl_slot_reset(alone, 0);
        eval(alone, 0, tokens + i, 1 + i % 8);
        for (size_t step = 0; step < STEPS; step++) {
            eval(alone, 0, tokens + 70 + i + step, 1);
            assert_memory_equal(sl_slot_logits(alone, 0), kept + (i * STEPS + step) * N_VOCAB, row_bytes);
        }
    }
    free(kept);
    sl_session_destroy(all);
    sl_session_destroy(alone);
}

static void cobatched(const sl_model *model, const sl_model *twin) {
    (void)twin;
    cobatched_of(model, SL_ACTIVATIONS_F32, 16, 1);
    const bool many = model->type == SL_Q8 || model->type == SL_Q4; /* products of 64 are alike, by 32 */
    cobatched_of(model, SL_ACTIVATIONS_F16, many ? 40 : 16, many ? 8 : 1);
}
static void test_cobatched_equals_solo(void **state) { (void)state; some_models(cobatched); }

static sl_session *invariant_session(const sl_model *model, sl_activations activations, size_t n_slot) {
    sl_session_params p = sl_session_params_default();
    sl_session *s;
    sl_error err;
    p.device = "cuda", p.n_slot = n_slot, p.n_batch = 96, p.activations = activations, p.batch_invariant = true;
    must(sl_session_create(model, &p, &s, &err), &err);
    return s;
}

/* Any number of sequences at once, in passes of any number of rows: prompts from one token to more than a pass has, packed
 * with others or alone, then token by token. */
static void invariant_of(const sl_model *model, sl_activations activations) {
    enum { N = 75, STEPS = 2, MOST = 120 };
    static int32_t tokens[N + MOST + STEPS];
    const size_t row_bytes = N_VOCAB * sizeof(float);
    sl_session *all = invariant_session(model, activations, N), *alone = invariant_session(model, activations, 1);
    float *kept = malloc((STEPS + 1) * N * row_bytes);
    sl_run runs[N];
    sl_error err;
    sequence(tokens, sizeof tokens / sizeof *tokens, 6);
    for (size_t i = 0; i < N; i++)
        runs[i] = (sl_run){ i, tokens + i, i % 25 == 7 ? MOST - i : 1 + i * 5 % 19, SL_LOGITS_LAST };
    for (size_t step = 0; step <= STEPS; step++) {
        must(sl_session_eval(all, runs, N, &err), &err);
        for (size_t i = 0; i < N; i++) memcpy(kept + (step * N + i) * N_VOCAB, sl_slot_logits(all, i), row_bytes);
        for (size_t i = 0; i < N; i++) runs[i].tokens += runs[i].n_token, runs[i].n_token = 1;
    }
    for (size_t i = 0; i < N; i++) {
        if (i % 13 && i % 25 != 7) continue; /* all long ones */
        const size_t n_token = i % 25 == 7 ? MOST - i : 1 + i * 5 % 19;
        sl_slot_reset(alone, 0);
        for (size_t step = 0; step <= STEPS; step++) {
            eval(alone, 0, tokens + i + (step ? n_token + step - 1 : 0), step ? 1 : n_token);
            assert_memory_equal(sl_slot_logits(alone, 0), kept + (step * N + i) * N_VOCAB, row_bytes);
        }
    }
    free(kept);
    sl_session_destroy(all);
    sl_session_destroy(alone);
}

static void invariant(const sl_model *model, const sl_model *twin) {
    (void)twin;
    invariant_of(model, SL_ACTIVATIONS_F16);
    if (model->type == SL_F32) invariant_of(model, SL_ACTIVATIONS_F32);
}
static void test_batch_invariant(void **state) {
    (void)state;
    if (getenv("SLUICE_TEST_SHORT")) skip();
    with_model(MADE_BRIDGE, SL_F16, invariant);
    with_model(MADE_BRIDGE, SL_Q4, invariant);
    with_model(MADE_LLAMA, SL_F32, invariant);
}

/* The first pass of a shape is launched, the second captured, the third replayed. */
static void replayed(const sl_model *model, const sl_model *twin) {
    int32_t tokens[16];
    float first[3][N_VOCAB];
    (void)twin;
    sequence(tokens, 16, 6);
    sl_session *s = on_cuda(model, 2, 16);
    for (size_t pass = 0; pass < 3; pass++) {
        sl_slot_reset(s, pass % 2);
        for (size_t t = 0; t < 3; t++) {
            sl_error err;
            const sl_run run = { pass % 2, tokens + t, 1, SL_LOGITS_LAST };
            must(sl_session_eval(s, &run, 1, &err), &err);
            if (!pass) memcpy(first[t], sl_slot_logits(s, 0), sizeof first[t]);
            else assert_memory_equal(first[t], sl_slot_logits(s, pass % 2), sizeof first[t]);
        }
    }
    assert_int_equal(sl_session_counters(s)->passes, 9);
    assert_int_equal(sl_session_counters(s)->replayed, 8);
    sl_session_destroy(s);
}
static void test_replay_equals_launches(void **state) { (void)state; some_models(replayed); }

/* A capture that something ended once is tried again. */
static void refused_once(const sl_model *model, const sl_model *twin) {
    int32_t tokens[4];
    (void)twin;
    sequence(tokens, 4, 6);
    sl_session *s = on_cuda(model, 1, 16);
    for (size_t t = 0; t < 4; t++) {
        sl_device_refuse_capture(t == 1 ? 901 : 0);
        eval(s, 0, tokens + t, 1);
        assert_int_equal(sl_session_counters(s)->replayed, t < 2 ? 0 : t - 1);
    }
    sl_session_destroy(s);
}
static void test_capture_is_tried_again(void **state) {
    (void)state;
    with_model(MADE_BRIDGE, SL_F32, refused_once);
}

/* ---- states ------------------------------------------------------------------------------------- */

static uint8_t *save(const sl_session *s, size_t slot, uint64_t *n) {
    sl_error err;
    *n = sl_state_bytes(s, slot);
    uint8_t *data = malloc((size_t)*n);
    must(sl_state_save(s, slot, data, *n, &err), &err);
    return data;
}

/* From one session into the other and back out: the same bytes; then both go on alike. */
static void move_state(sl_session *from, sl_session *to, const int32_t *tokens) {
    uint64_t n, n_again;
    sl_error err;
    eval(from, 0, tokens, 37);
    eval(from, 0, tokens + 37, 1);
    uint8_t *data = save(from, 0, &n);
    must(sl_state_load(to, 1, data, n, &err), &err);
    same_logits(from, 0, to, 1);
    uint8_t *again = save(to, 1, &n_again);
    assert_int_equal(n, n_again);
    assert_memory_equal(data, again, n);
    for (size_t t = 38; t < 43; t++) {
        eval(from, 0, tokens + t, 1);
        eval(to, 1, tokens + t, 1);
        near_to(sl_slot_logits(from, 0), sl_slot_logits(to, 1), "moved");
    }
    free(data);
    free(again);
}

static void states(const sl_model *model, const sl_model *twin) {
    int32_t tokens[64];
    sequence(tokens, 64, 8);
    for (int to_cpu = 0; to_cpu < 2; to_cpu++) {
        sl_session *cuda = on_cuda(model, 2, 64), *cpu = on_cpu(twin, 2);
        if (to_cpu) move_state(cuda, cpu, tokens);
        else move_state(cpu, cuda, tokens);
        sl_session_destroy(cuda);
        sl_session_destroy(cpu);
    }
}
static void test_states_move_between_devices(void **state) { (void)state; every_model(states); }

static void slots(const sl_model *model, const sl_model *twin) {
    int32_t tokens[64];
    sl_error err;
    sequence(tokens, 64, 9);
    sl_session *cuda = on_cuda(model, 3, 64), *cpu = on_cpu(twin, 1);
    eval(cuda, 0, tokens, 30);
    must(sl_slot_mark(cuda, 0, &err), &err);
    must(sl_slot_fork(cuda, 0, 2, &err), &err);
    same_logits(cuda, 0, cuda, 2);
    eval(cuda, 0, tokens + 30, 1); /* the fork is not touched by its source, nor the other way round */
    eval(cuda, 2, tokens + 40, 1);
    eval(cuda, 0, tokens + 31, 1);
    eval(cpu, 0, tokens, 32);
    near_to(sl_slot_logits(cuda, 0), sl_slot_logits(cpu, 0), "the source of a fork");
    float kept[N_VOCAB];
    memcpy(kept, sl_slot_logits(cuda, 0), sizeof kept);
    must(sl_slot_rewind(cuda, 0, 30, &err), &err);
    eval(cuda, 0, tokens + 30, 1);
    eval(cuda, 0, tokens + 31, 1);
    assert_memory_equal(kept, sl_slot_logits(cuda, 0), sizeof kept);
    must(sl_slot_rewind(cuda, 2, 7, &err), &err); /* marks are not copied: from the start */
    sl_slot_reset(cpu, 0);
    eval(cpu, 0, tokens, 7);
    near_to(sl_slot_logits(cuda, 2), sl_slot_logits(cpu, 0), "rewound without a mark");
    sl_slot_reset(cuda, 0);
    assert_null(sl_slot_logits(cuda, 0));
    eval(cuda, 0, tokens, 7);
    near_to(sl_slot_logits(cuda, 0), sl_slot_logits(cpu, 0), "after a reset");
    sl_session_destroy(cuda);
    sl_session_destroy(cpu);
}
static void test_fork_mark_rewind_reset(void **state) { (void)state; every_model(slots); }

/* Past 256 and 512 positions, over single tokens that are replayed, with another sequence beside it. */
static void growing(const sl_model *model, const sl_model *twin) {
    int32_t tokens[540];
    sl_error err;
    sequence(tokens, 540, 10);
    sl_session *cuda = on_cuda(model, 2, 256), *cpu = on_cpu(twin, 2);
    sl_session *both[] = { cuda, cpu };
    for (size_t at = 250; at < 512; at += 255) {
        for (size_t i = 0; i < 2; i++) {
            size_t n = (size_t)sl_slot_position(both[i], 0);
            const sl_run run = { 0, tokens + n, at - n, SL_LOGITS_NONE };
            must(sl_session_eval(both[i], &run, 1, &err), &err);
        }
        for (size_t step = 0; step < 12; step++) {
            const sl_run runs[] = { { 0, tokens + at + step, 1, SL_LOGITS_LAST },
                                    { 1, tokens + step, 1, SL_LOGITS_LAST } };
            for (size_t i = 0; i < 2; i++) must(sl_session_eval(both[i], runs, 2, &err), &err);
            near_logits(cuda, cpu, 0, "growing");
            near_logits(cuda, cpu, 1, "beside one that grows");
        }
    }
    uint64_t n;
    uint8_t *data = save(cuda, 0, &n);
    must(sl_state_load(cuda, 1, data, n, &err), &err);
    eval(cuda, 0, tokens + 530, 1);
    eval(cuda, 1, tokens + 530, 1);
    same_logits(cuda, 0, cuda, 1);
    free(data);
    sl_session_destroy(cuda);
    sl_session_destroy(cpu);
}
static void test_stores_grow_under_a_captured_pass(void **state) {
    (void)state;
    with_model(MADE_LLAMA, SL_F32, growing);
    with_model(MADE_LLAMA, SL_BF16, growing);
}

static void damaged(const sl_model *model, const sl_model *twin) {
    int32_t tokens[16];
    uint64_t n;
    sl_error err;
    (void)twin;
    sequence(tokens, 16, 11);
    sl_session *s = on_cuda(model, 2, 16);
    eval(s, 0, tokens, 9);
    eval(s, 1, tokens, 5);
    uint8_t *data = save(s, 0, &n);
    for (uint64_t i = 0; i < n; i += i < 80 ? 1 : 911) {
        data[i] ^= 0x10;
        assert_int_equal(sl_state_load(s, 1, data, n, &err), SL_E_STATE);
        data[i] ^= 0x10;
    }
    assert_int_equal(sl_state_load(s, 1, data, n - 1, &err), SL_E_STATE);
    assert_int_equal(sl_slot_position(s, 1), 5);
    for (size_t t = 5; t < 9; t++) eval(s, 1, tokens + t, 1);
    must(sl_state_load(s, 0, data, n, &err), &err);
    near_logits(s, s, 0, "loaded");
    near_to(sl_slot_logits(s, 1), sl_slot_logits(s, 0), "a slot that refused states");
    free(data);
    sl_session_destroy(s);
}
static void test_damaged_states(void **state) {
    (void)state;
    with_model(MADE_BRIDGE, SL_F32, damaged);
    with_model(MADE_LLAMA, SL_Q8, damaged);
}

/* ---- f16 ---------------------------------------------------------------------------------------- */

static double distance(const float *got, const float *expected) { /* |got - expected| / |expected| */
    double error = 0, length = 0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        error += pow((double)got[i] - (double)expected[i], 2);
        length += pow((double)expected[i], 2);
    }
    return sqrt(error / length);
}

/* Rounded activations go into states that are kept in f32: after 2,000 steps logits are as near as at first. */
static void drifting(const sl_model *model, const sl_model *twin) {
    enum { STEPS = 2000, ENDS = 200 };
    static int32_t tokens[STEPS];
    double first = 0, last = 0;
    sequence(tokens, STEPS, 12);
    sl_session *cuda = session_with(model, "cuda", 1, 1, NAN, SL_ACTIVATIONS_F16), *cpu = on_cpu(twin, 1);
    for (size_t t = 0; t < STEPS; t++) {
        eval(cuda, 0, tokens + t, 1);
        eval(cpu, 0, tokens + t, 1);
        double error = distance(sl_slot_logits(cuda, 0), sl_slot_logits(cpu, 0));
        if (t < ENDS) first += error / ENDS;
        if (t >= STEPS - ENDS) last += error / ENDS;
    }
    print_message("f16 activations: error %.2e at first, %.2e after %d steps\n", first, last, STEPS);
    assert_true(first > 0 && first < 0.01);
    assert_true(last < 1.25 * first);
    sl_session_destroy(cuda);
    sl_session_destroy(cpu);
}
static void test_f16_does_not_drift(void **state) {
    (void)state;
    if (getenv("SLUICE_TEST_SHORT")) skip();
    with_model(MADE_BRIDGE_PLAIN, SL_BF16, drifting);
}

/* A prompt in one pass, whose S6 layers take it in chunks, is as near to the CPU as one in passes too short for
 * that; and goes on from its state as near. */
static void long_prompt(const sl_model *model, const sl_model *twin) {
    enum { PROMPT = 300, STEPS = 20 };
    static int32_t tokens[PROMPT + STEPS];
    double whole = 0, pieces = 0;
    sequence(tokens, PROMPT + STEPS, 17);
    sl_session *cuda = session_with(model, "cuda", 1, PROMPT, NAN, SL_ACTIVATIONS_F16), *cpu = on_cpu(twin, 1);
    sl_session *shorter = session_with(model, "cuda", 1, SL_S6_CHUNK - 1, NAN, SL_ACTIVATIONS_F16);
    sl_session *all[] = { cuda, shorter, cpu };
    for (size_t step = 0; step <= STEPS; step++) {
        const size_t from = step ? PROMPT + step - 1 : 0, n = step ? 1 : PROMPT;
        for (size_t i = 0; i < 3; i++) eval(all[i], 0, tokens + from, n);
        whole += distance(sl_slot_logits(cuda, 0), sl_slot_logits(cpu, 0)) / (STEPS + 1);
        pieces += distance(sl_slot_logits(shorter, 0), sl_slot_logits(cpu, 0)) / (STEPS + 1);
    }
    print_message("%s, f16 activations: error %.2e after a long prompt, %.2e in pieces\n", model_name, whole,
                  pieces);
    assert_true(whole > 0 && whole < 1.25 * pieces && whole < 0.01);
    for (size_t i = 0; i < 3; i++) sl_session_destroy(all[i]);
}
static void test_long_prompts_in_f16(void **state) {
    (void)state;
    with_model(MADE_BRIDGE_PLAIN, SL_BF16, long_prompt);
    with_model(MADE_BRIDGE, SL_BF16, long_prompt);
    with_model(MADE_BRIDGE, SL_Q4, long_prompt);
}

/* ---- drawing ------------------------------------------------------------------------------------ */

static sl_sampler *sampler_of(const sl_sampler_params *params, size_t n_vocab) {
    sl_sampler *sampler;
    sl_error err;
    must(sl_sampler_create(params, n_vocab, &sampler, &err), &err);
    return sampler;
}

/* Equal sequences side by side: one's tokens are drawn in the call, the other's from the logits it returns.
 * Whether the device drew them shows in the logits that it did not copy. */
static void draw_alike(const sl_model *model, const sl_sampler_params *params, bool on_device) {
    int32_t prompt[20], tokens[2];
    sl_error err;
    sequence(prompt, 20, 13);
    sl_session *s = on_cuda(model, 3, 32);
    sl_sampler *drawing = sampler_of(params, model->n_vocab), *sampling = sampler_of(params, model->n_vocab);
    sl_sampler *asking = sampler_of(params, model->n_vocab);
    const int32_t *fed = prompt;
    int32_t next = 0;
    for (size_t step = 0, n = 20; step < 12; step++, n = 1, fed = &next) {
        const sl_run runs[] = { { 2, fed, n, SL_LOGITS_NONE }, { 0, fed, n, SL_LOGITS_LAST },
                                { 1, fed, n, SL_LOGITS_LAST } };
        sl_sampler *samplers[] = { drawing, NULL, asking };
        int32_t drawn[3] = { -7, -7, -7 };
        for (size_t i = 0; i < n; i++) {
            sl_sampler_accept(drawing, fed[i]);
            sl_sampler_accept(sampling, fed[i]);
            sl_sampler_accept(asking, fed[i]);
        }
        must(sl_session_eval_draw(s, runs, 3, samplers, drawn, &err), &err);
        tokens[0] = sl_sampler_sample(sampling, sl_slot_logits(s, 0));
        assert_int_equal(drawn[0], tokens[0]);
        assert_int_equal(drawn[1], -7);
        assert_int_equal(drawn[2], tokens[0]);
        assert_true((sl_slot_logits(s, 2) == NULL) == on_device);
        assert_memory_equal(sl_slot_logits(s, 1), sl_slot_logits(s, 0), model->n_vocab * sizeof(float));
        next = drawn[0];
    }
    sl_sampler_destroy(drawing);
    sl_sampler_destroy(sampling);
    sl_sampler_destroy(asking);
    sl_session_destroy(s);
}

static void test_drawing(void **state) {
    (void)state;
    sl_sampler_params p = sl_sampler_params_default();
    sl_model *model = make_model_of(MADE_BRIDGE, 300, SL_Q8, 3);
    p.seed = 5;
    draw_alike(model, &p, true);
    p.temperature = 0;
    draw_alike(model, &p, true);
    p.repeat_last_n = -1; /* all tokens, penalised */
    p.repeat_penalty = 1.7f;
    draw_alike(model, &p, true);
    p = sl_sampler_params_default();
    p.temperature = 2.5f;
    p.top_k = 256;
    p.top_p = 1;
    p.min_p = 0;
    draw_alike(model, &p, true);
    p.repeat_penalty = 0.5f;
    p.repeat_last_n = 3;
    draw_alike(model, &p, true);
    p.top_k = 257; /* more candidates than the device looks at */
    draw_alike(model, &p, false);
    p.top_k = 0;
    draw_alike(model, &p, false);
    sl_model_close(model);
}

/* Twenty runs at once, some drawn, some with logits, some with neither, in passes of seven tokens. */
static void test_drawing_in_ragged_batches(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_LLAMA, SL_F32, 3);
    sl_session *s = on_cuda(model, MAX_SLOT, 7), *solo = on_cuda(model, 1, 7);
    sl_sampler_params p = sl_sampler_params_default();
    sl_sampler *samplers[MAX_SLOT] = { 0 };
    sl_run runs[MAX_SLOT];
    int32_t tokens[MAX_SLOT][9], drawn[MAX_SLOT];
    sl_error err;
    for (uint32_t i = 0; i < MAX_SLOT; i++) {
        sequence(tokens[i], 9, 30 + i);
        p.seed = i;
        if (i % 3) samplers[i] = sampler_of(&p, N_VOCAB);
        runs[i] = (sl_run){ i, tokens[i], 1 + i % 9, i % 5 == 0 ? SL_LOGITS_LAST : SL_LOGITS_NONE };
    }
    must(sl_session_eval_draw(s, runs, MAX_SLOT, samplers, drawn, &err), &err);
    for (size_t i = 0; i < MAX_SLOT; i++) {
        sl_slot_reset(solo, 0);
        eval(solo, 0, tokens[i], runs[i].n_token);
        if (samplers[i]) {
            p.seed = i;
            sl_sampler *again = sampler_of(&p, N_VOCAB);
            assert_int_equal(drawn[i], sl_sampler_sample(again, sl_slot_logits(solo, 0)));
            sl_sampler_destroy(again);
        }
        if (i % 5 == 0) same_logits(s, i, solo, 0);
        else assert_null(sl_slot_logits(s, i));
        sl_sampler_destroy(samplers[i]);
    }
    sl_session_destroy(s);
    sl_session_destroy(solo);
    sl_model_close(model);
}

/* ---- devices ------------------------------------------------------------------------------------ */

static void test_devices(void **state) {
    (void)state;
    sl_device_info found[4];
    sl_session *s;
    sl_error err;
    assert_int_equal(sl_devices(NULL, 0), 2);
    assert_int_equal(sl_devices(found, 1), 2);
    assert_int_equal(sl_devices(found, 4), 2);
    assert_string_equal(found[0].id, "cpu");
    assert_true(found[0].usable && found[0].memory_bytes > 0);
    assert_string_equal(found[1].id, "cuda:0");
    assert_string_equal(found[1].name, "test device (host CPU)");
    assert_true(found[1].usable && found[1].capability >= 80 && found[1].runtime >= 12000);
    assert_true(found[1].free_bytes > 0 && found[1].free_bytes <= found[1].memory_bytes);
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    static const struct { const char *asked, *got; } names[] = {
        { NULL, "cpu" }, { "cpu", "cpu" }, { "auto", "cpu" }, { "cuda", "cuda:0" }, { "cuda:0", "cuda:0" },
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        s = session_with(model, names[i].asked, 1, 8, NAN, SL_ACTIVATIONS_AUTO);
        assert_string_equal(sl_session_device(s), names[i].got);
        assert_null(sl_session_note(s));
        sl_session_destroy(s);
    }
    static const struct { const char *asked; sl_status status; const char *text; } bad[] = {
        { "cuda:7", SL_E_DEVICE, "cuda:0 to cuda:0" }, { "gpu", SL_E_ARG, "\"gpu\"" }, { "", SL_E_ARG, "\"\"" },
        { "cuda:", SL_E_ARG, "cuda:N" }, { "cuda:00", SL_E_DEVICE, "cuda:00" }, { "CUDA", SL_E_ARG, "CUDA" },
        { "cuda:-1", SL_E_ARG, "cuda:-1" }, { "cuda:4294967296", SL_E_ARG, "cuda:4294967296" },
    };
    sl_session_params p = sl_session_params_default();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        p.device = bad[i].asked;
        assert_int_equal(sl_session_create(model, &p, &s, &err), bad[i].status);
        assert_null(s);
        if (!strstr(err.text, bad[i].text)) fail_msg("%s: %s", bad[i].asked, err.text);
    }
    sl_model_close(model);
}

/* What "auto" would say of a GPU that it does not take; resident weights are not asked for again. */
static void test_automatic_choice(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    sl_device_params params = { .n_slot = 1, .n_batch = 8, .exact = true };
    sl_device_choice choice = { .id = "cpu" };
    sl_cuda_need need;
    assert_true(sl_device_that_fits(&model->graph, &params, &choice));
    assert_string_equal(choice.id, "cuda:0");
    assert_string_equal(choice.note, "");
    assert_int_equal(sl_cuda_needs(&model->graph, &params, &need, NULL), SL_OK);
    assert_true(need.missing == need.all && need.weights > 0);
    sl_session *s = session_with(model, "cuda", 1, 8, NAN, SL_ACTIVATIONS_AUTO);
    assert_int_equal(sl_cuda_needs(&model->graph, &params, &need, NULL), SL_OK);
    assert_true(need.missing == need.all - need.weights);
    sl_session_destroy(s);
    choice = (sl_device_choice){ .id = "cpu" };
    sl_device_memory(1000);
    assert_false(sl_device_that_fits(&model->graph, &params, &choice));
    sl_device_memory((size_t)2 << 30);
    assert_string_equal(choice.id, "cpu");
    sl_size_buf needed;
    if (!strstr(choice.note, "cuda:0 is passed over for the CPU: the model needs ") ||
        !strstr(choice.note, sl_size(need.all, &needed)) ||
        !strstr(choice.note, ", 1000 bytes are free"))
        fail_msg("%s", choice.note);
    choice = (sl_device_choice){ .id = "cpu" };
    params.weights_to_come = (uint64_t)3 << 30;
    assert_false(sl_device_that_fits(NULL, &params, &choice));
    if (!strstr(choice.note, "cuda:0 is passed over for the CPU: the model needs 3.00 GiB, "))
        fail_msg("%s", choice.note);
    params.n_batch = 65536; /* which the CPU has */
    assert_false(sl_device_that_fits(&model->graph, &params, &choice));
    if (!strstr(choice.note, "passed over for the CPU: cuda:0: n_batch is 65536, expected 1 to 65535 on a CUDA device"))
        fail_msg("%s", choice.note);
    params.n_batch = 8;
    params.weights_to_come = 1000;
    assert_true(sl_device_that_fits(NULL, &params, &choice));
    assert_string_equal(choice.note, "");
    sl_device_fail_at(1); /* a driver that is there and does not work */
    assert_false(sl_device_that_fits(NULL, &params, &choice));
    sl_device_fail_at(0);
    assert_string_equal(choice.note, "CUDA is passed over for the CPU: the driver says: unspecified launch failure");
    choice.note[0] = 0;
    setenv("SLUICE_DEVICE_ABSENT", "1", 1); /* and a machine without a GPU, of which there is nothing to say */
    assert_false(sl_device_that_fits(NULL, &params, &choice));
    unsetenv("SLUICE_DEVICE_ABSENT");
    assert_string_equal(choice.note, "");
    sl_model_close(model);
}

/* Of the last call. */
static void note_progress(void *arg, uint64_t done, uint64_t all) {
    uint64_t *last = arg;
    assert_true(done > last[0] && done <= all);
    last[0] = done, last[1] = all;
}

static void test_progress_comes_to_its_end(void **state) {
    (void)state;
    for (int type = 0; type < SL_N_TYPE; type++) {
        sl_model *model = make_model(MADE_BRIDGE, (sl_type)type, 1);
        sl_session_params p = sl_session_params_default();
        sl_session *s;
        sl_error err;
        uint64_t last[2] = { 0 };
        p.device = "cuda";
        p.progress = note_progress;
        p.progress_arg = last;
        must(sl_session_create(model, &p, &s, &err), &err);
        assert_true(last[0] == last[1] && last[0] > 1000);
        sl_session_destroy(s);
        sl_model_close(model);
    }
}

/* Sessions of one model share its weights on the device; the last one frees them. */
static void test_shared_weights(void **state) {
    (void)state;
    int32_t tokens[10];
    sl_device_info found[2];
    sequence(tokens, 10, 14);
    sl_model *model = make_model_of(MADE_BRIDGE, N_VOCAB, SL_F32, 1);
    sl_devices(found, 2);
    const uint64_t start = found[1].free_bytes;
    sl_session *a = on_cuda(model, 1, 8);
    sl_devices(found, 2);
    const uint64_t one = start - found[1].free_bytes;
    sl_session *b = session_with(model, "cuda", 1, 8, NAN, SL_ACTIVATIONS_F32);
    sl_devices(found, 2);
    const uint64_t both = start - found[1].free_bytes;
    assert_true(both < 2 * one);
    sl_session_destroy(a);
    eval(b, 0, tokens, 10);
    sl_session *cpu = on_cpu(model, 1);
    eval(cpu, 0, tokens, 10);
    near_logits(b, cpu, 0, "the second session");
    sl_session_destroy(b);
    sl_session_destroy(cpu);
    sl_model_close(model);
    assert_int_equal(sl_device_leaks(), 0);
}

/* bf16 weights become f16 beside f16 activations and stay what they are beside f32: sessions of both kinds do not
 * share them. */
static void two_kinds(const sl_model *model, const sl_model *twin) {
    enum { N = 40 };
    int32_t tokens[N];
    sequence(tokens, N, 15);
    sl_session *rounded = session_with(model, "cuda", 1, N, NAN, SL_ACTIVATIONS_F16);
    sl_session *exact = on_cuda(model, 1, N), *cpu = on_cpu(twin, 1);
    sl_session *all[] = { rounded, exact, cpu };
    for (size_t i = 0; i < 3; i++) eval(all[i], 0, tokens, N);
    near_logits(exact, cpu, 0, "f32 beside f16");
    const double error = distance(sl_slot_logits(rounded, 0), sl_slot_logits(cpu, 0));
    assert_true(error > 1e-6 && error < 0.01);
    for (size_t i = 0; i < 3; i++) sl_session_destroy(all[i]);
}
static void test_two_kinds_of_activations(void **state) {
    (void)state;
    with_model(MADE_BRIDGE, SL_BF16, two_kinds);
}

/* ---- threads ------------------------------------------------------------------------------------ */

/* Opens a session of a model of its own, which takes weights and cuBLAS to the device, and closes both. */
typedef struct other_thread {
    thrd_t thread;
    sl_model *model;
    sl_status status;
    sl_error err;
    atomic_bool done;
    size_t n_begun;
} other_thread;

static int open_and_close(void *arg) {
    other_thread *o = arg;
    sl_session_params p = sl_session_params_default();
    sl_session *s;
    p.device = "cuda";
    p.n_batch = 8;
    if ((o->status = sl_session_create(o->model, &p, &s, &o->err)) == SL_OK) sl_session_destroy(s);
    atomic_store(&o->done, true);
    return 0;
}

/* It gets a tenth of a second to disturb the capture that has begun; then, or once it is through, that goes on. */
static void begin_beside(void *arg) {
    other_thread *o = arg;
    if (o->n_begun++) return;
    if (thrd_create(&o->thread, open_and_close, o) != thrd_success) abort();
    for (int i = 0; i < 100 && !atomic_load(&o->done); i++)
        thrd_sleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static void threads(const sl_model *model, const sl_model *twin) {
    int32_t tokens[4];
    other_thread other = { .model = make_model(MADE_BRIDGE, SL_BF16, 3) };
    (void)twin;
    sequence(tokens, 4, 6);
    sl_session *s = on_cuda(model, 1, 16), *alone = on_cuda(model, 1, 16);
    eval(s, 0, tokens, 1);
    sl_device_on_capture(begin_beside, &other);
    eval(s, 0, tokens + 1, 1);
    sl_device_on_capture(NULL, NULL);
    assert_int_equal(other.n_begun, 1);
    thrd_join(other.thread, NULL);
    if (other.status != SL_OK) fail_msg("beside a capture: %s", other.err.text);
    eval(s, 0, tokens + 2, 1);
    assert_int_equal(sl_session_counters(s)->replayed, 2);
    for (size_t t = 0; t < 3; t++) eval(alone, 0, tokens + t, 1);
    same_logits(s, 0, alone, 0);
    sl_session_destroy(s);
    sl_session_destroy(alone);
    sl_model_close(other.model);
}
static void test_sessions_on_two_threads(void **state) {
    (void)state;
    with_model(MADE_BRIDGE, SL_F32, threads);
}

/* ---- small devices ------------------------------------------------------------------------------ */

/* A device whose blocks have less shared memory than a chunk of the scan needs takes long prompts token by token. */
static void little_shared(const sl_model *model, const sl_model *twin) {
    enum { N = 3 * (SL_S6_CHUNK - 1) };
    static int32_t tokens[N];
    (void)twin;
    sequence(tokens, N, 3);
    sl_device_shared_limit(1024);
    sl_session *little = session_with(model, "cuda", 1, N, NAN, SL_ACTIVATIONS_F16);
    sl_device_shared_limit(163 * 1024);
    sl_session *shorter = session_with(model, "cuda", 1, SL_S6_CHUNK - 1, NAN, SL_ACTIVATIONS_F16);
    eval(little, 0, tokens, N);
    eval(shorter, 0, tokens, N);
    same_logits(little, 0, shorter, 0);
    sl_session_destroy(little);
    sl_session_destroy(shorter);
}
static void test_little_shared_memory(void **state) {
    (void)state;
    with_model(MADE_BRIDGE_PLAIN, SL_BF16, little_shared);
}

/* Between tests that say nothing of limits. */
static int set_limit(void **state) {
    (void)state;
    limit = 1e-5;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices), cmocka_unit_test(test_automatic_choice), cmocka_unit_test(test_shared_weights),
        cmocka_unit_test(test_progress_comes_to_its_end),
        cmocka_unit_test(test_two_kinds_of_activations), cmocka_unit_test(test_little_shared_memory),
        cmocka_unit_test(test_ragged_batches),
        cmocka_unit_test(test_deep_rows_are_counted), cmocka_unit_test(test_cobatched_equals_solo),
        cmocka_unit_test(test_batch_invariant), cmocka_unit_test(test_sessions_on_two_threads),
        cmocka_unit_test(test_replay_equals_launches), cmocka_unit_test(test_capture_is_tried_again),
        cmocka_unit_test(test_states_move_between_devices),
        cmocka_unit_test(test_fork_mark_rewind_reset), cmocka_unit_test(test_stores_grow_under_a_captured_pass),
        cmocka_unit_test(test_damaged_states), cmocka_unit_test(test_f16_does_not_drift),
        cmocka_unit_test(test_long_prompts_in_f16),
        cmocka_unit_test(test_drawing), cmocka_unit_test(test_drawing_in_ragged_batches),
    };
    return cmocka_run_group_tests(tests, set_limit, NULL);
}
