/* CUDA rotary embedding, keys and values, attention: adapters for the families of rope and attention, and tests
 * of what the CPU's table has no member for.
 *
 * Bounds of attention. A score errs by e = (head_dim + 3) u sum |q k| scale, its distance to the largest by 2 e
 * and one rounding of itself, so a weight by d = 2 e + u (spread + 4) of itself. A sum over n keys is made of
 * at most 64 chunks of at least 128, so of chains of n / 31 + 200 steps: d + (n / 31 + 200) u; the quotient of
 * two errs by twice that. In f16 one rounding to 11 bits more.
 *
 * On the matrix units a sum of 16 terms errs by 18 units in the last place of its magnitude (cuda_fragments.c),
 * 2 u each: e = 2.25 (head_dim + 16) u sum |q k| scale. The factor that makes scores logarithms to base 2 errs
 * by 2 u of the spread, exp2 by 4 u and its argument, up to 15 higher, by u of itself: d = 2 e + u (4 spread +
 * 20). A weight is rounded to f16 by 2^-11 of itself and 2^-40 of the largest; sums over n keys are one chain that
 * fades once for 64 keys: d + (2.25 (n + 64) + 8 (n / 64 + 1)) u. In short runs each warp's chain does (beyond 128
 * components once for 32), then those of four warps and of at most n / 128 + 2 chunks are folded by 5 u each. */
#include "cuda_sequence.h"
#include "runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- runs --------------------------------------------------------------------------------------- */

enum { MAX_RUN = 5, N_SLOT = 6 };
typedef struct run {
    uint32_t slot, n_tok;
    uint64_t pos;
} run;

static uint32_t count_rows(const run *runs, uint32_t n_run) {
    uint32_t n = 0;
    for (uint32_t r = 0; r < n_run; r++) n += runs[r].n_tok;
    return n;
}

/* spare: more rows in a run than there are, as far as the host knows. */
static sl_runs put_runs(const run *runs, uint32_t n_run, uint32_t spare) {
    uint32_t slot[MAX_RUN], start[MAX_RUN + 1] = { 0 };
    uint64_t pos[MAX_RUN];
    for (uint32_t r = 0; r < n_run; r++) {
        slot[r] = runs[r].slot;
        pos[r] = runs[r].pos;
        start[r + 1] = start[r] + runs[r].n_tok;
    }
    sl_runs put = cuda_put_runs(slot, start, n_run);
    put.pos = cuda_put(pos, n_run * sizeof *pos, 8);
    put.max_tok += spare;
    return put;
}

/* Runs over different slots, some empty, single or long. */
static uint32_t make_runs(check *c, run *runs, uint32_t most) {
    const uint32_t n_run = 1 + (uint32_t)check_index(c, MAX_RUN), first = (uint32_t)check_index(c, N_SLOT);
    for (uint32_t r = 0; r < n_run; r++) {
        const uint32_t kinds[] = { 0, 1, 1, 2, 1 + (uint32_t)check_index(c, most) };
        runs[r] = (run){ (first + 5 * r) % N_SLOT, kinds[check_index(c, 5)],
                         check_index(c, 2) * check_index(c, 200) };
    }
    if (count_rows(runs, n_run) == 0) runs[0].n_tok = 1 + (uint32_t)check_index(c, most);
    return n_run;
}

/* ---- rotary embedding --------------------------------------------------------------------------- */

void check_cuda_rope_row(float *x, const float *cosine, const float *sine, size_t n_head, size_t head_dim,
                         size_t n_rot) {
    const size_t half = n_rot / 2, n = n_head * head_dim;
    float *table = malloc((n_rot + 1) * sizeof *table);
    if (!table) abort();
    memcpy(table, cosine, half * sizeof *table);
    memcpy(table + half, sine, half * sizeof *table);
    sl_rope_args a = { .n_head = (uint32_t)n_head,
                       .head_dim = (uint32_t)head_dim,
                       .n_rot = (uint32_t)n_rot,
                       .act = SL_ACT_F32,
                       .rows = { .max = 1 } };
    a.table = cuda_put_rows(SL_ACT_F32, table, n_rot, n_rot, 1, &a.table_stride);
    a.x = cuda_put_rows(SL_ACT_F32, x, n, n, 1, &a.x_stride);
    cuda_run(cuda.rope(&a, NULL));
    cuda_get_rows(SL_ACT_F32, x, n, n, 1, a.x, a.x_stride);
    cuda_free();
    free(table);
}

