/* S6 and S4D scans: every token against a float64 recurrence, cut into any chunks, channel ranges alone.
 *
 * The bounds are recurrences too: with a the decay, a state element's error obeys E <= |a| E + the rounding
 * of one step, and y's is the sum of |c| E and the rounding of its own sum. So one test serves one step
 * (tight) and a thousand (bounded, however slow the decay). */
#include "rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- S6 ----------------------------------------------------------------------------------------- */

typedef struct s6_case {
    rows r, bc, delta, skip, start, state, y; /* bc: B, then C, side by side */
    sl_scan_s6_args args;
} s6_case;

static s6_case s6_setup(check *c, size_t head_dim, size_t n_state, size_t n_tok, float decay) {
    s6_case v;
    check_case(c, "head_dim=%zu n_state=%zu n_tok=%zu decay=%g", head_dim, n_state, n_tok, (double)decay);
    v.r = rows_input(c, n_tok, head_dim, head_dim + 3, -2, 2);
    v.bc = rows_input(c, n_tok, 2 * n_state + 1, 2 * n_state + 1, -1, 1);
    v.delta = rows_make(c, n_tok, 1, 5);
    for (size_t t = 0; t < n_tok; t++) /* 1e-5 .. 1, and now and then a light token */
        v.delta.at[t * 5] = check_index(c, 8) ? exp2f(check_uniform(c, -16, 0)) : 0;
    check_seal(c, v.delta.at);
    v.skip = rows_input(c, 1, head_dim, head_dim, -1, 1);
    v.start = rows_input(c, n_state, head_dim, head_dim, -1, 1);
    v.state = rows_copy(c, v.start);
    v.y = rows_make(c, n_tok, head_dim, head_dim + 2);
    v.args = (sl_scan_s6_args){ .r = v.r.at, .b = v.bc.at, .c = v.bc.at + n_state + 1, .delta = v.delta.at,
                                .skip = v.skip.at, .state = v.state.at, .y = v.y.at, .decay = decay,
                                .r_stride = v.r.stride, .bc_stride = v.bc.stride, .delta_stride = 5,
                                .y_stride = v.y.stride, .head_dim = head_dim, .n_state = n_state,
                                .n_tok = n_tok };
    return v;
}

/* One element of the state over one token; fade = a - 1 has five roundings (its argument's, a function within
 * 1.6 ulp), the update four more. */
static double s6_step(double *s, double *error, double fade, double x, double b) {
    const double in = x * b;
    *error = (1 + fade) * *error + CHECK_U * (8 * fabs(fade * *s) + 4 * fabs(in));
    *s += fade * *s + in;
    *error += CHECK_U * fabs(*s) + 0x1p-148;
    return *s;
}

static void s6_compare(check *c, const s6_case *v) {
    const sl_scan_s6_args *a = &v->args;
    const size_t width = a->head_dim, n = width * a->n_state;
    double *want = doubles(a->n_tok * width), *bound = doubles(a->n_tok * width);
    double *s = doubles(n), *error = doubles(n);
    for (size_t i = 0; i < n; i++) s[i] = v->start.at[i];
    for (size_t t = 0; t < a->n_tok; t++) {
        const double delta = a->delta[t * a->delta_stride], fade = expm1(-(double)a->decay * delta);
        for (size_t p = 0; p < width; p++) {
            const double r = a->r[t * a->r_stride + p], skip = v->skip.at[p] * r;
            double sum = skip, size = fabs(skip), carried = 0;
            for (size_t j = 0; j < a->n_state; j++) {
                const size_t at = j * width + p;
                const double in = a->b[t * a->bc_stride + j], out = a->c[t * a->bc_stride + j];
                const double part = out * s6_step(&s[at], &error[at], fade, delta * r, in);
                sum += part;
                size += fabs(part);
                carried += fabs(out) * error[at];
            }
            want[t * width + p] = sum;
            bound[t * width + p] = carried + (double)(a->n_state + 3) * CHECK_U * (size + carried);
        }
    }
    rows_near(c, "y", v->y, want, bound);
    rows_near(c, "state", v->state, s, error);
    free(s), free(error), free(want), free(bound);
}

