/* All threads start a round together and note the clock themselves, pinned to a processor each; a round lasts
 * from the first start to the last end. (A clock in a thread of its own measured anything between a third and
 * the whole on a machine with as many threads as processors.) The median over the rounds is what the bench
 * divides by, since rows are medians too; the best is printed beside it. */
#include "cli/bench_probe.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "base/mem.h"
#include "kernels/kernels.h"
#include "os/os.h"
#include "os/process.h"

enum { N_ROUND = 9, MAX_THREADS = 1024 };

typedef struct crew crew;
typedef struct worker {
    crew *crew;
    size_t number;
    thrd_t thread;
    double start[N_ROUND], end[N_ROUND];
    void *own; /* the work's */
} worker;

struct crew {
    void (*work)(worker *w, void *arg);
    void *arg;
    size_t n_thread;
    worker *workers; /* [n_thread] */
    atomic_size_t arrived;
};

/* Waits until all threads have come here for the `round`-th time. */
static void meet(crew *c, size_t round) {
    atomic_fetch_add(&c->arrived, 1);
    while (atomic_load(&c->arrived) < (round + 1) * c->n_thread) thrd_yield();
}

static int run_worker(void *arg) {
    worker *w = arg;
    sl_os_pin_thread(w->number);
    for (size_t round = 0; round < N_ROUND; round++) {
        meet(w->crew, round);
        w->start[round] = sl_os_seconds();
        w->crew->work(w, w->crew->arg);
        w->end[round] = sl_os_seconds();
    }
    return 0;
}

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* amount per second over the rounds; the first one warms up. */
static sl_probe summarise(const crew *c, double amount) {
    double rate[N_ROUND - 1];
    for (size_t round = 1; round < N_ROUND; round++) {
        double start = INFINITY, end = 0;
        for (size_t i = 0; i < c->n_thread; i++) {
            start = fmin(start, c->workers[i].start[round]);
            end = fmax(end, c->workers[i].end[round]);
        }
        rate[round - 1] = amount / (end - start);
    }
    qsort(rate, N_ROUND - 1, sizeof *rate, by_value);
    return (sl_probe){ (rate[N_ROUND / 2 - 1] + rate[(N_ROUND - 1) / 2]) / 2, rate[N_ROUND - 2] };
}

/* Runs the work on all threads. A thread that could not be started is an error; the others are let finish. */
static sl_status run_crew(crew *c, sl_error *err) {
    size_t n = 0;
    while (n < c->n_thread &&
           thrd_create(&c->workers[n].thread, run_worker, &c->workers[n]) == thrd_success)
        n++;
    if (n < c->n_thread) atomic_store(&c->arrived, SIZE_MAX / 2);
    for (size_t i = 0; i < n; i++) thrd_join(c->workers[i].thread, NULL);
    if (n == c->n_thread) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "cannot start %zu threads", c->n_thread);
}

static sl_status open_crew(crew *c, size_t n_thread, sl_error *err) {
    c->n_thread = n_thread;
    atomic_init(&c->arrived, 0);
    SL_TRY(sl_alloc((void **)&c->workers, n_thread, sizeof *c->workers, "probe threads", err));
    for (size_t i = 0; i < n_thread; i++) c->workers[i] = (worker){ .crew = c, .number = i };
    return SL_OK;
}

/* ---- reading ------------------------------------------------------------------------------------- */

enum { READ_BYTES = 1 << 29 };

typedef struct read_work { const uint64_t *data; atomic_ullong sum; } read_work;

/* One stream per thread: two, four and eight through its part were two to three times slower on Zen 4. */
static void read_part(worker *w, void *arg) {
    read_work *work = arg;
    size_t n = READ_BYTES / sizeof(uint64_t) / w->crew->n_thread;
    const uint64_t *data = work->data + w->number * n;
    uint64_t sum[16] = { 0 };
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) sum[j] += data[i + j];
    for (size_t j = 0; j < 16; j++) atomic_fetch_add(&work->sum, sum[j]);
}

sl_status sl_probe_read(size_t n_thread, sl_probe *gbps, sl_error *err) {
    uint64_t *data = sl_os_pages(READ_BYTES);
    if (!data) return sl_fail(err, SL_E_MEMORY, "out of memory: %d bytes for the read probe", READ_BYTES);
    for (size_t i = 0; i < READ_BYTES / sizeof *data; i++) data[i] = i;
    read_work work = { .data = data };
    crew c = { .work = read_part, .arg = &work };
    sl_status status = open_crew(&c, n_thread, err);
    if (status == SL_OK) status = run_crew(&c, err);
    if (status == SL_OK) *gbps = summarise(&c, 1e-9 * READ_BYTES);
    free(c.workers);
    sl_os_pages_free(data, READ_BYTES);
    return status;
}

