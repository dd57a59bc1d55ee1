/* Sampling. In this order, which is llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, draw.
 * top-p and min-p see the probabilities before the temperature. Only what must be in order is sorted: a heap
 * gives the likeliest candidates one by one until the limits are met. */
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "run/sampler.h"

typedef struct candidate { float logit; int32_t id; } candidate;

struct sl_sampler {
    sl_sampler_params params;
    size_t n_vocab;
    uint64_t random[4];
    candidate *candidates; /* [n_candidate], a heap while it is filled */
    double *weights;       /* [n_candidate] */
    size_t n_candidate;    /* at most this many are looked at: top_k, or all */
    uint8_t *penalised;    /* [n_vocab] 1 while a token of the window is passed */
    int32_t *window;       /* tokens the penalty looks back on: a ring, or every token once if all count */
    size_t n_window, window_cap, window_max, at;
};

/* ---- random numbers: xoshiro256** (Blackman and Vigna 2018), seeded by splitmix64 --------------- */

static void seed_random(uint64_t state[4], uint64_t seed) {
    for (size_t i = 0; i < 4; i++) {
        uint64_t z = (seed += UINT64_C(0x9E3779B97F4A7C15));
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        state[i] = z ^ z >> 31;
    }
}

static uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }

/* Uniform in [0, 1), 53 bits. */
static double next_random(uint64_t s[4]) {
    uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* The state before next_random. What is left of s[1] there, x = y ^ y << 17, gives y back. */
static void previous_random(uint64_t s[4]) {
    s[3] = rotate(s[3], 64 - 45);
    s[0] ^= s[3];
    uint64_t x = s[1] ^ s[2], y = x ^ x << 17 ^ x << 34 ^ x << 51;
    s[2] = s[1] ^ y ^ s[0];
    s[3] ^= y;
    s[1] = y;
}

/* ---- life --------------------------------------------------------------------------------------- */

sl_sampler_params sl_sampler_params_default(void) {
    return (sl_sampler_params){ .temperature = 0.8F, .top_k = 40, .top_p = 0.95F, .min_p = 0.05F,
                                .repeat_penalty = 1.1F, .repeat_last_n = 64, .seed = 0 };
}

static sl_status check(const sl_sampler_params *p, sl_error *err) {
    const struct { const char *name; double value, min, max; } ranges[] = {
        { "temperature", (double)p->temperature, 0, (double)FLT_MAX },
        { "top_k", p->top_k, 0, INT32_MAX },
        { "top_p", (double)p->top_p, 0, 1 },
        { "min_p", (double)p->min_p, 0, 1 },
        { "repeat_penalty", (double)p->repeat_penalty, 1e-3, 1e3 },
        { "repeat_last_n", p->repeat_last_n, -1, INT32_MAX },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (!(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max))
            return sl_fail(err, SL_E_ARG, "%s is %g; expected %g to %g", ranges[i].name, ranges[i].value,
                           ranges[i].min, ranges[i].max);
    return SL_OK;
}

static bool is_greedy(const sl_sampler *s) { return s->params.temperature <= 0 || s->params.top_k == 1; }

size_t sl_sampler_vocabulary(const sl_sampler *s) { return s->n_vocab; }

sl_status sl_sampler_create(const sl_sampler_params *params, size_t n_vocab, sl_sampler **out, sl_error *err) {
    *out = NULL;
    SL_TRY(check(params, err));
    if (!n_vocab || n_vocab > INT32_MAX)
        return sl_fail(err, SL_E_ARG, "a vocabulary of %zu tokens; expected 1 to %d", n_vocab, INT32_MAX);
    sl_sampler *s = calloc(1, sizeof *s);
    if (!s) return sl_fail(err, SL_E_MEMORY, "out of memory for a sampler");
    s->params = *params;
    s->n_vocab = n_vocab;
    s->n_candidate = is_greedy(s) ? 0 : params->top_k ? sl_min((size_t)params->top_k, n_vocab) : n_vocab;
    s->window_max = params->repeat_last_n < 0 ? n_vocab : (size_t)params->repeat_last_n;
    seed_random(s->random, params->seed);
    const char *what = "a sampler";
    sl_status status = sl_alloc((void **)&s->candidates, s->n_candidate, sizeof *s->candidates, what, err);
    if (status == SL_OK) status = sl_alloc((void **)&s->weights, s->n_candidate, sizeof *s->weights, what, err);
    if (status == SL_OK) status = sl_alloc((void **)&s->penalised, n_vocab, 1, what, err);
    if (status == SL_OK) *out = s;
    else sl_sampler_destroy(s);
    return status;
}

void sl_sampler_destroy(sl_sampler *sampler) {
    if (!sampler) return;
    free(sampler->candidates);
    free(sampler->weights);
    free(sampler->penalised);
    free(sampler->window);
    free(sampler);
}

/* ---- the penalty's window ----------------------------------------------------------------------- */

void sl_sampler_accept(sl_sampler *s, int32_t token) {
    bool every = s->params.repeat_last_n < 0; /* then a token stays marked, and is in the window once */
    if (token < 0 || (size_t)token >= s->n_vocab || !s->window_max || s->params.repeat_penalty == 1.0F) return;
    if (every && s->penalised[token]) return;
    bool full = s->n_window == s->window_max ||
                !sl_grow((void **)&s->window, &s->window_cap, s->n_window + 1, sizeof *s->window);
    if (!full) {
        s->window[s->n_window++] = token;
        s->penalised[token] = every;
    } else if (s->n_window) { /* also if there is no memory for a longer window */
        s->window[s->at] = token;
        s->at = (s->at + 1) % s->n_window;
    }
}

static void mark_window(sl_sampler *s, uint8_t mark) {
    if (s->params.repeat_last_n < 0) return;
    for (size_t i = 0; i < s->n_window; i++) s->penalised[s->window[i]] = mark;
}

/* A logit that can be compared and subtracted: no NaN, no +inf; penalised once if it is in the window. What
 * was possible stays possible. */
static float clean(const sl_sampler *s, const float *logits, size_t id) {
    float x = logits[id];
    if (isnan(x) || x < -FLT_MAX) return -INFINITY;
    x = fminf(x, FLT_MAX);
    if (!s->penalised[id]) return x;
    x = x > 0 ? x / s->params.repeat_penalty : x * s->params.repeat_penalty;
    return fmaxf(fminf(x, FLT_MAX), -FLT_MAX);
}

/* ---- choosing ----------------------------------------------------------------------------------- */

/* Whether a comes before b: more likely, or as likely with the lower id. */
static bool before(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Puts x in the place of the root of a heap of n; first: the best is on top, otherwise the worst. */
static void sift(candidate *heap, size_t n, size_t i, candidate x, bool first) {
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child]) == first) child++;
        if (before(heap[child], x) != first) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static void make_heap(candidate *heap, size_t n, bool first) {
    for (size_t i = n / 2; i-- > 0;) sift(heap, n, i, heap[i], first);
}

/* Whether a logit surely stays below the limit: a penalty of 1 and more makes none larger. Nearly all end
 * here, before anything else is asked about them. */
static bool is_below(const sl_sampler *s, float logit, float limit) {
    return !(logit >= limit) && s->params.repeat_penalty >= 1;
}

static int32_t greedy(const sl_sampler *s, const float *logits) {
    candidate best = { clean(s, logits, 0), 0 };
    for (size_t i = 1; i < s->n_vocab; i++) {
        if (is_below(s, logits[i], best.logit)) continue;
        candidate c = { clean(s, logits, i), (int32_t)i };
        if (before(c, best)) best = c;
    }
    return best.id;
}

/* The n_candidate best of all logits, in no order. */
static void collect(sl_sampler *s, const float *logits) {
    size_t k = s->n_candidate;
    for (size_t i = 0; i < k; i++) s->candidates[i] = (candidate){ clean(s, logits, i), (int32_t)i };
    if (k == s->n_vocab) return;
    make_heap(s->candidates, k, false);
    for (size_t i = k; i < s->n_vocab; i++) {
        if (is_below(s, logits[i], s->candidates[0].logit)) continue;
        candidate c = { clean(s, logits, i), (int32_t)i };
        if (before(c, s->candidates[0])) sift(s->candidates, k, 0, c, false);
    }
}

/* Keeps the likeliest candidates until their probabilities reach top_p, and none below min_p of the first.
 * They end up at the back of the array, the best last. Returns how many. */
static size_t keep_likely(sl_sampler *s, float best) {
    size_t n = s->n_candidate, kept = 0;
    double sum = 0, seen = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)s->candidates[i].logit - (double)best);
    make_heap(s->candidates, n, true);
    while (kept < n) {
        candidate top = s->candidates[0];
        double p = exp((double)top.logit - (double)best); /* of the first: 1 */
        assert(p <= 1);
        if (kept && (seen >= (double)s->params.top_p * sum || p < (double)s->params.min_p)) break;
        seen += p;
        kept++;
        candidate last = s->candidates[n - kept];
        sift(s->candidates, n - kept, 0, last, true);
        s->candidates[n - kept] = top;
    }
    return kept;
}