static void s6_again(check *c, const s6_case *v, size_t chunk) {
    const rows state = rows_copy(c, v->start), y = rows_make(c, v->y.n_row, v->y.width, v->y.stride);
    sl_scan_s6_args a = v->args;
    a.state = state.at;
    for (size_t t = 0; t < v->args.n_tok; t += chunk) {
        a.n_tok = v->args.n_tok - t < chunk ? v->args.n_tok - t : chunk;
        a.r = v->args.r + t * a.r_stride;
        a.b = v->args.b + t * a.bc_stride;
        a.c = v->args.c + t * a.bc_stride;
        a.delta = v->args.delta + t * a.delta_stride;
        a.y = y.at + t * a.y_stride;
        c->test->scan_s6(&a);
    }
    rows_same(c, "y in chunks", y, v->y);
    rows_same(c, "state after chunks", state, v->state);
}

static void s6_case_run(check *c, size_t head_dim, size_t n_state, size_t n_tok, float decay) {
    const s6_case v = s6_setup(c, head_dim, n_state, n_tok, decay);
    c->test->scan_s6(&v.args);
    s6_compare(c, &v);
    s6_again(c, &v, 1);
    if (n_tok > 3) s6_again(c, &v, 3);
    check_end(c);
}

void check_scan_s6(check *c) {
    static const size_t states[] = { 1, 2, 5, 16, 63 }, tokens[] = { 1, 8, 13 };
    static const float decays[] = { 1e-4f, 0.02f, 1, 16 };
    for (size_t p = 1; p <= 35; p++) s6_case_run(c, p, states[p % 5], tokens[p % 3], decays[p % 4]);
    s6_case_run(c, 64, 64, 8, 1);
    s6_case_run(c, 64, 128, 3, 4);
    s6_case_run(c, 101, 7, 9, 0.1f);
    s6_case_run(c, 128, 16, 5, 0.5f);
    for (size_t d = 0; d < 4; d++) s6_case_run(c, 20 + d, 3, 1000, decays[d]);
}

void bench_scan_s6(check *c) {
    static const size_t shapes[][3] = { { 64, 64, 1 }, { 64, 64, 64 }, { 16, 16, 64 }, { 128, 32, 64 } };
    for (size_t i = 0; i < 4; i++) {
        const size_t p = shapes[i][0], n = shapes[i][1], n_tok = shapes[i][2];
        const s6_case v = s6_setup(c, p, n, n_tok, 1);
        char label[64];
        snprintf(label, sizeof label, "%zu x %zu n_tok=%zu", p, n, n_tok);
        CHECK_BENCH(c, label, 8.0 * (double)(p * n * n_tok), 6.0 * (double)(p * n * n_tok),
                    c->test->scan_s6(&v.args));
        check_end(c);
    }
}

/* The new input decays at once: S = a (S + x B). */
void mutant_scan_s6_late_decay(const sl_scan_s6_args *a) {
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t p = 0; p < a->head_dim; p++) {
            const float delta = a->delta[t * a->delta_stride], r = a->r[t * a->r_stride + p];
            float y = 0;
            for (size_t n = 0; n < a->n_state; n++) {
                float *s = a->state + n * a->head_dim + p;
                *s = expf(-a->decay * delta) * (*s + delta * r * a->b[t * a->bc_stride + n]);
                y += *s * a->c[t * a->bc_stride + n];
            }
            a->y[t * a->y_stride + p] = y + a->skip[p] * r;
        }
}

/* Long memories lose their length: decays in half precision. */
void mutant_scan_s6_coarse_decay(const sl_scan_s6_args *args) {
    sl_scan_s6_args a = *args;
    a.decay = sl_f16_to_f32(sl_f32_to_f16(a.decay));
    sl_kernels_select(SL_CPU_REF).scan_s6(&a);
}

/* A chunk starts from nothing. */
void mutant_scan_s6_chunk_reset(const sl_scan_s6_args *args) {
    if (args->n_tok > 8) memset(args->state, 0, args->head_dim * args->n_state * sizeof *args->state);
    sl_kernels_select(SL_CPU_REF).scan_s6(args);
}

