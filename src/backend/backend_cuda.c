/* The CUDA backend: memory of a device, states and KV stores, and passes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "backend/count.h"
#include "backend/cuda.h"
#include "backend/devices.h"
#include "base/mem.h"

enum {
    WORKSPACE = 32 << 20, /* of cuBLAS, what it asks for on sm_90 */
    CAPTURES = 3          /* how often a pass of a shape is captured in vain before it is only launched */
};

/* ---- errors ------------------------------------------------------------------------------------- */

/* Remembers the first failure: what a device does after one cannot be trusted. */
static sl_status failed(sl_device *d, cudaError_t e, const char *what, sl_error *err) {
    if (e == cudaSuccess) return SL_OK;
    if (d->failed == SL_OK) {
        d->failed = e == cudaErrorMemoryAllocation ? SL_E_MEMORY : SL_E_DEVICE;
        snprintf(d->failure, sizeof d->failure, "cuda:%d: %s: %s", d->ordinal, what, cudaGetErrorString(e));
    }
    return sl_fail(err, d->failed, "%s", d->failure);
}

/* Of n units, bytes each. An allocation that fails leaves the device as it was. */
static sl_status allocate(sl_device *d, void **out, const char *what, uint64_t n, const char *unit, uint64_t bytes,
                          sl_error *err) {
    const cudaError_t e = cudaMalloc(out, n * bytes);
    if (e != cudaErrorMemoryAllocation) return failed(d, e, what, err);
    cudaGetLastError();
    return sl_cuda_no_memory(d->ordinal, what, n, unit, bytes, err);
}

/* Before every call: a thread may use several devices, and a session may come from another thread. */
static sl_status check(sl_device *d, sl_error *err) {
    if (d->failed != SL_OK) return sl_fail(err, d->failed, "%s", d->failure);
    return failed(d, cudaSetDevice(d->ordinal), "choosing the device", err);
}

static sl_status sync(sl_device *d, const char *what, sl_error *err) {
    return failed(d, cudaStreamSynchronize(d->stream), what, err);
}

/* A call that waits for the whole device, as cuBLAS does where it opens and closes, is refused while any thread captures,
 * and ends that capture. So of sessions on several threads one at a time captures, opens or closes. */
static mtx_t captures;
static once_flag captures_once = ONCE_FLAG_INIT;
static void make_captures(void) { mtx_init(&captures, mtx_plain); }
static void lock_captures(void) {
    call_once(&captures_once, make_captures);
    mtx_lock(&captures);
}
static void unlock_captures(void) { mtx_unlock(&captures); }

/* ---- memory ------------------------------------------------------------------------------------- */

/* Takes parts from a block of memory, each aligned; with no block it only counts. */
typedef struct carve { uint8_t *base; uint64_t at; } carve;

static void *take(carve *c, uint64_t n, uint64_t size) {
    void *part = c->base ? c->base + c->at : NULL;
    c->at += (n * size + 255) / 256 * 256;
    return part;
}

static uint64_t take_input(carve *c, const sl_device *d, sl_cuda_input *in) {
    uint64_t start = c->at;
    in->tokens = take(c, d->n_batch, sizeof *in->tokens);
    in->out_rows = take(c, d->n_batch, sizeof *in->out_rows);
    in->run_pos = take(c, d->n_slot, sizeof *in->run_pos);
    in->run_slot = take(c, d->n_slot, sizeof *in->run_slot);
    in->run_start = take(c, d->n_slot + 1, sizeof *in->run_start);
    return c->at - start;
}

static void take_domain(carve *c, const sl_device *d, sl_cuda_domain *domain) {
    domain->n = take(c, 1, sizeof *domain->n);
    domain->index = take(c, d->n_batch, sizeof *domain->index);
    domain->row_of = take(c, d->n_batch, sizeof *domain->row_of);
    domain->rho = take(c, d->n_batch, sizeof *domain->rho);
    domain->deep_start = take(c, d->n_slot + 1, sizeof *domain->deep_start);
}