/* cuBLAS may have stored an infinity where nothing is turned, too. */
static void plant_infinity(const sl_rope_args *a, uint32_t row, uint32_t at) {
    const uint16_t infinity = 0xfc00;
    cuda_set((uint16_t *)a->x + row * a->x_stride + at, &infinity, sizeof infinity);
}

/* Rows of either type, each with its own angles; those beyond the count stay. */
void check_cuda_rope(check *c) {
    for (int i = 0; i < 40 && !c->failed; i++) {
        const sl_act act = (sl_act)(i % 2);
        const uint32_t half = 1 + (uint32_t)check_index(c, 40), dim = 2 * half + (uint32_t)check_index(c, 3);
        const uint32_t n_head = 1 + (uint32_t)check_index(c, 5), max = 1 + (uint32_t)check_index(c, 6);
        const uint32_t n = (uint32_t)check_index(c, max + 1), width = n_head * dim;
        check_case(c, "%s heads=%u head_dim=%u n_rot=%u rows %u of %u", cuda_act_name(act), n_head, dim, 2 * half,
                   n, max);
        float *x = check_buffer(c, max * width * sizeof *x), *y = check_buffer(c, max * width * sizeof *y);
        float *table = check_buffer(c, max * 2 * half * sizeof *table);
        check_fill_range(c, x, max * width, -3, 3);
        for (uint32_t j = 0; j < max * width; j++) x[j] = cuda_rounded(act, x[j]);
        check_fill_range(c, table, max * 2 * half, -1, 1);
        sl_rope_args a = {
            .n_head = n_head, .head_dim = dim, .n_rot = 2 * half, .act = act, .rows = { .max = max }
        };
        a.table = cuda_put_rows(SL_ACT_F32, table, 2 * half, 2 * half, max, &a.table_stride);
        a.x = cuda_put_rows(act, x, width, width, max, &a.x_stride);
        a.rows.n = cuda_put(&n, sizeof n, 4);
        for (uint32_t t = 0; t < n && act == SL_ACT_F16 && dim > 2 * half; t++) {
            plant_infinity(&a, t, width - 1);
            x[(t + 1) * width - 1] = -65504;
        }
        cuda_run(cuda.rope(&a, NULL));
        cuda_get_rows(act, y, width, width, max, a.x, a.x_stride);
        for (uint32_t j = 0; j < max * width && !c->failed; j++) {
            const uint32_t at = j % dim, k = at % half;
            const float *angles = table + j / width * 2 * half;
            double p = x[j], q = 0;
            if (j / width < n && at < half) p *= angles[k], q = -(double)x[j + half] * angles[half + k];
            else if (j / width < n && at < 2 * half) p *= angles[k], q = (double)x[j - half] * angles[half + k];
            const bool turned = j / width < n && at < 2 * half;
            const double bound = 2 * CHECK_U * (fabs(p) + fabs(q)) + cuda_rounding(act, p + q);
            check_near(c, "x", j, y[j], p + q, turned ? bound : 0);
        }
        cuda_free();
        check_end(c);
    }
}

/* The CPU's angles: product in f32, cosine and sine in double. */
void check_cuda_rope_table(check *c) {
    for (int i = 0; i < 40 && !c->failed; i++) {
        run runs[MAX_RUN];
        const uint32_t n_run = make_runs(c, runs, 20), half = 1 + (uint32_t)check_index(c, 70),
                       width = 2 * half;
        if (i % 3 == 0) runs[0].pos = (UINT64_C(1) << 20) - 3;
        const float gain = i % 2 ? 1.0f : 1.2079442f;
        const uint32_t n = count_rows(runs, n_run);
        check_case(c, "n_rot=%u runs=%u rows=%u gain=%g", width, n_run, n, (double)gain);
        float *inv_freq = check_buffer(c, (half + 1) * sizeof *inv_freq),
              *table = check_buffer(c, (n * width + 1) * sizeof *table);
        for (uint32_t j = 0; j < half; j++) inv_freq[j] = (float)pow(10000, -(double)j / half);
        sl_rope_table_args a = { .inv_freq = cuda_put(inv_freq, half * sizeof *inv_freq, 4),
                                 .n_rot = width,
                                 .gain = gain,
                                 .runs = put_runs(runs, n_run, (uint32_t)check_index(c, 3)) };
        a.table = cuda_new_rows(SL_ACT_F32, width, n, &a.stride);
        cuda_run(cuda.rope_table(&a, NULL));
        cuda_get_rows(SL_ACT_F32, table, width, width, n, a.table, a.stride);
        for (uint32_t r = 0, row = 0; r < n_run; r++)
            for (uint32_t t = 0; t < runs[r].n_tok; t++, row++)
                for (uint32_t j = 0; j < half; j++) {
                    const float product = (float)(runs[r].pos + t) * inv_freq[j];
                    check_ulp(c, "cosine", row * width + j, table[row * width + j], (float)cos(product) * gain,
                              1);
                    check_ulp(c, "sine", row * width + j, table[row * width + half + j],
                              (float)sin(product) * gain, 1);
                }
        cuda_free();
        check_end(c);
    }
}

