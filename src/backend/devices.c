#include "backend/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"

static void describe_cpu(sl_device_info *d) {
    *d = (sl_device_info){ .usable = true, .memory_bytes = sl_os_memory() };
    snprintf(d->id, sizeof d->id, "cpu");
    const char *bad;
    snprintf(d->name, sizeof d->name, "%zu processors, kernels for %s", sl_os_processors(),
             sl_cpu_features_name(sl_cpu_features_allowed(&bad)));
}

/* How many CUDA devices there are; 0: d says why none. trouble: see sl_cuda_count. */
static size_t count_cuda(sl_device_info *d, bool *trouble) {
    *d = (sl_device_info){ .id = "cuda" };
    *trouble = false;
#ifdef SL_CUDA
    return sl_cuda_count(d->reason, trouble);
#else
    snprintf(d->reason, sizeof d->reason,
             "this build has no CUDA backend (nvcc was not found, or it was switched off)");
    return 0;
#endif
}

/* Wakes the device up, which takes a moment and memory of it: only those that are asked for. */
static void describe_cuda(size_t ordinal, sl_device_info *d) {
#ifdef SL_CUDA
    sl_cuda_describe((int)ordinal, d);
#else
    (void)ordinal, (void)d;
#endif
}

size_t sl_devices(sl_device_info *devices, size_t cap) {
    sl_device_info none;
    bool trouble;
    size_t n = count_cuda(&none, &trouble);
    if (cap) describe_cpu(devices);
    if (cap > 1 && !n) devices[1] = none;
    for (size_t i = 0; i < n && i + 1 < cap; i++) describe_cuda(i, &devices[i + 1]);
    return 1 + (n ? n : 1);
}

/* Whether the model, or one that is still to come, fits. If not, in note that the device is passed over. */
static bool fits(const sl_device_info *d, const sl_graph *graph, const sl_device_params *params, char *note,
                 size_t size) {
#ifdef SL_CUDA
    sl_cuda_need need = { .missing = params->weights_to_come };
    sl_error err;
    sl_status status = sl_cuda_check_sizes(params, &err);
    if (status == SL_OK && graph) status = sl_cuda_needs(graph, params, &need, &err);
    if (status == SL_OK && need.missing <= d->free_bytes) return true;
    if (status != SL_OK) return snprintf(note, size, "%s is passed over for the CPU: %.200s", d->id, err.text), false;
    sl_size_buf needed, left;
    snprintf(note, size, "%s is passed over for the CPU: the model needs %s, %s are free", d->id,
             sl_size(need.missing, &needed), sl_size(d->free_bytes, &left));
#else
    (void)d, (void)graph, (void)params, (void)note, (void)size;
#endif
    return false;
}

/* The first usable device of n. */
static bool first_usable(size_t n, sl_device_params *params, sl_device_info *d) {
    for (size_t i = 0; i < n; i++) {
        params->ordinal = (int)i;
        describe_cuda(i, d);
        if (d->usable) return true;
    }
    return false;
}

/* "cuda" or "cuda:N" of n devices; if there is none d says why. */
static sl_status find_cuda(const char *name, size_t n, sl_device_params *params, sl_device_info *d,
                           sl_error *err) {
    sl_name_buf buf;
    bool any = !strcmp(name, "cuda");
    size_t ordinal = any ? 0 : strtoul(name + 5, NULL, 10);
    char id[32];
    snprintf(id, sizeof id, "cuda:%zu", ordinal);
    if (n && !any && (ordinal >= n || strcmp(id, name)))
        return sl_fail(err, SL_E_DEVICE, "there is no device \"%s\", expected cuda:0 to cuda:%zu",
                       sl_name(name, &buf), n - 1);
    params->ordinal = (int)ordinal;
    if (n && !any) describe_cuda(ordinal, d);
    if (any ? first_usable(n, params, d) : d->usable) return SL_OK;
    return sl_fail(err, SL_E_DEVICE, "device \"%s\" cannot be used: %s", sl_name(name, &buf), d->reason);
}

/* "cuda:" and a number. */
static bool is_cuda_name(const char *name) {
    size_t n = strlen(name);
    return !strcmp(name, "cuda") ||
           (!strncmp(name, "cuda:", 5) && n > 5 && n < 9 && strspn(name + 5, "0123456789") == n - 5);
}

bool sl_device_name_is_known(const char *name) {
    return !strcmp(name, "cpu") || !strcmp(name, "auto") || is_cuda_name(name);
}

static bool is_test_device(void) {
#ifdef SL_CUDA
    return sl_cuda_is_test_device();
#else
    return false;
#endif
}

static void use_cuda(const sl_device_info *d, sl_device_choice *choice) {
    memcpy(choice->id, d->id, sizeof d->id);
#ifdef SL_CUDA
    choice->backend = &sl_backend_cuda;
#endif
}

bool sl_device_that_fits(const sl_graph *graph, sl_device_params *params, sl_device_choice *choice) {
    sl_device_info d;
    bool trouble;
    size_t n = count_cuda(&d, &trouble);
    if (trouble) snprintf(choice->note, sizeof choice->note, "CUDA is passed over for the CPU: %s", d.reason);
    for (size_t i = 0; i < n; i++) {
        params->ordinal = (int)i;
        describe_cuda(i, &d);
        if (!d.usable)
            snprintf(choice->note, sizeof choice->note, "%s is passed over for the CPU: %s", d.id, d.reason);
        else if (fits(&d, graph, params, choice->note, sizeof choice->note)) {
            choice->note[0] = 0;
            use_cuda(&d, choice);
            return true;
        }
    }
    return false;
}

sl_status sl_device_choose(const char *name, const sl_graph *graph, sl_device_params *params,
                           sl_device_choice *choice, sl_error *err) {
    sl_name_buf buf;
    *choice = (sl_device_choice){ .backend = &sl_backend_cpu, .id = "cpu" };
    params->ordinal = 0;
    if (!name || !strcmp(name, "cpu")) return SL_OK;
    if (!sl_device_name_is_known(name))
        return sl_fail(err, SL_E_ARG, "device \"%s\" is unknown, expected cpu, cuda, cuda:N or auto",
                       sl_name(name, &buf));
    sl_device_info d;
    if (!strcmp(name, "auto")) {
        if (!is_test_device()) sl_device_that_fits(graph, params, choice);
        return SL_OK;
    }
    bool trouble;
    const size_t n = count_cuda(&d, &trouble);
    SL_TRY(find_cuda(name, n, params, &d, err));
    use_cuda(&d, choice);
    return SL_OK;
}

#ifndef SL_CUDA
sl_status sl_cuda_probe_run(int ordinal, sl_cuda_probe *out, sl_error *err) {
    (void)ordinal;
    *out = (sl_cuda_probe){ 0 };
    return sl_fail(err, SL_E_UNSUPPORTED, "this build has no CUDA backend");
}
#endif
