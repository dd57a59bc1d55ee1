/* Where the time of a pass goes: an event behind every launch, read once the pass is done. */
#include <stdlib.h>

#include "backend/cuda.h"
#include "base/mem.h"

void sl_cuda_profile_end(sl_device *d) {
    sl_cuda_profile *p = &d->profile;
    for (size_t i = 0; i < p->n_event; i++) cudaEventDestroy(p->events[i]);
    free(p->events);
    free(p->launched);
    *p = (sl_cuda_profile){ 0 };
}

sl_status sl_cuda_profile_allocate(sl_device *d, sl_error *err) {
    sl_cuda_profile *p = &d->profile;
    const size_t n = d->graph->n_node + 1;
    sl_status status = sl_alloc((void **)&p->events, n, sizeof(cudaEvent_t), "a profile", err);
    if (status == SL_OK) status = sl_alloc((void **)&p->launched, n, sizeof *p->launched, "a profile", err);
    if (status != SL_OK) sl_cuda_profile_end(d);
    return status;
}

cudaError_t sl_cuda_profile_begin(sl_device *d, sl_node_time *nodes) {
    sl_cuda_profile *p = &d->profile;
    cudaError_t e = cudaSuccess;
    while (p->n_event < d->graph->n_node + 1 && e == cudaSuccess) {
        e = cudaEventCreate(&p->events[p->n_event]);
        p->n_event += e == cudaSuccess;
    }
    if (e != cudaSuccess) return sl_cuda_profile_end(d), e;
    for (uint32_t i = 0; i < d->graph->n_node; i++) nodes[i] = (sl_node_time){ .with = i };
    p->nodes = nodes;
    return cudaSuccess;
}

cudaError_t sl_cuda_profile_pass(sl_device *d) {
    d->profile.n_launch = 0;
    return d->profile.nodes ? cudaEventRecord(d->profile.events[0], d->stream) : cudaSuccess;
}

cudaError_t sl_cuda_profile_launch(sl_device *d, const sl_node *node, size_t n_node) {
    sl_cuda_profile *p = &d->profile;
    const uint32_t first = (uint32_t)(node - d->graph->nodes);
    if (!p->nodes) return cudaSuccess;
    for (uint32_t i = first; i < first + n_node; i++) p->nodes[i].with = first;
    p->launched[p->n_launch++] = first;
    return cudaEventRecord(p->events[p->n_launch], d->stream);
}

cudaError_t sl_cuda_profile_collect(sl_device *d) {
    const sl_cuda_profile *p = &d->profile;
    cudaError_t e = p->nodes ? cudaEventSynchronize(p->events[p->n_launch]) : cudaSuccess;
    for (size_t i = 0; p->nodes && i < p->n_launch && e == cudaSuccess; i++) {
        float ms = 0;
        e = cudaEventElapsedTime(&ms, p->events[i], p->events[i + 1]);
        p->nodes[p->launched[i]].seconds += 1e-3 * (double)ms;
        p->nodes[p->launched[i]].n++;
    }
    return e;
}
