/* The CUDA kernels for rows in batches: norms and activations over as many rows as the device says, in f32 and
 * f16, the router, the compaction of its deep rows, and copies by index. Against float64, or exactly. */
#include "cuda_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float EPS = 1e-5f;
static double silu(double x) { return x / (1 + exp(-x)); }

/* Rows that the type of activations holds exactly. */
static float *make_rows(check *c, sl_act act, size_t n_row, size_t n) {
    float *x = check_buffer(c, n_row * n * sizeof *x);
    check_fill_range(c, x, n_row * n, -3, 3);
    for (size_t i = 0; i < n_row * n; i++) x[i] = cuda_rounded(act, x[i]);
    return x;
}

/* n rows are there, of max that the host knows. */
static sl_rows put_counted(uint32_t n, uint32_t max) {
    return (sl_rows){ cuda_put(&n, sizeof n, 4), NULL, max, false };
}

/* Rows from n on are as cuda_new made them, or keep their values (kept). */
static void untouched(check *c, const float *y, const float *kept, size_t n, size_t n_row, size_t width) {
    for (size_t i = n * width; i < n_row * width; i++) {
        if (kept ? y[i] == kept[i] : isnan(y[i])) continue;
        check_fail(c, "row %zu of %zu was written, where %zu are there", i / width, n_row, n);
        return;
    }
}

/* ---- norms -------------------------------------------------------------------------------------- */

static void norm_truth(check *c, const float *x, const float *w, const float *y, size_t n, sl_act act) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    const double scale = 1 / sqrt(sum / (double)n + (double)EPS),
                 u = ((double)(n + 1) / 2 + 5) * CHECK_U;
    for (size_t i = 0; i < n; i++) {
        const double want = x[i] * scale * w[i];
        if (!check_near(c, "y", i, y[i], want, u * fabs(want) + cuda_rounding(act, want) + 0x1p-140)) return;
    }
}

/* Increasing places of n_row rows among n_src. */
static uint32_t *make_index(check *c, uint32_t n_row, uint32_t n_src) {
    uint32_t *index = check_buffer(c, (n_row + 1) * sizeof *index);
    for (uint32_t i = 0, at = 0; i < n_row; i++) {
        index[i] = at + (uint32_t)check_index(c, (n_src - at) / (n_row - i));
        at = index[i] + 1;
    }
    return index;
}

static void norm_case(check *c, bool x_f32, sl_act act, uint32_t n_row, uint32_t n_group, uint32_t n,
                      bool shared, bool in_place) {
    const uint32_t width = n_group * n, max = n_row + 3;
    check_case(c, "x %s, y %s, rows=%u groups=%u n=%u%s%s", cuda_act_name(x_f32 ? SL_ACT_F32 : act),
               cuda_act_name(act), n_row, n_group, n, shared ? " shared weights" : "", in_place ? " in place" : "");
    sl_norm_args a = {
        .n_group = n_group, .n = n, .w_step = shared ? 0 : n, .eps = EPS, .x_f32 = x_f32, .act = act
    };
    const float *x = make_rows(c, x_f32 ? SL_ACT_F32 : act, max, width);
    float *w = check_buffer(c, width * sizeof *w), *y = check_buffer(c, max * width * sizeof *y);
    check_fill_range(c, w, width, -2, 2);
    a.x = cuda_put_rows(x_f32 ? SL_ACT_F32 : act, x, width, width, max, &a.x_stride);
    a.y = cuda_new_rows(act, width, max, &a.y_stride);
    a.w = cuda_put(w, (shared ? n : width) * sizeof *w, 4);
    a.rows = put_counted(n_row, max);
    const uint32_t *index = make_index(c, n_row, max);
    a.rows.in_place = in_place;
    if (in_place) a.rows.index = cuda_put(index, n_row * sizeof *index, 4);
    cuda_run(cuda.rmsnorm(&a, NULL));
    cuda_get_rows(act, y, width, width, max, a.y, a.y_stride);
    for (size_t i = 0; i < n_row * n_group; i++) {
        const size_t row = in_place ? index[i / n_group] : i / n_group;
        norm_truth(c, x + row * width + i % n_group * n, w + (shared ? 0 : i % n_group * n), y + i * n, n, act);
    }
    untouched(c, y, NULL, n_row, max, width);
    cuda_free();
    check_end(c);
}

