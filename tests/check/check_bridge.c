/* Recurrent gating bridge: every token against a float64 recurrence, cut into any chunks, channel ranges alone,
 * with and without deep tokens, decays from total to 1e-12.
 *
 * Roundings, in units of u: a sigmoid 5, log a 6, expm1 of it 10, the root of 1 - a^2 12, the update 2. The
 * error of h obeys E <= a E + 11 |(a - 1) h| + 20 |gain i s| + |h|, and o inherits it through kappa and the
 * slope of beta. Gates and their biases are added in f32 by contract. */
#include "rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum deep_kind { ALL_DEEP, MIXED, ALL_LIGHT, N_DEEP_KIND } deep_kind;

typedef struct bridge_case {
    rows s, q, gates, m, rho, parameters, start, h, o; /* gates: i, then f; parameters: six rows */
    int32_t *deep_row;
    sl_bridge_args args;
} bridge_case;

/* Compact rows of m for about half of the tokens, not in order of the tokens to show a mistaken index. */
static void setup_deep(check *c, bridge_case *v, size_t n, size_t n_tok, deep_kind kind) {
    size_t n_deep = 0;
    v->deep_row = check_buffer(c, n_tok * sizeof *v->deep_row);
    for (size_t t = 0; t < n_tok; t++)
        v->deep_row[t] = kind == MIXED && check_index(c, 2) ? (int32_t)n_deep++ : -1;
    check_seal(c, v->deep_row);
    v->rho = rows_input(c, n_tok, 1, 1, 0, 1);
    v->m = rows_input(c, kind == ALL_DEEP ? n_tok : n_deep ? n_deep : 1, n, n + 4, -2, 2);
}

