/* What this machine can do at this moment, measured in the same process and with the same threads as the
 * models: how fast memory can be read, and how fast the engine's matrix product runs out of the cache. */
#ifndef SL_CLI_BENCH_PROBE_H
#define SL_CLI_BENCH_PROBE_H

#include "kernels/types.h"
#include "sluice.h"

typedef struct sl_probe { double median, best; } sl_probe;

/* GB/s of n_thread threads that sum a buffer larger than the caches, each its own part. */
sl_status sl_probe_read(size_t n_thread, sl_probe *gbps, sl_error *err);
/* TFLOP/s of n_thread threads that each run the engine's product for weights of this type over operands that
 * stay in their second-level cache: what a pass could reach if memory and everything else cost nothing. */
sl_status sl_probe_matmul(size_t n_thread, sl_type type, sl_probe *tflops, sl_error *err);

#endif
