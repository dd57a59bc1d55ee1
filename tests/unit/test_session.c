/* A sequence is what its tokens made of it: the same bits solo and co-batched, with 1 and 2 threads, however its
 * tokens are cut, and through save, load, fork, mark and rewind; in every architecture and element type. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "made_model.h"
#include "run/session.h"

enum { N_TOKEN = 70, N_VOCAB = 101 };

static void must(sl_status status, const sl_error *err) {
    if (status != SL_OK) fail_msg("%s", err->text);
}

static void sequence(int32_t *tokens, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % N_VOCAB;
}

static sl_session *session_of(const sl_model *model, size_t n_slot, size_t n_batch, size_t n_thread) {
    sl_session_params p = sl_session_params_default();
    sl_session *s;
    sl_error err;
    p.n_slot = n_slot;
    p.n_batch = n_batch;
    p.n_thread = n_thread;
    must(sl_session_create(model, &p, &s, &err), &err);
    return s;
}

static void eval(sl_session *s, size_t slot, const int32_t *tokens, size_t n) {
    sl_error err;
    const sl_run run = { slot, tokens, n, SL_LOGITS_LAST };
    must(sl_session_eval(s, &run, 1, &err), &err);
}

static void same_logits(const sl_session *a, size_t slot_a, const sl_session *b, size_t slot_b) {
    const float *x = sl_slot_logits(a, slot_a), *y = sl_slot_logits(b, slot_b);
    assert_non_null(x);
    assert_non_null(y);
    assert_memory_equal(x, y, N_VOCAB * sizeof *x);
    for (size_t i = 0; i < N_VOCAB; i++) assert_true(x[i] - x[i] == 0); /* finite */
}

/* A body is called for every kind and type. */
typedef void (*body_fn)(const sl_model *model);
static void every_model(body_fn body) {
    for (int kind = 0; kind < MADE_KINDS; kind++)
        for (int type = 0; type < SL_N_TYPE; type++) {
            sl_model *model = make_model((made_kind)kind, (sl_type)type, 7 + (uint64_t)type);
            body(model);
            sl_model_close(model);
        }
}

static void cuts(const sl_model *model) {
    static const struct { size_t n_batch, n_thread; } ways[] = { { 512, 1 }, { 512, 3 }, { 1, 1 }, { 7, 2 }, { 33, 2 } };
    int32_t tokens[N_TOKEN];
    sequence(tokens, N_TOKEN, 1);
    sl_session *whole = session_of(model, 1, 512, 1);
    eval(whole, 0, tokens, N_TOKEN);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        sl_session *s = session_of(model, 1, ways[i].n_batch, ways[i].n_thread);
        eval(s, 0, tokens, 19);
        eval(s, 0, tokens + 19, 1);
        eval(s, 0, tokens + 20, N_TOKEN - 20);
        same_logits(whole, 0, s, 0);
        sl_session_destroy(s);
    }
    sl_session_destroy(whole);
}
/* No two values share bytes while both are needed. */
static void apart(const sl_model *model) {
    const sl_value *values = model->graph.values;
    for (size_t i = 0; i < model->graph.n_value; i++)
        for (size_t j = 0; j < i; j++) {
            const sl_value *a = &values[i], *b = &values[j];
            const bool together = a->first <= b->last && b->first <= a->last;
            const bool same = a->offset_rows < b->offset_rows + b->row_bytes && b->offset_rows < a->offset_rows + a->row_bytes;
            if (together && same) fail_msg("values %zu and %zu lie in one place", j, i);
        }
}
static void test_places(void **state) { (void)state; every_model(apart); }

static void test_narrow_bridge(void **state) {
    (void)state;
    for (int type = 0; type < SL_N_TYPE; type++) {
        sl_model *model = make_model(MADE_BRIDGE_NARROW, (sl_type)type, 3);
        apart(model);
        cuts(model);
        sl_model_close(model);
    }
}

static void test_cuts_and_threads(void **state) { (void)state; every_model(cuts); }