/* ---- keys and values ---------------------------------------------------------------------------- */

typedef struct store {
    uint32_t n_kv_head, dim, index, n_store;
    bool f16;
} store;

static size_t element(const store *s) { return s->f16 ? 2 : 4; }

/* Elements of a slot's memory. */
static size_t slot_elements(const store *s, uint64_t cap) {
    return (size_t)(s->n_store * 2 * s->n_kv_head * cap * s->dim);
}

/* Element at which position pos of k (part 0) or v (1) of a head begins. */
static size_t kv_at(const store *s, uint64_t cap, uint32_t part, uint32_t head, uint64_t pos) {
    return (size_t)((((2 * s->index + part) * s->n_kv_head + head) * cap + pos) * s->dim);
}

static sl_kv_table table_of(const store *s, const sl_kv_slot *slots) {
    return (sl_kv_table){ .slots = cuda_put(slots, N_SLOT * sizeof *slots, 8),
                          .store = s->index,
                          .n_kv_head = s->n_kv_head,
                          .head_dim = s->dim,
                          .f16 = s->f16 };
}

static store make_store(check *c, uint32_t dim) {
    store s = { .n_kv_head = 1 + (uint32_t)check_index(c, 3),
                .dim = dim,
                .n_store = 1 + (uint32_t)check_index(c, 3),
                .f16 = check_index(c, 2) };
    s.index = (uint32_t)check_index(c, s.n_store);
    return s;
}

/* What the slot's memory is to hold after rows x (k, v) were stored at the run's positions. */
static void expect_stored(const store *s, unsigned char *memory, uint64_t cap, const run *at,
                          const float *const x[2]) {
    const uint32_t width = s->n_kv_head * s->dim;
    for (uint32_t i = 0; i < 2 * at->n_tok * width; i++) {
        const uint32_t part = i / (at->n_tok * width), t = i / width % at->n_tok, head = i % width / s->dim;
        const size_t to = kv_at(s, cap, part, head, at->pos + t) + i % s->dim;
        const float v = x[part][t * width + i % width];
        const uint16_t h = sl_f32_to_f16(v);
        memcpy(memory + to * element(s), s->f16 ? (const void *)&h : (const void *)&v, element(s));
    }
}

static void store_case(check *c, store s, sl_act act) {
    run runs[MAX_RUN];
    const uint32_t n_run = make_runs(c, runs, 20), n = count_rows(runs, n_run), width = s.n_kv_head * s.dim;
    check_case(c, "%s to %s kv heads=%u head_dim=%u store %u of %u runs=%u rows=%u", cuda_act_name(act),
               s.f16 ? "f16" : "f32", s.n_kv_head, s.dim, s.index, s.n_store, n_run, n);
    float *x[2];
    for (int part = 0; part < 2; part++) {
        x[part] = check_buffer(c, n * width * sizeof *x[part]);
        check_fill(c, x[part], n * width, CHECK_WIDE);
        for (uint32_t i = 0; i < n * width; i++) x[part][i] = cuda_rounded(act, x[part][i]);
    }
    sl_kv_slot slots[N_SLOT] = { { NULL, 0 } };
    for (uint32_t r = 0; r < n_run; r++) {
        sl_kv_slot *slot = &slots[runs[r].slot];
        slot->cap = runs[r].pos + runs[r].n_tok + check_index(c, 3);
        slot->data = cuda_new(slot_elements(&s, slot->cap) * element(&s), element(&s));
    }
    sl_kv_store_args a = { .kv = table_of(&s, slots),
                           .act = act,
                           .runs = put_runs(runs, n_run, (uint32_t)check_index(c, 2)) };
    a.k = cuda_put_rows(act, x[0], width, width, n, &a.k_stride);
    a.v = cuda_put_rows(act, x[1], width, width, n, &a.v_stride);
    cuda_run(cuda.kv_store(&a, NULL));
    for (uint32_t r = 0, row = 0; r < n_run; row += runs[r].n_tok, r++) {
        const uint64_t cap = slots[runs[r].slot].cap;
        const size_t n_bytes = slot_elements(&s, cap) * element(&s);
        unsigned char *got = check_buffer(c, n_bytes), *want = check_buffer(c, n_bytes);
        memset(want, 0xff, n_bytes);
        expect_stored(&s, want, cap, &runs[r],
                      (const float *const[]){ x[0] + row * width, x[1] + row * width });
        cuda_get(got, slots[runs[r].slot].data, n_bytes);
        check_same(c, "memory of a slot", got, want, n_bytes);
    }
    cuda_free();
    check_end(c);
}

