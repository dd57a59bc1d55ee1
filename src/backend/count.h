/* Counting what passes read and compute, but for a layer's small vectors (kernels, biases, decays); the same on every device. */
#ifndef SL_BACKEND_COUNT_H
#define SL_BACKEND_COUNT_H

#include "backend/backend.h"

/* How much work a node has had: over how many passes, rows of its domain, and runs with rows in it. */
typedef struct sl_counted {
    const sl_batch *batch; /* of the pass; read for attention only, which is never routed */
    bool kv_f16;
    uint64_t passes, rows, runs;
} sl_counted;

void sl_count_node(const sl_graph *graph, const sl_node *node, const sl_counted *work, sl_counters *counters);

#endif