/* Draws one of candidates[from .. n_candidate), from the last to the first: mostly after a few steps. */
static int32_t draw(sl_sampler *s, size_t from, float best) {
    size_t n = s->n_candidate;
    double sum = 0, temperature = (double)s->params.temperature;
    for (size_t i = n; i-- > from;) {
        s->weights[i] = exp(((double)s->candidates[i].logit - (double)best) / temperature);
        sum += s->weights[i];
    }
    double left = next_random(s->random) * sum;
    size_t chosen = n - 1;
    for (size_t i = n; i-- > from;) {
        if (s->weights[i] <= 0) continue;
        chosen = i; /* rounding may leave something after the last */
        left -= s->weights[i];
        if (left < 0) break;
    }
    return s->candidates[chosen].id;
}

int32_t sl_sampler_sample(sl_sampler *s, const float *logits) {
    mark_window(s, 1);
    int32_t token = -1;
    if (is_greedy(s)) token = greedy(s, logits);
    else collect(s, logits);
    mark_window(s, 0);
    if (token >= 0) return token;
    float best = -INFINITY;
    for (size_t i = 0; i < s->n_candidate; i++)
        if (s->candidates[i].logit > best) best = s->candidates[i].logit;
    if (best == -INFINITY) return 0; /* nothing is possible: as greedy would */
    /* Where a device could draw as well, the candidates are in its order. */
    bool all = s->params.top_p >= 1 && s->params.min_p <= 0 && s->n_candidate > SL_SAMPLE_MAX_K;
    return draw(s, all ? 0 : s->n_candidate - keep_likely(s, best), best);
}

