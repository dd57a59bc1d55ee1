/* CUDA sampling, token for token against the sampler of the CPU with the same random numbers. */
#include "cuda_check.h"
#include "run/sampler.h"
#include "sluice.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { MAX_ROW = 8, N_KIND = 10 };

/* Kinds of rows: bell-shaped, few values with many ties, all equal, in order, one far above, unusual numbers,
 * nothing possible, almost nothing possible, the best in few threads' shares, both zeros. */
static const char *const kind_name[N_KIND] = { "bell",    "ties",    "equal",  "sorted", "peak",
                                               "unusual", "nothing", "lonely", "stride", "zeros" };

static float logit_of_kind(check *c, int kind, size_t i, size_t n) {
    static const float unusual[] = { NAN,       INFINITY,   -INFINITY, FLT_MAX, -FLT_MAX,
                                     0x1p-140f, -0x1p-149f, 0.0f,      -0.0f,   3 };
    const float u = check_uniform(c, -1, 1);
    switch (kind) {
    case 0:
        return 3 * (u + check_uniform(c, -1, 1) + check_uniform(c, -1, 1) + check_uniform(c, -1, 1));
    case 1:
        return (float)check_index(c, 5) - 2;
    case 2:
        return 1.25f;
    case 3:
        return (float)i / (float)n * 20;
    case 4:
        return i == n / 3 ? 50 : u;
    case 5:
        return check_index(c, 3) ? u : unusual[check_index(c, 10)];
    case 6:
        return check_index(c, 2) ? -INFINITY : NAN;
    case 7:
        return i % 97 == 5 ? u : -INFINITY;
    case 8:
        return i % 1024 == 7 ? 10 + u : u; /* the share of one thread */
    default:
        return check_index(c, 2) ? 0.0f : -0.0f;
    }
}

static sl_sampler_params random_params(check *c) {
    static const float temperatures[] = { 0, 0.1f, 0.7f, 0.8f, 1, 1.5f, 4, 100 },
                       top_ps[] = { 0, 0.05f, 0.5f, 0.9f, 0.95f, 0.999f, 1 };
    static const float min_ps[] = { 0, 0, 0.01f, 0.05f, 0.3f, 1 },
                       penalties[] = { 1, 1, 1.1f, 1.5f, 0.7f, 1000 };
    static const int32_t top_ks[] = { 1, 2, 3, 20, 40, 100, 255, 256 }, last[] = { 0, 1, 16, 64, 256, -1 };
    return (sl_sampler_params){ .temperature = temperatures[check_index(c, 8)],
                                .top_k = top_ks[check_index(c, 8)],
                                .top_p = top_ps[check_index(c, 7)],
                                .min_p = min_ps[check_index(c, 6)],
                                .repeat_penalty = penalties[check_index(c, 6)],
                                .repeat_last_n = last[check_index(c, 6)],
                                .seed = check_random(c) };
}

