/* One warp that uses each function of kernels/mma_cuda.h and approx_cuda.h once, for its test. */
#ifndef SL_TESTS_CHECK_CUDA_FRAGMENTS_H
#define SL_TESTS_CHECK_CUDA_FRAGMENTS_H

#include "kernels/cuda_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The registers of the lanes, before and after; pointers of the device. */
typedef struct sl_fragments_args {
    const uint32_t *a, *b; /* [32, 4], [32, 2] */
    float *d;              /* [32, 4] */
    bool f16;
    const uint16_t *rows;     /* [N_FRAGMENT_ROW, 8], to shared memory by asynchronous copies */
    const uint32_t *row;      /* [32] which of them a lane gives to the loads */
    uint32_t n_valid;         /* rows from here on are not read: zeros */
    uint32_t *loaded, *transposed; /* [32, 4] */
    const float *pair;        /* [32, 2] */
    uint32_t *f16_pair, *half_pair; /* [32] */
    const float *exponent;    /* [32] */
    float *power, *reciprocal; /* [32]: of 2 to the exponent, of 1 beside its size */
} sl_fragments_args;
enum { N_FRAGMENT_ROW = 64 };
int sl_fragments_cuda(const sl_fragments_args *args, sl_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
