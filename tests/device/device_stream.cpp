/* Streams of the test device: queues that run when somebody synchronises, and no sooner, so that a host which
 * does not wait reads old data. Addresses are checked when a copy is queued. The null stream and the blocking
 * streams share one queue; a non-blocking stream has its own and is not waited for by the null stream's. */
#include "device_ptx.h"
#include "device_runtime.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <utility>

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

static bool shares_null(const CUstream_st *stream) { return !(stream->flags & cudaStreamNonBlocking); }

static std::deque<sl_op> *queue_of(CUstream_st *stream) {
    return shares_null(stream) ? &sl_rt.null_stream.queue : &stream->queue;
}

CUstream_st *sl_stream_find(const char *name, cudaStream_t stream) {
    if (!stream)
        return &sl_rt.null_stream;
    if (sl_rt.streams.count(stream))
        return stream;
    sl_refuse(cudaSuccess, "%s: %p is not a stream", name, static_cast<void *>(stream));
    return nullptr;
}

/* ---- running ------------------------------------------------------------------------------------- */

static void run_copy(const sl_op *op) {
    for (size_t i = 0; i < op->height; i++)
        memmove(op->dst + i * op->dst_pitch, op->src + i * op->src_pitch, op->width);
}

static bool run_op(const sl_op *op) {
    switch (op->kind) {
    case OP_LAUNCH: return sl_grid_run(&op->grid, op->args.data(), sl_rt.seed);
    case OP_COPY: run_copy(op); return true;
    case OP_FILL: memset(op->dst, op->value, op->width); return true;
    case OP_RECORD:
        op->event->pending--;
        op->event->ms = now_ms();
        return true;
    case OP_WAIT:
        while (op->event->pending > 0 && !queue_of(op->event->stream)->empty()) {
            sl_op other = std::move(queue_of(op->event->stream)->front());
            queue_of(op->event->stream)->pop_front();
            if (!run_op(&other))
                return false;
        }
        return true;
    case OP_GRAPH:
        for (const sl_op &inner : *op->graph)
            if (!run_op(&inner))
                return false;
        return true;
    }
    return false;
}

/* Runs the front of the queue until the event (if any) has been recorded. */
static cudaError_t run_queue(std::deque<sl_op> *queue, const sl_event *until) {
    if (queue->empty())
        return cudaSuccess;
    bool good = true;
    sl_memory_open(true);
    while (good && !queue->empty() && (!until || until->pending > 0)) {
        sl_op op = std::move(queue->front());
        queue->pop_front();
        good = run_op(&op);
    }
    cudaError_t error = good ? sl_memory_check() : sl_refuse_forever(cudaErrorLaunchFailure);
    sl_memory_open(false);
    return error;
}

cudaError_t sl_stream_run(CUstream_st *stream) { return run_queue(queue_of(stream), nullptr); }

cudaError_t sl_stream_run_all(void) {
    cudaError_t error = run_queue(&sl_rt.null_stream.queue, nullptr);
    for (CUstream_st *stream : sl_rt.streams)
        if (error == cudaSuccess)
            error = run_queue(&stream->queue, nullptr);
    return error;
}

void sl_stream_discard(void) {
    sl_rt.null_stream.queue.clear();
    for (CUstream_st *stream : sl_rt.streams)
        stream->queue.clear();
    for (CUevent_st *event : sl_rt.events)
        event->event->pending = 0;
}

/* ---- queueing ------------------------------------------------------------------------------------ */

/* Work on the null stream would wait for a capturing blocking stream. */
static cudaError_t check_implicit(const CUstream_st *stream, const char *name) {
    if (stream != &sl_rt.null_stream)
        return cudaSuccess;
    for (const CUstream_st *other : sl_rt.streams)
        if (other->capturing && shares_null(other)) {
            sl_stream_spoil();
            return sl_refuse(cudaErrorStreamCaptureImplicit,
                             "%s on the null stream while a blocking stream captures", name);
        }
    return cudaSuccess;
}

cudaError_t sl_stream_put(CUstream_st *stream, sl_op op) {
    if (stream->capturing && stream->spoiled)
        return sl_refuse(cudaErrorStreamCaptureInvalidated, "work for a stream whose capture has failed");
    if (stream->capturing && sl_rt.capture_error != cudaSuccess) {
        stream->spoiled = true;
        return sl_refuse(sl_rt.capture_error, "work that cannot be captured");
    }
    if (stream->capturing)
        stream->captured.push_back(std::move(op));
    else
        queue_of(stream)->push_back(std::move(op));
    return cudaSuccess;
}