static void take_all(carve *c, sl_device *d) {
    const sl_graph *g = d->graph;
    const sl_cuda_plan *p = &d->plan;
    d->arena = take(c, p->arena_bytes, d->n_batch);
    d->states = take(c, g->state_floats * d->n_slot, sizeof *d->states);
    d->kv_slots = take(c, d->n_slot, sizeof *d->kv_slots);
    d->input_block = c->base ? c->base + c->at : NULL;
    d->input_bytes = take_input(c, d, &d->input);
    d->tallies = take(c, 2 * g->n_domain, sizeof *d->tallies);
    for (uint32_t i = SL_OUTPUTS + 1; i < g->n_domain; i++) {
        take_domain(c, d, &d->domains[i]);
        d->domains[i].tally = d->tallies ? d->tallies + 2 * i : NULL;
    }
    d->sums = take(c, p->sum_floats * d->n_batch, sizeof *d->sums);
    d->attention = take(c, p->attention_floats, sizeof *d->attention);
    d->scan = take(c, p->scan_floats, sizeof *d->scan);
    d->expanded = take(c, p->expand_bytes, 1);
    d->workspace = take(c, d->invariant ? 0 : WORKSPACE, 1);
    d->draws = take(c, d->n_slot, sizeof *d->draws);
    d->drawn = take(c, d->n_slot, sizeof *d->drawn);
}

sl_status sl_cuda_lay_out(sl_device *device, uint64_t *n_bytes, sl_error *err) {
    carve c = { 0 };
    SL_TRY(sl_alloc((void **)&device->domains, device->graph->n_domain, sizeof *device->domains, "token lists",
                    err));
    take_all(&c, device);
    *n_bytes = c.at;
    free(device->domains);
    device->domains = NULL;
    return SL_OK;
}

static sl_status open_block(sl_device *d, sl_error *err) {
    uint64_t n_bytes;
    SL_TRY(sl_cuda_lay_out(d, &n_bytes, err));
    SL_TRY(sl_alloc((void **)&d->domains, d->graph->n_domain, sizeof *d->domains, "token lists", err));
    SL_TRY(allocate(d, (void **)&d->block, "block of states and activations", n_bytes, "bytes", 1, err));
    carve c = { d->block, 0 };
    take_all(&c, d);
    SL_TRY(failed(d,
                  cudaMemsetAsync(d->states, 0, d->graph->state_floats * d->n_slot * sizeof(float), d->stream),
                  "clearing states", err));
    SL_TRY(failed(d, cudaMemsetAsync(d->kv_slots, 0, d->n_slot * sizeof *d->kv_slots, d->stream),
                  "clearing states", err));
    return failed(d, cudaMemsetAsync(d->tallies, 0, 2 * d->graph->n_domain * sizeof *d->tallies, d->stream),
                  "clearing states", err);
}

static sl_status open_pinned(sl_device *d, sl_error *err) {
    carve c = { 0 };
    sl_cuda_input none;
    take_input(&c, d, &none);
    take(&c, d->n_slot, sizeof *d->pinned_draws);
    take(&c, d->n_slot, sizeof *d->pinned_drawn);
    SL_TRY(failed(d, cudaMallocHost((void **)&d->pinned, c.at), "pinned memory", err));
    memset(d->pinned, 0, c.at);
    c = (carve){ d->pinned, 0 };
    take_input(&c, d, &d->pinned_input);
    d->pinned_draws = take(&c, d->n_slot, sizeof *d->pinned_draws);
    d->pinned_drawn = take(&c, d->n_slot, sizeof *d->pinned_drawn);
    return SL_OK;
}

