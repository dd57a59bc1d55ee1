/* Weights on a CUDA device: one allocation, laid out by host address, filled once and shared by the sessions of
 * a model on that device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "backend/cuda.h"
#include "base/mem.h"

enum { PIECE = 32 << 20 /* bytes per copy and step of the progress */ };

/* ---- layout ------------------------------------------------------------------------------------- */

typedef struct collect { sl_cuda_item *items; size_t n; } collect;

static void count_item(void *arg, const void *data, uint64_t n_bytes, const sl_tensor *tensor) {
    (void)data, (void)n_bytes, (void)tensor;
    ((collect *)arg)->n++;
}

static void add_item(void *arg, const void *data, uint64_t n_bytes, const sl_tensor *tensor) {
    collect *c = arg;
    c->items[c->n++] = (sl_cuda_item){ data, tensor, n_bytes, 0 };
}

static int by_address(const void *a, const void *b) {
    const sl_cuda_item *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

static uint64_t device_bytes(const sl_cuda_item *item) {
    const sl_tensor *t = item->tensor;
    return t ? t->bytes / t->row_bytes * sl_cuda_row_bytes(t->row_bytes) : item->n_bytes;
}

/* What several nodes share (a tied head and its embedding) is kept once. */
static void keep_unique(sl_cuda_weights *w) {
    size_t n = 0;
    qsort(w->items, w->n_item, sizeof *w->items, by_address);
    for (size_t i = 0; i < w->n_item; i++)
        if (!n || w->items[i].host != w->items[n - 1].host) w->items[n++] = w->items[i];
    w->n_item = n;
    for (size_t i = 0; i < n; i++) {
        w->items[i].offset = w->n_bytes;
        w->n_bytes += sl_cuda_laid_out(device_bytes(&w->items[i]));
    }
}

sl_status sl_cuda_weights_lay_out(const sl_graph *graph, sl_cuda_weights *w, sl_error *err) {
    collect c = { 0 };
    sl_cuda_constants(graph, count_item, &c);
    SL_TRY(sl_alloc((void **)&c.items, c.n, sizeof *c.items, "the list of weights", err));
    c.n = 0;
    sl_cuda_constants(graph, add_item, &c);
    *w = (sl_cuda_weights){ .graph = graph, .items = c.items, .n_item = c.n };
    keep_unique(w);
    return SL_OK;
}

const void *sl_cuda_weights_find(const sl_cuda_weights *w, const void *host) {
    const sl_cuda_item key = { .host = host };
    const sl_cuda_item *item = host ? bsearch(&key, w->items, w->n_item, sizeof *w->items, by_address) : NULL;
    return item ? w->data + item->offset : NULL;
}

/* ---- filling ------------------------------------------------------------------------------------ */

/* Matrices of models that exist for measurements only (sl_tensor.random) are made on the device. */
static bool is_random(const sl_cuda_item *item) { return item->tensor && item->tensor->random > 0; }
static cudaError_t fill_random(const sl_cuda_item *item, uint8_t *to, sl_act act, cudaStream_t stream) {
    const sl_tensor *t = item->tensor;
    const sl_random_args args = { .w = to,
                                  .w_row_bytes = sl_cuda_row_bytes(t->row_bytes),
                                  .n_row = t->bytes / t->row_bytes,
                                  .type = sl_cuda_weight_type(act, t),
                                  .scale = t->random,
                                  .seed = item->offset,
                                  .k = (uint32_t)sl_spec_width(&t->spec) };
    return (cudaError_t)sl_random_cuda(&args, stream);
}

/* bf16 where it lies to f16: exact from 2^-14 to 65504, below that to multiples of 2^-24, beyond as 65504. */
static cudaError_t convert(const sl_tensor *t, uint8_t *at, cudaStream_t stream) {
    const uint64_t row = sl_cuda_row_bytes(t->row_bytes);
    const sl_expand_args args = { .w = at, .w_row_bytes = row, .type = t->type, .act = SL_ACT_F16, .dst = at,
                                  .dst_stride = row / 2, .n_row = (uint32_t)(t->bytes / t->row_bytes),
                                  .k = (uint32_t)sl_spec_width(&t->spec) };
    return (cudaError_t)sl_expand_cuda(&args, stream);
}

/* Part of an item, from byte at on (of whole rows): rows of a matrix to their places. */
static cudaError_t copy_part(const sl_cuda_item *item, uint8_t *to, uint64_t at, uint64_t n, cudaStream_t stream) {
    const uint64_t row = item->tensor ? item->tensor->row_bytes : 1, place = item->tensor ? sl_cuda_row_bytes(row) : 1;
    const uint8_t *from = (const uint8_t *)item->host + at;
    if (place == row) return cudaMemcpyAsync(to + at, from, n, cudaMemcpyHostToDevice, stream);
    return cudaMemcpy2DAsync(to + at / row * place, place, from, row, row, n / row, cudaMemcpyHostToDevice, stream);
}

static cudaError_t fill_item(const sl_cuda_item *item, uint8_t *to, const sl_device_params *params, sl_act act,
                             cudaStream_t stream, uint64_t *done, uint64_t all) {
    const sl_tensor *t = item->tensor;
    if (is_random(item)) return fill_random(item, to, act, stream);
    const uint64_t row = t ? t->row_bytes : 1, piece = row < PIECE ? PIECE / row * row : row;
    for (uint64_t at = 0; at < item->n_bytes; at += piece) {
        uint64_t n = sl_min((size_t)(item->n_bytes - at), (size_t)piece);
        cudaError_t e = copy_part(item, to, at, n, stream);
        if (e != cudaSuccess) return e;
        *done += n;
        if (params->progress) params->progress(params->progress_arg, *done, all);
    }
    return t && sl_cuda_weight_type(act, t) != t->type ? convert(t, to, stream) : cudaSuccess;
}

/* On a stream of its own: to wait for the whole device would end what other threads capture at that time. */
static cudaError_t fill_items(const sl_cuda_weights *w, const sl_device_params *params) {
    uint64_t done = 0, all = 0;
    cudaStream_t stream;
    cudaError_t e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) return e;
    for (size_t i = 0; i < w->n_item; i++) all += is_random(&w->items[i]) ? 0 : w->items[i].n_bytes;
    for (size_t i = 0; i < w->n_item && e == cudaSuccess; i++)
        e = fill_item(&w->items[i], w->data + w->items[i].offset, params, w->act, stream, &done, all);
    const cudaError_t waited = cudaStreamSynchronize(stream); /* after a failure too: it may still read the host's memory */
    cudaStreamDestroy(stream);
    return e == cudaSuccess ? waited : e;
}