static bool good_size(dim3 size, unsigned long max_x, unsigned max_y, unsigned max_z) {
    return size.x > 0 && size.y > 0 && size.z > 0 && size.x <= max_x && size.y <= max_y && size.z <= max_z;
}

/* Dynamic shared memory that the kernel has been allowed (cudaFuncSetAttribute). */
static size_t shared_limit(void (*kernel)(void)) {
    auto found = sl_rt.shared_allowed.find(reinterpret_cast<const void *>(kernel));
    return found == sl_rt.shared_allowed.end() ? static_cast<size_t>(SL_DEFAULT_SHARED) : found->second;
}

/* The limits of compute capability 8.0. Static shared memory and registers are not known here. */
static cudaError_t check_grid(const sl_grid *g) {
    if (!good_size(g->grid, 0x7fffffff, 65535, 65535))
        return sl_refuse(cudaErrorInvalidConfiguration,
                         "a grid of %u x %u x %u blocks, limits are 2^31 - 1, 65535, 65535", g->grid.x,
                         g->grid.y, g->grid.z);
    unsigned long n = static_cast<unsigned long>(g->block.x) * g->block.y * g->block.z;
    if (!good_size(g->block, 1024, 1024, 64) || n > SL_MAX_THREADS)
        return sl_refuse(cudaErrorInvalidConfiguration,
                         "a block of %u x %u x %u threads, limits are 1024, 1024, 64 and %d in all",
                         g->block.x, g->block.y, g->block.z, static_cast<int>(SL_MAX_THREADS));
    if (g->shared_bytes > shared_limit(g->kernel))
        return sl_refuse(cudaErrorInvalidValue, "%zu bytes of dynamic shared memory, the kernel's limit is %zu",
                         g->shared_bytes, shared_limit(g->kernel));
    return cudaSuccess;
}

/* Built with -DSL_PTX=ON: the PTX of the kernel takes its place, with its static shared memory and the threads that it was
 * compiled for at most. Of a file that is translated every kernel is; others (mutants, what stands in cuBLAS's place, the
 * test device's own tests) run as they are. */
#ifdef SL_PTX
static void invoke_ptx(void (*run)(void), const void *args) {
    reinterpret_cast<void (*)(unsigned char *)>(run)(static_cast<unsigned char *>(const_cast<void *>(args)));
}
static cudaError_t take_ptx(sl_grid *g) {
    const sl_ptx_kernel *ptx = sl_ptx_find(g->kernel);
    if (!ptx)
        return cudaSuccess;
    const unsigned n_thread = g->block.x * g->block.y * g->block.z;
    if (ptx->max_threads && n_thread > ptx->max_threads)
        return sl_refuse(cudaErrorInvalidValue, "%s: a block of %u threads, compiled for %u at most", ptx->name, n_thread,
                         ptx->max_threads);
    if (ptx->shared_bytes && g->shared_bytes)
        return sl_refuse(cudaErrorInvalidValue, "%s has static and dynamic shared memory", ptx->name);
    g->kernel = reinterpret_cast<void (*)(void)>(ptx->run);
    g->invoke = invoke_ptx;
    g->shared_bytes += ptx->shared_bytes;
    return cudaSuccess;
}
#else
static cudaError_t take_ptx(sl_grid *) { return cudaSuccess; }
#endif

cudaError_t sl_device_launch(void (*kernel)(void), void (*invoke)(void (*)(void), const void *),
                             const char *label, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                             const void *args, size_t args_bytes) {
    char name[112] = "a launch of ";
    sl_kernel_name(label, name + strlen(name), sizeof name - strlen(name));
    return sl_call(name, CALL_CAN_FAIL, [&] {
        CUstream_st *s = sl_stream_find(name, stream);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        sl_op op(OP_LAUNCH);
        op.grid = {kernel, invoke, label, grid, block, shared_bytes};
        cudaError_t error = check_grid(&op.grid);
        if (error == cudaSuccess)
            error = take_ptx(&op.grid);
        const unsigned char *bytes = static_cast<const unsigned char *>(args);
        op.args.assign(bytes, bytes + args_bytes);
        if (error == cudaSuccess)
            error = check_implicit(s, name);
        return error == cudaSuccess ? sl_stream_put(s, std::move(op)) : error;
    });
}

/* ---- copies -------------------------------------------------------------------------------------- */

/* Bytes from the first to the end of the last row. */
static size_t span(const sl_op *op, size_t pitch) { return (op->height - 1) * pitch + op->width; }

