/* Capture and replay: a graph is the list of what a stream would have done, with the arguments of its launches
 * as they were; buffers are read when it runs. One stream at a time goes into a graph. */
#include "device_runtime.h"

#include <utility>

bool sl_stream_any_capture(void) {
    for (const CUstream_st *stream : sl_rt.streams)
        if (stream->capturing)
            return true;
    return false;
}

/* Of what cudaThreadExchangeStreamCaptureMode describes as potentially unsafe calls, by a thread that has not called it. */
bool sl_stream_forbids_unsafe(void) {
    for (const CUstream_st *stream : sl_rt.streams) {
        const bool own = stream->thread == std::this_thread::get_id() && stream->mode != cudaStreamCaptureModeRelaxed;
        if (stream->capturing && (own || stream->mode == cudaStreamCaptureModeGlobal))
            return true;
    }
    return false;
}

void sl_stream_spoil(void) {
    for (CUstream_st *stream : sl_rt.streams)
        stream->spoiled = stream->capturing;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const cudaError_t result = sl_call("cudaStreamBeginCapture", CALL_CAN_FAIL, [&] {
        CUstream_st *s = sl_stream_find("cudaStreamBeginCapture", stream);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        if (!stream)
            return sl_refuse(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture of the null stream");
        if (s->capturing)
            return sl_refuse(cudaErrorIllegalState, "cudaStreamBeginCapture of a stream that captures already");
        s->capturing = true, s->spoiled = false, s->mode = mode, s->thread = std::this_thread::get_id();
        return cudaSuccess;
    });
    if (result == cudaSuccess && sl_rt.on_capture)
        sl_rt.on_capture(sl_rt.on_capture_arg);
    return result;
}

/* Ends the capture whatever happened to it. */
static cudaError_t end_capture(CUstream_st *s, cudaGraph_t *graph) {
    *graph = nullptr;
    if (!s->capturing)
        return sl_refuse(cudaErrorIllegalState, "cudaStreamEndCapture of a stream that does not capture");
    if (s->mode != cudaStreamCaptureModeRelaxed && s->thread != std::this_thread::get_id())
        return sl_refuse(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture by another thread");
    sl_ops ops = std::move(s->captured);
    s->captured.clear();
    s->capturing = false;
    if (s->spoiled)
        return cudaErrorStreamCaptureInvalidated;
    *graph = new CUgraph_st{std::make_shared<const sl_ops>(std::move(ops))};
    sl_rt.graphs.insert(*graph);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    /* CALL_RELEASES: a capture that failed on request has been spoiled, and ends */
    return sl_call("cudaStreamEndCapture", CALL_CAN_FAIL | CALL_RELEASES, [&] {
        CUstream_st *s = sl_stream_find("cudaStreamEndCapture", stream);
        return s ? end_capture(s, graph) : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    return sl_call("cudaGraphInstantiate", CALL_ALLOCATES, [&] {
        if (!sl_rt.graphs.count(graph))
            return sl_refuse(cudaErrorInvalidValue, "cudaGraphInstantiate: %p is not a graph",
                             static_cast<void *>(graph));
        *exec = new CUgraphExec_st{graph->ops};
        sl_rt.execs.insert(*exec);
        return cudaSuccess;
    });
}

/* Memory on the device that a first launch would otherwise take. */
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    return sl_call("cudaGraphUpload", CALL_ALLOCATES, [&] {
        if (!sl_stream_find("cudaGraphUpload", stream) || !sl_rt.execs.count(exec))
            return sl_refuse(cudaErrorInvalidResourceHandle, "cudaGraphUpload: %p is not an executable graph",
                             static_cast<void *>(exec));
        return cudaSuccess;
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return sl_call("cudaGraphLaunch", CALL_CAN_FAIL, [&] {
        CUstream_st *s = sl_stream_find("cudaGraphLaunch", stream);
        if (!s || !sl_rt.execs.count(exec))
            return sl_refuse(cudaErrorInvalidResourceHandle, "cudaGraphLaunch: %p is not an executable graph",
                             static_cast<void *>(exec));
        sl_op op(OP_GRAPH);
        op.graph = exec->ops;
        return sl_stream_put(s, std::move(op));
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return sl_call("cudaGraphExecDestroy", CALL_RELEASES, [&] {
        if (!sl_rt.execs.erase(exec))
            return sl_refuse(cudaErrorInvalidValue, "cudaGraphExecDestroy: %p is not an executable graph",
                             static_cast<void *>(exec));
        delete exec;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return sl_call("cudaGraphDestroy", CALL_RELEASES, [&] {
        if (!sl_rt.graphs.erase(graph))
            return sl_refuse(cudaErrorInvalidValue, "cudaGraphDestroy: %p is not a graph",
                             static_cast<void *>(graph));
        delete graph;
        return cudaSuccess;
    });
}