/* ---- S4D ---------------------------------------------------------------------------------------- */

typedef struct s4d_case {
    rows r, a, k, skip, start, state, y;
    sl_scan_s4d_args args;
} s4d_case;

/* Poles of radius 0.5 .. 1 - slow at any angle. */
static s4d_case s4d_setup(check *c, size_t n, size_t n_pole, size_t n_tok, double slow) {
    s4d_case v;
    check_case(c, "n=%zu n_pole=%zu n_tok=%zu slow=%g", n, n_pole, n_tok, slow);
    const size_t stride = n + 3;
    v.r = rows_input(c, n_tok, n, n + 1, -1, 1);
    v.a = rows_make(c, 2 * n_pole, n, stride);
    for (size_t m = 0; m < n_pole; m++)
        for (size_t i = 0; i < n; i++) {
            const double radius = 1 - slow - 0.5 * pow((double)check_uniform(c, 0, 1), 4);
            const double angle = (double)check_uniform(c, -3, 3);
            v.a.at[2 * m * stride + i] = (float)(radius * cos(angle));
            v.a.at[(2 * m + 1) * stride + i] = (float)(radius * sin(angle));
        }
    check_seal(c, v.a.at);
    v.k = rows_input(c, 2 * n_pole, n, stride, -1, 1);
    v.skip = rows_input(c, 1, n, n, -1, 1);
    v.start = rows_input(c, 2 * n_pole, n, stride, -1, 1);
    v.state = rows_copy(c, v.start);
    v.y = rows_make(c, n_tok, n, n + 2);
    v.args = (sl_scan_s4d_args){ .r = v.r.at, .a = v.a.at, .k = v.k.at, .skip = v.skip.at,
                                 .state = v.state.at, .y = v.y.at, .r_stride = v.r.stride,
                                 .y_stride = v.y.stride, .pole_stride = stride, .n = n, .n_pole = n_pole,
                                 .n_tok = n_tok };
    return v;
}

/* One channel over all tokens. The error is that of the complex number: it shrinks with |a|, and a step adds
 * three roundings of each part's terms. */
static void s4d_channel(const s4d_case *v, size_t i, double *s, double *error, double *want, double *bound) {
    const sl_scan_s4d_args *a = &v->args;
    for (size_t t = 0; t < a->n_tok; t++) {
        const double r = a->r[t * a->r_stride + i];
        double sum = v->skip.at[i] * r, size = fabs(sum), carried = 0;
        for (size_t m = 0; m < a->n_pole; m++) {
            const size_t re = 2 * m * a->pole_stride + i, im = re + a->pole_stride;
            const double a_re = a->a[re], a_im = a->a[im], s_re = s[2 * m], s_im = s[2 * m + 1];
            s[2 * m] = a_re * s_re - a_im * s_im + r;
            s[2 * m + 1] = a_re * s_im + a_im * s_re;
            const double terms = hypot(fabs(a_re * s_re) + fabs(a_im * s_im) + fabs(r),
                                       fabs(a_re * s_im) + fabs(a_im * s_re));
            error[m] = hypot(a_re, a_im) * error[m] + 3 * CHECK_U * terms;
            sum += a->k[re] * s[2 * m] - a->k[im] * s[2 * m + 1];
            size += fabs(a->k[re] * s[2 * m]) + fabs(a->k[im] * s[2 * m + 1]);
            carried += hypot((double)a->k[re], (double)a->k[im]) * error[m];
        }
        want[t * a->n + i] = sum;
        bound[t * a->n + i] = carried + (double)(2 * a->n_pole + 3) * CHECK_U * (size + carried);
    }
}

static void s4d_compare(check *c, const s4d_case *v) {
    const sl_scan_s4d_args *a = &v->args;
    const size_t n = a->n, n_part = 2 * a->n_pole;
    double *want = doubles(a->n_tok * n), *bound = doubles(a->n_tok * n);
    double *s = doubles(n_part), *error = doubles(a->n_pole);
    for (size_t i = 0; i < n; i++) {
        for (size_t m = 0; m < n_part; m++) s[m] = v->start.at[m * a->pole_stride + i], error[m / 2] = 0;
        s4d_channel(v, i, s, error, want, bound);
        for (size_t m = 0; m < n_part; m++)
            check_near(c, "state", m * n + i, v->state.at[m * a->pole_stride + i], s[m], error[m / 2]);
    }
    rows_near(c, "y", v->y, want, bound);
    free(want), free(bound), free(s), free(error);
}

