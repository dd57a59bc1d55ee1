/* What the checks of the CUDA kernels for sequences share. */
#ifndef SL_TESTS_CHECK_CUDA_SEQUENCE_H
#define SL_TESTS_CHECK_CUDA_SEQUENCE_H

#include "cuda_check.h"

/* The runs on the device: n slots, n + 1 starts. max_tok is the longest run. */
sl_runs cuda_put_runs(const uint32_t *slot, const uint32_t *start, uint32_t n);

#endif