void check_cuda_kv_store(check *c) {
    static const uint32_t dims[] = { 1, 7, 16, 64, 130 };
    for (int i = 0; i < 40 && !c->failed; i++) store_case(c, make_store(c, dims[i / 2 % 5]), (sl_act)(i % 2));
}

/* The bytes of the CPU's device, and none behind n_pos. */
void check_cuda_fill_kv(check *c) {
    for (int i = 0; i < 20 && !c->failed; i++) {
        const size_t size = i % 2 ? 2 : 4, dim = 1 + check_index(c, 40), cap = 1 + check_index(c, 30),
                     n_rows = 2 * (1 + check_index(c, 6));
        const size_t n_pos = check_index(c, cap + 1), n_bytes = n_rows * cap * dim * size;
        check_case(c, "%zu bytes, head_dim=%zu cap=%zu n_pos=%zu rows=%zu", size, dim, cap, n_pos, n_rows);
        unsigned char *want = check_buffer(c, n_bytes), *got = check_buffer(c, n_bytes);
        memset(want, 0xff, n_bytes);
        for (size_t row = 0; row < n_rows; row++)
            for (size_t j = 0; j < n_pos * dim * size; j += 2) {
                unsigned char *at = want + row * cap * dim * size + j;
                at[0] = (unsigned char)(row + j * 7);
                at[1] = size == 2 ? 0x1C : j % 4 == 0 ? 0 : 0x3B;
            }
        void *data = cuda_new(n_bytes, size);
        cuda_run(cuda.fill_kv(data, cap, n_pos, n_rows, (uint32_t)dim, size == 2, NULL));
        cuda_get(got, data, n_bytes);
        check_same(c, "memory", got, want, n_bytes);
        cuda_free();
        check_end(c);
    }
}

/* ---- attention: adapters ------------------------------------------------------------------------ */

/* The heads of one key/value head, in the second of two stores of slot 3. */
static void run_attention(const sl_attention_args *args, bool f16) {
    const size_t n_pos = args->pos + args->n_tok, dim = args->head_dim, size = f16 ? 2 : 4,
                 width = args->n_head * dim;
    const store s = { .n_kv_head = 1, .dim = (uint32_t)dim, .index = 1, .n_store = 2, .f16 = f16 };
    unsigned char *memory = malloc(slot_elements(&s, n_pos) * size);
    if (!memory) abort();
    memset(memory, 0xff, slot_elements(&s, n_pos) * size);
    for (size_t pos = 0; pos < n_pos; pos++) {
        memcpy(memory + kv_at(&s, n_pos, 0, 0, pos) * size,
               (const char *)args->k + pos * args->kv_stride * size, dim * size);
        memcpy(memory + kv_at(&s, n_pos, 1, 0, pos) * size,
               (const char *)args->v + pos * args->kv_stride * size, dim * size);
    }
    sl_kv_slot slots[N_SLOT] = { { NULL, 0 } };
    slots[3] = (sl_kv_slot){ cuda_put(memory, slot_elements(&s, n_pos) * size, dim % 8 ? size : 16), n_pos };
    const run alone = { 3, (uint32_t)args->n_tok, args->pos };
    sl_attention_cuda_args a = { .kv = table_of(&s, slots),
                                 .n_head = (uint32_t)args->n_head,
                                 .window = (uint32_t)args->window,
                                 .scale = args->scale,
                                 .act = SL_ACT_F32,
                                 .runs = put_runs(&alone, 1, 0) };
    a.q = cuda_put_rows(SL_ACT_F32, args->q, args->q_stride, width, args->n_tok, &a.q_stride);
    a.y = cuda_new_rows(SL_ACT_F32, width, args->n_tok, &a.y_stride);
    a.scratch = cuda_new(sl_attention_scratch_cuda(1, a.n_head, s.dim) * sizeof(float), 4);
    cuda_run(cuda.attention(&a, NULL));
    cuda_get_rows(SL_ACT_F32, args->y, args->y_stride, width, args->n_tok, a.y, a.y_stride);
    cuda_free();
    free(memory);
}