static sl_status fill(sl_cuda_weights *w, const sl_device_params *params, sl_error *err) {
    cudaError_t e = cudaMalloc((void **)&w->data, w->n_bytes ? w->n_bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return sl_cuda_no_memory(params->ordinal, "block of weights", w->n_bytes, "bytes", 1, err);
    }
    if (e != cudaSuccess)
        return sl_fail(err, SL_E_DEVICE, "cuda:%d: %llu bytes for weights: %s", params->ordinal,
                       (unsigned long long)w->n_bytes, cudaGetErrorString(e));
    e = fill_items(w, params);
    if (e == cudaSuccess) return SL_OK;
    return sl_fail(err, SL_E_DEVICE, "cuda:%d: copying weights: %s", params->ordinal, cudaGetErrorString(e));
}

/* ---- sharing ------------------------------------------------------------------------------------ */

static sl_cuda_weights *all_weights;
static mtx_t lock;
static once_flag lock_once = ONCE_FLAG_INIT;
static void make_lock(void) { mtx_init(&lock, mtx_plain); }

void sl_cuda_weights_release_layout(sl_cuda_weights *w) { free(w->items); }

static void release(sl_cuda_weights *w) {
    cudaFree(w->data);
    sl_cuda_weights_release_layout(w);
    free(w);
}

static sl_cuda_weights *find_open(const sl_graph *graph, int ordinal, sl_act act) {
    sl_cuda_weights *w = all_weights;
    while (w && (w->graph != graph || w->ordinal != ordinal || w->act != act)) w = w->next;
    return w;
}

bool sl_cuda_weights_resident(const sl_graph *graph, int ordinal, sl_act act) {
    call_once(&lock_once, make_lock);
    mtx_lock(&lock);
    bool found = find_open(graph, ordinal, act) != NULL;
    mtx_unlock(&lock);
    return found;
}

static sl_status open_new(const sl_graph *graph, const sl_device_params *params, sl_act act,
                          sl_cuda_weights **out, sl_error *err) {
    sl_cuda_weights *w;
    SL_TRY(sl_alloc((void **)&w, 1, sizeof *w, "the list of weights", err));
    sl_status status = sl_cuda_weights_lay_out(graph, w, err);
    w->ordinal = params->ordinal;
    w->act = act;
    if (status == SL_OK) status = fill(w, params, err);
    if (status != SL_OK) {
        release(w);
        return status;
    }
    w->users = 1;
    w->next = all_weights;
    *out = all_weights = w;
    return SL_OK;
}

sl_status sl_cuda_weights_open(const sl_graph *graph, const sl_device_params *params, sl_act act,
                               sl_cuda_weights **out, sl_error *err) {
    call_once(&lock_once, make_lock);
    mtx_lock(&lock);
    sl_status status = SL_OK;
    *out = find_open(graph, params->ordinal, act);
    if (*out) (*out)->users++;
    else status = open_new(graph, params, act, out, err);
    mtx_unlock(&lock);
    return status;
}

void sl_cuda_weights_close(sl_cuda_weights *w) {
    if (!w) return;
    mtx_lock(&lock);
    if (!--w->users) {
        sl_cuda_weights **at = &all_weights;
        while (*at != w) at = &(*at)->next;
        *at = w->next;
        release(w);
    }
    mtx_unlock(&lock);
}