/* In chunks, on the channels from first on; the others keep what the whole run left. */
static void s4d_again(check *c, const s4d_case *v, size_t chunk, size_t first) {
    const rows state = rows_copy(c, v->state), y = rows_copy(c, v->y);
    sl_scan_s4d_args a = v->args;
    a.n -= first;
    for (size_t m = 0; m < state.n_row; m++)
        memcpy(state.at + m * state.stride + first, v->start.at + m * state.stride + first, a.n * sizeof *a.y);
    for (size_t t = 0; t < y.n_row; t++) memset(y.at + t * y.stride + first, 0, a.n * sizeof *y.at);
    a.a += first, a.k += first, a.skip += first;
    a.state = state.at + first;
    for (size_t t = 0; t < v->args.n_tok; t += chunk) {
        a.n_tok = v->args.n_tok - t < chunk ? v->args.n_tok - t : chunk;
        a.r = v->args.r + t * a.r_stride + first;
        a.y = y.at + t * a.y_stride + first;
        c->test->scan_s4d(&a);
    }
    rows_same(c, first ? "y of a channel range" : "y in chunks", y, v->y);
    rows_same(c, first ? "state of a channel range" : "state after chunks", state, v->state);
}

static void s4d_case_run(check *c, size_t n, size_t n_pole, size_t n_tok, double slow) {
    const s4d_case v = s4d_setup(c, n, n_pole, n_tok, slow);
    c->test->scan_s4d(&v.args);
    s4d_compare(c, &v);
    s4d_again(c, &v, 1, 0);
    if (n_tok > 3) s4d_again(c, &v, 3, 0);
    if (n > 16) s4d_again(c, &v, n_tok, 16);
    check_end(c);
}

void check_scan_s4d(check *c) {
    static const size_t poles[] = { 1, 2, 5, 8, 32 }, tokens[] = { 1, 8, 13 };
    for (size_t n = 1; n <= 51; n++) s4d_case_run(c, n, poles[n % 5], tokens[n % 3], 1e-3);
    s4d_case_run(c, 128, 32, 5, 1e-3);
    s4d_case_run(c, 101, 3, 9, 1e-2);
    s4d_case_run(c, 20, 2, 1000, 1e-4);
    s4d_case_run(c, 3, 4, 1000, 0.05);
}

void bench_scan_s4d(check *c) {
    for (size_t n_tok = 1; n_tok <= 64; n_tok += 63) {
        const s4d_case v = s4d_setup(c, 256, 32, n_tok, 1e-3);
        const double steps = 256.0 * 32 * (double)n_tok;
        CHECK_BENCH(c, n_tok > 1 ? "256 x 32 n_tok=64" : "256 x 32 n_tok=1", 32 * steps, 12 * steps,
                    c->test->scan_s4d(&v.args));
        check_end(c);
    }
}

/* Adds the imaginary part's contribution that must be taken off. */
void mutant_scan_s4d_conjugate(const sl_scan_s4d_args *a) {
    for (size_t t = 0; t < a->n_tok; t++)
        for (size_t i = 0; i < a->n; i++) {
            const float r = a->r[t * a->r_stride + i];
            float y = a->skip[i] * r;
            for (size_t m = 0; m < a->n_pole; m++) {
                const size_t re = 2 * m * a->pole_stride + i, im = re + a->pole_stride;
                const float old = a->state[re];
                a->state[re] = a->a[re] * old - a->a[im] * a->state[im] + r;
                a->state[im] = a->a[re] * a->state[im] + a->a[im] * old;
                y += a->k[re] * a->state[re] + a->k[im] * a->state[im];
            }
            a->y[t * a->y_stride + i] = y;
        }
}
