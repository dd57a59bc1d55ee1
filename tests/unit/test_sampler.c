/* The sampler against a plain one written by the definition, and its promises: ties, odd logits, seeds, the
 * penalty's window, ranges. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "run/sampler.h"

enum { N = 200 };

static sl_sampler *create(sl_sampler_params params, size_t n_vocab) {
    sl_sampler *s;
    sl_error err;
    if (sl_sampler_create(&params, n_vocab, &s, &err) != SL_OK) fail_msg("%s", err.text);
    return s;
}

/* Everything off: draws from the softmax itself. */
static sl_sampler_params off(void) {
    return (sl_sampler_params){ .temperature = 1, .top_p = 1, .repeat_penalty = 1 };
}

static uint32_t next_random(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

static void random_logits(uint32_t *seed, float *logits, size_t n) {
    for (size_t i = 0; i < n; i++) logits[i] = (float)(next_random(seed) % 10000) / 1000.0F - 5.0F;
}

/* ---- against the definition --------------------------------------------------------------------- */

typedef struct item { double logit; int id; } item;

static int by_logit(const void *a, const void *b) {
    const item *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : x->id - y->id;
}

/* Probability of each token by sorting everything. */
static void reference(const float *logits, const sl_sampler_params *p, double *probability) {
    item items[N];
    double sum = 0, seen = 0;
    size_t n = p->top_k ? (size_t)p->top_k : N, kept = 0;
    for (int i = 0; i < N; i++) items[i] = (item){ (double)logits[i], i };
    qsort(items, N, sizeof *items, by_logit);
    for (size_t i = 0; i < n; i++) sum += exp(items[i].logit - items[0].logit);
    for (; kept < n; kept++) {
        double w = exp(items[kept].logit - items[0].logit);
        if (kept && (seen >= (double)p->top_p * sum || w < (double)p->min_p)) break;
        seen += w;
    }
    for (int i = 0; i < N; i++) probability[i] = 0;
    sum = 0;
    for (size_t i = 0; i < kept; i++) sum += exp((items[i].logit - items[0].logit) / (double)p->temperature);
    for (size_t i = 0; i < kept; i++)
        probability[items[i].id] = exp((items[i].logit - items[0].logit) / (double)p->temperature) / sum;
}

/* Counts of many draws lie within six standard deviations, and none where the probability is zero. */
static void check_draws(const sl_sampler_params *p, const float *logits) {
    enum { DRAWS = 20000 };
    double probability[N];
    int count[N] = { 0 };
    sl_sampler *s = create(*p, N);
    reference(logits, p, probability);
    for (int i = 0; i < DRAWS; i++) count[sl_sampler_sample(s, logits)]++;
    for (int i = 0; i < N; i++) {
        double expected = probability[i] * DRAWS, deviation = sqrt(expected * (1 - probability[i]));
        if (probability[i] <= 0) assert_int_equal(count[i], 0);
        else if (fabs(count[i] - expected) > 6 * deviation + 1)
            fail_msg("token %d drawn %d times, expected %g", i, count[i], expected);
    }
    sl_sampler_destroy(s);
}

static void test_distribution(void **state) {
    (void)state;
    static const struct { int top_k; float top_p, min_p, temperature; } cases[] = {
        { 0, 1, 0, 1 },    { 0, 1, 0, 0.5F },         { 10, 1, 0, 1 },   { 0, 0.5F, 0, 1 },
        { 0, 1, 0.1F, 2 }, { 40, 0.9F, 0.05F, 0.8F }, { 3, 0.01F, 0, 1 }, { 150, 0.99F, 0, 1.5F },
        { 200, 1, 0, 1 },  { 5, 1, 1, 1 },
    };
    uint32_t seed = 5;
    float logits[N];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sl_sampler_params p = off();
        p.top_k = cases[i].top_k;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.temperature = cases[i].temperature;
        p.seed = 100 + i;
        random_logits(&seed, logits, N);
        check_draws(&p, logits);
    }
}

