/* The CUDA devices of this machine, why there are none, and what a session would need of one. */
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

/* Why cudaGetDeviceCount gave nothing. */
static void explain(cudaError_t e, char *reason) {
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

size_t sl_cuda_count(char *reason) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return (size_t)n;
    explain(e, reason);
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

/* ---- what fits ---------------------------------------------------------------------------------- */

/* What the driver takes later on by itself: for kernels, of which each is loaded with its first launch, cuBLAS and its
 * kernels, and graphs. A guess on the safe side; the test device takes nothing. */
static uint64_t driver_bytes(void) { return sl_cuda_is_test_device() ? 0 : 256 << 20; }

sl_status sl_cuda_needs(const sl_graph *graph, const sl_device_params *params, sl_cuda_need *need,
                        sl_error *err) {
    sl_cuda_weights weights = { 0 };
    sl_device device = { .graph = graph, .n_slot = params->n_slot, .n_batch = params->n_batch, .invariant = params->invariant };
    SL_TRY(sl_cuda_plan_make(graph, params, &device.plan, err));
    sl_status status = sl_cuda_weights_lay_out(graph, &weights, err);
    *need = (sl_cuda_need){
        .weights = weights.n_bytes, .states = (uint64_t)graph->state_floats * sizeof(float) * params->n_slot,
    };
    const uint64_t stores = sl_cuda_kv_bytes(graph, params->kv_f16, SL_CUDA_FIRST_KV) * params->n_slot;
    uint64_t block = 0;
    if (status == SL_OK) status = sl_cuda_lay_out(&device, &block, err);
    need->activations = driver_bytes() + block - need->states +
                        (uint64_t)graph->n_vocab * sizeof(float) * sl_min(params->n_slot, params->n_batch);
    need->states += stores; /* which are allocated with the first token of each */
    need->all = need->weights + need->states + need->activations;
    bool resident = sl_cuda_weights_resident(graph, params->ordinal, device.plan.act);
    need->missing = need->all - (resident ? need->weights : 0);
    sl_cuda_plan_release(&device.plan);
    sl_cuda_weights_release_layout(&weights);
    return status;
}

/* Bytes of all weights, laid out, of a model of that type, and of the scratch for expanding the largest. */
static uint64_t weights_as(const sl_cuda_weights *w, sl_type type) {
    uint64_t all = 0, largest = 0;
    for (size_t i = 0; i < w->n_item; i++) {
        const sl_tensor *t = w->items[i].tensor;
        const uint64_t rows = t ? sl_spec_rows(&t->spec) : 0, width = t ? sl_spec_width(&t->spec) : 0;
        const uint64_t row = t ? sl_cuda_row_bytes(sl_row_bytes(sl_class_type(t->spec.class_, type), width)) : 0;
        all += sl_cuda_laid_out(t ? rows * row : w->items[i].n_bytes);
        if (t && t->spec.n_dim == 2 && 2 * rows * width > largest) largest = 2 * rows * width; /* as f16 */
    }
    return all + (type == SL_BF16 ? 0 : sl_min(largest, SL_CUDA_EXPAND_BYTES));
}

/* What the model would need as the largest type of weights that fits; if none does, of its own for one sequence. */
static void suggest(const sl_graph *graph, const sl_device_params *params, const sl_cuda_need *need, uint64_t free_bytes,
                    char *text, size_t size) {
    enum { FEW = 64 };
    static const sl_type types[] = { SL_BF16, SL_Q8, SL_Q4 };
    sl_device_params least = *params;
    sl_cuda_need alone;
    sl_cuda_weights w = { 0 };
    sl_size_buf needed;
    least.n_slot = 1, least.n_batch = sl_min(params->n_batch, FEW);
    if (sl_cuda_needs(graph, &least, &alone, NULL) == SL_OK && alone.missing <= free_bytes)
        snprintf(text, size, "; for one sequence, %zu tokens a pass, it would need %s", least.n_batch,
                 sl_size(alone.all, &needed));
    else snprintf(text, size, "; no type of it would fit");
    if (sl_cuda_weights_lay_out(graph, &w, NULL) != SL_OK) return;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        uint64_t all = need->all - need->weights + weights_as(&w, types[i]);
        if (all > free_bytes) continue;
        snprintf(text, size, "; as %s it would need %s", sl_type_name(types[i]), sl_size(all, &needed));
        break;
    }
    sl_cuda_weights_release_layout(&w);
}

sl_status sl_cuda_check_sizes(const sl_device_params *params, sl_error *err) {
    const bool batch = params->n_batch > SL_CUDA_MAX_GRID;
    if (!batch && params->n_slot <= SL_CUDA_MAX_GRID) return SL_OK;
    return sl_fail(err, SL_E_ARG, "cuda:%d: %s is %zu, expected 1 to %d on a CUDA device", params->ordinal,
                   batch ? "n_batch" : "n_slot", batch ? params->n_batch : params->n_slot, SL_CUDA_MAX_GRID);
}

sl_status sl_cuda_check_fit(const sl_graph *graph, const sl_device_params *params, sl_error *err) {
    sl_cuda_need need;
    size_t free_bytes = 0, all = 0;
    char hint[80];
    SL_TRY(sl_cuda_needs(graph, params, &need, err));
    cudaError_t e = cudaMemGetInfo(&free_bytes, &all);
    if (e != cudaSuccess)
        return sl_fail(err, SL_E_DEVICE, "cuda:%d: asking for free memory: %s", params->ordinal,
                       cudaGetErrorString(e));
    if (need.missing <= free_bytes) return SL_OK;
    suggest(graph, params, &need, free_bytes, hint, sizeof hint);
    sl_size_buf sizes[5];
    return sl_fail(err, SL_E_MEMORY,
                   "cuda:%d: out of memory: the model needs %s (weights %s, states of %zu sequences %s, activations %s), "
                   "%s are free%s",
                   params->ordinal, sl_size(need.all, &sizes[0]), sl_size(need.weights, &sizes[1]), params->n_slot,
                   sl_size(need.states, &sizes[2]), sl_size(need.activations, &sizes[3]),
                   sl_size(free_bytes, &sizes[4]), hint);
}