static void drop_graphs(sl_device *d) {
    for (size_t i = 0; i <= SL_CUDA_MAX_GRAPHS; i++) {
        if (d->graphs[i]) cudaGraphExecDestroy(d->graphs[i]);
        d->graphs[i] = NULL;
        d->seen[i] = 0;
    }
}

/* Rows for n logits. Captured passes write to the old place, so they go. */
static sl_status reserve_logits(sl_device *d, size_t n, sl_error *err) {
    if (n <= d->n_logits) return SL_OK;
    float *logits;
    const uint64_t row_bytes = d->graph->n_vocab * sizeof *logits;
    SL_TRY(allocate(d, (void **)&logits, "block of logits", n, "tokens", row_bytes, err));
    drop_graphs(d);
    cudaFree(d->logits);
    d->logits = logits;
    d->n_logits = n;
    return SL_OK;
}

static sl_status cuda_reserve_rows(sl_device *d, size_t n, sl_error *err) {
    SL_TRY(check(d, err));
    return reserve_logits(d, n, err);
}

static void release_parts(sl_device *d) {
    if (d->stream) cudaStreamSynchronize(d->stream);
    drop_graphs(d);
    sl_cuda_profile_end(d);
    sl_blas_close(&d->blas);
    for (size_t i = 0; d->kv && i < d->n_slot; i++) cudaFree(d->kv[i].data);
    cudaFree(d->block);
    cudaFree(d->logits);
    cudaFreeHost(d->pinned);
    if (d->input_free) cudaEventDestroy(d->input_free);
    if (d->stream) cudaStreamDestroy(d->stream);
}

static void cuda_close(sl_device *d) {
    if (!d) return;
    cudaSetDevice(d->ordinal);
    lock_captures();
    release_parts(d);
    unlock_captures();
    sl_cuda_weights_close(d->weights);
    sl_cuda_plan_release(&d->plan);
    free(d->kv);
    free(d->domains);
    free(d);
}

static sl_status open_parts(sl_device *d, sl_error *err) {
    SL_TRY(failed(d, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "a stream", err));
    SL_TRY(failed(d, cudaEventCreateWithFlags(&d->input_free, cudaEventDisableTiming), "an event", err));
    SL_TRY(open_block(d, err));
    SL_TRY(open_pinned(d, err));
    SL_TRY(reserve_logits(d, sl_min(d->n_slot, d->n_batch), err));
    if (!d->invariant && !sl_blas_open(&d->blas, d->stream, d->workspace, WORKSPACE)) /* own kernels, and a word about it */
        snprintf(d->note, sizeof d->note, "cuda:%d: %s: " SL_BLAS_INSTEAD, d->ordinal, d->blas.name);
    return sync(d, "starting", err);
}

static sl_status open_all(sl_device *d, const sl_device_params *params, sl_error *err) {
    SL_TRY(failed(d, cudaSetDevice(d->ordinal), "choosing the device", err));
    SL_TRY(sl_alloc((void **)&d->kv, d->n_slot, sizeof *d->kv, "KV stores", err));
    SL_TRY(sl_cuda_plan_make(d->graph, params, &d->plan, err));
    SL_TRY(sl_cuda_check_fit(d->graph, params, err));
    SL_TRY(sl_cuda_weights_open(d->graph, params, d->plan.act, &d->weights, err));
    lock_captures();
    sl_status status = open_parts(d, err);
    unlock_captures();
    return status;
}

static sl_status cuda_open(const sl_graph *graph, const sl_device_params *params, sl_device **out,
                           sl_error *err) {
    sl_device *d;
    *out = NULL;
    SL_TRY(sl_cuda_check_sizes(params, err));
    SL_TRY(sl_alloc((void **)&d, 1, sizeof *d, "the device", err));
    d->graph = graph;
    d->n_slot = params->n_slot;
    d->n_batch = params->n_batch;
    d->ordinal = params->ordinal;
    d->kv_f16 = params->kv_f16;
    d->invariant = params->invariant;
    sl_status status = open_all(d, params, err);
    if (status == SL_OK) *out = d;
    else cuda_close(d);
    return status;
}