/* ---- greedy, odd logits ------------------------------------------------------------------------- */

static void test_greedy(void **state) {
    (void)state;
    float logits[6] = { 1, 3, NAN, 3, INFINITY, 2 };
    sl_sampler_params p = sl_sampler_params_default();
    p.temperature = 0;
    sl_sampler *s = create(p, 6);
    assert_int_equal(sl_sampler_sample(s, logits), 4);
    logits[4] = -INFINITY;
    assert_int_equal(sl_sampler_sample(s, logits), 1); /* ties: the lowest id */
    for (int i = 0; i < 6; i++) logits[i] = i & 1 ? NAN : -INFINITY;
    assert_int_equal(sl_sampler_sample(s, logits), 0);
    sl_sampler_destroy(s);
    p.temperature = 5;
    p.top_k = 1;
    s = create(p, 6);
    for (int i = 0; i < 6; i++) logits[i] = (float)(i % 4);
    assert_int_equal(sl_sampler_sample(s, logits), 3);
    sl_sampler_destroy(s);
}

static void test_odd_logits(void **state) {
    (void)state;
    static const float odd[] = { NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, -0.0F, 1e-40F, 3 };
    uint32_t seed = 9;
    for (int round = 0; round < 3000; round++) {
        float logits[16];
        sl_sampler_params p = off();
        size_t n = 1 + next_random(&seed) % 16, possible = 0;
        for (size_t i = 0; i < n; i++) logits[i] = odd[next_random(&seed) % (sizeof odd / sizeof *odd)];
        for (size_t i = 0; i < n; i++) possible += logits[i] > -INFINITY;
        p.top_k = (int32_t)(next_random(&seed) % 20);
        p.top_p = (float)(next_random(&seed) % 11) / 10;
        p.min_p = (float)(next_random(&seed) % 11) / 10;
        p.temperature = round & 1 ? 1e-40F : 100;
        p.repeat_penalty = 1.5F;
        p.repeat_last_n = -1;
        sl_sampler *s = create(p, n);
        for (size_t i = 0; i < 4; i++) {
            int32_t token = sl_sampler_sample(s, logits);
            assert_true(token >= 0 && (size_t)token < n);
            if (possible) assert_true(logits[token] > -INFINITY);
            else assert_int_equal(token, 0);
            sl_sampler_accept(s, token);
        }
        sl_sampler_destroy(s);
    }
}

/* ---- seeds -------------------------------------------------------------------------------------- */

static void draw_many(uint64_t seed, int32_t *out, size_t n) {
    uint32_t state = 1;
    float logits[N];
    random_logits(&state, logits, N);
    sl_sampler_params p = sl_sampler_params_default();
    p.seed = seed;
    sl_sampler *s = create(p, N);
    for (size_t i = 0; i < n; i++) sl_sampler_accept(s, out[i] = sl_sampler_sample(s, logits));
    sl_sampler_destroy(s);
}

static void test_seeds(void **state) {
    (void)state;
    int32_t a[100], b[100];
    draw_many(7, a, 100);
    draw_many(7, b, 100);
    assert_memory_equal(a, b, sizeof a);
    draw_many(8, b, 100);
    assert_memory_not_equal(a, b, sizeof a);
}

/* ---- the repeat penalty ------------------------------------------------------------------------- */

static int32_t greedy_after(float penalty, int32_t last_n, const float *logits, size_t n,
                            const int32_t *history, size_t n_history) {
    sl_sampler_params p = off();
    p.temperature = 0;
    p.repeat_penalty = penalty;
    p.repeat_last_n = last_n;
    sl_sampler *s = create(p, n);
    for (size_t i = 0; i < n_history; i++) sl_sampler_accept(s, history[i]);
    int32_t token = sl_sampler_sample(s, logits);
    assert_int_equal(sl_sampler_sample(s, logits), token);
    sl_sampler_destroy(s);
    return token;
}