/* ---- the matrix product -------------------------------------------------------------------------- */

/* 64 x 1024 weights, 32 tokens: at most 256 + 128 KiB, and long enough rows to hide a kernel's ends. */
enum { N_ROW = 64, N_TOKEN = 32, WIDTH = 1024 };

typedef struct matmul_work {
    sl_gemm_fn gemm;
    size_t w_bytes, x_bytes; /* of a row */
    size_t n_repeat;
} matmul_work;

/* own: a copy of the operands, and the result. */
static void multiply(worker *self, void *arg) {
    const matmul_work *work = arg;
    const uint8_t *w = self->own, *x = w + N_ROW * work->w_bytes;
    float *y = (float *)(void *)((uint8_t *)self->own + N_ROW * work->w_bytes + N_TOKEN * work->x_bytes);
    for (size_t i = 0; i < work->n_repeat; i++)
        work->gemm(w, work->w_bytes, x, work->x_bytes, y, N_ROW, N_ROW, N_TOKEN, WIDTH);
}

static void fill_operands(const sl_kernels *kernels, sl_type type, matmul_work *work, uint8_t *own) {
    float row[WIDTH];
    for (size_t i = 0; i < N_ROW; i++) {
        for (size_t j = 0; j < WIDTH; j++) row[j] = (float)((i * 131 + j * 71) % 255) / 127 - 1;
        sl_pack_row(type, row, WIDTH, own + i * work->w_bytes);
    }
    uint8_t *x = own + N_ROW * work->w_bytes;
    for (size_t i = 0; i < N_TOKEN; i++) {
        if (type == SL_Q8 || type == SL_Q4) kernels->quant_act(row, WIDTH, x + i * work->x_bytes);
        else memcpy(x + i * work->x_bytes, row, sizeof row);
    }
}

static sl_status open_operands(crew *c, const sl_kernels *kernels, sl_type type, matmul_work *work,
                               sl_error *err) {
    bool quantised = type == SL_Q8 || type == SL_Q4;
    work->w_bytes = (size_t)sl_row_bytes(type, WIDTH);
    work->x_bytes = quantised ? sl_act_bytes(WIDTH) : WIDTH * sizeof(float);
    size_t bytes = N_ROW * work->w_bytes + N_TOKEN * work->x_bytes + N_TOKEN * N_ROW * sizeof(float);
    for (size_t i = 0; i < c->n_thread; i++) {
        SL_TRY(sl_alloc(&c->workers[i].own, bytes, 1, "the matrix probe", err));
        fill_operands(kernels, type, work, c->workers[i].own);
    }
    return SL_OK;
}

/* So many products that a round takes about 20 ms. */
static size_t count_repeats(crew *c, matmul_work *work) {
    work->n_repeat = 1;
    multiply(&c->workers[0], work);
    double start = sl_os_seconds();
    for (int i = 0; i < 4; i++) multiply(&c->workers[0], work);
    double each = (sl_os_seconds() - start) / 4;
    return (size_t)(0.02 / fmax(each, 1e-6)) + 1;
}

sl_status sl_probe_matmul(size_t n_thread, sl_type type, sl_probe *tflops, sl_error *err) {
    const char *bad;
    const sl_kernels kernels = sl_kernels_select(sl_cpu_features_allowed(&bad));
    const sl_gemm_fn gemm[SL_N_TYPE] = { kernels.gemm_f32, kernels.gemm_f16, kernels.gemm_bf16, kernels.gemm_q8,
                                         kernels.gemm_q4 };
    matmul_work work = { .gemm = gemm[type] };
    crew c = { .work = multiply, .arg = &work };
    sl_status status = open_crew(&c, n_thread, err);
    if (status == SL_OK) status = open_operands(&c, &kernels, type, &work, err);
    if (status == SL_OK) work.n_repeat = count_repeats(&c, &work);
    if (status == SL_OK) status = run_crew(&c, err);
    if (status == SL_OK)
        *tflops = summarise(&c, 2e-12 * N_ROW * N_TOKEN * WIDTH * (double)work.n_repeat * (double)n_thread);
    for (size_t i = 0; c.workers && i < n_thread; i++) free(c.workers[i].own);
    free(c.workers);
    return status;
}
