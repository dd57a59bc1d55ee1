/* The test device's runtime: one device, its properties, errors, and failures on request.
 *
 * Environment: SLUICE_DEVICE_MEMORY bytes of device memory, SLUICE_DEVICE_SHARED of shared memory that a block can have
 * at most, SLUICE_DEVICE_SEED order of blocks and threads,
 * SLUICE_DEVICE_FAIL=n fails the n-th call that can fail, SLUICE_DEVICE_COUNT_CALLS=file writes at exit how
 * many there were, SLUICE_DEVICE_LEAKS=1 makes the exit status 99 if something was not released,
 * SLUICE_DEVICE_ABSENT=1 takes the device away, SLUICE_DEVICE_DRIVER=12080 makes its driver one for CUDA 12.8, SLUICE_DEVICE_PROTECT=1 keeps the host from touching device
 * memory, SLUICE_DEVICE_CAPABILITY=90 makes it one of compute capability 9.0 (80, where kernels run from PTX its own). */
#include "device_runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

sl_runtime sl_rt;

static thread_local cudaError_t last_error;

/* ---- start and end ------------------------------------------------------------------------------- */

static unsigned long number_from(const char *variable, unsigned long otherwise) {
    const char *text = getenv(variable);
    return text && *text ? strtoul(text, nullptr, 10) : otherwise;
}

static size_t count_leaks(void) {
    return sl_rt.allocations.size() + sl_rt.host_allocations.size() + sl_rt.streams.size() +
           sl_rt.events.size() + sl_rt.graphs.size() + sl_rt.execs.size();
}

static void at_exit(void) {
    const char *path = getenv("SLUICE_DEVICE_COUNT_CALLS");
    FILE *file = path ? fopen(path, "w") : nullptr;
    if (file) {
        fprintf(file, "%lu\n", sl_rt.n_call);
        fclose(file);
    }
    if (number_from("SLUICE_DEVICE_LEAKS", 0) == 0 || count_leaks() == 0)
        return;
    fprintf(stderr,
            "test device: not released: %zu allocations (%zu bytes), %zu pinned, %zu streams, "
            "%zu events, %zu graphs, %zu executable graphs\n",
            sl_rt.allocations.size(), sl_rt.memory_used, sl_rt.host_allocations.size(), sl_rt.streams.size(),
            sl_rt.events.size(), sl_rt.graphs.size(), sl_rt.execs.size());
    fflush(nullptr);
    _exit(99);
}

/* Shared memory that a block can have. */
static size_t most_shared(void) {
    return sl_rt.capability >= 90 ? static_cast<size_t>(SL_MAX_SHARED) : static_cast<size_t>(163 * 1024);
}

#ifndef SL_DEVICE_CAPABILITY
#define SL_DEVICE_CAPABILITY 80
#endif

static void start(void) {
    if (sl_rt.started)
        return;
    sl_rt.started = true;
    sl_rt.fail_at = number_from("SLUICE_DEVICE_FAIL", 0);
    sl_rt.seed = number_from("SLUICE_DEVICE_SEED", 0);
    sl_rt.protect = number_from("SLUICE_DEVICE_PROTECT", 0) != 0;
    sl_rt.memory_limit = number_from("SLUICE_DEVICE_MEMORY", sl_rt.memory_limit);
    sl_rt.capability = number_from("SLUICE_DEVICE_CAPABILITY", SL_DEVICE_CAPABILITY);
    sl_rt.shared_limit = number_from("SLUICE_DEVICE_SHARED", most_shared());
    atexit(at_exit);
}

/* ---- calls --------------------------------------------------------------------------------------- */

cudaError_t sl_refuse(cudaError_t error, const char *format, ...) {
    char text[384];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    sl_fault_set("%s", text);
    return error;
}

cudaError_t sl_refuse_forever(cudaError_t error) {
    sl_rt.sticky = error;
    sl_stream_discard();
    sl_stream_spoil();
    return error;
}

/* What the device had to do is lost with a failure other than of an allocation, as on a real one. */
static cudaError_t fail_on_request(const char *name, unsigned traits) {
    sl_refuse(cudaSuccess, "%s: call %lu fails on request", name, sl_rt.n_call);
    if (traits & CALL_ALLOCATES)
        return cudaErrorMemoryAllocation;
    sl_stream_discard();
    sl_stream_spoil();
    return traits & CALL_MOVES ? cudaErrorIllegalAddress : cudaErrorLaunchFailure;
}