/* Five sequences of different lengths in one ragged batch with mixed prefill and decode. */
static void cobatch(const sl_model *model) {
    int32_t tokens[5][N_TOKEN];
    sl_error err;
    sl_session *all = session_of(model, 5, 40, 2);
    for (uint32_t q = 0; q < 5; q++) sequence(tokens[q], N_TOKEN, q + 1);
    eval(all, 3, tokens[3], 11); /* this one is ahead */
    for (size_t round = 0; round < 3; round++) {
        sl_run runs[5];
        for (size_t q = 0; q < 5; q++) {
            size_t at = q == 3 ? 11 + round : round ? 12 + q * 5 + round - 1 : 0, n = q == 3 || round ? 1 : 12 + q * 5;
            runs[q] = (sl_run){ q, tokens[q] + at, n, round == 1 ? SL_LOGITS_ALL : SL_LOGITS_LAST };
        }
        must(sl_session_eval(all, runs, 5, &err), &err);
    }
    for (size_t q = 0; q < 5; q++) {
        sl_session *solo = session_of(model, 1, 512, 1);
        eval(solo, 0, tokens[q], q == 3 ? 14 : 14 + q * 5);
        same_logits(all, q, solo, 0);
        sl_session_destroy(solo);
    }
    sl_session_destroy(all);
}
static void test_cobatched_equals_solo(void **state) { (void)state; every_model(cobatch); }

static void all_logits(const sl_model *model) {
    int32_t tokens[30];
    sl_error err;
    sequence(tokens, 30, 5);
    sl_session *s = session_of(model, 1, 32, 2), *step = session_of(model, 1, 32, 1);
    const sl_run run = { 0, tokens, 30, SL_LOGITS_ALL };
    must(sl_session_eval(s, &run, 1, &err), &err);
    for (size_t t = 0; t < 30; t++) {
        eval(step, 0, tokens + t, 1);
        assert_memory_equal(sl_run_logits(s, 0, t), sl_slot_logits(step, 0), N_VOCAB * sizeof(float));
    }
    same_logits(s, 0, step, 0);
    sl_session_destroy(s);
    sl_session_destroy(step);
}
static void test_logits_of_all_tokens(void **state) { (void)state; every_model(all_logits); }

/* Runs in another order of slots than before, asking for more logits at once than there is room for: refused, and none of
 * the logits that were there can be taken for them. */
static void test_logits_after_a_refusal(void **state) {
    enum { N = 8 };
    int32_t tokens[N];
    sl_error err;
    sl_run runs[N];
    (void)state;
    sequence(tokens, N, 6);
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    sl_session *s = session_of(model, N, 4, 1);
    const sl_run run = { 0, tokens, 1, SL_LOGITS_ALL };
    must(sl_session_eval(s, &run, 1, &err), &err);
    assert_non_null(sl_run_logits(s, 0, 0));
    for (size_t i = 0; i < N; i++) runs[i] = (sl_run){ N - 1 - i, tokens, 1, SL_LOGITS_ALL };
    assert_int_equal(sl_session_eval(s, runs, N, &err), SL_E_ARG);
    assert_null(sl_run_logits(s, 0, 0));
    assert_int_equal(sl_slot_position(s, 0), 1);
    sl_session_destroy(s);
    sl_model_close(model);
}

static void save_load_fork(const sl_model *model) {
    int32_t tokens[N_TOKEN];
    sl_error err;
    sequence(tokens, N_TOKEN, 9);
    sl_session *a = session_of(model, 2, 64, 1), *b = session_of(model, 1, 64, 2);
    eval(a, 0, tokens, 41);
    uint64_t n = sl_state_bytes(a, 0);
    uint8_t *blob = malloc((size_t)n + 1);
    must(sl_state_save(a, 0, blob, n, &err), &err);
    must(sl_state_load(b, 0, blob, n, &err), &err);
    same_logits(a, 0, b, 0); /* before another token */
    must(sl_slot_fork(a, 0, 1, &err), &err);
    same_logits(a, 0, a, 1);
    eval(a, 0, tokens + 41, N_TOKEN - 41);
    eval(b, 0, tokens + 41, N_TOKEN - 41);
    eval(a, 1, tokens + 41, N_TOKEN - 41);
    same_logits(a, 0, b, 0);
    same_logits(a, 0, a, 1);
    assert_int_equal(sl_slot_position(b, 0), N_TOKEN);
    size_t n_token;
    assert_memory_equal(sl_slot_tokens(b, 0, &n_token), tokens, sizeof tokens);
    assert_int_equal(n_token, N_TOKEN);
    free(blob);
    sl_session_destroy(a);
    sl_session_destroy(b);
}
static void test_save_load_fork(void **state) { (void)state; every_model(save_load_fork); }