/* Two samplers with the same past. */
static void make_samplers(check *c, size_t n_vocab, const float *logits, sl_sampler *pair[2]) {
    const sl_sampler_params params = random_params(c);
    for (int i = 0; i < 2; i++)
        if (sl_sampler_create(&params, n_vocab, &pair[i], NULL) != SL_OK) check_fail(c, "no sampler");
    size_t best = 0;
    for (size_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    for (size_t i = check_index(c, 250); i > 0; i--) { /* the likeliest and its neighbours among them */
        const size_t near = (best + check_index(c, 5)) % n_vocab;
        const int32_t id = (int32_t)(check_index(c, 4) ? check_index(c, n_vocab) : near);
        sl_sampler_accept(pair[0], id);
        sl_sampler_accept(pair[1], id);
    }
}

static void draw_rows(check *c, const float *logits, size_t n_vocab, const sl_draw *draws, size_t n_row,
                      int32_t *tokens) {
    sl_sample_args a = { .draws = cuda_put(draws, n_row * sizeof *draws, 8),
                         .tokens = cuda_new(n_row * sizeof *tokens, 4),
                         .n_row = (uint32_t)n_row,
                         .n_vocab = (uint32_t)n_vocab };
    (void)c;
    a.logits = cuda_put_rows(SL_ACT_F32, logits, n_vocab, n_vocab, n_row, &a.stride);
    cuda_run(cuda.sample(&a, NULL));
    cuda_get(tokens, a.tokens, n_row * sizeof *tokens);
    cuda_free();
}

/* kind -1: any. */
static void one_case(check *c, size_t n_vocab, int kind, size_t n_row, size_t n_step) {
    sl_sampler *samplers[MAX_ROW][2] = { { NULL } };
    sl_draw *draws = check_buffer(c, n_row * sizeof *draws);
    float *logits = check_buffer(c, n_row * n_vocab * sizeof *logits);
    int kinds[MAX_ROW];
    for (size_t r = 0; r < n_row; r++) {
        kinds[r] = kind < 0 ? (int)check_index(c, N_KIND) : kind;
        for (size_t i = 0; i < n_vocab; i++) logits[r * n_vocab + i] = logit_of_kind(c, kinds[r], i, n_vocab);
        make_samplers(c, n_vocab, logits + r * n_vocab, samplers[r]);
    }
    for (size_t step = 0; step < n_step && !c->failed; step++) {
        int32_t tokens[MAX_ROW];
        for (size_t r = 0; r < n_row; r++)
            if (!sl_sampler_draw(samplers[r][0], &draws[r])) check_fail(c, "the sampler does not fit a device");
        draw_rows(c, logits, n_vocab, draws, n_row, tokens);
        for (size_t r = 0; r < n_row && !c->failed; r++) {
            const int32_t want = sl_sampler_sample(samplers[r][1], logits + r * n_vocab);
            if (tokens[r] != want)
                check_fail(c,
                           "V=%zu %s row %zu step %zu: drew %d, expected %d (temperature %g top_k %u top_p %g "
                           "min_p %g "
                           "penalty %g on %u, random %.17g)",
                           n_vocab, kind_name[kinds[r]], r, step, tokens[r], want, (double)draws[r].temperature,
                           draws[r].top_k, (double)draws[r].top_p, (double)draws[r].min_p,
                           (double)draws[r].repeat_penalty, draws[r].n_window, draws[r].random);
            for (int i = 0; i < 2; i++) sl_sampler_accept(samplers[r][i], want);
        }
    }
    for (size_t r = 0; r < n_row; r++)
        for (int i = 0; i < 2; i++) sl_sampler_destroy(samplers[r][i]);
    check_end(c);
}

/* What a device cannot draw is refused, and the next draw is as if nobody had asked. */
static void check_refused(check *c) {
    const sl_sampler_params no_top_k = { .temperature = 1, .top_k = 0, .top_p = 1, .repeat_penalty = 1 };
    const sl_sampler_params many = {
        .temperature = 1, .top_k = 5, .top_p = 1, .repeat_penalty = 2, .repeat_last_n = -1
    };
    float *logits = check_buffer(c, 1000 * sizeof *logits);
    sl_draw draw;
    for (size_t i = 0; i < 1000; i++) logits[i] = check_uniform(c, -3, 3);
    for (int i = 0; i < 2; i++) {
        sl_sampler *pair[2] = { NULL, NULL };
        check_case(c, "%s", i ? "too many ids to penalise" : "too many candidates");
        for (int j = 0; j < 2; j++)
            if (sl_sampler_create(i ? &many : &no_top_k, 1000, &pair[j], NULL) != SL_OK)
                check_fail(c, "no sampler");
        for (int32_t id = 0; id < 2 * (SL_SAMPLE_MAX_WINDOW + 1); id++)
            for (int j = 0; j < 2; j++) sl_sampler_accept(pair[j], id / 2);
        if (sl_sampler_draw(pair[0], &draw)) check_fail(c, "a draw that is not for a device was not refused");
        for (int step = 0; step < 20; step++)
            if (sl_sampler_sample(pair[0], logits) != sl_sampler_sample(pair[1], logits))
                check_fail(c, "the sampler moved on");
        sl_sampler_destroy(pair[0]);
        sl_sampler_destroy(pair[1]);
    }
    check_end(c);
}

void check_cuda_sample(check *c) {
    static const size_t small[] = { 1, 2, 3, 31, 39, 40, 41, 255, 256, 257, 300, 1000, 1025, 4000 };
    check_refused(c);
    for (size_t i = 0; i < 140 && !c->failed; i++) {
        check_case(c, "V=%zu", small[i % 14]);
        one_case(c, small[i % 14], -1, 1 + check_index(c, MAX_ROW), 4);
    }
    static const size_t large[] = { 16384, 16385, 32000, 50257, 131072 };
    for (size_t i = 0; i < 10 && !c->failed; i++) {
        check_case(c, "V=%zu", large[i % 5]);
        one_case(c, large[i % 5], i < 5 ? -1 : 8, i % 2 ? 3 : 7, 2);
    }
}