/* ---- KV stores ---------------------------------------------------------------------------------- */

static size_t kv_rows(const sl_device *d) { return sl_cuda_kv_rows(d->graph); }
/* Bytes of n_pos positions of one of them. */
static uint64_t kv_row_bytes(const sl_device *d, uint64_t n_pos) {
    return n_pos * d->graph->kv_head_dim * (d->kv_f16 ? 2 : 4);
}

/* n_pos positions of every row between stores of different capacity. */
static cudaError_t copy_kv(sl_device *d, void *to, uint64_t to_cap, const void *from, uint64_t from_cap,
                           uint64_t n_pos, enum cudaMemcpyKind kind) {
    if (!n_pos || !kv_rows(d)) return cudaSuccess;
    return cudaMemcpy2DAsync(to, kv_row_bytes(d, to_cap), from, kv_row_bytes(d, from_cap),
                             kv_row_bytes(d, n_pos), kv_rows(d), kind, d->stream);
}

static sl_status allocate_kv(sl_device *d, uint64_t cap, sl_kv_slot *grown, sl_error *err) {
    *grown = (sl_kv_slot){ NULL, cap };
    return allocate(d, &grown->data, "KV store", cap, "positions", sl_cuda_kv_bytes(d->graph, d->kv_f16, 1), err);
}

/* Doubles, so that a growing sequence is copied O(1) times per token; where there is no memory for that, by a few. */
static sl_status grow_kv(sl_device *d, const sl_kv_slot *kv, uint64_t n_pos, sl_kv_slot *grown, sl_error *err) {
    const uint64_t twice = kv->cap ? 2 * kv->cap : SL_CUDA_FIRST_KV, few = n_pos + SL_CUDA_FIRST_KV;
    const sl_status status = allocate_kv(d, twice > n_pos ? twice : n_pos, grown, err);
    return status == SL_E_MEMORY && few < twice ? allocate_kv(d, few, grown, err) : status;
}

/* Captured passes find the new place in kv_slots. */
static sl_status cuda_reserve(sl_device *d, size_t slot, uint64_t n_pos, sl_error *err) {
    SL_TRY(check(d, err));
    sl_kv_slot *kv = &d->kv[slot], grown;
    if (!kv_rows(d) || n_pos <= kv->cap) return SL_OK;
    SL_TRY(grow_kv(d, kv, n_pos, &grown, err));
    cudaError_t e = copy_kv(d, grown.data, grown.cap, kv->data, kv->cap, kv->cap, cudaMemcpyDeviceToDevice);
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(&d->kv_slots[slot], &grown, sizeof grown, cudaMemcpyHostToDevice, d->stream);
    if (e == cudaSuccess) e = cudaStreamSynchronize(d->stream);
    cudaFree(e == cudaSuccess ? kv->data : grown.data);
    if (e == cudaSuccess) *kv = grown;
    return failed(d, e, "growing a KV store", err);
}

static sl_status cuda_read_kv(sl_device *d, size_t slot, uint64_t n_pos, void *out, sl_error *err) {
    SL_TRY(check(d, err));
    SL_TRY(failed(d, copy_kv(d, out, n_pos, d->kv[slot].data, d->kv[slot].cap, n_pos, cudaMemcpyDeviceToHost),
                  "reading a KV store", err));
    return sync(d, "reading a KV store", err);
}

static sl_status cuda_write_kv(sl_device *d, size_t slot, uint64_t n_pos, const void *in, sl_error *err) {
    SL_TRY(check(d, err));
    SL_TRY(failed(d, copy_kv(d, d->kv[slot].data, d->kv[slot].cap, in, n_pos, n_pos, cudaMemcpyHostToDevice),
                  "writing a KV store", err));
    return sync(d, "writing a KV store", err);
}