/* ---- drawing on a device ------------------------------------------------------------------------ */

/* The ids that the penalty falls on, each once; false: too many. */
static bool list_window(sl_sampler *s, sl_draw *out) {
    bool every = s->params.repeat_last_n < 0; /* then each is in the window once */
    out->n_window = 0;
    if (s->params.repeat_penalty == 1.0F) return true;
    bool fits = true;
    for (size_t i = 0; i < s->n_window && fits; i++) {
        int32_t id = s->window[i];
        if (!every && s->penalised[id]) continue;
        fits = out->n_window < SL_SAMPLE_MAX_WINDOW;
        if (fits) out->window[out->n_window++] = id;
        if (!every) s->penalised[id] = 1;
    }
    mark_window(s, 0);
    return fits;
}

bool sl_sampler_draw(sl_sampler *s, sl_draw *out) {
    bool likeliest = is_greedy(s);
    if ((!likeliest && s->n_candidate > SL_SAMPLE_MAX_K) || !list_window(s, out)) return false;
    out->temperature = likeliest ? 0 : s->params.temperature;
    out->top_k = likeliest ? 1 : (uint32_t)s->n_candidate;
    out->top_p = s->params.top_p;
    out->min_p = s->params.min_p;
    out->repeat_penalty = s->params.repeat_penalty;
    out->random = likeliest ? 0 : next_random(s->random);
    return true;
}

void sl_sampler_undraw(sl_sampler *s) {
    if (!is_greedy(s)) previous_random(s->random);
}