void check_cuda_norm_rows(check *c) {
    static const uint32_t sizes[][2] = { { 1, 1 },   { 9, 3 },   { 20, 64 }, { 1, 100 },
                                         { 3, 512 }, { 2, 513 }, { 1, 4099 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 3; kind++)
            norm_case(c, kind == 2, kind ? SL_ACT_F16 : SL_ACT_F32, (uint32_t)s, sizes[s][0], sizes[s][1],
                      s % 2 == 0, (s + (size_t)kind) % 2 > 0);
}

/* ---- activations -------------------------------------------------------------------------------- */

static void silu_case(check *c, sl_act act, uint32_t n_row, uint32_t n, uint32_t lift, bool side_by_side) {
    check_case(c, "%s rows=%u n=%u lift=%u%s", cuda_act_name(act), n_row, n, lift,
               side_by_side ? " side by side" : "");
    const uint32_t max = n_row + 2;
    const float *x = make_rows(c, act, max, 2 * n);
    float *y = check_buffer(c, max * 2 * n * sizeof *y);
    sl_silu_args a = { .n = n, .lift = lift, .act = act, .rows = put_counted(n_row, max) };
    unsigned char *both = cuda_put_rows(act, x, 2 * n, 2 * n, max, &a.gate_stride);
    a.gate = both, a.up_stride = a.gate_stride;
    a.up = side_by_side ? both + n * sl_act_size(act) : cuda_put_rows(act, x + n, 2 * n, n, max, &a.up_stride);
    cuda_run(cuda.silu_mul(&a, NULL));
    cuda_get_rows(act, y, 2 * n, 2 * n, max, both, a.gate_stride);
    for (size_t i = 0; i < (size_t)n_row * 2 * n; i++) {
        const bool gate = i % (2 * n) < n;
        const double want = gate ? ldexp(silu((double)x[i]) * x[i + n], -(int)lift) : (double)x[i];
        const double bound = gate ? 9 * CHECK_U * fabs(want) + cuda_rounding(act, want) + 0x1p-133 : 0;
        if (!check_near(c, "y", i, y[i], want, bound)) break;
    }
    untouched(c, y, x, n_row, max, 2 * n);
    cuda_free();
    check_end(c);
}

void check_cuda_silu_rows(check *c) {
    static const uint32_t sizes[] = { 1, 2, 3, 4, 5, 63, 64, 1023, 1025, 5504 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int act = 0; act < 2; act++)
            silu_case(c, (sl_act)act, (uint32_t)(s % 4), sizes[s], s % 2 ? 6 : 0, s % 3 < 2);
}

/* ---- compaction --------------------------------------------------------------------------------- */

typedef struct split { uint32_t n, *index, *deep_start, *start; int32_t *row_of; float *rho; } split;

static split split_truth(check *c, uint32_t n_tok, uint32_t n_run, int share) {
    split v = { .index = check_buffer(c, n_tok * 4), .row_of = check_buffer(c, n_tok * 4),
                .start = check_buffer(c, (n_run + 1) * 4), .deep_start = check_buffer(c, (n_run + 1) * 4),
                .rho = check_buffer(c, n_tok * 4) };
    for (uint32_t r = 0; r <= n_run; r++) v.start[r] = (uint32_t)check_index(c, n_tok + 1);
    v.start[0] = 0, v.start[n_run] = n_tok;
    for (uint32_t i = 1; i < n_run; i++) /* in order; equal ones are empty runs */
        for (uint32_t j = i; j > 1 && v.start[j] < v.start[j - 1]; j--) {
            const uint32_t swap = v.start[j];
            v.start[j] = v.start[j - 1], v.start[j - 1] = swap;
        }
    for (uint32_t t = 0, run = 0; t < n_tok; t++) {
        while (run <= n_run && v.start[run] == t) v.deep_start[run++] = v.n;
        v.rho[t] = (int)check_index(c, 4) < share ? check_uniform(c, 1e-6f, 1) : 0;
        v.row_of[t] = v.rho[t] > 0 ? (int32_t)v.n : -1;
        if (v.rho[t] > 0) v.index[v.n++] = t;
    }
    for (uint32_t r = 0; r <= n_run; r++)
        if (v.start[r] == n_tok) v.deep_start[r] = v.n;
    return v;
}

static void split_case(check *c, uint32_t n_tok, uint32_t n_run, int share) {
    check_case(c, "n_tok=%u n_run=%u share=%d/4", n_tok, n_run, share);
    const split want = split_truth(c, n_tok, n_run, share);
    const unsigned long long before[2] = { 1000, 7 },
                             after[2] = { 1000 + 2ull * want.n, 7 + 2ull * (want.n > 0) };
    unsigned long long tally[2];
    uint32_t n, *index = check_buffer(c, n_tok * 4), *starts = check_buffer(c, (n_run + 1) * 4);
    int32_t *row_of = check_buffer(c, n_tok * 4);
    const sl_split_args a = { .rho = cuda_put(want.rho, n_tok * 4, 4),
                              .start = cuda_put(want.start, (n_run + 1) * 4, 4),
                              .n = cuda_new(4, 4),
                              .index = cuda_new(n_tok * 4, 4),
                              .row_of = cuda_new(n_tok * 4, 4),
                              .deep_start = cuda_new((n_run + 1) * 4, 4),
                              .tally = cuda_put(before, sizeof before, 8),
                              .n_tok = n_tok,
                              .n_run = n_run };
    cuda_run(cuda.route_split(&a, NULL));
    cuda_run(cuda.route_split(&a, NULL));
    cuda_get(&n, a.n, 4), cuda_get(index, a.index, n_tok * 4), cuda_get(row_of, a.row_of, n_tok * 4);
    cuda_get(starts, a.deep_start, (n_run + 1) * 4), cuda_get(tally, a.tally, sizeof tally);
    check_same(c, "n", &n, &want.n, sizeof n);
    check_same(c, "index", index, want.index, want.n * 4);
    check_same(c, "row_of", row_of, want.row_of, n_tok * 4);
    check_same(c, "deep_start", starts, want.deep_start, (n_run + 1) * 4);
    check_same(c, "tally", tally, after, sizeof tally);
    cuda_free();
    check_end(c);
}

void check_cuda_route_split(check *c) {
    static const uint32_t sizes[][2] = { { 1, 1 },    { 2, 5 },      { 31, 3 },   { 33, 33 },
                                         { 1023, 7 }, { 1025, 300 }, { 3000, 40 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int share = 0; share <= 4; share += 2) split_case(c, sizes[s][0], sizes[s][1], share);
}

/* ---- router ------------------------------------------------------------------------------------- */

/* z errs by at most (2 d + 12) u of the sum of its products' sizes, and rho's slope in it is below 1 / (1 -
 * tau). */
static double route_truth(const float *x, const float *norm, const float *w, float b, uint32_t d, double tau,
                          double *bound) {
    double sum = 0, z = b, size = fabs((double)b);
    for (size_t i = 0; i < d; i++) sum += (double)x[i] * x[i];
    const double scale = 1 / sqrt(sum / d + (double)EPS);
    for (size_t i = 0; i < d; i++) {
        const double part = w[i] * (x[i] * scale * norm[i]);
        z += part;
        size += fabs(part);
    }
    if (tau == 1) return *bound = 0;
    const double light = 1 / (1 + exp(z)) / (1 - tau);
    *bound = light * ((2.0 * d + 12) * CHECK_U * size + 6 * CHECK_U) + CHECK_U;
    return fmax(0, 1 - light);
}

/* What a single row leaves for the nodes behind: one run of it among empty ones. */
static void alone_truth(check *c, const sl_split_args *a, bool deep) {
    const uint32_t starts[] = { 0, 0, deep, deep }, n_deep = deep;
    const unsigned long long tallies[] = { 1000 + n_deep, 7 + n_deep };
    const int32_t place = deep ? 0 : -1;
    uint32_t n, index, deep_start[4];
    unsigned long long tally[2];
    int32_t row_of;
    cuda_get(&n, a->n, 4), cuda_get(&index, a->index, 4), cuda_get(&row_of, a->row_of, 4);
    cuda_get(deep_start, a->deep_start, sizeof starts), cuda_get(tally, a->tally, sizeof tally);
    check_same(c, "n", &n, &n_deep, 4);
    if (deep && index) check_fail(c, "index is %u, expected 0", index);
    check_same(c, "row_of", &row_of, &place, 4);
    check_same(c, "deep_start", deep_start, starts, sizeof starts);
    check_same(c, "tally", tally, tallies, sizeof tallies);
}

static sl_split_args put_alone(void) {
    static const uint32_t start[] = { 0, 0, 1, 1 };
    static const unsigned long long tally[] = { 1000, 7 };
    return (sl_split_args){ .start = cuda_put(start, sizeof start, 4), .n = cuda_new(4, 4), .index = cuda_new(4, 4),
                            .row_of = cuda_new(4, 4), .deep_start = cuda_new(sizeof start, 4),
                            .tally = cuda_put(tally, sizeof tally, 8), .n_tok = 1, .n_run = 3 };
}

/* n_row 0: one row, of which the host knows. */
static void route_case(check *c, sl_act act, uint32_t n_row, uint32_t d, float tau) {
    const bool alone = n_row == 0;
    check_case(c, "%s rows=%u%s d=%u tau=%g", cuda_act_name(act), alone ? 1 : n_row, alone ? " alone" : "", d,
               (double)tau);
    const uint32_t max = alone ? n_row = 1 : n_row + 2;
    sl_route_args a = { .d = d, .eps = EPS, .tau = tau, .act = act, .rows = put_counted(n_row, max) };
    const float *x = make_rows(c, SL_ACT_F32, max, d), b = 0.3f;
    float *w = check_buffer(c, 2 * d * sizeof *w), *rho = check_buffer(c, max * sizeof *rho);
    float *y = check_buffer(c, max * d * sizeof *y);
    check_fill_range(c, w, 2 * d, -1.5f, 1.5f);
    a.x = cuda_put_rows(SL_ACT_F32, x, d, d, max, &a.x_stride);
    a.norm = cuda_put(w, d * sizeof *w, 4), a.w = cuda_put(w + d, d * sizeof *w, 4),
    a.b = cuda_put(&b, sizeof b, 4);
    a.rho = cuda_new(max * sizeof *rho, 4);
    a.y = cuda_new_rows(act, d, max, &a.y_stride);
    if (alone) a.rows.n = NULL, a.split = put_alone();
    cuda_run(cuda.route_score(&a, NULL));
    cuda_get(rho, a.rho, max * sizeof *rho);
    cuda_get_rows(act, y, d, d, max, a.y, a.y_stride);
    for (size_t t = 0; t < n_row; t++) {
        double bound;
        const double want = route_truth(x + t * d, w, w + d, b, d, (double)tau, &bound);
        if (!check_near(c, "rho", t, rho[t], want, bound)) break;
        norm_truth(c, x + t * d, w, y + t * d, d, act);
    }
    if (alone) alone_truth(c, &a.split, rho[0] > 0);
    untouched(c, rho, NULL, n_row, max, 1);
    untouched(c, y, NULL, n_row, max, d);
    cuda_free();
    check_end(c);
}

void check_cuda_route_score(check *c) {
    static const float taus[] = { 0, 0.2f, 0.5f, 0.9f, 1 };
    static const uint32_t sizes[] = { 1, 3, 64, 257, 2048 };
    for (size_t s = 0; s < 5; s++)
        for (size_t i = 0; i < 5; i++) {
            route_case(c, (sl_act)((s + i) % 2), (uint32_t)(1 + s), sizes[s], taus[i]);
            route_case(c, (sl_act)((s + i + 1) % 2), 0, sizes[s], taus[i]);
        }
}

/* ---- copies by index ---------------------------------------------------------------------------- */

static void gather_case(check *c, uint32_t n_row, uint32_t n_src, uint32_t pieces, bool indexed) {
    check_case(c, "rows=%u of %u, %u bytes%s", n_row, n_src, 16 * pieces, indexed ? "" : " in order");
    const uint32_t bytes = 16 * pieces, gap = 32, max = n_row + 2, stride = bytes + 16;
    unsigned char *src = check_buffer(c, n_src * (bytes + gap)), *dst = check_buffer(c, max * stride);
    uint32_t *index = check_buffer(c, max * sizeof *index);
    for (size_t i = 0; i < n_src * (bytes + gap); i++) src[i] = (unsigned char)check_random(c);
    for (uint32_t i = 0, at = 0; i < max; i++) {
        index[i] = at;
        if (i < n_row)
            at += 1 + (uint32_t)check_index(c, (n_src - at) / (n_row - i)); /* increasing, within n_src */
    }
    sl_gather_args a = { .src = cuda_put(src, n_src * (bytes + gap), 16), .dst = cuda_new(max * stride, 16),
                         .src_stride_bytes = bytes + gap, .dst_stride_bytes = stride, .bytes = bytes,
                         .rows = put_counted(n_row, max) };
    if (indexed) a.rows.index = cuda_put(index, n_row * sizeof *index, 4);
    cuda_run(cuda.gather(&a, NULL));
    cuda_get(dst, a.dst, max * stride);
    for (uint32_t r = 0; r < max; r++) {
        unsigned char gone[16 * 64 + 16];
        memset(gone, 0xff, sizeof gone);
        if (r < n_row) memcpy(gone, src + (indexed ? index[r] : r) * (bytes + gap), bytes);
        if (!check_same(c, "row", dst + r * stride, gone, stride)) break;
    }
    cuda_free();
    check_end(c);
}

void check_cuda_gather(check *c) {
    static const uint32_t pieces[] = { 1, 3, 8, 33, 64 };
    for (size_t i = 0; i < 5; i++)
        for (uint32_t n = 0; n < 5; n++) gather_case(c, n * n, 7 + n * n, pieces[i], (i + n) % 3 > 0);
}

/* ---- broken kernels ----------------------------------------------------------------------------- */

int mutant_cuda_norm_all_rows(const sl_norm_args *args, sl_cuda_stream stream) {
    sl_norm_args a = *args;
    a.rows.n = NULL;
    return sl_rmsnorm_cuda(&a, stream);
}

/* Rows side by side. */
int mutant_cuda_norm_not_in_place(const sl_norm_args *args, sl_cuda_stream stream) {
    sl_norm_args a = *args;
    a.rows.in_place = false;
    return sl_rmsnorm_cuda(&a, stream);
}

int mutant_cuda_norm_first_weights(const sl_norm_args *args, sl_cuda_stream stream) {
    sl_norm_args a = *args;
    a.w_step = 0;
    return sl_rmsnorm_cuda(&a, stream);
}

/* Whole groups of four only. */
int mutant_cuda_silu_no_tail(const sl_silu_args *args, sl_cuda_stream stream) {
    sl_silu_args a = *args;
    a.n = a.n > 4 ? a.n / 4 * 4 : a.n;
    return sl_silu_mul_cuda(&a, stream);
}

/* The product is stored as it is. */
int mutant_cuda_silu_not_scaled(const sl_silu_args *args, sl_cuda_stream stream) {
    sl_silu_args a = *args;
    a.lift = 0;
    return sl_silu_mul_cuda(&a, stream);
}

/* The threshold is compared with, but not taken out of rho. */
int mutant_cuda_route_tau(const sl_route_args *args, sl_cuda_stream stream) {
    sl_route_args a = *args;
    a.tau = a.tau < 1 ? 0 : 1;
    return sl_route_score_cuda(&a, stream);
}

/* The score is right, what it is of is not. */
int mutant_cuda_route_turned(const sl_route_args *args, sl_cuda_stream stream) {
    sl_route_args a = *args;
    a.norm = args->w, a.w = args->norm;
    return sl_route_score_cuda(&a, stream);
}

/* A row alone leaves the last run as it was. */
int mutant_cuda_route_last_run(const sl_route_args *args, sl_cuda_stream stream) {
    sl_route_args a = *args;
    a.split.n_run--;
    return sl_route_score_cuda(&a, stream);
}

int mutant_cuda_split_last_run(const sl_split_args *args, sl_cuda_stream stream) {
    sl_split_args a = *args;
    a.n_run--;
    return sl_route_split_cuda(&a, stream);
}

int mutant_cuda_gather_in_order(const sl_gather_args *args, sl_cuda_stream stream) {
    sl_gather_args a = *args;
    a.rows.index = NULL;
    return sl_gather_cuda(&a, stream);
}