static void rewind_marks(const sl_model *model) {
    static const uint64_t back[] = { 60, 33, 32, 20, 19, 1, 0 };
    int32_t tokens[N_TOKEN];
    sl_error err;
    sequence(tokens, N_TOKEN, 3);
    sl_session *s = session_of(model, 1, 64, 1);
    eval(s, 0, tokens, 20);
    must(sl_slot_mark(s, 0, &err), &err);
    eval(s, 0, tokens + 20, 12);
    must(sl_slot_mark(s, 0, &err), &err);
    eval(s, 0, tokens + 32, N_TOKEN - 32);
    for (size_t i = 0; i < sizeof back / sizeof back[0]; i++) {
        must(sl_slot_rewind(s, 0, back[i], &err), &err);
        assert_int_equal(sl_slot_position(s, 0), back[i]);
        if (!back[i]) {
            assert_null(sl_slot_logits(s, 0));
            break;
        }
        sl_session *fresh = session_of(model, 1, 64, 1);
        eval(fresh, 0, tokens, (size_t)back[i]);
        same_logits(s, 0, fresh, 0);
        sl_session_destroy(fresh);
    }
    eval(s, 0, tokens, N_TOKEN); /* and it goes on as a new sequence */
    sl_session *fresh = session_of(model, 1, 64, 1);
    eval(fresh, 0, tokens, N_TOKEN);
    same_logits(s, 0, fresh, 0);
    sl_session_destroy(fresh);
    assert_int_equal(sl_slot_rewind(s, 0, N_TOKEN + 1, &err), SL_E_ARG);
    sl_session_destroy(s);
}
static void test_rewind(void **state) { (void)state; every_model(rewind_marks); }

/* Any changed byte, any other length, any other model: refused, and the slot stays as it was. */
static void test_hostile_states(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1), *other = make_model(MADE_LLAMA, SL_F32, 1);
    int32_t tokens[8];
    sl_error err;
    sequence(tokens, 8, 2);
    model->fingerprint = 1; /* made models have none of their own */
    sl_session *s = session_of(model, 1, 16, 1), *kept = session_of(model, 1, 16, 1), *foreign = session_of(other, 1, 16, 1);
    eval(s, 0, tokens, 8);
    eval(kept, 0, tokens, 5);
    uint64_t n = sl_state_bytes(s, 0);
    uint8_t *blob = malloc((size_t)n + 1);
    must(sl_state_save(s, 0, blob, n, &err), &err);
    for (uint64_t i = 0; i < n; i += i < 200 ? 1 : 37) {
        blob[i] ^= 0x10;
        assert_int_equal(sl_state_load(kept, 0, blob, n, &err), SL_E_STATE);
        blob[i] ^= 0x10;
    }
    for (uint64_t cut = 0; cut < n; cut += 61) assert_int_equal(sl_state_load(kept, 0, blob, cut, &err), SL_E_STATE);
    assert_int_equal(sl_state_load(kept, 0, blob, n + 1, &err), SL_E_STATE);
    assert_int_equal(sl_state_load(foreign, 0, blob, n, &err), SL_E_STATE);
    assert_int_equal(sl_slot_position(kept, 0), 5);
    eval(kept, 0, tokens + 5, 3);
    same_logits(s, 0, kept, 0);
    free(blob);
    sl_session_destroy(s);
    sl_session_destroy(kept);
    sl_session_destroy(foreign);
    sl_model_close(model);
    sl_model_close(other);
}

