/* Device memory and error handling of the CUDA checks. */
#define _DEFAULT_SOURCE
#include "cuda_check.h"
#include "runner.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef SL_TEST_DEVICE
#include "test_device.h"
#endif

cuda_kernels cuda = {
#define SL_KERNEL(member, isa, function)
#define SL_CUDA_KERNEL(name, function) .name = function,
#include "kernels/kernels.def"
#undef SL_KERNEL
};

enum { MAX_ALLOCATION = 64 };
static void *allocations[MAX_ALLOCATION];
static size_t n_allocation;

/* A device that has failed stays so: the process ends. */
static void must(const char *what, int status) {
    if (status == cudaSuccess) return;
    const char *detail = "";
#ifdef SL_TEST_DEVICE
    detail = sl_device_fault();
#endif
    check_fail(check_current(), "%s: %s %s", what, cudaGetErrorString((cudaError_t)status), detail);
    fflush(stderr);
    _exit(1);
}

/* A GPU allocates slowly, and tests do it a million times: they take parts of one block there, until cuda_free. On the
 * test device each has pages of its own, between guards. */
#ifndef SL_TEST_DEVICE
enum { BLOCK_BYTES = 256 << 20 };
static unsigned char *block;
static size_t block_used;

static void *allocate_in_block(size_t n_bytes) {
    if (!block) must("cudaMalloc", cudaMalloc((void **)&block, BLOCK_BYTES));
    if (n_bytes > BLOCK_BYTES - block_used) return NULL;
    block_used += n_bytes; /* whole pages */
    return block + block_used - n_bytes;
}
#else
static size_t block_used;
static void *allocate_in_block(size_t n_bytes) { return (void)n_bytes, NULL; }
#endif

static void *allocate(size_t n_bytes) {
    void *p = allocate_in_block(n_bytes);
    if (p) return p;
    must("cudaMalloc", n_allocation < MAX_ALLOCATION ? cudaMalloc(&p, n_bytes) : cudaErrorMemoryAllocation);
    allocations[n_allocation++] = p;
    return p;
}

/* Whole pages end at a guard page of the test device. */
void *cuda_new(size_t n_bytes, size_t align) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (n_bytes + align + page - 1) / page * page;
    unsigned char *base = allocate(size);
    must("cudaMemset", cudaMemset(base, 0xff, size));
    return base + (size - n_bytes) / align * align;
}

void *cuda_put(const void *from, size_t n_bytes, size_t align) {
    void *to = cuda_new(n_bytes, align);
    if (n_bytes) must("cudaMemcpy", cudaMemcpy(to, from, n_bytes, cudaMemcpyHostToDevice));
    return to;
}

void cuda_set(void *device, const void *from, size_t n_bytes) {
    must("cudaMemcpy", cudaMemcpy(device, from, n_bytes, cudaMemcpyHostToDevice));
}

void cuda_get(void *to, const void *device, size_t n_bytes) {
    if (n_bytes) must("cudaMemcpy", cudaMemcpy(to, device, n_bytes, cudaMemcpyDeviceToHost));
}

/* Elements from one row to the next: up to 16 bytes of gap beyond what alignment asks for. */
static size_t row_stride(sl_act act, size_t n) {
    const size_t step = 16 / sl_act_size(act);
    return (n / step + 1) * step;
}

void *cuda_new_rows(sl_act act, size_t n, size_t n_row, uint64_t *stride) {
    *stride = row_stride(act, n);
    return cuda_new(((n_row - 1) * *stride + n) * sl_act_size(act), 16);
}

static unsigned char *scratch(size_t n_bytes) {
    unsigned char *p = malloc(n_bytes);
    if (!p) abort();
    memset(p, 0xff, n_bytes);
    return p;
}

void *cuda_put_rows(sl_act act, const float *from, size_t from_stride, size_t n, size_t n_row,
        uint64_t *stride) {
    *stride = row_stride(act, n);
    const size_t n_bytes = ((n_row - 1) * *stride + n) * sl_act_size(act);
    unsigned char *rows = scratch(n_bytes);
    for (size_t r = 0; r < n_row; r++) {
        const float *x = from + r * from_stride;
        unsigned char *row = rows + r * *stride * sl_act_size(act);
        if (act == SL_ACT_F32) memcpy(row, x, n * sizeof *x);
        for (size_t i = 0; act == SL_ACT_F16 && i < n; i++) ((uint16_t *)row)[i] = cuda_f16(x[i]);
    }
    void *device = cuda_put(rows, n_bytes, 16);
    free(rows);
    return device;
}

static bool all_set(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != 0xff) return false;
    }
    return true;
}

void cuda_get_rows(sl_act act, float *to, size_t to_stride, size_t n, size_t n_row, const void *device,
        uint64_t stride) {
    const size_t size = sl_act_size(act), n_bytes = ((n_row - 1) * stride + n) * size;
    unsigned char *rows = scratch(n_bytes);
    cuda_get(rows, device, n_bytes);
    for (size_t r = 0; r < n_row; r++) {
        const unsigned char *row = rows + r * stride * size;
        float *y = to + r * to_stride;
        if (act == SL_ACT_F32) memcpy(y, row, n * sizeof *y);
        for (size_t i = 0; act == SL_ACT_F16 && i < n; i++) y[i] = sl_f16_to_f32(((const uint16_t *)row)[i]);
        if (r + 1 < n_row && !all_set(row + n * size, (stride - n) * size))
            check_fail(check_current(), "bytes between device rows %zu and %zu were written", r, r + 1);
    }
    free(rows);
}

void cuda_free(void) {
    block_used = 0;
    while (n_allocation > 0) must("cudaFree", cudaFree(allocations[--n_allocation]));
}

void cuda_run(int status) {
    must("launch", status);
    must("kernel", cudaDeviceSynchronize());
}

size_t cuda_shared(void) {
    int device = 0, bytes = 0;
    must("cudaGetDevice", cudaGetDevice(&device));
    must("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return (size_t)bytes;
}

bool cuda_present(const char **why) {
    int n = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    *why = status == cudaSuccess ? "no device" : cudaGetErrorString(status);
    return status == cudaSuccess && n > 0;
}