static bool good_ends(const char *name, const sl_op *op, cudaMemcpyKind kind) {
    size_t to = span(op, op->dst_pitch), from = span(op, op->src_pitch);
    switch (kind) {
    case cudaMemcpyHostToHost:
        return sl_memory_is_host(name, op->dst, to) && sl_memory_is_host(name, op->src, from);
    case cudaMemcpyHostToDevice:
        return sl_memory_is_device(name, op->dst, to) && sl_memory_is_host(name, op->src, from);
    case cudaMemcpyDeviceToHost:
        return sl_memory_is_host(name, op->dst, to) && sl_memory_is_device(name, op->src, from);
    case cudaMemcpyDeviceToDevice:
        return sl_memory_is_device(name, op->dst, to) && sl_memory_is_device(name, op->src, from);
    case cudaMemcpyDefault: return true;
    }
    sl_refuse(cudaSuccess, "%s: %d is not a kind of copy", name, static_cast<int>(kind));
    return false;
}

static cudaError_t queue_copy(const char *name, sl_op op, cudaMemcpyKind kind, CUstream_st *stream) {
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (op.width == 0 || op.height == 0)
        return cudaSuccess;
    if (op.dst_pitch < op.width || op.src_pitch < op.width)
        return sl_refuse(cudaErrorInvalidPitchValue, "%s: rows of %zu bytes, %zu and %zu apart", name, op.width,
                         op.dst_pitch, op.src_pitch);
    if (!good_ends(name, &op, kind))
        return cudaErrorInvalidValue;
    cudaError_t error = check_implicit(stream, name);
    return error == cudaSuccess ? sl_stream_put(stream, std::move(op)) : error;
}

static sl_op make_copy(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                       size_t height) {
    sl_op op(OP_COPY);
    op.dst = static_cast<unsigned char *>(dst), op.src = static_cast<const unsigned char *>(src);
    op.dst_pitch = dst_pitch, op.src_pitch = src_pitch, op.width = width, op.height = height;
    return op;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t count, cudaMemcpyKind kind) {
    return sl_call("cudaMemcpy", CALL_MOVES | CALL_NOT_IN_CAPTURE, [&] {
        CUstream_st *stream = &sl_rt.null_stream;
        cudaError_t error = queue_copy("cudaMemcpy", make_copy(dst, count, src, count, count, 1), kind, stream);
        return error == cudaSuccess ? sl_stream_run(stream) : error;
    });
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return sl_call("cudaMemcpyAsync", CALL_MOVES, [&] {
        return queue_copy("cudaMemcpyAsync", make_copy(dst, count, src, count, count, 1), kind,
                          sl_stream_find("cudaMemcpyAsync", stream));
    });
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    return sl_call("cudaMemcpy2DAsync", CALL_MOVES, [&] {
        return queue_copy("cudaMemcpy2DAsync", make_copy(dst, dpitch, src, spitch, width, height), kind,
                          sl_stream_find("cudaMemcpy2DAsync", stream));
    });
}

static cudaError_t queue_fill(const char *name, void *dst, int value, size_t count, CUstream_st *stream) {
    if (!stream)
        return cudaErrorInvalidResourceHandle;
    if (count == 0)
        return cudaSuccess;
    if (!sl_memory_is_device(name, dst, count))
        return cudaErrorInvalidValue;
    sl_op op(OP_FILL);
    op.dst = static_cast<unsigned char *>(dst), op.width = count, op.value = value;
    cudaError_t error = check_implicit(stream, name);
    return error == cudaSuccess ? sl_stream_put(stream, std::move(op)) : error;
}

/* Asynchronous to the host on a real device, so it waits for somebody here too. */
cudaError_t cudaMemset(void *dst, int value, size_t count) {
    return sl_call("cudaMemset", CALL_MOVES | CALL_NOT_IN_CAPTURE,
                   [&] { return queue_fill("cudaMemset", dst, value, count, &sl_rt.null_stream); });
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t count, cudaStream_t stream) {
    return sl_call("cudaMemsetAsync", CALL_MOVES, [&] {
        return queue_fill("cudaMemsetAsync", dst, value, count, sl_stream_find("cudaMemsetAsync", stream));
    });
}

