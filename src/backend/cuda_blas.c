/* cuBLAS is loaded when the first device opens, version 13 or 12, so that the program needs neither to start
 * nor to be linked. The few prototypes and constants below are its documented binary interface (cuBLAS Library,
 * NVIDIA). */
#include "backend/cuda_blas.h"

#include <stdio.h>
#include <string.h>

#include "os/os.h"

enum { R_32F = 0, R_16F = 2, COMPUTE_32F = 68, OP_N = 0, OP_T = 1, ALGO_DEFAULT = -1 };

typedef int (*create_fn)(void **handle);
typedef int (*destroy_fn)(void *handle);
typedef int (*set_stream_fn)(void *handle, sl_cuda_stream stream);
typedef int (*set_workspace_fn)(void *handle, void *workspace, size_t n_bytes);
typedef int (*get_version_fn)(void *handle, int *version);
typedef int (*gemm_fn)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                       int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c,
                       int c_type, int ldc, int compute_type, int algo);

/* One library for the process: the symbols that all handles share. */
static struct library {
    create_fn create;
    destroy_fn destroy;
    set_stream_fn set_stream;
    set_workspace_fn set_workspace;
    get_version_fn get_version;
    gemm_fn gemm;
} library;

static bool load_library(void) {
    static const char *const names[] = { "libcublas.so.13", "libcublas.so.12" };
    static const struct { const char *name; void *place; } symbols[] = {
        { "cublasCreate_v2", &library.create },         { "cublasDestroy_v2", &library.destroy },
        { "cublasSetStream_v2", &library.set_stream },  { "cublasSetWorkspace_v2", &library.set_workspace },
        { "cublasGetVersion_v2", &library.get_version }, { "cublasGemmEx", &library.gemm },
    };
    void *lib = NULL;
    for (size_t i = 0; i < 2 && !lib; i++) lib = sl_os_library(names[i]);
    for (size_t i = 0; lib && i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = sl_os_symbol(lib, symbols[i].name);
        if (!symbol) return false;
        memcpy(symbols[i].place, &symbol, sizeof symbol); /* a function pointer is not a data pointer in C */
    }
    return lib != NULL;
}

/* Row-major y = x w^T is column-major y^T = w x^T, with w transposed as it lies. */
static int product(sl_blas *blas, sl_act act, bool y_f32, size_t n_row, size_t n_tok, size_t k, const void *w,
                   size_t w_stride, const void *x, size_t x_stride, void *y, size_t y_stride) {
    const float one = 1, zero = 0;
    const int type = act == SL_ACT_F32 ? R_32F : R_16F;
    return library.gemm(blas->handle, OP_T, OP_N, (int)n_row, (int)n_tok, (int)k, &one, w, type, (int)w_stride,
                        x, type, (int)x_stride, &zero, y, y_f32 ? R_32F : type, (int)y_stride, COMPUTE_32F,
                        ALGO_DEFAULT);
}

static bool failed(sl_blas *blas, const char *why, int status) {
    snprintf(blas->name, sizeof blas->name, "%s (status %d)", why, status);
    sl_blas_close(blas);
    return false;
}

bool sl_blas_open(sl_blas *blas, sl_cuda_stream stream, void *workspace, size_t n_bytes) {
    *blas = (sl_blas){ .product = product };
    int status, version = 0;
    if (!library.gemm && !load_library()) return failed(blas, "no cuBLAS 12 or 13 found", 0);
    if ((status = library.create(&blas->handle))) return failed(blas, "cuBLAS does not start", status);
    if ((status = library.set_stream(blas->handle, stream)))
        return failed(blas, "cuBLAS takes no stream", status);
    if ((status = n_bytes ? library.set_workspace(blas->handle, workspace, n_bytes) : 0))
        return failed(blas, "cuBLAS takes no workspace", status);
    library.get_version(blas->handle, &version);
    snprintf(blas->name, sizeof blas->name, "cuBLAS %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    return true;
}

bool sl_blas_is_there(void) { return library.gemm || load_library(); }

void sl_blas_close(sl_blas *blas) {
    if (blas->handle) library.destroy(blas->handle);
    blas->handle = NULL;
    blas->product = NULL;
}
