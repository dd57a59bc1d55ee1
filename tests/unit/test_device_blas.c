/* cuda_blas.c with a library in cuBLAS's place (tests/device/device_blas.cu): what it asks of it, and what it makes
 * of refusals. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <cuda_runtime_api.h>

#include "backend/cuda_blas.h"
#include "kernels/types.h"
#include "test_device.h"

enum { N_ROW = 37, N_TOK = 19, K = 45, W_STRIDE = 48, X_STRIDE = 47, Y_STRIDE = 40 };
enum { WORKSPACE = 4096 };

static cudaStream_t stream;
static uint8_t *workspace;
static sl_blas blas;

static int open_blas(void **state) {
    (void)state;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&workspace, WORKSPACE), cudaSuccess);
    if (!sl_blas_open(&blas, stream, workspace, WORKSPACE)) fail_msg("%s", blas.name);
    return 0;
}

static int close_blas(void **state) {
    (void)state;
    sl_blas_close(&blas);
    cudaFree(workspace);
    cudaStreamDestroy(stream);
    assert_int_equal(sl_device_leaks(), 0);
    return 0;
}

/* ---- matrices ----------------------------------------------------------------------------------- */

static size_t size_of(sl_act act) { return act == SL_ACT_F32 ? 4 : 2; }

static void store(void *to, size_t i, float v, sl_act act) {
    if (act == SL_ACT_F32) ((float *)to)[i] = v;
    else ((uint16_t *)to)[i] = sl_f32_to_f16(v);
}

static float load(const void *from, size_t i, sl_act act) {
    return act == SL_ACT_F32 ? ((const float *)from)[i] : sl_f16_to_f32(((const uint16_t *)from)[i]);
}

static void *on_device(const void *data, size_t n_bytes) {
    void *p;
    assert_int_equal(cudaMalloc(&p, n_bytes), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, data, n_bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

/* n numbers on the device, and in values as they are there; eighths, so that f16 has them exactly. */
static void *make(size_t n, unsigned seed, sl_act act, float *values) {
    void *data = malloc(n * size_of(act));
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)((int)(seed >> 24) - 128) / 8;
        store(data, i, values[i], act);
    }
    void *p = on_device(data, n * size_of(act));
    free(data);
    return p;
}