static sl_status cuda_fill_kv(sl_device *d, size_t slot, uint64_t n_pos, sl_error *err) {
    SL_TRY(check(d, err));
    if (!kv_rows(d) || !n_pos) return SL_OK;
    int e = sl_fill_kv_cuda(d->kv[slot].data, d->kv[slot].cap, n_pos, kv_rows(d),
                            (uint32_t)d->graph->kv_head_dim, d->kv_f16, d->stream);
    return failed(d, (cudaError_t)e, "filling a KV store", err);
}

/* ---- states ------------------------------------------------------------------------------------- */

static float *slot_floats(const sl_device *d, size_t slot) { return d->states + slot * d->graph->state_floats; }
static size_t slot_bytes(const sl_device *d) { return d->graph->state_floats * sizeof(float); }

static sl_status cuda_reset(sl_device *d, size_t slot, sl_error *err) {
    SL_TRY(check(d, err));
    return failed(d, cudaMemsetAsync(slot_floats(d, slot), 0, slot_bytes(d), d->stream), "clearing a state",
                  err);
}

static sl_status cuda_read_state(sl_device *d, size_t slot, float *out, sl_error *err) {
    SL_TRY(check(d, err));
    SL_TRY(failed(d,
                  cudaMemcpyAsync(out, slot_floats(d, slot), slot_bytes(d), cudaMemcpyDeviceToHost, d->stream),
                  "reading a state", err));
    return sync(d, "reading a state", err);
}

static sl_status cuda_write_state(sl_device *d, size_t slot, const float *in, sl_error *err) {
    SL_TRY(check(d, err));
    SL_TRY(failed(d,
                  cudaMemcpyAsync(slot_floats(d, slot), in, slot_bytes(d), cudaMemcpyHostToDevice, d->stream),
                  "writing a state", err));
    return sync(d, "writing a state", err);
}

static sl_status cuda_copy(sl_device *d, size_t src, size_t dst, uint64_t n_pos, sl_error *err) {
    SL_TRY(check(d, err));
    const sl_kv_slot *from = &d->kv[src], *to = &d->kv[dst];
    cudaError_t e = cudaMemcpyAsync(slot_floats(d, dst), slot_floats(d, src), slot_bytes(d),
                                    cudaMemcpyDeviceToDevice, d->stream);
    if (e == cudaSuccess)
        e = copy_kv(d, to->data, to->cap, from->data, from->cap, n_pos, cudaMemcpyDeviceToDevice);
    return failed(d, e, "copying a state", err);
}

/* ---- passes ------------------------------------------------------------------------------------- */

static void write_input(sl_device *d, const sl_batch *b) {
    sl_cuda_input *in = &d->pinned_input;
    memcpy(in->tokens, b->tokens, b->n_tok * sizeof *in->tokens);
    memcpy(in->out_rows, b->out_rows, b->n_out * sizeof *in->out_rows);
    for (size_t r = 0; r < b->n_run; r++) {
        in->run_slot[r] = (uint32_t)b->runs[r].slot;
        in->run_start[r] = (uint32_t)b->runs[r].start;
        in->run_pos[r] = b->runs[r].pos;
    }
    in->run_start[b->n_run] = (uint32_t)b->n_tok;
}

static sl_status copy_input(sl_device *d, sl_error *err) {
    cudaError_t e =
        cudaMemcpyAsync(d->input_block, d->pinned, d->input_bytes, cudaMemcpyHostToDevice, d->stream);
    return failed(d, e, "copying a batch", err);
}

/* "launching norm of layer 3; cuBLAS status 7, ..."; node NULL: a pass. */
static sl_status failed_at(sl_device *d, cudaError_t e, const char *doing, const sl_node *node, sl_error *err) {
    char what[192];
    if (node) snprintf(what, sizeof what, "%s %s of layer %u%s", doing, sl_op_name(node->op), node->layer, d->blas.trouble);
    else snprintf(what, sizeof what, "%s a pass", doing);
    return failed(d, e, what, err);
}