/* ---- streams ------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return sl_call("cudaStreamCreateWithFlags", CALL_CAN_FAIL, [&] {
        *stream = new CUstream_st;
        (*stream)->flags = flags;
        sl_rt.streams.insert(*stream);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return sl_call("cudaStreamDestroy", CALL_RELEASES, [&] {
        CUstream_st *s = sl_stream_find("cudaStreamDestroy", stream);
        if (!s || !stream)
            return cudaErrorInvalidResourceHandle;
        cudaError_t error = sl_stream_run(s);
        for (CUevent_st *event : sl_rt.events)
            if (event->event->stream == s)
                event->event->stream = nullptr;
        sl_rt.streams.erase(s);
        delete s;
        return error;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return sl_call("cudaStreamSynchronize", CALL_CAN_FAIL, [&] {
        CUstream_st *s = sl_stream_find("cudaStreamSynchronize", stream);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        if (s->capturing) {
            sl_stream_spoil();
            return sl_refuse(cudaErrorStreamCaptureUnsupported,
                             "cudaStreamSynchronize of a stream that captures");
        }
        cudaError_t error = check_implicit(s, "cudaStreamSynchronize");
        return error == cudaSuccess ? sl_stream_run(s) : error;
    });
}

cudaError_t cudaDeviceSynchronize(void) {
    return sl_call("cudaDeviceSynchronize", CALL_CAN_FAIL | CALL_WAITS_FOR_ALL, [&] { return sl_stream_run_all(); });
}

/* ---- events -------------------------------------------------------------------------------------- */

static CUevent_st *find_event(const char *name, cudaEvent_t event) {
    if (sl_rt.events.count(event))
        return event;
    sl_refuse(cudaSuccess, "%s: %p is not an event", name, static_cast<void *>(event));
    return nullptr;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return sl_call("cudaEventCreateWithFlags", CALL_CAN_FAIL, [&] {
        *event = new CUevent_st{std::make_shared<sl_event>(), !(flags & cudaEventDisableTiming)};
        sl_rt.events.insert(*event);
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return sl_call("cudaEventDestroy", CALL_RELEASES, [&] {
        CUevent_st *e = find_event("cudaEventDestroy", event);
        if (!e)
            return cudaErrorInvalidResourceHandle;
        sl_rt.events.erase(e);
        delete e;
        return cudaSuccess;
    });
}

/* Inside a capture a record only marks a place that other streams could wait for: it never becomes work. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return sl_call("cudaEventRecord", CALL_CAN_FAIL, [&] {
        CUevent_st *e = find_event("cudaEventRecord", event);
        CUstream_st *s = sl_stream_find("cudaEventRecord", stream);
        if (!e || !s)
            return cudaErrorInvalidResourceHandle;
        cudaError_t error = check_implicit(s, "cudaEventRecord");
        if (error != cudaSuccess)
            return error;
        e->event->stream = s;
        e->event->captured = s->capturing;
        if (s->capturing)
            return cudaSuccess;
        sl_op op(OP_RECORD);
        op.event = e->event;
        e->event->pending++;
        return sl_stream_put(s, std::move(op));
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return sl_call("cudaEventSynchronize", CALL_CAN_FAIL, [&] {
        CUevent_st *e = find_event("cudaEventSynchronize", event);
        if (!e)
            return cudaErrorInvalidResourceHandle;
        if (e->event->captured) {
            sl_stream_spoil();
            return sl_refuse(cudaErrorCapturedEvent, "cudaEventSynchronize of an event recorded in a capture");
        }
        return e->event->pending > 0 ? run_queue(queue_of(e->event->stream), e->event.get()) : cudaSuccess;
    });
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    return sl_call("cudaEventElapsedTime", CALL_CAN_FAIL, [&] {
        CUevent_st *a = find_event("cudaEventElapsedTime", start), *b = find_event("cudaEventElapsedTime", end);
        if (!a || !b || !a->timed || !b->timed || !a->event->stream || !b->event->stream)
            return sl_refuse(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime of events without times");
        if (a->event->pending > 0 || b->event->pending > 0)
            return cudaErrorNotReady;
        *ms = static_cast<float>(b->event->ms - a->event->ms);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    return sl_call("cudaStreamWaitEvent", CALL_CAN_FAIL, [&] {
        CUevent_st *e = find_event("cudaStreamWaitEvent", event);
        CUstream_st *s = sl_stream_find("cudaStreamWaitEvent", stream);
        if (!e || !s)
            return cudaErrorInvalidResourceHandle;
        if (s->capturing && e->event->captured && e->event->stream == s)
            return cudaSuccess;
        if (s->capturing || e->event->captured) {
            sl_stream_spoil();
            return sl_refuse(cudaErrorStreamCaptureIsolation,
                             "cudaStreamWaitEvent between a capture and other work");
        }
        sl_op op(OP_WAIT);
        op.event = e->event;
        return e->event->pending > 0 ? sl_stream_put(s, std::move(op)) : cudaSuccess;
    });
}