static bridge_case setup(check *c, size_t n, size_t n_tok, deep_kind kind) {
    static const char *const names[] = { "all deep", "mixed", "all light" };
    bridge_case v;
    check_case(c, "n=%zu n_tok=%zu %s", n, n_tok, names[kind]);
    v.s = rows_input(c, n_tok, n, n + 1, -2, 2);
    v.q = rows_input(c, n_tok, n, n + 2, -2, 2);
    v.gates = rows_input(c, n_tok, 2 * n + 1, 2 * n + 3, -6, 6);
    v.parameters = rows_random(c, 6, n, n, -1, 1);
    float *lambda = v.parameters.at + 2 * n;
    for (size_t i = 0; i < n; i++) lambda[i] = -exp2f(check_uniform(c, -40, 4));
    check_seal(c, v.parameters.at);
    v.start = rows_input(c, 1, n, n, -1, 1);
    v.h = rows_copy(c, v.start);
    v.o = rows_make(c, n_tok, n, n + 5);
    setup_deep(c, &v, n, n_tok, kind);
    const float *p = v.parameters.at;
    v.args = (sl_bridge_args){ .s = v.s.at, .q = v.q.at, .gate_i = v.gates.at, .gate_f = v.gates.at + n + 1,
                               .bias_i = p, .bias_f = p + n, .lambda = lambda, .kappa = p + 3 * n,
                               .omega = p + 4 * n, .gamma = p + 5 * n, .m = kind == ALL_LIGHT ? NULL : v.m.at,
                               .rho = kind == ALL_DEEP ? NULL : v.rho.at,
                               .deep_row = kind == ALL_DEEP ? NULL : v.deep_row, .h = v.h.at, .o = v.o.at,
                               .s_stride = v.s.stride, .q_stride = v.q.stride, .gate_stride = v.gates.stride,
                               .m_stride = v.m.stride, .o_stride = v.o.stride, .n = n, .n_tok = n_tok };
    return v;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* One channel of one token; *h and *error go on to the next. */
static double step(const sl_bridge_args *a, size_t t, size_t i, double *h, double *error, double *bound) {
    const double s = a->s[t * a->s_stride + i], q = a->q[t * a->q_stride + i];
    const double kappa = a->kappa[i], omega = a->omega[i], gamma = a->gamma[i];
    const float gate_i = a->gate_i[t * a->gate_stride + i] + a->bias_i[i];
    const float gate_f = a->gate_f[t * a->gate_stride + i] + a->bias_f[i];
    const double la = a->lambda[i] * sigmoid((double)gate_f);
    const double faded = expm1(la) * *h, in = sqrt(-expm1(2 * la)) * sigmoid((double)gate_i) * s;
    *h += faded + in;
    *error = exp(la) * *error + CHECK_U * (11 * fabs(faded) + 20 * fabs(in) + fabs(*h)) + 0x1p-148;

    const double light = q * (s + kappa * *h), beta = sigmoid(omega * *h + gamma);
    const ptrdiff_t row = a->deep_row ? a->deep_row[t] : (ptrdiff_t)t;
    const double rho = a->rho ? a->rho[t] : 1, m = row < 0 ? 0 : rho * a->m[(size_t)row * a->m_stride + i];
    const double light_error = fabs(q) * (fabs(kappa) * *error + 3 * CHECK_U * (fabs(s) + fabs(kappa * *h)));
    const double slope = fabs(omega) * *error + 2 * CHECK_U * (fabs(omega * *h) + fabs(gamma));
    const double beta_error = beta * (1 - beta) * slope + 6 * CHECK_U * beta;
    *bound = (1 - beta) * light_error + (fabs(light) + fabs(m)) * (beta_error + CHECK_U) +
             4 * CHECK_U * (fabs((1 - beta) * light) + fabs(beta * m)) + 0x1p-148;
    return (1 - beta) * light + beta * m;
}

static void compare(check *c, const bridge_case *v) {
    const sl_bridge_args *a = &v->args;
    double *want = doubles(a->n_tok * a->n), *bound = doubles(a->n_tok * a->n);
    for (size_t i = 0; i < a->n; i++) {
        double h = v->start.at[i], error = 0;
        for (size_t t = 0; t < a->n_tok; t++)
            want[t * a->n + i] = step(a, t, i, &h, &error, &bound[t * a->n + i]);
        if (!check_near(c, "h", i, v->h.at[i], h, error)) break;
    }
    rows_near(c, "o", v->o, want, bound);
    free(want);
    free(bound);
}

/* In chunks, on the channels from first on; the others keep what the whole run left. */
static void again(check *c, const bridge_case *v, size_t chunk, size_t first) {
    const rows h = rows_copy(c, v->h), o = rows_copy(c, v->o);
    sl_bridge_args a = v->args;
    a.n -= first;
    memcpy(h.at + first, v->start.at + first, a.n * sizeof *h.at);
    for (size_t t = 0; t < o.n_row; t++) memset(o.at + t * o.stride + first, 0, a.n * sizeof *o.at);
    a.bias_i += first, a.bias_f += first, a.lambda += first;
    a.kappa += first, a.omega += first, a.gamma += first;
    a.h = h.at + first;
    for (size_t t = 0; t < v->args.n_tok; t += chunk) {
        a.n_tok = v->args.n_tok - t < chunk ? v->args.n_tok - t : chunk;
        a.s = v->args.s + t * a.s_stride + first;
        a.q = v->args.q + t * a.q_stride + first;
        a.gate_i = v->args.gate_i + t * a.gate_stride + first;
        a.gate_f = v->args.gate_f + t * a.gate_stride + first;
        a.o = o.at + t * a.o_stride + first;
        a.rho = v->args.rho ? v->args.rho + t : NULL;
        a.deep_row = v->args.deep_row ? v->args.deep_row + t : NULL;
        /* without deep_row a call's rows of m are its own tokens' */
        if (v->args.m) a.m = v->args.m + (v->args.deep_row ? 0 : t) * a.m_stride + first;
        c->test->bridge(&a);
    }
    rows_same(c, first ? "o of a channel range" : "o in chunks", o, v->o);
    rows_same(c, first ? "h of a channel range" : "h after chunks", h, v->h);
}

static void one_case(check *c, size_t n, size_t n_tok, deep_kind kind) {
    const bridge_case v = setup(c, n, n_tok, kind);
    c->test->bridge(&v.args);
    compare(c, &v);
    again(c, &v, 1, 0);
    if (n_tok > 3) again(c, &v, 3, 0);
    if (n > 16) again(c, &v, n_tok, 16);
    check_end(c);
}

void check_bridge(check *c) {
    static const size_t tokens[] = { 1, 2, 7, 8, 9, 21 };
    for (size_t n = 1; n <= 35; n++)
        for (int kind = 0; kind < N_DEEP_KIND; kind++) one_case(c, n, tokens[n % 6], (deep_kind)kind);
    one_case(c, 64, 8, MIXED);
    one_case(c, 101, 5, MIXED);
    one_case(c, 256, 17, ALL_DEEP);
    one_case(c, 40, 1000, MIXED);
}

void bench_bridge(check *c) {
    for (size_t n_tok = 1; n_tok <= 64; n_tok += 63) {
        const bridge_case v = setup(c, 2048, n_tok, MIXED);
        const double n = 2048.0 * (double)n_tok;
        CHECK_BENCH(c, n_tok > 1 ? "n=2048 n_tok=64" : "n=2048 n_tok=1", 5.5 * 4 * n, 0,
                    c->test->bridge(&v.args));
        check_end(c);
    }
}

/* sqrt(1 - a^2) from a rounded to f32. */
void mutant_bridge_rounded_decay(const sl_bridge_args *a) {
    for (size_t i = 0; i < a->n; i++)
        for (size_t t = 0; t < a->n_tok; t++) {
            const double in = sigmoid((double)(a->gate_i[t * a->gate_stride + i] + a->bias_i[i]));
            const double forget = sigmoid((double)(a->gate_f[t * a->gate_stride + i] + a->bias_f[i]));
            const float decay = expf((float)(a->lambda[i] * forget)), gain = sqrtf(1 - decay * decay);
            const double s = a->s[t * a->s_stride + i];
            a->h[i] = (float)(decay * (double)a->h[i] + gain * in * s);
            const double beta = sigmoid((double)(a->omega[i] * a->h[i] + a->gamma[i]));
            double o = (1 - beta) * a->q[t * a->q_stride + i] * (s + a->kappa[i] * (double)a->h[i]);
            const ptrdiff_t row = a->deep_row ? a->deep_row[t] : (ptrdiff_t)t;
            if (row >= 0) o += beta * (a->rho ? (double)a->rho[t] : 1) * a->m[(size_t)row * a->m_stride + i];
            a->o[t * a->o_stride + i] = (float)o;
        }
}

/* Takes a light token's share from the first deep row. */
void mutant_bridge_light_is_deep(const sl_bridge_args *args) {
    sl_bridge_args a = *args;
    a.n_tok = 1;
    for (size_t t = 0; t < args->n_tok; t++) {
        const int32_t row = args->deep_row ? args->deep_row[t] : (int32_t)t;
        const int32_t first = row < 0 && args->m ? 0 : row;
        a.deep_row = &first;
        a.s = args->s + t * a.s_stride, a.q = args->q + t * a.q_stride, a.o = args->o + t * a.o_stride;
        a.gate_i = args->gate_i + t * a.gate_stride, a.gate_f = args->gate_f + t * a.gate_stride;
        a.rho = args->rho ? args->rho + t : NULL;
        sl_kernels_select(SL_CPU_REF).bridge(&a);
    }
}