static sl_status launch_nodes(const sl_cuda_pass *pass, sl_error *err) {
    const sl_node *node = NULL;
    const cudaError_t e = (cudaError_t)sl_cuda_launch_nodes(pass, &node);
    return failed_at(pass->device, e, "launching", node, err);
}

/* From here on the pinned input may be written again once the stream has come so far. */
static sl_status free_input(sl_device *d, sl_error *err) {
    return failed(d, cudaEventRecord(d->input_free, d->stream), "a pass", err);
}

/* The next pass is written while this one runs. */
static sl_status launch_pass(const sl_cuda_pass *pass, sl_error *err) {
    SL_TRY(copy_input(pass->device, err));
    SL_TRY(free_input(pass->device, err));
    SL_TRY(failed(pass->device, sl_cuda_profile_pass(pass->device), "a profile", err));
    SL_TRY(launch_nodes(pass, err));
    return failed(pass->device, sl_cuda_profile_collect(pass->device), "a profile", err);
}

/* A pass of one token per sequence whose logits are all wanted looks the same every time. (A profile has an event behind
 * each launch: no graph.) */
static bool is_decode(const sl_device *d, const sl_batch *b) {
    return b->n_tok == b->n_run && b->n_out == b->n_tok && b->n_run <= SL_CUDA_MAX_GRAPHS && !d->profile.nodes;
}

/* Of launches that have been accepted before: the driver cannot have them in a graph. Not an error of the device itself,
 * after which nothing runs. */
static bool is_refusal(cudaError_t e) {
    switch (e) {
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorIllegalState:
    case cudaErrorNotPermitted:
    case cudaErrorNotSupported: return true;
    default: return e >= cudaErrorStreamCaptureUnsupported && e <= cudaErrorStreamCaptureWrongThread;
    }
}

/* What a pass does, as a graph to replay; *node: what could not be launched. */
static cudaError_t capture(const sl_cuda_pass *pass, cudaGraph_t *graph, const sl_node **node) {
    sl_device *d = pass->device;
    const sl_node *at;
    cudaError_t e = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), end;
    if (e != cudaSuccess) return e;
    e = cudaMemcpyAsync(d->input_block, d->pinned, d->input_bytes, cudaMemcpyHostToDevice, d->stream);
    if (e == cudaSuccess && (e = (cudaError_t)sl_cuda_launch_nodes(pass, &at))) *node = at;
    end = cudaStreamEndCapture(d->stream, graph);
    return e == cudaSuccess || (e == SL_BLAS_FAILED && is_refusal(end)) ? end : e; /* cuBLAS does not say of what */
}

static cudaError_t prepare_graph(sl_device *d, cudaGraph_t graph, cudaGraphExec_t *exec) {
    cudaGraphExec_t made;
    cudaError_t e = cudaGraphInstantiate(&made, graph, 0);
    if (e != cudaSuccess) return e;
    e = cudaGraphUpload(made, d->stream);
    if (e == cudaSuccess) *exec = made;
    else cudaGraphExecDestroy(made);
    return e;
}

/* Replaying only saves launches: where there is no memory for it, or the driver cannot, *exec stays NULL and nothing is
 * wrong. */
static sl_status make_graph(const sl_cuda_pass *pass, cudaGraphExec_t *exec, sl_error *err) {
    sl_device *d = pass->device;
    const sl_node *node = NULL;
    cudaGraph_t graph = NULL;
    lock_captures();
    cudaError_t e = capture(pass, &graph, &node);
    unlock_captures();
    if (e == cudaSuccess) e = prepare_graph(d, graph, exec);
    if (graph) cudaGraphDestroy(graph);
    if (e != cudaSuccess && !is_refusal(e)) return failed_at(d, e, "capturing", node, err);
    cudaGetLastError();
    return SL_OK;
}

