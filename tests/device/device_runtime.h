/* Inside of the test device's runtime: what a stream holds, what has been handed out, and how a call begins and
 * ends. */
#ifndef SL_TESTS_DEVICE_DEVICE_RUNTIME_H
#define SL_TESTS_DEVICE_DEVICE_RUNTIME_H

#include "device_block.h"
#include "test_device.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

/* What all records of one event share; outlives the handle while a stream still has a record of it. */
struct sl_event {
    CUstream_st *stream = nullptr; /* of the last record */
    unsigned pending = 0;          /* records queued */
    double ms = -1;                /* when the last one ran; -1: never */
    bool captured = false;         /* the last record was part of a capture */
};

struct sl_op;
typedef std::vector<sl_op> sl_ops;

enum sl_op_kind { OP_LAUNCH, OP_COPY, OP_FILL, OP_RECORD, OP_WAIT, OP_GRAPH };

/* A queued piece of work. */
struct sl_op {
    sl_op_kind kind;
    sl_grid grid = {};               /* OP_LAUNCH */
    std::vector<unsigned char> args; /* OP_LAUNCH */
    unsigned char *dst = nullptr;    /* OP_COPY, OP_FILL: height rows of width bytes */
    const unsigned char *src = nullptr;
    size_t dst_pitch = 0, src_pitch = 0, width = 0, height = 1;
    int value = 0;
    std::shared_ptr<sl_event> event;     /* OP_RECORD, OP_WAIT */
    std::shared_ptr<const sl_ops> graph; /* OP_GRAPH */

    explicit sl_op(sl_op_kind k) : kind(k) {}
};

struct CUstream_st {
    unsigned flags = 0;
    std::deque<sl_op> queue; /* of blocking streams: that of the null stream, which orders itself with them */
    bool capturing = false, spoiled = false;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread; /* that began to capture */
    sl_ops captured;
};
struct CUevent_st {
    std::shared_ptr<sl_event> event;
    bool timed;
};
struct CUgraph_st {
    std::shared_ptr<const sl_ops> ops;
};
struct CUgraphExec_st {
    std::shared_ptr<const sl_ops> ops;
};

/* Device memory: map_bytes from map, of which size at base were asked for and the rest is filled with a
 * pattern. */
struct sl_allocation {
    unsigned char *map, *base;
    size_t map_bytes, size;
};

struct sl_runtime {
    std::mutex mutex;
    bool started = false, protect = false;
    cudaError_t sticky = cudaSuccess, capture_error = cudaSuccess;
    unsigned long n_call = 0, fail_at = 0, seed = 0;
    size_t memory_limit = (size_t)2 << 30, memory_used = 0, shared_limit = SL_MAX_SHARED;
    unsigned long capability = 80; /* compute capability, as 10 major + minor: 80, 90 or 100 */
    std::map<const void *, size_t> shared_allowed; /* by kernel: dynamic shared memory, if not the default */
    void (*on_capture)(void *) = nullptr;
    void *on_capture_arg = nullptr;
    CUstream_st null_stream;
    std::set<CUstream_st *> streams;
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    std::map<const unsigned char *, sl_allocation> allocations; /* by base */
    std::set<void *> host_allocations;
};
extern sl_runtime sl_rt;

/* ---- calls --------------------------------------------------------------------------------------- */

enum {
    CALL_CAN_FAIL = 1,       /* counted, and failed on request with cudaErrorLaunchFailure */
    CALL_ALLOCATES = 2,      /* ... with cudaErrorMemoryAllocation */
    CALL_MOVES = 4,          /* ... with cudaErrorIllegalAddress */
    CALL_NOT_IN_CAPTURE = 8, /* refused, and captures spoiled, where sl_stream_forbids_unsafe */
    CALL_RELEASES = 16,      /* does its work after a fault as well */
    CALL_WAITS_FOR_ALL = 32  /* refused, and captures spoiled, while any thread captures */
};

/* Success, or why the call must not do its work. */
cudaError_t sl_call_admit(const char *name, unsigned traits);
/* Remembers an error for cudaGetLastError. */
cudaError_t sl_call_result(cudaError_t error);

template <class F> cudaError_t sl_call(const char *name, unsigned traits, F body) {
    std::lock_guard<std::mutex> lock(sl_rt.mutex);
    cudaError_t error = sl_call_admit(name, traits);
    if (error == cudaSuccess)
        error = body();
    else if (traits & CALL_RELEASES && error != cudaErrorStreamCaptureUnsupported)
        body();
    return sl_call_result(error);
}

/* Explains and returns `error`; sl_refuse_forever makes it the answer to all later calls. */
__attribute__((format(printf, 2, 3))) cudaError_t sl_refuse(cudaError_t error, const char *format, ...);
cudaError_t sl_refuse_forever(cudaError_t error);

/* ---- memory -------------------------------------------------------------------------------------- */

/* Is [p, p + n_bytes) inside one allocation; does it keep clear of all? If not, explained. */
bool sl_memory_is_device(const char *name, const void *p, size_t n_bytes);
bool sl_memory_is_host(const char *name, const void *p, size_t n_bytes);
/* Around the device's work, where the host may not touch its memory otherwise. */
void sl_memory_open(bool open);
/* Looks for damage around all allocations: success or a fault. */
cudaError_t sl_memory_check(void);
void sl_memory_release_all(void);

/* ---- streams ------------------------------------------------------------------------------------- */

/* The stream behind a handle (null: the null stream); nullptr, explained, if there is none. */
CUstream_st *sl_stream_find(const char *name, cudaStream_t stream);
/* Queues, or adds to the stream's capture. */
cudaError_t sl_stream_put(CUstream_st *stream, sl_op op);
/* Runs everything in the stream's queue. */
cudaError_t sl_stream_run(CUstream_st *stream);
cudaError_t sl_stream_run_all(void);
/* Forgets all queued work. */
void sl_stream_discard(void);
/* Marks every capture as failed. */
void sl_stream_spoil(void);
bool sl_stream_any_capture(void);
bool sl_stream_forbids_unsafe(void); /* by a capture, to this thread */

#endif