static void test_penalty(void **state) {
    (void)state;
    const float logits[] = { 3, 2, -1, -2 }, low[] = { -1, -1.5F, -5, -5 };
    const int32_t zero[] = { 0, 0, 0 }, mixed[] = { 0, 2, 2 }, odd[] = { -1, 4, 0 };
    assert_int_equal(greedy_after(2, 64, logits, 4, zero, 1), 1);   /* 1.5 < 2 */
    assert_int_equal(greedy_after(1.4F, 64, logits, 4, zero, 3), 0); /* once, however often it came: 2.14 > 2 */
    assert_int_equal(greedy_after(2, 64, low, 4, zero, 1), 1);      /* -1 is multiplied: -2 < -1.5 */
    assert_int_equal(greedy_after(2, 2, logits, 4, mixed, 3), 0);   /* out of the window */
    assert_int_equal(greedy_after(2, 3, logits, 4, mixed, 3), 1);
    assert_int_equal(greedy_after(2, -1, logits, 4, mixed, 3), 1);
    assert_int_equal(greedy_after(2, 0, logits, 4, mixed, 3), 0);   /* off */
    assert_int_equal(greedy_after(1, -1, logits, 4, mixed, 3), 0);
    assert_int_equal(greedy_after(0.5F, -1, logits, 4, mixed + 1, 1), 0);
    assert_int_equal(greedy_after(2, 64, logits, 4, odd, 3), 1);    /* ids out of range are no tokens */
}

/* ---- ranges ------------------------------------------------------------------------------------- */

static void assert_refused(sl_sampler_params p, size_t n_vocab, const char *name) {
    sl_sampler *s;
    sl_error err;
    assert_int_equal(sl_sampler_create(&p, n_vocab, &s, &err), SL_E_ARG);
    if (!strstr(err.text, name)) fail_msg("\"%s\" does not name %s", err.text, name);
}

/* A draw for a device that is taken back leaves no trace, at any number of draws before; nor does one without chance. */
static void test_undraw(void **state) {
    (void)state;
    float logits[N];
    uint32_t seed = 7;
    sl_sampler_params p = sl_sampler_params_default();
    random_logits(&seed, logits, N);
    for (int greedy = 0; greedy < 2; greedy++) {
        p.temperature = greedy ? 0 : 1;
        sl_sampler *a = create(p, N), *b = create(p, N);
        for (size_t i = 0; i < 50; i++) {
            sl_draw first, second;
            assert_true(sl_sampler_draw(a, &first) && sl_sampler_draw(a, &second));
            assert_true(greedy || first.random != second.random);
            sl_sampler_undraw(a);
            sl_sampler_undraw(a);
            assert_true(sl_sampler_draw(a, &second) && first.random == second.random);
            sl_sampler_undraw(a);
            assert_int_equal(sl_sampler_sample(a, logits), sl_sampler_sample(b, logits));
        }
        sl_sampler_destroy(a);
        sl_sampler_destroy(b);
    }
}

static void test_ranges(void **state) {
    (void)state;
    const float bad[] = { NAN, INFINITY, -INFINITY, -0.1F, 2e9F };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sl_sampler_params p = off();
        p.top_p = bad[i];
        assert_refused(p, N, "top_p");
        p = off();
        p.min_p = bad[i];
        assert_refused(p, N, "min_p");
        p = off();
        p.repeat_penalty = bad[i];
        assert_refused(p, N, "repeat_penalty");
        p = off();
        p.temperature = bad[i];
        if (i < 4) assert_refused(p, N, "temperature");
    }
    sl_sampler_params p = off();
    p.top_k = -1;
    assert_refused(p, N, "top_k");
    p = off();
    p.repeat_last_n = -2;
    assert_refused(p, N, "repeat_last_n");
    assert_refused(off(), 0, "vocabulary");
    p = off();
    p.repeat_last_n = INT32_MAX; /* costs memory only as far as it is used */
    p.top_k = INT32_MAX;
    sl_sampler_destroy(create(p, 1));
    sl_sampler_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution), cmocka_unit_test(test_greedy),  cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_seeds),        cmocka_unit_test(test_penalty), cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_undraw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