void check_cuda_attention_f32(const sl_attention_args *args) { run_attention(args, false); }
void check_cuda_attention_f16(const sl_attention_args *args) { run_attention(args, true); }

/* ---- attention of a ragged batch ---------------------------------------------------------------- */

typedef struct batch {
    store s;
    sl_act act;
    uint32_t group, window, n_run;
    int power; /* queries are 2^power times larger, keys smaller */
    bool sink; /* the first key outweighs all others, and its value is 0 */
    run runs[MAX_RUN];
    uint64_t cap[N_SLOT];
    float *kv[N_SLOT]; /* what a slot's memory holds, as floats; NaN where nobody may look */
    float *q, *y;      /* [rows, width] */
} batch;

static uint32_t width_of(const batch *b) { return b->s.n_kv_head * b->group * b->s.dim; }

/* Do its runs go to the matrix units? Long ones of n_tok rows have bits of their own there. */
static bool on_matrix(const batch *b) { return b->act == SL_ACT_F16 && b->s.f16 && b->s.dim <= 256; }
static bool is_long(const batch *b, uint32_t n_tok) { return on_matrix(b) && n_tok > SL_GEMV_ROWS; }

static uint64_t first_key(const batch *b, uint64_t pos) {
    return b->window && pos + 1 > b->window ? pos + 1 - b->window : 0;
}

/* Keys and values of what some query of the run sees. */
static void fill_slot(check *c, batch *b, const run *r) {
    const store *s = &b->s;
    const uint64_t cap = b->cap[r->slot] = r->pos + r->n_tok + check_index(c, 3), from = first_key(b, r->pos);
    float *kv = b->kv[r->slot] = check_buffer(c, slot_elements(s, cap) * sizeof *kv);
    for (size_t i = 0; i < slot_elements(s, cap); i++) kv[i] = NAN;
    for (uint32_t i = 0; i < 2 * s->n_kv_head; i++) {
        float *rows = kv + kv_at(s, cap, i / s->n_kv_head, i % s->n_kv_head, from);
        const size_t n = (size_t)(r->pos + r->n_tok - from) * s->dim;
        const float reach = i < s->n_kv_head ? ldexpf(b->sink ? 0 : 2, -b->power) : 1;
        check_fill_range(c, rows, n, b->sink ? 0 : -reach, reach);
        for (size_t j = 0; b->sink && j < s->dim; j++)
            rows[j] = i < s->n_kv_head ? 17 / sqrtf((float)s->dim) : 0;
        for (size_t j = 0; s->f16 && j < n; j++) rows[j] = sl_f16_to_f32(sl_f32_to_f16(rows[j]));
    }
}

static void fill_batch(check *c, batch *b) {
    const size_t n = (size_t)count_rows(b->runs, b->n_run) * width_of(b);
    b->q = check_buffer(c, n * sizeof *b->q);
    b->y = check_buffer(c, n * sizeof *b->y);
    const float reach = ldexpf(3, b->power);
    check_fill_range(c, b->q, n, -reach, reach);
    for (size_t i = 0; i < n; i++) b->q[i] = b->sink ? 1 : cuda_rounded(b->act, b->q[i]);
    for (uint32_t r = 0; r < b->n_run; r++) fill_slot(c, b, &b->runs[r]);
}

/* To the device in the type of the store, sometimes not aligned for vectors. */
static sl_kv_slot put_slot(const batch *b, uint32_t slot) {
    const size_t n = slot_elements(&b->s, b->cap[slot]), size = element(&b->s);
    unsigned char *memory = malloc(n * size);
    if (!memory) abort();
    for (size_t i = 0; i < n; i++) {
        const uint16_t h = sl_f32_to_f16(b->kv[slot][i]);
        memcpy(memory + i * size, b->s.f16 ? (const void *)&h : (const void *)&b->kv[slot][i], size);
    }
    const sl_kv_slot put = { cuda_put(memory, n * size, slot % 3 ? 16 : size), b->cap[slot] };
    free(memory);
    return put;
}