static void test_bad_arguments(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    sl_session *s = session_of(model, 2, 4, 1);
    sl_error err;
    const int32_t good[] = { 1, 2, 3, 4, 5 }, bad[] = { N_VOCAB }, negative[] = { -1 };
    const sl_run twice[] = { { 0, good, 1, SL_LOGITS_LAST }, { 0, good, 1, SL_LOGITS_LAST } };
    const sl_run runs[] = { { 2, good, 1, SL_LOGITS_LAST }, { 0, good, 0, SL_LOGITS_LAST }, { 0, bad, 1, SL_LOGITS_LAST },
                            { 0, negative, 1, SL_LOGITS_LAST }, { 0, good, 5, SL_LOGITS_ALL },
                            { 0, good, 1, (sl_logits_rows)3 }, { 0, good, 1, (sl_logits_rows)-1 } };
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++)
        assert_int_equal(sl_session_eval(s, &runs[i], 1, &err), SL_E_ARG);
    assert_int_equal(sl_session_eval(s, twice, 2, &err), SL_E_ARG);
    sl_sampler *samplers[2] = { NULL };
    int32_t drawn[2] = { -7, -7 };
    const sl_sampler_params sampling = sl_sampler_params_default();
    must(sl_sampler_create(&sampling, N_VOCAB, &samplers[0], &err), &err);
    assert_int_equal(sl_session_eval_draw(s, twice, 2, samplers, drawn, &err), SL_E_ARG);
    assert_int_equal(drawn[0], -1);
    assert_int_equal(drawn[1], -7);
    sl_sampler_destroy(samplers[0]);
    for (size_t n = N_VOCAB - 1; n < N_VOCAB + 2; n += 2) { /* a sampler for another vocabulary */
        must(sl_sampler_create(&sampling, n, &samplers[0], &err), &err);
        assert_int_equal(sl_session_eval_draw(s, twice, 1, samplers, drawn, &err), SL_E_ARG);
        sl_sampler_destroy(samplers[0]);
    }
    assert_int_equal(sl_slot_position(s, 0), 0);
    size_t n_token = 7; /* a slot that is not there */
    assert_null(sl_slot_tokens(s, 2, &n_token));
    assert_int_equal(n_token + sl_state_bytes(s, 2) + sl_slot_position(s, 2), 0);
    assert_null(sl_slot_logits(s, 2));
    sl_slot_reset(s, 2);
    sl_session_params p = sl_session_params_default();
    sl_session *none;
    p.route_threshold = 1.5f;
    assert_int_equal(sl_session_create(model, &p, &none, &err), SL_E_ARG);
    p.route_threshold = 0.5f;
    p.n_slot = 0;
    assert_int_equal(sl_session_create(model, &p, &none, &err), SL_E_ARG);
    p.n_slot = 1;
    p.activations = (sl_activations)3;
    assert_int_equal(sl_session_create(model, &p, &none, &err), SL_E_ARG);
    sl_session_destroy(s);
    sl_model_close(model);
}

/* Tokens may be what a slot has seen, also of slots whose memory the call itself moves. */
static void test_tokens_of_a_slot(void **state) {
    (void)state;
    enum { N = 16 }; /* what a slot has room for at first */
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    int32_t tokens[N];
    size_t n;
    sl_error err;
    sequence(tokens, N, 4);
    sl_session *s = session_of(model, 2, 64, 1), *kept = session_of(model, 2, 64, 1);
    for (size_t i = 0; i < 2; i++) eval(s, i, tokens, N), eval(kept, i, tokens, N);
    const int32_t *seen = sl_slot_tokens(s, 0, &n);
    const sl_run runs[] = { { 0, seen, n, SL_LOGITS_LAST }, { 1, seen, n, SL_LOGITS_LAST } };
    assert_int_equal(n, N);
    must(sl_session_eval(s, runs, 2, &err), &err);
    for (size_t i = 0; i < 2; i++) {
        eval(kept, i, tokens, N);
        same_logits(s, i, kept, i);
        assert_memory_equal(sl_slot_tokens(s, i, &n) + N, tokens, sizeof tokens);
    }
    sl_session_destroy(s);
    sl_session_destroy(kept);
    sl_model_close(model);
}

