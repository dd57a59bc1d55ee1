/* Gated causal convolution: against float64, cut into any chunks, channel ranges alone.
 *
 * z = p v is rounded to f32 by contract (it is state), so the carried rows must match to the bit; the sum of
 * k products and the bias errs by at most (k + 1) u of the sum of their magnitudes. */
#include "rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct conv_case {
    rows in, taps, bias, start, carried, out; /* in: p, then v, side by side */
    sl_conv_args args;
} conv_case;

/* Every array has a stride of its own, so that a mistaken one shows. */
static conv_case setup(check *c, size_t n, size_t n_tok, size_t k) {
    conv_case v;
    check_case(c, "n=%zu n_tok=%zu k=%zu", n, n_tok, k);
    v.in = rows_input(c, n_tok, 2 * n + 1, 2 * n + 4, -1.5f, 1.5f);
    v.taps = rows_input(c, k, n, n + 3, -1, 1);
    v.bias = rows_input(c, 1, n, n, -1, 1);
    v.start = rows_input(c, k > 1 ? k - 1 : 1, n, n + 5, -1, 1);
    v.carried = rows_copy(c, v.start);
    v.out = rows_make(c, n_tok, n, n + 2);
    v.args = (sl_conv_args){ .p = v.in.at, .v = v.in.at + n + 1, .s = v.out.at, .taps = v.taps.at,
                             .bias = v.bias.at, .state = v.carried.at, .in_stride = v.in.stride,
                             .out_stride = v.out.stride, .taps_stride = v.taps.stride,
                             .state_stride = v.start.stride, .n = n, .n_tok = n_tok, .k = k };
    return v;
}

/* z of token t - back, from before the call if it is negative */
static float sample(const conv_case *v, size_t t, size_t back, size_t i) {
    const sl_conv_args *a = &v->args;
    if (t < back) return v->start.at[(a->k - 1 + t - back) * v->start.stride + i];
    return a->p[(t - back) * a->in_stride + i] * a->v[(t - back) * a->in_stride + i];
}

static void compare(check *c, const conv_case *v) {
    const sl_conv_args *a = &v->args;
    double *want = doubles(a->n_tok * a->n), *bound = doubles(a->n_tok * a->n);
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t i = 0; i < a->n; i++) {
            double sum = v->bias.at[i], size = fabs(sum);
            for (size_t j = 0; j < a->k; j++) {
                const double part = (double)v->taps.at[j * v->taps.stride + i] * sample(v, t, a->k - 1 - j, i);
                sum += part;
                size += fabs(part);
            }
            want[t * a->n + i] = sum;
            bound[t * a->n + i] = (double)(a->k + 1) * CHECK_U * size;
        }
    rows_near(c, "s", v->out, want, bound);
    free(want);
    free(bound);
    rows state = rows_copy(c, v->start);
    for (size_t j = 0; j + 1 < a->k; j++)
        for (size_t i = 0; i < a->n; i++)
            state.at[j * state.stride + i] = sample(v, a->n_tok - 1, a->k - 2 - j, i);
    rows_same(c, "state", v->carried, state);
}

/* The same tokens in chunks, on the channels from first on; the others keep what the whole run left. */
static void again(check *c, const conv_case *v, size_t chunk, size_t first) {
    const rows state = rows_copy(c, v->carried), out = rows_copy(c, v->out);
    sl_conv_args a = v->args;
    a.n -= first;
    for (size_t j = 0; j < state.n_row; j++)
        memcpy(state.at + j * state.stride + first, v->start.at + j * state.stride + first, a.n * sizeof *a.s);
    for (size_t t = 0; t < out.n_row; t++) memset(out.at + t * out.stride + first, 0, a.n * sizeof *out.at);
    a.taps += first, a.bias += first;
    a.state = state.at + first;
    for (size_t t = 0; t < v->args.n_tok; t += chunk) {
        a.n_tok = v->args.n_tok - t < chunk ? v->args.n_tok - t : chunk;
        a.p = v->args.p + t * a.in_stride + first;
        a.v = v->args.v + t * a.in_stride + first;
        a.s = out.at + t * a.out_stride + first;
        c->test->conv_gate(&a);
    }
    rows_same(c, first ? "s of a channel range" : "s in chunks", out, v->out);
    rows_same(c, first ? "state of a channel range" : "state after chunks", state, v->carried);
}

static void one_case(check *c, size_t n, size_t n_tok, size_t k) {
    const conv_case v = setup(c, n, n_tok, k);
    c->test->conv_gate(&v.args);
    compare(c, &v);
    again(c, &v, 1, 0);
    again(c, &v, 3, 0);
    if (n > 16) again(c, &v, n_tok, 16);
    check_end(c);
}

void check_conv_gate(check *c) {
    static const size_t tokens[] = { 1, 2, 3, 8, 17, 40 }, sizes[] = { 64, 100, 129, 256 };
    for (size_t n = 1; n <= 35; n++)
        for (size_t k = 1; k <= 6; k++) one_case(c, n, tokens[(n + k) % 6], k);
    for (size_t s = 0; s < 4; s++)
        for (size_t k = 1; k <= 9; k++) one_case(c, sizes[s], tokens[k % 6], k);
}

void bench_conv_gate(check *c) {
    for (size_t n_tok = 1; n_tok <= 64; n_tok += 63)
        for (size_t k = 4; k <= 7; k += 3) {
            const conv_case v = setup(c, 2048, n_tok, k);
            char label[64];
            snprintf(label, sizeof label, "n=2048 k=%zu n_tok=%zu", k, n_tok);
            CHECK_BENCH(c, label, 2048.0 * 4 * (double)(3 * n_tok + 3 * k),
                        2048.0 * (double)(n_tok * (2 * k + 1)), c->test->conv_gate(&v.args));
            check_end(c);
        }
}

/* Forgets to advance the carried rows. */
void mutant_conv_gate_frozen(const sl_conv_args *args) {
    sl_conv_args a = *args;
    if (a.k < 2) {
        sl_kernels_select(SL_CPU_REF).conv_gate(&a);
        return;
    }
    const size_t n = (a.k - 2) * a.state_stride + a.n;
    float *kept = malloc(n * sizeof *kept);
    if (!kept) abort();
    memcpy(kept, a.state, n * sizeof *kept);
    sl_kernels_select(SL_CPU_REF).conv_gate(&a);
    memcpy(a.state, kept, n * sizeof *kept);
    free(kept);
}

/* The newest tap on the oldest sample, for the width in use everywhere. */
void mutant_conv_gate_reversed(const sl_conv_args *args) {
    sl_conv_args a = *args;
    float *taps = malloc(a.k * a.n * sizeof *taps);
    if (!taps) abort();
    for (size_t j = 0; j < a.k; j++)
        memcpy(taps + j * a.n, a.taps + (a.k == 4 ? 3 - j : j) * a.taps_stride, a.n * sizeof *taps);
    a.taps = taps;
    a.taps_stride = a.n;
    sl_kernels_select(SL_CPU_REF).conv_gate(&a);
    free(taps);
}
