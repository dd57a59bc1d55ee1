/* What a CUDA device can do at this moment: how fast it copies its own memory, and how fast cuBLAS multiplies
 * large matrices; the two measures that a model's speed is held against. */
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda.h"
#include "backend/devices.h"
#include "os/os.h"

enum { ROUNDS = 15, COPIES = 4 /* in a round */, WORKSPACE = 32 << 20 };

/* Sizes of a real device; the test device only shows that the path works. */
static size_t copy_bytes(void) { return (size_t)1 << (sl_cuda_is_test_device() ? 16 : 30); }
static size_t matrix_width(void) { return sl_cuda_is_test_device() ? 64 : 8192; }

typedef struct probe {
    cudaStream_t stream;
    cudaEvent_t from, to;
    uint8_t *block; /* two halves to copy; or three matrices and cuBLAS's workspace */
    sl_blas blas;
    sl_act act;
} probe;

static cudaError_t open_probe(probe *p, int ordinal) {
    cudaError_t e = cudaSetDevice(ordinal);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreate(&p->from);
    if (e == cudaSuccess) e = cudaEventCreate(&p->to);
    if (e == cudaSuccess) e = cudaMalloc((void **)&p->block, 2 * copy_bytes());
    return e;
}

/* Numbers as weights are: a GPU multiplies zeros faster, because it needs less power for them. */
static cudaError_t fill(probe *p, sl_type type) {
    const size_t row = (size_t)1 << 14, row_bytes = row * (type == SL_F32 ? 4 : 2);
    const sl_random_args args = { .w = p->block, .w_row_bytes = row_bytes, .n_row = 2 * copy_bytes() / row_bytes,
                                  .type = type, .scale = 0.02f, .seed = 1, .k = (uint32_t)row };
    return (cudaError_t)sl_random_cuda(&args, p->stream);
}

static void close_probe(probe *p) {
    sl_blas_close(&p->blas);
    cudaFree(p->block);
    if (p->from) cudaEventDestroy(p->from);
    if (p->to) cudaEventDestroy(p->to);
    if (p->stream) cudaStreamDestroy(p->stream);
}

static cudaError_t copy_once(probe *p) {
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < COPIES && e == cudaSuccess; i++)
        e = cudaMemcpyAsync(p->block, p->block + copy_bytes(), copy_bytes(), cudaMemcpyDeviceToDevice, p->stream);
    return e;
}

static cudaError_t multiply_once(probe *p) {
    const size_t n = matrix_width(), bytes = n * n * sl_act_size(p->act);
    uint8_t *w = p->block + (sl_cuda_is_test_device() ? 0 : WORKSPACE);
    return p->blas.product(&p->blas, p->act, p->act == SL_ACT_F32, n, n, n, w, n, w + bytes, n, w + 2 * bytes,
                           n, 1, false)
               ? cudaErrorUnknown
               : cudaSuccess;
}

static int by_value(const void *a, const void *b) {
    const float *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* An idle GPU has slow clocks, and one that has just begun to work has faster ones than it can keep. */
static cudaError_t warm_up(probe *p, cudaError_t (*once)(probe *)) {
    const double until = sl_os_seconds() + (sl_cuda_is_test_device() ? 0 : 0.3);
    cudaError_t e;
    do {
        e = once(p);
        if (e == cudaSuccess) e = cudaStreamSynchronize(p->stream);
    } while (e == cudaSuccess && sl_os_seconds() < until);
    return e;
}

/* The median of some rounds, in seconds. */
static cudaError_t clock_rounds(probe *p, cudaError_t (*once)(probe *), double *seconds) {
    float ms[ROUNDS];
    cudaError_t e = warm_up(p, once);
    for (size_t i = 0; i < ROUNDS && e == cudaSuccess; i++) {
        e = cudaEventRecord(p->from, p->stream);
        if (e == cudaSuccess) e = once(p);
        if (e == cudaSuccess) e = cudaEventRecord(p->to, p->stream);
        if (e == cudaSuccess) e = cudaEventSynchronize(p->to);
        if (e == cudaSuccess) e = cudaEventElapsedTime(&ms[i], p->from, p->to);
    }
    if (e != cudaSuccess) return e;
    qsort(ms, ROUNDS, sizeof *ms, by_value);
    *seconds = (double)ms[ROUNDS / 2] * 1e-3;
    return e;
}

static cudaError_t multiply(probe *p, sl_cuda_probe *out) {
    const double n = (double)matrix_width(), work = 2e-12 * n * n * n;
    double f32 = 0, f16 = 0;
    p->act = SL_ACT_F32;
    cudaError_t e = fill(p, SL_F32);
    if (e == cudaSuccess) e = clock_rounds(p, multiply_once, &f32);
    p->act = SL_ACT_F16;
    if (e == cudaSuccess) e = fill(p, SL_F16);
    if (e == cudaSuccess) e = clock_rounds(p, multiply_once, &f16);
    if (f32 > 0) out->tflops_f32 = work / f32;
    if (f16 > 0) out->tflops_f16 = work / f16;
    return e;
}

sl_status sl_cuda_probe_run(int ordinal, sl_cuda_probe *out, sl_error *err) {
    probe p = { 0 };
    double seconds = 0;
    *out = (sl_cuda_probe){ 0 };
    cudaError_t e = open_probe(&p, ordinal);
    if (e == cudaSuccess) e = fill(&p, SL_F16);
    if (e == cudaSuccess) e = clock_rounds(&p, copy_once, &seconds);
    if (e == cudaSuccess && seconds > 0)
        out->copy_gbps = 2e-9 * COPIES * (double)copy_bytes() / seconds; /* read and written */
    if (e == cudaSuccess && sl_blas_open(&p.blas, p.stream, p.block, sl_cuda_is_test_device() ? 0 : WORKSPACE))
        e = multiply(&p, out);
    snprintf(out->blas, sizeof out->blas, "%s", p.blas.name);
    close_probe(&p);
    if (e == cudaSuccess) return SL_OK;
    return sl_fail(err, SL_E_DEVICE, "cuda:%d: measuring it: %s%s", ordinal, cudaGetErrorString(e), p.blas.trouble);
}