cudaError_t sl_call_admit(const char *name, unsigned traits) {
    start();
    if (traits & (CALL_CAN_FAIL | CALL_ALLOCATES | CALL_MOVES) && ++sl_rt.n_call == sl_rt.fail_at)
        return fail_on_request(name, traits);
    if (sl_rt.sticky != cudaSuccess)
        return sl_rt.sticky;
    if ((traits & CALL_NOT_IN_CAPTURE && sl_stream_forbids_unsafe()) ||
        (traits & CALL_WAITS_FOR_ALL && sl_stream_any_capture())) {
        sl_stream_spoil();
        return sl_refuse(cudaErrorStreamCaptureUnsupported, "%s while a stream captures", name);
    }
    return cudaSuccess;
}

cudaError_t sl_call_result(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

/* ---- errors -------------------------------------------------------------------------------------- */

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {
#define ERROR(name, text) {name, #name, text}
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInitializationError, "initialization error"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorInsufficientDriver, "driver too old for the runtime"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing stream"),
    ERROR(cudaErrorStreamCaptureWrongThread, "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(cudaErrorNotPermitted, "operation not permitted"),
    ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(cudaErrorUnknown, "unknown error"),
#undef ERROR
};

const char *cudaGetErrorString(cudaError_t error) {
    for (const auto &e : errors)
        if (e.code == error)
            return e.text;
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t error) {
    for (const auto &e : errors)
        if (e.code == error)
            return e.name;
    return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError(void) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    return sl_rt.sticky != cudaSuccess ? sl_rt.sticky : last_error;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

/* ---- the device ---------------------------------------------------------------------------------- */

static cudaError_t check_device(int device) {
    if (number_from("SLUICE_DEVICE_ABSENT", 0) != 0)
        return sl_refuse(cudaErrorNoDevice, "the test device is absent");
    return device == 0 ? cudaSuccess : sl_refuse(cudaErrorInvalidDevice, "device %d of 1", device);
}

cudaError_t cudaGetDeviceCount(int *count) {
    return sl_call("cudaGetDeviceCount", CALL_CAN_FAIL, [&] {
        cudaError_t error = check_device(0);
        *count = error == cudaSuccess;
        return error;
    });
}

cudaError_t cudaSetDevice(int device) {
    return sl_call("cudaSetDevice", CALL_CAN_FAIL, [&] { return check_device(device); });
}

cudaError_t cudaGetDevice(int *device) {
    return sl_call("cudaGetDevice", CALL_CAN_FAIL, [&] {
        *device = 0;
        return check_device(0);
    });
}

/* Few processors, so that what is split by their number is split into few parts here. */
enum { N_PROCESSOR = 8, L2_BYTES = 4 << 20, BUS_BITS = 512, CLOCK_KHZ = 1000000 };

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    return sl_call("cudaGetDeviceProperties", CALL_CAN_FAIL, [&] {
        cudaError_t error = check_device(device);
        if (error != cudaSuccess)
            return error;
        *prop = {};
        snprintf(prop->name, sizeof prop->name, "test device (host CPU)");
        prop->totalGlobalMem = sl_rt.memory_limit;
        prop->sharedMemPerBlock = SL_DEFAULT_SHARED;
        prop->sharedMemPerBlockOptin = sl_rt.shared_limit;
        prop->sharedMemPerMultiprocessor = most_shared() + 1024;
        prop->major = static_cast<int>(sl_rt.capability / 10);
        prop->minor = static_cast<int>(sl_rt.capability % 10);
        prop->multiProcessorCount = N_PROCESSOR;
        prop->warpSize = warpSize;
        prop->maxThreadsPerBlock = SL_MAX_THREADS;
        prop->l2CacheSize = L2_BYTES;
        prop->memoryBusWidth = BUS_BITS;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    return sl_call("cudaDeviceGetAttribute", CALL_CAN_FAIL, [&] {
        cudaError_t error = check_device(device);
        if (error != cudaSuccess)
            return error;
        switch (attr) {
        case cudaDevAttrMaxThreadsPerBlock: *value = SL_MAX_THREADS; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SL_DEFAULT_SHARED; return cudaSuccess;
        case cudaDevAttrWarpSize: *value = warpSize; return cudaSuccess;
        case cudaDevAttrClockRate:
        case cudaDevAttrMemoryClockRate: *value = CLOCK_KHZ; return cudaSuccess;
        case cudaDevAttrMultiProcessorCount: *value = N_PROCESSOR; return cudaSuccess;
        case cudaDevAttrIntegrated:
        case cudaDevAttrComputeMode: *value = 0; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: *value = static_cast<int>(sl_rt.capability % 10); return cudaSuccess;
        case cudaDevAttrGlobalMemoryBusWidth: *value = BUS_BITS; return cudaSuccess;
        case cudaDevAttrL2CacheSize: *value = L2_BYTES; return cudaSuccess;
        case cudaDevAttrUnifiedAddressing: *value = 1; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor: *value = static_cast<int>(sl_rt.capability / 10); return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(most_shared()) + 1024; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(sl_rt.shared_limit); return cudaSuccess;
        }
        return sl_refuse(cudaErrorInvalidValue, "the test device does not know attribute %d",
                         static_cast<int>(attr));
    });
}

cudaError_t cudaDriverGetVersion(int *version) {
    return sl_call("cudaDriverGetVersion", CALL_CAN_FAIL, [&] {
        *version = static_cast<int>(number_from("SLUICE_DEVICE_DRIVER", CUDART_VERSION));
        return cudaSuccess;
    });
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    return sl_call("cudaRuntimeGetVersion", CALL_CAN_FAIL, [&] {
        *version = CUDART_VERSION;
        return cudaSuccess;
    });
}

cudaError_t cudaFuncSetAttribute(const void *entry, cudaFuncAttribute attr, int value) {
    return sl_call("cudaFuncSetAttribute", CALL_CAN_FAIL, [&] {
        const size_t most = sl_rt.shared_limit;
        if (!entry || attr != cudaFuncAttributeMaxDynamicSharedMemorySize)
            return sl_refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: attribute %d of %p",
                             static_cast<int>(attr), entry);
        if (value < 0 || static_cast<size_t>(value) > most)
            return sl_refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: %d bytes of shared memory of %zu",
                             value, most);
        sl_rt.shared_allowed[entry] = static_cast<size_t>(value);
        return cudaSuccess;
    });
}

template <class T> static void release_all(std::set<T *> *all) {
    for (T *one : *all)
        delete one;
    all->clear();
}

cudaError_t cudaDeviceReset(void) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_stream_discard();
    release_all(&sl_rt.streams);
    release_all(&sl_rt.events);
    release_all(&sl_rt.graphs);
    release_all(&sl_rt.execs);
    sl_memory_release_all();
    sl_rt.shared_allowed.clear();
    sl_rt.sticky = last_error = cudaSuccess;
    sl_fault_set("%s", "");
    return cudaSuccess;
}

/* ---- what tests ask ------------------------------------------------------------------------------ */

const char *sl_device_fault(void) { return sl_fault_text(); }

size_t sl_device_leaks(void) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    return count_leaks();
}

void sl_device_fail_at(unsigned long n) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_rt.fail_at = n ? sl_rt.n_call + n : 0;
}

unsigned long sl_device_calls(void) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    return sl_rt.n_call;
}

void sl_device_seed(unsigned long seed) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_rt.seed = seed;
}

void sl_device_protect(int on) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_rt.protect = true;
    sl_memory_open(!on);
    sl_rt.protect = on != 0;
}

void sl_device_memory(size_t bytes) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_rt.memory_limit = bytes;
}

void sl_device_refuse_capture(int error) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    sl_rt.capture_error = static_cast<cudaError_t>(error);
}

void sl_device_on_capture(void (*f)(void *), void *arg) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    sl_rt.on_capture = f, sl_rt.on_capture_arg = arg;
}

void sl_device_shared_limit(size_t bytes) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    start();
    sl_rt.shared_limit = bytes < most_shared() ? bytes : most_shared();
    sl_rt.shared_allowed.clear();
}
