/* cuBLAS is loaded when the first device opens, version 13 or 12, so that the program needs neither to start
 * nor to be linked. The few prototypes and constants below are its documented binary interface (cuBLAS Library,
 * NVIDIA); tests/unit/cublas_header.c holds them to its header where there is one. */
#include "backend/cuda_blas.h"

#include <stdio.h>
#include <string.h>
#include <threads.h>

#include <cuda_runtime_api.h>

#include "os/os.h"

/* Sums of f16 results stay f32 also where they are cut into parts: default math, and no reduction in the type
 * of the result. */
enum { MATH_DEFAULT = 0, MATH_FULL_REDUCTION = 16 };
enum { R_32F = 0, R_16F = 2, COMPUTE_32F = 68, OP_N = 0, OP_T = 1, ALGO_DEFAULT = -1 };

typedef int (*create_fn)(void **handle);
typedef int (*destroy_fn)(void *handle);
typedef int (*set_stream_fn)(void *handle, sl_cuda_stream stream);
typedef int (*set_workspace_fn)(void *handle, void *workspace, size_t n_bytes);
typedef int (*set_math_mode_fn)(void *handle, int mode);
typedef int (*get_version_fn)(void *handle, int *version);
typedef int (*gemm_fn)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                       int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c,
                       int c_type, int ldc, int compute_type, int algo);

typedef struct library {
    const char *name;
    create_fn create;
    destroy_fn destroy;
    set_stream_fn set_stream;
    set_workspace_fn set_workspace;
    set_math_mode_fn set_math_mode;
    get_version_fn get_version;
    gemm_fn gemm;
} library;

/* One library for the process, whose symbols all handles share. */
static library blas_library;
static char missing[64] = "no cuBLAS 12 or 13 found"; /* empty: it is there */
static once_flag is_loaded = ONCE_FLAG_INIT;

/* All symbols or none. */
static bool load(const char *name) {
    library l = { .name = name };
    const struct { const char *name; void *place; } symbols[] = {
        { "cublasCreate_v2", &l.create },
        { "cublasDestroy_v2", &l.destroy },
        { "cublasSetStream_v2", &l.set_stream },
        { "cublasSetWorkspace_v2", &l.set_workspace },
        { "cublasSetMathMode", &l.set_math_mode },
        { "cublasGetVersion_v2", &l.get_version },
        { "cublasGemmEx", &l.gemm },
    };
    void *file = sl_os_library(name);
    if (!file) return false;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = sl_os_symbol(file, symbols[i].name);
        if (!symbol) return snprintf(missing, sizeof missing, "%s lacks %s", name, symbols[i].name), false;
        memcpy(symbols[i].place, &symbol, sizeof symbol); /* a function pointer is not a data pointer in C */
    }
    blas_library = l;
    return true;
}

/* cuBLAS 13 opens beside a driver for CUDA 12 too, but does not start there. */
static bool load_13(void) {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 13000) return load("libcublas.so.13");
    if (sl_os_library("libcublas.so.13"))
        snprintf(missing, sizeof missing, "libcublas.so.13 needs a driver for CUDA 13");
    return false;
}

static void load_any(void) {
    if (load_13() || load("libcublas.so.12")) missing[0] = 0;
}

const char *sl_blas_missing(void) {
    call_once(&is_loaded, load_any);
    return missing[0] ? missing : NULL;
}

const char *sl_blas_library(void) { return sl_blas_missing() ? NULL : blas_library.name; }

/* Row-major y = x w^T is column-major y^T = w x^T, with w transposed as it lies. */
static int product(sl_blas *blas, sl_act act, bool y_f32, size_t n_row, size_t n_tok, size_t k, const void *w,
                   size_t w_stride, const void *x, size_t x_stride, void *y, size_t y_stride, float gain, bool add) {
    const float beta = add ? 1 : 0;
    const int type = act == SL_ACT_F32 ? R_32F : R_16F, y_type = y_f32 ? R_32F : type;
    const int status = blas_library.gemm(blas->handle, OP_T, OP_N, (int)n_row, (int)n_tok, (int)k, &gain, w, type,
                                         (int)w_stride, x, type, (int)x_stride, &beta, y, y_type,
                                         (int)y_stride, COMPUTE_32F, ALGO_DEFAULT);
    if (status)
        snprintf(blas->trouble, sizeof blas->trouble, "; cuBLAS status %d, m %zu n %zu k %zu ld %zu %zu %zu types %d %d",
                 status, n_row, n_tok, k, w_stride, x_stride, y_stride, type, y_type);
    return status;
}

static bool failed(sl_blas *blas, const char *why, int status) {
    snprintf(blas->name, sizeof blas->name, "%s (status %d)", why, status);
    sl_blas_close(blas);
    return false;
}

bool sl_blas_open(sl_blas *blas, sl_cuda_stream stream, void *workspace, size_t n_bytes) {
    const library *l = &blas_library;
    const char *why = sl_blas_missing();
    int status, version = 0;
    *blas = (sl_blas){ 0 };
    if (why) return snprintf(blas->name, sizeof blas->name, "%s", why), false;
    if ((status = l->create(&blas->handle))) {
        blas->handle = NULL;
        return failed(blas, "cuBLAS does not start", status);
    }
    /* the stream first: with a new one goes the workspace */
    if ((status = l->set_stream(blas->handle, stream))) return failed(blas, "cuBLAS takes no stream", status);
    if ((status = n_bytes ? l->set_workspace(blas->handle, workspace, n_bytes) : 0))
        return failed(blas, "cuBLAS takes no workspace", status);
    if ((status = l->set_math_mode(blas->handle, MATH_DEFAULT | MATH_FULL_REDUCTION)))
        return failed(blas, "cuBLAS cannot keep sums in f32", status);
    l->get_version(blas->handle, &version);
    snprintf(blas->name, sizeof blas->name, "cuBLAS %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    blas->product = product;
    return true;
}

void sl_blas_close(sl_blas *blas) {
    if (blas->handle) blas_library.destroy(blas->handle);
    blas->handle = NULL;
    blas->product = NULL;
}
