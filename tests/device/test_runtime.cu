/* The test device tested, part two: the runtime. Order of streams, capture and replay, limits of memory,
 * addresses, damage, failures on request, and what is left over. */
#include "device_check.h"

#include <sys/wait.h>
#include <unistd.h>

#include <thread>

struct scale_args {
    float *x;
    unsigned n;
    float by;
};

static __global__ void scale_kernel(scale_args a) {
    sl_begin();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n)
        sl_store(a.x + i, sl_load(a.x + i) * a.by);
}

static int scale_with(float *x, unsigned n, float by, size_t shared_bytes, cudaStream_t stream) {
    return sl_launch(scale_kernel, dim3((n + 31) / 32), dim3(32), shared_bytes, stream, scale_args{x, n, by});
}
static int scale(float *x, unsigned n, float by, cudaStream_t stream) { return scale_with(x, n, by, 0, stream); }

static cudaStream_t open_stream(unsigned flags) {
    cudaStream_t stream = nullptr;
    CHECK(cudaStreamCreateWithFlags(&stream, flags) == cudaSuccess);
    return stream;
}

/* ---- streams ------------------------------------------------------------------------------------- */

static void test_lazy(void) {
    cudaStream_t stream = open_stream(cudaStreamNonBlocking);
    float host[40], back[40] = {0}, *dx = device_array<float>(40);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    for (int i = 0; i < 40; i++)
        host[i] = static_cast<float>(i);
    CHECK(cudaMemcpyAsync(dx, host, sizeof host, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    CHECK(scale(dx, 40, 2, stream) == 0);
    CHECK(cudaMemcpyAsync(back, dx, sizeof back, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    CHECK(back[39] == 0); /* nobody has waited */
    fetch(back, dx, 40);  /* the null stream does not wait for a non-blocking one */
    CHECK(back[39] == 0);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess && back[39] == 78);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
    stream = open_stream(cudaStreamDefault);
    CHECK(scale(dx, 40, 2, stream) == 0);
    fetch(back, dx, 40); /* but for a blocking one */
    CHECK(back[39] == 156);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess && cudaFree(dx) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
}

static void test_events(void) {
    cudaStream_t a = open_stream(cudaStreamNonBlocking), b = open_stream(cudaStreamNonBlocking);
    cudaEvent_t before = nullptr, after = nullptr;
    float one = 1, two[2] = {0, 0}, *dx = device_array<float>(1), ms = -1;
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(cudaEventCreate(&before) == cudaSuccess && cudaEventCreate(&after) == cudaSuccess);
    CHECK(cudaEventRecord(before, a) == cudaSuccess);
    CHECK(cudaMemcpyAsync(dx, &one, sizeof one, cudaMemcpyHostToDevice, a) == cudaSuccess);
    CHECK(cudaEventRecord(after, a) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&ms, before, after) == cudaErrorNotReady);
    CHECK(cudaMemcpyAsync(two, dx, sizeof one, cudaMemcpyDeviceToHost, a) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(b, after, 0) == cudaSuccess);
    CHECK(cudaMemcpyAsync(two + 1, dx, sizeof one, cudaMemcpyDeviceToHost, b) == cudaSuccess);
    CHECK(cudaStreamSynchronize(b) == cudaSuccess && two[1] == 1 && two[0] == 0);
    CHECK(cudaEventSynchronize(after) == cudaSuccess && two[0] == 0);
    CHECK(cudaEventElapsedTime(&ms, before, after) == cudaSuccess && ms >= 0);
    CHECK(cudaStreamSynchronize(a) == cudaSuccess && two[0] == 1);
    CHECK(cudaEventDestroy(before) == cudaSuccess && cudaEventDestroy(after) == cudaSuccess);
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess &&
          cudaFree(dx) == cudaSuccess);
}

/* ---- graphs -------------------------------------------------------------------------------------- */

static cudaGraphExec_t capture_doubling(cudaStream_t stream, const float *pinned, float *dx, float *back) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(cudaMemcpyAsync(dx, pinned, 4 * sizeof *dx, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    CHECK(scale(dx, 4, 2, stream) == 0);
    CHECK(cudaMemcpyAsync(back, dx, 4 * sizeof *dx, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    return exec;
}

static void test_graph(void) {
    cudaStream_t stream = open_stream(cudaStreamNonBlocking);
    float *pinned, *back, *dx = device_array<float>(4);
    CHECK(cudaMallocHost(reinterpret_cast<void **>(&pinned), 16) == cudaSuccess);
    CHECK(cudaHostAlloc(reinterpret_cast<void **>(&back), 16, cudaHostAllocDefault) == cudaSuccess);
    CHECK(pinned[0] != pinned[0]); /* new memory is NaN */
    pinned[3] = 1, back[3] = -1;
    cudaGraphExec_t exec = capture_doubling(stream, pinned, dx, back);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess && back[3] == -1); /* nothing ran */
    for (int i = 1; i <= 3; i++) {
        pinned[3] = static_cast<float>(i);
        CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
        CHECK(cudaStreamSynchronize(stream) == cudaSuccess && back[3] == static_cast<float>(2 * i));
    }
    CHECK(cudaGraphExecDestroy(exec) == cudaSuccess &&
          cudaGraphLaunch(exec, stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaFreeHost(pinned) == cudaSuccess && cudaFreeHost(back) == cudaSuccess);
    CHECK(cudaFree(dx) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

/* A call that no capture survives. */
static void expect_spoiled(cudaStream_t stream, cudaError_t error, cudaError_t (*call)(cudaStream_t)) {
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(call(stream) == error);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
}

static cudaError_t call_malloc(cudaStream_t) {
    void *p;
    return cudaMalloc(&p, 16);
}
static cudaError_t call_memcpy(cudaStream_t) {
    char a = 0, b;
    return cudaMemcpy(&b, &a, 1, cudaMemcpyHostToHost);
}
static cudaError_t call_device(cudaStream_t) { return cudaDeviceSynchronize(); }
static cudaError_t call_null_launch(cudaStream_t) {
    return static_cast<cudaError_t>(scale(nullptr, 1, 1, nullptr));
}

static void test_capture(void) {
    cudaStream_t own = open_stream(cudaStreamNonBlocking), blocking = open_stream(cudaStreamDefault);
    expect_spoiled(own, cudaErrorStreamCaptureUnsupported, call_malloc);
    expect_spoiled(own, cudaErrorStreamCaptureUnsupported, call_memcpy);
    expect_spoiled(own, cudaErrorStreamCaptureUnsupported, call_device);
    expect_spoiled(own, cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize);
    expect_spoiled(blocking, cudaErrorStreamCaptureImplicit, call_null_launch);
    cudaGraph_t graph;
    void *p = device_array<float>(1);
    CHECK(cudaStreamBeginCapture(own, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK(cudaFree(p) == cudaErrorStreamCaptureUnsupported && sl_device_leaks() == 3);
    CHECK(cudaStreamEndCapture(own, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaFree(p) == cudaSuccess && sl_device_leaks() == 2);
    CHECK(cudaStreamEndCapture(own, &graph) == cudaErrorIllegalState);
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamDestroy(own) == cudaSuccess && cudaStreamDestroy(blocking) == cudaSuccess);
}

/* What another thread may do while this one captures for itself, and what nobody may. */
static void test_capture_on_two_threads(void) {
    cudaStream_t stream = open_stream(cudaStreamNonBlocking), other = open_stream(cudaStreamNonBlocking);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    std::thread([&] {
        void *p = device_array<float>(1);
        CHECK(cudaFree(p) == cudaSuccess && cudaStreamSynchronize(other) == cudaSuccess);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureWrongThread);
    }).join();
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    std::thread([] { CHECK(cudaDeviceSynchronize() == cudaErrorStreamCaptureUnsupported); }).join();
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    std::thread([] { CHECK(call_malloc(nullptr) == cudaErrorStreamCaptureUnsupported); }).join();
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess && cudaStreamDestroy(other) == cudaSuccess);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static void test_memory_limit(void) {
    size_t available, total;
    void *a, *b;
    sl_device_memory(1 << 20);
    CHECK(cudaMalloc(&a, 1000) == cudaSuccess && reinterpret_cast<uintptr_t>(a) % 256 == 0);
    CHECK(cudaMemGetInfo(&available, &total) == cudaSuccess && total == 1 << 20 && available == total - 1024);
    CHECK(cudaMalloc(&b, available + 1) == cudaErrorMemoryAllocation && !b);
    CHECK_FAULT("1047552 of 1048576 are free");
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    CHECK(cudaMalloc(&b, available) == cudaSuccess);
    CHECK(cudaFree(a) == cudaSuccess && cudaFree(b) == cudaSuccess && cudaFree(nullptr) == cudaSuccess);
    CHECK(cudaFree(a) == cudaErrorInvalidValue);
    sl_device_memory(static_cast<size_t>(2) << 30);
}

static void test_addresses(void) {
    float host[8], *dx = device_array<float>(8);
    CHECK(cudaMemcpy(host, host, 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK_FAULT("is not device memory");
    CHECK(cudaMemcpy(dx, dx, 4, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK_FAULT("is device memory, expected host memory");
    CHECK(cudaMemcpy(dx + 4, host, 20, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK_FAULT("20 bytes at offset 16 of a device allocation of 32");
    CHECK(cudaMemset(host, 0, 4) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy2DAsync(dx, 4, host, 16, 8, 2, cudaMemcpyHostToDevice, nullptr) ==
          cudaErrorInvalidPitchValue);
    for (int i = 0; i < 8; i++)
        host[i] = static_cast<float>(i);
    CHECK(cudaMemcpy2DAsync(dx, 8, host, 16, 8, 2, cudaMemcpyHostToDevice, nullptr) == cudaSuccess);
    CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
    float back[4];
    fetch(back, dx, 4);
    CHECK(back[0] == 0 && back[1] == 1 && back[2] == 4 && back[3] == 5);
    CHECK(cudaFree(dx) == cudaSuccess);
}

static void host_reads_device(void) {
    volatile float *dx = device_array<float>(8);
    cudaDeviceSynchronize();
    sl_device_protect(1);
    (void)dx[3];
}

static void read_far(void) {
    float *dx = device_array<float>(8);
    scale(dx + 4096, 1, 2, nullptr);
    cudaDeviceSynchronize();
}

/* A write just past the end: AddressSanitizer ends the process, else the damage is found after the run. */
static void write_near(void) {
    float *dx = device_array<float>(9);
    cudaDeviceSynchronize();
    scale(dx + 9, 1, 2, nullptr);
    if (cudaDeviceSynchronize() == cudaErrorIllegalAddress &&
        strstr(sl_device_fault(), "of a device allocation of 36 bytes"))
        _exit(1);
}

/* ---- failures on request, leaks ------------------------------------------------------------------ */

/* Everything once; false as soon as a call fails, with nothing left over either way. */
static bool use_everything(void) {
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaDeviceProp prop;
    void *dx = nullptr, *pinned = nullptr;
    int n = 0;
    bool good = cudaGetDeviceCount(&n) == cudaSuccess && cudaGetDeviceProperties(&prop, 0) == cudaSuccess &&
                cudaDriverGetVersion(&n) == cudaSuccess && cudaRuntimeGetVersion(&n) == cudaSuccess &&
                cudaSetDevice(0) == cudaSuccess &&
                cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
                cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess &&
                cudaMalloc(&dx, 64) == cudaSuccess && cudaMallocHost(&pinned, 64) == cudaSuccess &&
                cudaMemsetAsync(dx, 0, 64, stream) == cudaSuccess &&
                cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess;
    if (good) {
        good = scale_with(static_cast<float *>(dx), 16, 2, 64 * 1024, stream) == 0; /* four calls */
        good = cudaStreamEndCapture(stream, &graph) == cudaSuccess && good;
    }
    good = good && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess &&
           cudaGraphLaunch(exec, stream) == cudaSuccess &&
           cudaMemcpyAsync(pinned, dx, 64, cudaMemcpyDeviceToHost, stream) == cudaSuccess &&
           cudaEventRecord(event, stream) == cudaSuccess && cudaEventSynchronize(event) == cudaSuccess &&
           static_cast<float *>(pinned)[15] == 0;
    CHECK(!graph || cudaGraphDestroy(graph) == cudaSuccess);
    CHECK(!exec || cudaGraphExecDestroy(exec) == cudaSuccess);
    CHECK(cudaFree(dx) == cudaSuccess && cudaFreeHost(pinned) == cudaSuccess);
    CHECK(!event || cudaEventDestroy(event) == cudaSuccess);
    CHECK(!stream || cudaStreamDestroy(stream) == cudaSuccess);
    return good;
}

static void test_failures(void) {
    unsigned long before = sl_device_calls();
    CHECK(use_everything());
    unsigned long n = sl_device_calls() - before;
    CHECK(n == 21);
    for (unsigned long i = 1; i <= n; i++) {
        sl_device_fail_at(i);
        CHECK(!use_everything());
        CHECK_FAULT("fails on request");
        CHECK(sl_device_leaks() == 0);
    }
    CHECK(use_everything());
    CHECK(cudaDeviceReset() == cudaSuccess);
}

/* What a program leaves behind at its end, told by the environment. */
static int exit_status(bool leak) {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr);
        setenv("SLUICE_DEVICE_LEAKS", "1", 1);
        void *p;
        if (cudaMalloc(&p, 16) == cudaSuccess && !leak)
            cudaFree(p);
        exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_device_itself(void) {
    int count, value;
    cudaDeviceProp prop;
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess && count == 1);
    CHECK(cudaGetDeviceProperties(&prop, 0) == cudaSuccess && prop.major == 8 && prop.minor == 0);
    CHECK(strcmp(prop.name, "test device (host CPU)") == 0 && prop.sharedMemPerBlockOptin == 163 * 1024);
    CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && value == 8);
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
    CHECK(strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress") == 0);
    CHECK(strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
    setenv("SLUICE_DEVICE_ABSENT", "1", 1);
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    unsetenv("SLUICE_DEVICE_ABSENT");
}

void test_runtime(void) {
    test_lazy();
    test_events();
    test_graph();
    test_capture();
    test_capture_on_two_threads();
    test_memory_limit();
    test_addresses();
    CHECK(dies(host_reads_device));
    CHECK(dies(read_far));
    CHECK(dies(write_near));
    test_failures();
    CHECK(sl_device_leaks() == 0);
    CHECK(exit_status(true) == 99);
    CHECK(exit_status(false) == 0);
    test_device_itself();
}