/* Where everything is in the KV store, a checkpoint far back makes a rewind no longer. */
static void test_rewind_without_state(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_LLAMA, SL_F32, 1);
    int32_t tokens[N_TOKEN];
    sl_error err;
    sequence(tokens, N_TOKEN, 4);
    sl_session *s = session_of(model, 1, 1, 1), *kept = session_of(model, 1, 16, 1); /* a pass for each token */
    eval(s, 0, tokens, 5);
    must(sl_slot_mark(s, 0, &err), &err);
    eval(s, 0, tokens + 5, N_TOKEN - 5);
    eval(kept, 0, tokens, N_TOKEN - 10);
    const uint64_t before = sl_session_counters(s)->passes;
    must(sl_slot_rewind(s, 0, N_TOKEN - 10, &err), &err);
    assert_int_equal(sl_session_counters(s)->passes - before, 1);
    same_logits(s, 0, kept, 0);
    must(sl_slot_rewind(s, 0, 5, &err), &err);
    sl_slot_reset(kept, 0);
    eval(kept, 0, tokens, 5);
    same_logits(s, 0, kept, 0);
    sl_session_destroy(s);
    sl_session_destroy(kept);
    sl_model_close(model);
}

/* Both zeros are the same threshold, and an empty file is no state. */
static void test_states_of_a_threshold(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    sl_session_params p = sl_session_params_default();
    sl_session *s, *other;
    sl_error err;
    const int32_t token = 5;
    uint8_t blob[1 << 16];
    model->fingerprint = 1; /* made models have none of their own */
    p.route_threshold = 0.0f;
    must(sl_session_create(model, &p, &s, &err), &err);
    p.route_threshold = -0.0f;
    must(sl_session_create(model, &p, &other, &err), &err);
    eval(s, 0, &token, 1);
    const uint64_t n = sl_state_bytes(s, 0);
    assert_true(n <= sizeof blob);
    must(sl_state_save(s, 0, blob, n, &err), &err);
    must(sl_state_load(other, 0, blob, n, &err), &err);
    same_logits(s, 0, other, 0);
    char empty[] = "/tmp/sluice-empty-XXXXXX";
    const int fd = mkstemp(empty);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(sl_state_load_file(s, 0, empty, &err), SL_E_STATE);
    assert_non_null(strstr(err.text, " is empty"));
    unlink(empty);
    sl_session_destroy(s);
    sl_session_destroy(other);
    sl_model_close(model);
}

/* With no deep token the deep weights are not read; with all deep they are. */
static void test_light_tokens_skip_weights(void **state) {
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 1);
    sl_session_params p = sl_session_params_default();
    sl_error err;
    uint64_t bytes[2];
    for (int deep = 0; deep < 2; deep++) {
        sl_session *s;
        p.route_threshold = deep ? 0.0f : 1.0f;
        must(sl_session_create(model, &p, &s, &err), &err);
        const int32_t token = 5;
        eval(s, 0, &token, 1);
        const sl_counters *c = sl_session_counters(s);
        bytes[deep] = c->weight_bytes;
        assert_int_equal(c->routed_tokens, 2);
        assert_int_equal(c->deep_tokens, deep ? 2 : 0);
        sl_session_destroy(s);
    }
    uint64_t d = 40, f = 56, in = 2 * 48 + 2 * 2 * 10 + 4; /* two layers: ssm.in, mlp, and norm_mlp */
    assert_int_equal(bytes[1] - bytes[0], 2 * 4 * (in * d + 3 * f * d + d));
    sl_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places), cmocka_unit_test(test_narrow_bridge),
        cmocka_unit_test(test_cuts_and_threads), cmocka_unit_test(test_cobatched_equals_solo),
        cmocka_unit_test(test_logits_of_all_tokens), cmocka_unit_test(test_logits_after_a_refusal),
        cmocka_unit_test(test_save_load_fork),
        cmocka_unit_test(test_rewind), cmocka_unit_test(test_hostile_states), cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_light_tokens_skip_weights), cmocka_unit_test(test_tokens_of_a_slot),
        cmocka_unit_test(test_rewind_without_state), cmocka_unit_test(test_states_of_a_threshold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