/* Attention of runs whose rows of q begin at q; y: the same rows. */
static void attend(const batch *b, const run *runs, uint32_t n_run, uint32_t spare, const float *q, float *y) {
    const uint32_t n = count_rows(runs, n_run), width = width_of(b);
    sl_kv_slot slots[N_SLOT] = { { NULL, 0 } };
    for (uint32_t r = 0; r < n_run; r++) slots[runs[r].slot] = put_slot(b, runs[r].slot);
    sl_attention_cuda_args a = { .kv = table_of(&b->s, slots),
                                 .n_head = b->s.n_kv_head * b->group,
                                 .window = b->window,
                                 .scale = 1 / sqrtf((float)b->s.dim),
                                 .act = b->act,
                                 .runs = put_runs(runs, n_run, spare) };
    a.q = cuda_put_rows(b->act, q, width, width, n, &a.q_stride);
    a.y = cuda_new_rows(b->act, width, n, &a.y_stride);
    a.scratch = cuda_new(sl_attention_scratch_cuda(n_run, a.n_head, b->s.dim) * sizeof(float), 4);
    cuda_run(cuda.attention(&a, NULL));
    cuda_get_rows(b->act, y, width, width, n, a.y, a.y_stride);
    cuda_free();
}

/* What the scores of one query head are to the sums: their reach (largest sum of magnitudes) and spread. */
typedef struct scores {
    double reach, spread;
} scores;

/* The relative error of a quotient of two sums over n keys of a run of n_tok rows. */
static double error_of(const batch *b, uint32_t n_tok, size_t n, scores s) {
    if (!on_matrix(b)) {
        const double weight = 2 * (b->s.dim + 3.0) * CHECK_U * s.reach + CHECK_U * (s.spread + 4);
        return 2 * (weight + ((double)n / 31 + 200) * CHECK_U);
    }
    const double score = 2.25 * (b->s.dim + 16.0) * CHECK_U * s.reach;
    const double weight = 2 * score + CHECK_U * (4 * s.spread + 20);
    const double folds = is_long(b, n_tok) ? 0 : 5 * ((double)n / 128 + 3);
    const double fades = (double)n / (is_long(b, n_tok) || b->s.dim <= 128 ? 64 : 32) + 1;
    const double sum = 2.25 * ((double)n + 64) + 8 * fades + folds;
    return 2 * (weight + sum * CHECK_U) + 0x1p-11;
}

/* Softmax of a query head over n keys in float64. */
static scores exact_weights(const batch *b, const float *q, const float *k, size_t n, double *weight) {
    const size_t d = b->s.dim;
    const double scale = 1 / sqrtf((float)d);
    double top = -INFINITY, low = INFINITY, total = 0;
    scores s = { 0, 0 };
    for (size_t j = 0; j < n; j++) {
        double size = 0;
        for (size_t i = 0; i < d; i++) {
            const double part = (double)q[i] * k[j * d + i] * scale;
            weight[j] += part, size += fabs(part);
        }
        top = fmax(top, weight[j]), low = fmin(low, weight[j]), s.reach = fmax(s.reach, size);
    }
    for (size_t j = 0; j < n; j++) total += weight[j] = exp(weight[j] - top);
    for (size_t j = 0; j < n; j++) weight[j] /= total;
    s.spread = top - low;
    return s;
}

/* One head of one query against float64. */
static void compare_head(check *c, const batch *b, const run *r, uint64_t pos, uint32_t head, const float *q,
                         const float *y) {
    const store *s = &b->s;
    const uint64_t from = first_key(b, pos), cap = b->cap[r->slot];
    const size_t n = (size_t)(pos + 1 - from), d = s->dim;
    const float *k = b->kv[r->slot] + kv_at(s, cap, 0, head / b->group, from);
    const float *v = b->kv[r->slot] + kv_at(s, cap, 1, head / b->group, from);
    double *weight = calloc(n, sizeof *weight);
    if (!weight) abort();
    const double relative = error_of(b, r->n_tok, n, exact_weights(b, q, k, n, weight));
    for (size_t i = 0; i < d && !c->failed; i++) {
        double sum = 0, size = 0;
        for (size_t j = 0; j < n; j++) {
            sum += weight[j] * v[j * d + i];
            size += weight[j] * fabs((double)v[j * d + i]);
        }
        const double rounding = cuda_rounding(b->act, sum);
        const double flushed = on_matrix(b) ? 0x1p-40 * (double)n : 0;
        check_near(c, "y", i, y[i], sum, relative * 1.01 * size + rounding + flushed + 0x1p-140);
    }
    free(weight);
}

