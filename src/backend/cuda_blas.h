/* cuBLAS, found at run time: the one product that prefill needs. */
#ifndef SL_BACKEND_CUDA_BLAS_H
#define SL_BACKEND_CUDA_BLAS_H

#include "kernels/cuda_kernels.h"

typedef struct sl_blas {
    void *handle;
    char name[64];     /* "cuBLAS 12.6.4", or why there is none */
    char trouble[112]; /* of the last product that failed: "; cuBLAS status 7, ..."; empty: none has */
    /* y[t][r] = gain sum_i w[r][i] x[t][i], added to y if add: w [n_row, w_stride] and x [n_tok, x_stride] of type act, y
     * [n_tok, y_stride] of type act or f32; sums in f32 (no TF32, no parts of them in f16). Device pointers, strides in
     * elements. Returns 0 or cuBLAS's status. */
    int (*product)(struct sl_blas *blas, sl_act act, bool y_f32, size_t n_row, size_t n_tok, size_t k, const void *w,
                   size_t w_stride, const void *x, size_t x_stride, void *y, size_t y_stride, float gain, bool add);
} sl_blas;

/* What a launch gives whose product has failed: cuBLAS has codes of its own. */
#define SL_BLAS_FAILED cudaErrorUnknown

/* What follows, in a line that says why there is no cuBLAS. */
#define SL_BLAS_INSTEAD "long prompts use our own, slower products"

/* Opens cuBLAS on the current device for work on the stream; workspace: n_bytes of device memory, aligned to
 * 256, that it may use as long as it is open (0: none). False: it is not there or does not work; blas->name
 * says why. */
bool sl_blas_open(sl_blas *blas, sl_cuda_stream stream, void *workspace, size_t n_bytes);
/* Why no library can be used, or NULL; one that can stays loaded. */
const char *sl_blas_missing(void);
const char *sl_blas_library(void); /* its name, "libcublas.so.13", or NULL */
void sl_blas_close(sl_blas *blas); /* also of one that was not opened */

#endif
