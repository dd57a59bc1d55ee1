/* The CUDA devices of this machine, and why there are none. */
#include <stdio.h>
#include <string.h>

#include "backend/cuda.h"
#include "backend/devices.h"
#include "base/mem.h"

enum { LEAST_CAPABILITY = 80 };

bool sl_cuda_is_test_device(void) {
#ifdef SL_TEST_DEVICE
    return true;
#else
    return false;
#endif
}

static void versions(int version, char text[16]) {
    snprintf(text, 16, "%d.%d", version / 1000, version / 10 % 100);
}

/* Why cudaGetDeviceCount gave nothing. False: because there is no driver. */
static bool explain(cudaError_t e, char *reason) {
    int driver = 0, runtime = 0;
    char have[16], want[16];
    cudaError_t asked = cudaDriverGetVersion(&driver);
    if (asked == cudaSuccess) asked = cudaRuntimeGetVersion(&runtime);
    versions(driver, have);
    versions(runtime, want);
    if (asked != cudaSuccess)
        snprintf(reason, 200, "the driver says: %s", cudaGetErrorString(e != cudaSuccess ? e : asked));
    else if (!driver) snprintf(reason, 200, "no CUDA driver was found (this build needs one for CUDA %s)", want);
    else if (e == cudaErrorInsufficientDriver)
        snprintf(reason, 200, "the driver is for CUDA %s, expected %s or later", have, want);
    else if (e == cudaErrorNoDevice || e == cudaSuccess)
        snprintf(reason, 200, "the driver sees no CUDA device");
    else snprintf(reason, 200, "the driver says: %s", cudaGetErrorString(e));
    return asked != cudaSuccess || driver;
}

void sl_cuda_describe(int ordinal, sl_device_info *d) {
    *d = (sl_device_info){ 0 };
    struct cudaDeviceProp properties;
    size_t free_bytes = 0, all = 0;
    snprintf(d->id, sizeof d->id, "cuda:%d", ordinal);
    cudaError_t e = cudaGetDeviceProperties(&properties, ordinal);
    if (e == cudaSuccess) {
        snprintf(d->name, sizeof d->name, "%.127s", properties.name);
        d->memory_bytes = properties.totalGlobalMem;
        d->capability = 10 * properties.major + properties.minor;
    }
    if (e == cudaSuccess) e = cudaDriverGetVersion(&d->driver);
    if (e == cudaSuccess) e = cudaRuntimeGetVersion(&d->runtime);
    if (e == cudaSuccess) e = cudaSetDevice(ordinal);
    if (e == cudaSuccess) e = cudaMemGetInfo(&free_bytes, &all);
    d->free_bytes = free_bytes;
    if (e != cudaSuccess)
        snprintf(d->reason, sizeof d->reason, "it does not answer: %s", cudaGetErrorString(e));
    else if (d->capability < LEAST_CAPABILITY)
        snprintf(d->reason, sizeof d->reason, "compute capability %d.%d, expected %d.%d or more",
                 d->capability / 10, d->capability % 10, LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
    else d->usable = true;
    const char *missing = d->usable ? sl_blas_missing() : NULL;
    if (missing) snprintf(d->reason, sizeof d->reason, "%s: " SL_BLAS_INSTEAD, missing);
    else if (d->usable) snprintf(d->blas, sizeof d->blas, "%s", sl_blas_library());
}

size_t sl_cuda_count(char *reason, bool *trouble) {
    int n = 0;
    *trouble = false;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return (size_t)n;
    *trouble = explain(e, reason) && e != cudaSuccess && e != cudaErrorNoDevice;
    return 0;
}

/* ---- memory --------------------------------------------------------------------------------------- */

sl_status sl_cuda_no_memory(int ordinal, const char *what, uint64_t n, const char *unit, uint64_t bytes, sl_error *err) {
    size_t free_bytes = 0, all = 0;
    sl_size_buf need, left;
    const cudaError_t e = cudaMemGetInfo(&free_bytes, &all);
    if (e != cudaSuccess)
        return sl_fail(err, SL_E_MEMORY, "cuda:%d: out of memory: a %s of %llu %s needs %s; asking for free memory: %s",
                       ordinal, what, (unsigned long long)n, unit, sl_size(n * bytes, &need), cudaGetErrorString(e));
    return sl_fail(err, SL_E_MEMORY, "cuda:%d: out of memory: a %s of %llu %s needs %s, %s are free, enough for %llu",
                   ordinal, what, (unsigned long long)n, unit, sl_size(n * bytes, &need), sl_size(free_bytes, &left),
                   (unsigned long long)(free_bytes / bytes));
}