static void compare(check *c, const batch *b) {
    const uint32_t width = width_of(b), n_head = b->s.n_kv_head * b->group;
    for (uint32_t r = 0, row = 0; r < b->n_run; r++)
        for (uint32_t t = 0; t < b->runs[r].n_tok; t++, row++)
            for (uint32_t head = 0; head < n_head && !c->failed; head++) {
                const size_t at = (size_t)row * width + (size_t)head * b->s.dim;
                compare_head(c, b, &b->runs[r], b->runs[r].pos + t, head, b->q + at, b->y + at);
            }
}

/* Rows of the next piece of a run, left to go: of a long one enough to be one too, so that the bits are to be the same,
 * and not few of them behind it. */
static uint32_t piece_of(check *c, const batch *b, uint32_t n_tok, uint32_t from) {
    const uint32_t left = n_tok - from, least = is_long(b, n_tok) ? SL_GEMV_ROWS + 1 : 1;
    const uint32_t longest = left < 80 ? left : 80;
    if (left < 2 * least || (from == 0 && check_index(c, 3) == 0)) return left;
    const uint32_t n = check_index(c, 3) ? least + (uint32_t)check_index(c, longest - least + 1) : least;
    return left - n < least ? left - least : n;
}

/* The bits are the same for a run by itself and for pieces of it, down to single queries. */
static void check_cuts(check *c, const batch *b) {
    const uint32_t width = width_of(b);
    float *y = malloc((size_t)count_rows(b->runs, b->n_run) * width * sizeof *y);
    if (!y) abort();
    for (uint32_t r = 0, row = 0; r < b->n_run && !c->failed; row += b->runs[r].n_tok, r++) {
        for (uint32_t from = 0, n; from < b->runs[r].n_tok && !c->failed; from += n) {
            n = piece_of(c, b, b->runs[r].n_tok, from);
            const run piece = { b->runs[r].slot, n, b->runs[r].pos + from };
            const size_t at = (size_t)(row + from) * width;
            attend(b, &piece, 1, 0, b->q + at, y);
            check_same(c, "a piece alone", y, b->y + at, (size_t)n * width * sizeof *y);
        }
    }
    free(y);
}

static void batch_case(check *c, batch *b) {
    check_case(c, "%s over %s, kv heads=%u group=%u head_dim=%u window=%u power=%d sink=%d "
               "runs=%u rows=%u, first at %llu",
               cuda_act_name(b->act), b->s.f16 ? "f16" : "f32", b->s.n_kv_head, b->group, b->s.dim, b->window,
               b->power, b->sink, b->n_run, count_rows(b->runs, b->n_run), (unsigned long long)b->runs[0].pos);
    fill_batch(c, b);
    attend(b, b->runs, b->n_run, (uint32_t)check_index(c, 2) * 65, b->q, b->y);
    compare(c, b);
    if (!c->failed) check_cuts(c, b);
    check_end(c);
}

static void ragged_batches(check *c) {
    static const uint32_t dims[] = { 1, 3, 8, 16, 33, 64, 72, 128, 136 }, groups[] = { 1, 2, 3, 5, 8, 11 };
    static const uint32_t windows[] = { 0, 0, 1, 7, 40, 130 };
    for (size_t i = 0; i < 54 && !c->failed; i++) {
        batch b = { .s = make_store(c, dims[i % 9]),
                    .act = (sl_act)(i / 3 % 2),
                    .group = groups[(i + i / 9) % 6],
                    .window = windows[check_index(c, 6)] };
        b.n_run = make_runs(c, b.runs, dims[i % 9] < 40 && b.group < 4 ? 100 : 10);
        batch_case(c, &b);
    }
}

