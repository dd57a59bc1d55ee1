#include "backend/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "os/os.h"

enum { MAX_DEVICES = 64 };

static void describe_cpu(sl_device_info *d) {
    *d = (sl_device_info){ .usable = true, .memory_bytes = sl_os_memory() };
    snprintf(d->id, sizeof d->id, "cpu");
    const char *bad;
    snprintf(d->name, sizeof d->name, "%zu processors, kernels for %s", sl_os_processors(),
             sl_cpu_features_name(sl_cpu_features_allowed(&bad)));
}

/* The CUDA devices, or one entry that says why there are none. */
static size_t list_cuda(sl_device_info *devices, size_t cap) {
    char reason[sizeof devices->reason] =
        "this build has no CUDA backend (nvcc was not found, or it was switched off)";
    size_t n = 0;
#ifdef SL_CUDA
    n = sl_cuda_devices(devices, cap, reason);
#endif
    if (n || !cap) return n ? n : 1;
    *devices = (sl_device_info){ .id = "cuda" };
    snprintf(devices->reason, sizeof devices->reason, "%s", reason);
    return 1;
}

size_t sl_devices(sl_device_info *devices, size_t cap) {
    if (cap) describe_cpu(devices);
    return 1 + list_cuda(devices + (cap ? 1 : 0), cap ? cap - 1 : 0);
}

#ifdef SL_CUDA
/* Whether the model fits; the reason is not wanted. */
static bool fits(const sl_device_info *d, const sl_graph *graph, const sl_device_params *params) {
    sl_cuda_need need;
    return sl_cuda_needs(graph, params, &need, NULL) == SL_OK && need.all <= d->free_bytes;
}
#endif

/* The first usable CUDA device that holds the model; false: none. */
static bool choose_automatically(const sl_device_info *devices, size_t n, const sl_graph *graph,
                                 sl_device_params *params) {
#ifdef SL_CUDA
    for (size_t i = 0; i < n && !sl_cuda_is_test_device(); i++) {
        params->ordinal = (int)i;
        if (devices[i].usable && fits(&devices[i], graph, params)) return true;
    }
#endif
    (void)devices, (void)n, (void)graph, (void)params;
    return false;
}

/* "cuda" or "cuda:N" in the list; NULL with an error if it is not there or cannot be used. */
static const sl_device_info *find_cuda(const char *name, const sl_device_info *devices, size_t n,
                                       sl_error *err) {
    const sl_device_info *first = devices;
    if (!strcmp(name, "cuda")) {
        for (size_t i = 0; i < n; i++)
            if (devices[i].usable) return &devices[i];
        sl_fail(err, SL_E_DEVICE, "device \"cuda\" cannot be used: %s", first->reason);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(name, devices[i].id)) continue;
        if (devices[i].usable) return &devices[i];
        sl_fail(err, SL_E_DEVICE, "device \"%s\" cannot be used: %s", devices[i].id, devices[i].reason);
        return NULL;
    }
    sl_name_buf buf;
    if (!strcmp(first->id, "cuda"))
        sl_fail(err, SL_E_DEVICE, "device \"%s\" cannot be used: %s", sl_name(name, &buf), first->reason);
    else
        sl_fail(err, SL_E_DEVICE, "there is no device \"%s\", expected cuda:0 to cuda:%zu", sl_name(name, &buf),
                n - 1);
    return NULL;
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

static void use_cuda(const sl_device_info *d, size_t ordinal, sl_device_params *params,
                     const sl_backend **backend, char *id) {
    (void)backend;
    params->ordinal = (int)ordinal;
    memcpy(id, d->id, sizeof d->id);
#ifdef SL_CUDA
    *backend = &sl_backend_cuda;
#endif
}

sl_status sl_device_choose(const char *name, const sl_graph *graph, sl_device_params *params,
                           const sl_backend **backend, char *id, sl_error *err) {
    sl_name_buf buf;
    *backend = &sl_backend_cpu;
    params->ordinal = 0;
    memcpy(id, "cpu", sizeof "cpu");
    if (!name || !strcmp(name, "cpu")) return SL_OK;
    bool automatic = !strcmp(name, "auto");
    if (!sl_device_name_is_known(name))
        return sl_fail(err, SL_E_ARG, "device \"%s\" is unknown, expected cpu, cuda, cuda:N or auto",
                       sl_name(name, &buf));
    sl_device_info *devices;
    SL_TRY(sl_alloc((void **)&devices, MAX_DEVICES, sizeof *devices, "the list of devices", err));
    size_t n = sl_min(list_cuda(devices, MAX_DEVICES), MAX_DEVICES);
    const sl_device_info *d = NULL;
    if (automatic) d = choose_automatically(devices, n, graph, params) ? &devices[params->ordinal] : NULL;
    else d = find_cuda(name, devices, n, err);
    if (d) use_cuda(d, (size_t)(d - devices), params, backend, id);
    free(devices);
    return d || automatic ? SL_OK : SL_E_DEVICE;
}

void sl_device_auto(char id[16]) {
    sl_device_info devices[8];
    size_t n = sl_min(list_cuda(devices, 8), 8), i = 0;
    while (i < n && !devices[i].usable) i++;
    bool test = false;
#ifdef SL_CUDA
    test = sl_cuda_is_test_device();
#endif
    snprintf(id, 16, "%s", i < n && !test ? devices[i].id : "cpu");
}

#ifndef SL_CUDA
sl_status sl_cuda_probe_run(int ordinal, sl_cuda_probe *out, sl_error *err) {
    (void)ordinal;
    *out = (sl_cuda_probe){ 0 };
    return sl_fail(err, SL_E_UNSUPPORTED, "this build has no CUDA backend");
}
#endif