static void fetch(void *to, const void *from, size_t n_bytes) {
    assert_int_equal(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

/* ---- products ----------------------------------------------------------------------------------- */

/* Rows of different lengths in memory, and what lies between them stays. */
static void check_product(sl_act act, bool y_f32, float gain, bool add) {
    static float w_values[N_ROW * W_STRIDE], x_values[N_TOK * X_STRIDE], y_values[N_TOK * Y_STRIDE], got[N_TOK * Y_STRIDE];
    const sl_act y_act = y_f32 ? SL_ACT_F32 : act;
    void *w = make(N_ROW * W_STRIDE, 1, act, w_values), *x = make(N_TOK * X_STRIDE, 2, act, x_values), *y;
    if (add) y = make(N_TOK * Y_STRIDE, 3, y_act, y_values);
    else assert_int_equal(cudaMalloc(&y, N_TOK * Y_STRIDE * size_of(y_act)), cudaSuccess); /* all NaN */
    assert_int_equal(blas.product(&blas, act, y_f32, N_ROW, N_TOK, K, w, W_STRIDE, x, X_STRIDE, y, Y_STRIDE, gain, add), 0);
    fetch(got, y, N_TOK * Y_STRIDE * size_of(y_act));
    for (size_t t = 0; t < N_TOK; t++)
        for (size_t r = 0; r < Y_STRIDE; r++) {
            const float v = load(got, t * Y_STRIDE + r, y_act);
            const float before = add ? y_values[t * Y_STRIDE + r] : 0;
            double sum = (double)before;
            if (r >= N_ROW) assert_true(add ? v == before : isnan(v));
            for (size_t i = 0; i < K && r < N_ROW; i++)
                sum += (double)gain * (double)w_values[r * W_STRIDE + i] * (double)x_values[t * X_STRIDE + i];
            if (r < N_ROW) assert_true(fabs((double)v - sum) <= ldexp(fabs(sum), y_act == SL_ACT_F32 ? -20 : -11));
        }
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
}

static void test_products(void **state) {
    (void)state;
    assert_null(sl_blas_missing());
    assert_string_equal(blas.name, "cuBLAS 13.10.0");
    check_product(SL_ACT_F32, true, 1, false);
    check_product(SL_ACT_F16, false, 1, false);
    check_product(SL_ACT_F16, true, 1, false);
    check_product(SL_ACT_F32, true, 1, true);
    check_product(SL_ACT_F16, false, 4, false);
    check_product(SL_ACT_F16, true, 64, true);
}

/* One row of ones and one token: the sum of x, as f16. */
static float sum_of(const float *values, size_t n) {
    uint16_t w_bits[K], x_bits[K], y_bits;
    for (size_t i = 0; i < n; i++) store(w_bits, i, 1, SL_ACT_F16), store(x_bits, i, values[i], SL_ACT_F16);
    void *w = on_device(w_bits, 2 * n), *x = on_device(x_bits, 2 * n), *y = on_device(x_bits, 2);
    assert_int_equal(blas.product(&blas, SL_ACT_F16, false, 1, 1, n, w, n, x, n, y, 1, 1, false), 0);
    fetch(&y_bits, y, 2);
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
    return sl_f16_to_f32(y_bits);
}

/* The library rounds parts of a sum to f16 unless it is told not to, and then these would be 0 and NaN. */
static void test_sums_are_f32(void **state) {
    (void)state;
    const float small[] = { 2048, 1, -1024, -1024 }, large[] = { 60000, 60000, -60000, -59008 };
    assert_true(sum_of(small, 4) == 1);
    assert_true(sum_of(large, 4) == 992);
}

static void test_beyond_f16(void **state) {
    (void)state;
    const float up[] = { 60000, 6000 }, down[] = { -60000, -6000 }, most[] = { 65504, 8 };
    assert_true(isinf(sum_of(up, 2)) && sum_of(up, 2) > 0);
    assert_true(isinf(sum_of(down, 2)) && sum_of(down, 2) < 0);
    assert_true(sum_of(most, 2) == 65504);
}

static void test_refused(void **state) {
    (void)state;
    static const struct { size_t n_row, n_tok, k, w_stride, x_stride, y_stride; const char *text; } bad[] = {
        { 8, 4, 16, 15, 16, 8, "lda is 15, expected at least 16" },
        { 8, 4, 16, 16, 15, 8, "ldb is 15, expected at least 16" },
        { 8, 4, 16, 16, 16, 7, "ldc is 7, expected at least 8" },
        { 9, 4, 16, 16, 16, 9, "allocation of 512" }, /* of weights: there are 8 rows */
        { 8, 5, 16, 16, 16, 8, "allocation of 256" },
        { 0, 4, 16, 16, 16, 8, "a product of 0 x 4 x 16" },
    };
    float values[8 * 16];
    void *w = make(8 * 16, 1, SL_ACT_F32, values), *x = make(4 * 16, 1, SL_ACT_F32, values), *y = on_device(values, 160);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_not_equal(blas.product(&blas, SL_ACT_F32, true, bad[i].n_row, bad[i].n_tok, bad[i].k, w,
                                          bad[i].w_stride, x, bad[i].x_stride, y, bad[i].y_stride, 1, false), 0);
        if (!strstr(sl_device_fault(), bad[i].text)) fail_msg("%s: %s", bad[i].text, sl_device_fault());
    }
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
}

/* The library has kept the workspace and used it: new memory is NaN, and this it writes to. */
static void test_workspace(void **state) {
    (void)state;
    float first;
    check_product(SL_ACT_F32, true, 1, false);
    fetch(&first, workspace, 4);
    assert_false(isnan(first));
}

/* Nothing happens while it is recorded; replayed, it reads what is there then. */
static void test_captured(void **state) {
    (void)state;
    float w_value = 3, x_value = 5, y_value = -1;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float *w = on_device(&w_value, 4), *x = on_device(&x_value, 4), *y = on_device(&y_value, 4);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(blas.product(&blas, SL_ACT_F32, true, 1, 1, 1, w, 1, x, 1, y, 1, 1, false), 0);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    fetch(&y_value, y, 4);
    assert_true(y_value == -1);
    for (int i = 0; i < 2; i++, w_value = 4) {
        assert_int_equal(cudaMemcpyAsync(w, &w_value, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
        assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
        fetch(&y_value, y, 4);
        assert_true(y_value == w_value * x_value);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
}

static void test_launch_that_fails(void **state) {
    (void)state;
    float value = 1;
    float *p = on_device(&value, 4);
    sl_device_fail_at(1);
    assert_int_equal(blas.product(&blas, SL_ACT_F32, true, 1, 1, 1, p, 1, p, 1, p, 1, 1, false), 13);
    assert_string_equal(blas.trouble, "; cuBLAS status 13, m 1 n 1 k 1 ld 1 1 1 types 0 0");
    sl_device_fail_at(0);
    cudaFree(p);
}

/* ---- opening ------------------------------------------------------------------------------------ */

static void does_not_open(void *memory, const char *name) {
    sl_blas none;
    assert_false(sl_blas_open(&none, stream, memory, WORKSPACE / 2));
    assert_string_equal(none.name, name);
    assert_null(none.product);
    assert_null(none.handle);
    sl_blas_close(&none);
}

static void test_does_not_open(void **state) {
    (void)state;
    static const char *const names[] = {
        "cuBLAS does not start (status 3)", "cuBLAS takes no stream (status 13)",
        "cuBLAS takes no workspace (status 13)", "cuBLAS cannot keep sums in f32 (status 13)",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        sl_device_fail_at(i + 1);
        does_not_open(workspace, names[i]);
        sl_device_fail_at(0);
    }
    does_not_open(workspace + 128, "cuBLAS takes no workspace (status 7)");
    does_not_open(&blas, "cuBLAS takes no workspace (status 7)"); /* not the device's */
    assert_int_equal(setenv("SLUICE_DEVICE_BLAS_FAILS", "1", 1), 0);
    does_not_open(workspace, "cuBLAS does not start (status 1)");
    unsetenv("SLUICE_DEVICE_BLAS_FAILS");
    assert_null(sl_blas_missing()); /* the library is still there */
    sl_blas again;
    assert_true(sl_blas_open(&again, stream, NULL, 0));
    sl_blas_close(&again);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products), cmocka_unit_test(test_sums_are_f32), cmocka_unit_test(test_beyond_f16),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_workspace), cmocka_unit_test(test_captured), cmocka_unit_test(test_launch_that_fails),
        cmocka_unit_test(test_does_not_open),
    };
    return cmocka_run_group_tests(tests, open_blas, close_blas);
}