/* The first pass of a shape runs as it is, which loads its kernels; the second is captured, or where that is refused,
 * which may come of what another thread does, one of the next; the rest are replayed. */
static sl_status run_decode(const sl_cuda_pass *pass, sl_error *err) {
    sl_device *d = pass->device;
    cudaGraphExec_t *exec = &d->graphs[pass->batch->n_run];
    uint8_t *seen = &d->seen[pass->batch->n_run];
    if (!*exec && *seen > 0 && *seen <= CAPTURES) SL_TRY(make_graph(pass, exec, err));
    if (*seen <= CAPTURES) ++*seen;
    if (!*exec) return launch_pass(pass, err);
    d->counters.replayed++;
    SL_TRY(failed(d, cudaGraphLaunch(*exec, d->stream), "replaying a pass", err));
    return free_input(d, err);
}

/* Tokens are drawn for runs of consecutive rows of logits, usually all of them. */
static sl_status draw(sl_device *d, const sl_batch *b, sl_error *err) {
    size_t n = 0;
    if (!b->n_draw) return SL_OK;
    memcpy(d->pinned_draws, b->draws, b->n_draw * sizeof *b->draws); /* the last pass that drew has been waited for */
    cudaError_t e = cudaMemcpyAsync(d->draws, d->pinned_draws, b->n_draw * sizeof *b->draws, cudaMemcpyHostToDevice,
                                    d->stream);
    for (size_t i = 0; i < b->n_out && e == cudaSuccess;) {
        size_t first = i;
        while (i < b->n_out && !b->out[i]) i++;
        if (i > first) {
            const sl_sample_args args = { .logits = d->logits + first * d->graph->n_vocab,
                                          .draws = d->draws + n,
                                          .tokens = d->drawn + n,
                                          .stride = d->graph->n_vocab,
                                          .n_row = (uint32_t)(i - first),
                                          .n_vocab = (uint32_t)d->graph->n_vocab };
            e = (cudaError_t)sl_sample_cuda(&args, d->stream);
            n += i - first;
        } else i++;
    }
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(d->pinned_drawn, d->drawn, n * sizeof *d->drawn, cudaMemcpyDeviceToHost, d->stream);
    return failed(d, e, "drawing tokens", err);
}

static sl_status fetch(sl_device *d, const sl_batch *b, sl_error *err) {
    SL_TRY(draw(d, b, err));
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < b->n_out && e == cudaSuccess; i++)
        if (b->out[i])
            e = cudaMemcpyAsync(b->out[i], d->logits + i * d->graph->n_vocab, d->graph->n_vocab * sizeof(float),
                                cudaMemcpyDeviceToHost, d->stream);
    SL_TRY(failed(d, e, "copying logits", err));
    SL_TRY(sync(d, "a pass", err));
    if (b->n_draw) memcpy(b->drawn, d->pinned_drawn, b->n_draw * sizeof *b->drawn);
    return SL_OK;
}

static void count_node(sl_device *d, const sl_node *node, const sl_counted *work) {
    sl_count_node(d->graph, node, work, &d->counters);
    if (d->profile.nodes) sl_count_node(d->graph, node, work, &d->profile.nodes[node - d->graph->nodes].work);
}

/* What is known to the host; routed nodes are counted from their tallies. */
static void count_pass(sl_device *d, const sl_batch *b) {
    for (size_t i = 0; i < d->graph->n_node; i++) {
        const sl_node *node = &d->graph->nodes[i];
        uint64_t rows = node->domain == SL_OUTPUTS ? b->n_out : b->n_tok;
        if (node->op == SL_OP_ROUTE_SPLIT) d->counters.routed_tokens += b->n_tok;
        const sl_counted work = { b, d->kv_f16, 1, rows, b->n_run };
        if (node->domain <= SL_OUTPUTS && rows) count_node(d, node, &work);
    }
    d->counters.passes++;
}