/* Depths at which chunks grow, windows that begin inside of chunks; more components than a block keeps. */
static void deep_batches(check *c) {
    static const struct {
        uint64_t pos;
        uint32_t dim, group, window, n_tok;
    } cases[] = {
        { 126, 8, 1, 0, 4 },     { 8060, 4, 2, 0, 9 },      { 8063, 8, 1, 0, 1 },  { 8064, 8, 1, 0, 1 },
        { 20000, 16, 4, 0, 1 },  { 20000, 6, 1, 9000, 3 },  { 70001, 4, 1, 0, 1 }, { 9000, 8, 1, 8193, 2 },
        { 1048575, 2, 2, 0, 1 }, { 1048575, 8, 1, 500, 1 }, { 300, 264, 3, 0, 2 }, { 130, 520, 9, 0, 1 },
        { 40, 1030, 1, 0, 2 },   { 500, 256, 4, 100, 1 },  { 200, 12, 3, 0, 3 },   { 300, 264, 3, 0, 18 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !c->failed; i++) {
        batch b = { .s = { .n_kv_head = 1, .dim = cases[i].dim, .n_store = 1, .f16 = i % 2 },
                    .act = (sl_act)(i / 2 % 2),
                    .group = cases[i].group,
                    .window = cases[i].window,
                    .n_run = 1 };
        b.runs[0] = (run){ (uint32_t)check_index(c, N_SLOT), cases[i].n_tok, cases[i].pos };
        batch_case(c, &b);
    }
}

/* The matrix units: rows around a block's 64, every width in shared memory, groups of heads that share a block
 * or do not fill one, windows that begin inside of tiles, queries or keys among f16's subnormals, many small
 * weights beside a large one; the same of short runs and single queries, at depths where chunks grow. */
static void matrix_batches(check *c) {
    static const struct {
        uint64_t pos;
        uint32_t dim, group, window, n_tok, n_kv_head;
        int power;
        bool sink;
    } cases[] = {
        { 0, 64, 1, 0, 64, 2, 0, false }, { 0, 64, 1, 0, 65, 1, 0, false }, { 1, 16, 1, 0, 63, 1, 0, false },
        { 63, 8, 2, 0, 129, 2, 0, false }, { 64, 33, 3, 0, 17, 1, 0, false },
        { 300, 128, 1, 0, 70, 1, 0, false }, { 200, 96, 8, 0, 20, 1, 0, false },
        { 30, 256, 1, 0, 40, 1, 0, false }, { 100, 136, 5, 50, 30, 1, 0, false },
        { 500, 80, 1, 65, 90, 1, 0, false }, { 900, 1, 11, 1, 33, 1, 0, false },
        { 130, 72, 2, 7, 17, 2, 0, false }, { 0, 64, 64, 0, 17, 1, 0, false },
        { 50, 64, 1, 0, 40, 1, 14, false }, { 70, 100, 2, 0, 30, 1, -14, false },
        { 0, 250, 1, 128, 300, 1, 0, false }, { 1000, 8, 1, 0, 17, 1, 0, true },
        { 0, 64, 1, 0, 1, 2, 0, false }, { 15, 128, 4, 0, 1, 2, 0, false }, { 16, 128, 8, 0, 3, 1, 0, false },
        { 127, 96, 9, 0, 16, 1, 0, false }, { 300, 256, 17, 0, 1, 1, 0, false }, { 1021, 200, 3, 0, 8, 1, 0, false },
        { 700, 64, 5, 65, 16, 2, 0, false }, { 4000, 40, 2, 1000, 2, 1, 0, false }, { 500, 50, 3, 47, 5, 1, 0, false },
        { 8063, 64, 1, 0, 2, 1, 0, false }, { 20000, 128, 4, 0, 1, 1, 0, false }, { 20000, 16, 2, 9000, 3, 1, 0, false },
        { 33000, 16, 4, 0, 1, 1, 0, false }, { 90, 64, 2, 0, 9, 1, 14, false }, { 90, 100, 2, 0, 9, 1, -14, false },
        { 3000, 8, 1, 0, 4, 1, 0, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !c->failed; i++) {
        batch b = { .s = { .n_kv_head = cases[i].n_kv_head, .dim = cases[i].dim, .n_store = 1, .f16 = true },
                    .act = SL_ACT_F16,
                    .group = cases[i].group,
                    .window = cases[i].window,
                    .n_run = 2,
                    .power = cases[i].power,
                    .sink = cases[i].sink };
        b.runs[0] = (run){ (uint32_t)i % N_SLOT, cases[i].n_tok, cases[i].pos };
        b.runs[1] = (run){ (uint32_t)(i + 1) % N_SLOT, (uint32_t)check_index(c, 40), check_index(c, 100) };
        batch_case(c, &b);
    }
}

/* So many heads and runs that a block takes several chunks of the deep one. */
static void busy_batch(check *c) {
    batch b = { .s = { .n_kv_head = 1, .dim = 8, .n_store = 1, .f16 = true },
                .act = SL_ACT_F16, .group = 160, .n_run = MAX_RUN };
    for (uint32_t r = 0; r < MAX_RUN; r++) b.runs[r] = (run){ r, 1, r ? check_index(c, 50) : 6000 };
    batch_case(c, &b);
}

void check_cuda_attention(check *c) { matrix_batches(c), ragged_batches(c), deep_batches(c), busy_batch(c); }