static sl_status cuda_execute(sl_device *d, const sl_batch *b, sl_error *err) {
    SL_TRY(check(d, err));
    SL_TRY(failed(d, cudaEventSynchronize(d->input_free), "a pass", err));
    write_input(d, b);
    sl_cuda_pass pass = { d, d->graph, b, 0 };
    for (size_t r = 0; r < b->n_run; r++) pass.max_tok = (uint32_t)sl_max(pass.max_tok, b->runs[r].n_tok);
    SL_TRY(is_decode(d, b) ? run_decode(&pass, err) : launch_pass(&pass, err));
    count_pass(d, b);
    return b->n_out ? fetch(d, b, err) : SL_OK;
}

static sl_status cuda_wait(sl_device *d, sl_error *err) {
    SL_TRY(check(d, err));
    return sync(d, "a pass", err);
}

static size_t cuda_threads(const sl_device *d) {
    (void)d;
    return 1;
}

static const char *cuda_note(const sl_device *d) { return d->note[0] ? d->note : NULL; }

/* Deep tokens since the last time. A router's rows in a decode step are its runs as well; in prefill every run
 * has deep rows nearly always: then this counts the smaller of both. */
static void count_routed(sl_device *d, const unsigned long long *tallies) {
    for (size_t i = 0; i < d->graph->n_node; i++) {
        const sl_node *node = &d->graph->nodes[i];
        if (node->op == SL_OP_ROUTE_SPLIT) d->counters.deep_tokens += tallies[2 * node->u.router.domain];
        if (node->domain <= SL_OUTPUTS) continue;
        const unsigned long long *tally = tallies + 2 * node->domain;
        const sl_counted work = { NULL, d->kv_f16, tally[1], tally[0], sl_min(tally[0], tally[1] * d->n_slot) };
        count_node(d, node, &work);
    }
}

static sl_counters *cuda_counters(sl_device *d) {
    unsigned long long *tallies = calloc(2 * d->graph->n_domain, sizeof *tallies);
    const size_t n_bytes = 2 * d->graph->n_domain * sizeof *tallies;
    if (tallies && check(d, NULL) == SL_OK) {
        cudaError_t e = cudaMemcpyAsync(tallies, d->tallies, n_bytes, cudaMemcpyDeviceToHost, d->stream);
        if (e == cudaSuccess) e = cudaMemsetAsync(d->tallies, 0, n_bytes, d->stream);
        if (e == cudaSuccess) e = cudaStreamSynchronize(d->stream);
        if (failed(d, e, "reading counters", NULL) == SL_OK) count_routed(d, tallies);
    }
    free(tallies);
    return &d->counters;
}

/* Deep tokens before it began are not the profile's, those before it ends are. */
static sl_status cuda_profile(sl_device *d, sl_node_time *nodes, sl_error *err) {
    cuda_counters(d);
    sl_cuda_profile_end(d);
    SL_TRY(check(d, err));
    if (!nodes) return SL_OK;
    SL_TRY(sl_cuda_profile_allocate(d, err));
    return failed(d, sl_cuda_profile_begin(d, nodes), "beginning a profile", err);
}

const sl_backend sl_backend_cuda = {
    .name = "cuda",
    .draws = true,
    .open = cuda_open,
    .close = cuda_close,
    .reserve = cuda_reserve,
    .reserve_rows = cuda_reserve_rows,
    .execute = cuda_execute,
    .reset = cuda_reset,
    .copy = cuda_copy,
    .read_state = cuda_read_state,
    .write_state = cuda_write_state,
    .read_kv = cuda_read_kv,
    .write_kv = cuda_write_kv,
    .fill_kv = cuda_fill_kv,
    .wait = cuda_wait,
    .threads = cuda_threads,
    .note = cuda_note,
    .counters = cuda_counters,
    .profile = cuda_profile,
};
