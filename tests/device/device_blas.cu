/* A library in cuBLAS's place: the functions that src/backend/cuda_blas.c looks up, as cuBLAS's manual has them
 * (column major, scalars on the host, its status codes), over the test device. Arguments are checked harder than
 * by cuBLAS: what a product would read or write must be device memory. The product is a launch on the handle's
 * stream like any other, so that it is ordered, captured and replayed as cuBLAS's own would be; every call may
 * fail on request. SLUICE_DEVICE_BLAS_FAILS=1: it is there, but does not start.
 *
 * Built as a shared library that names the runtime's functions and finds them in the program that opens it. */
#include "kernels/cuda.h"

#include "device_runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    ALLOC_FAILED = 3,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15
};
enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16F = 2, COMPUTE_32F = 68, ALGO_DEFAULT = -1 };
enum { MATH_TF32 = 3, MATH_FULL_REDUCTION = 16 };
enum { WORKSPACE_ALIGNMENT = 256, MAGIC = 0xb1a5 };

struct handle {
    int magic, math;
    cudaStream_t stream;
    float *workspace; /* [n_workspace]; nullptr: its own */
    size_t n_workspace;
};

handle *find(void *h) {
    handle *found = static_cast<handle *>(h);
    return found && found->magic == MAGIC ? found : nullptr;
}

/* A call of the library: may fail on request, like an allocation, which leaves the device as it was. */
template <class F> int call(const char *name, void *h, F body) {
    int result = find(h) ? SUCCESS : NOT_INITIALIZED;
    if (result != SUCCESS)
        return result;
    cudaError_t error = sl_call(name, CALL_ALLOCATES, [&] {
        result = body(find(h));
        return cudaSuccess;
    });
    return error == cudaSuccess ? result : EXECUTION_FAILED;
}

/* Explains why the arguments are not taken. */
__attribute__((format(printf, 2, 3))) int refuse(status result, const char *format, ...) {
    char text[200];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    sl_refuse(cudaSuccess, "cublasGemmEx: %s", text);
    return result;
}

/* ---- the product --------------------------------------------------------------------------------- */

/* c[i + j ldc] = alpha sum over l of a[i a_row + l a_step] b[l b_step + j b_column] + beta c. */
struct gemm_args {
    const void *a, *b;
    void *c;
    size_t a_row, a_step, b_step, b_column, ldc, m, k;
    size_t part; /* of k: its end is that of a part whose sum is rounded to c's type; k: there is one part */
    float alpha, beta;
    float *workspace; /* [n_workspace], written to: nobody else may have anything there */
    size_t n_workspace;
};

float take(const float *p) { return *p; }
float take(const sl_f16 *p) { return sl_half_to_float(p->bits); }

/* As cuBLAS rounds, to infinity beyond the range of f16. */
void put(float *p, float v) { *p = v; }
void put(sl_f16 *p, float v) { p->bits = sl_float_to_half(v); }

template <class C> float rounded(float v) {
    C c;
    put(&c, v);
    return take(&c);
}

/* Four sums at once, because one is a chain of additions that wait for each other. */
template <class T> float dot(const T *a, size_t a_step, const T *b, size_t b_step, size_t n) {
    float sum[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t j = 0; j < 4; j++)
            sum[j] += take(a + (i + j) * a_step) * take(b + (i + j) * b_step);
    for (; i < n; i++)
        sum[0] += take(a + i * a_step) * take(b + i * b_step);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* One thread per element. */
template <class T, class C> __global__ void gemm_kernel(gemm_args g) {
    sl_begin();
    size_t i = static_cast<size_t>(blockIdx.y) * blockDim.x + threadIdx.x, j = blockIdx.x;
    if (i >= g.m)
        return;
    const T *a = static_cast<const T *>(g.a) + i * g.a_row, *b = static_cast<const T *>(g.b) + j * g.b_column;
    C *c = static_cast<C *>(g.c) + i + j * g.ldc;
    float sum = dot(a, g.a_step, b, g.b_step, g.part);
    if (g.part < g.k)
        sum = rounded<C>(sum) + rounded<C>(dot(a + g.part * g.a_step, g.a_step, b + g.part * g.b_step, g.b_step,
                                               g.k - g.part));
    if (g.n_workspace)
        g.workspace[(i + j * g.m) % g.n_workspace] = sum;
    put(c, g.alpha * sum + (g.beta == 0 ? 0 : g.beta * take(c))); /* with beta 0, c may hold anything */
}

struct matrix {
    char name; /* 'a', 'b', 'c' */
    const void *data;
    int type, ld;
    int n_row, n_column; /* as it lies */
};

size_t size_of(int type) { return type == R_16F ? 2 : 4; }

int check_matrix(const matrix &m) {
    size_t size = size_of(m.type);
    if (m.ld < (m.n_row > 1 ? m.n_row : 1))
        return refuse(INVALID_VALUE, "ld%c is %d, expected at least %d", m.name, m.ld, m.n_row);
    if (reinterpret_cast<uintptr_t>(m.data) % size)
        return refuse(INVALID_VALUE, "%c is not aligned to its elements of %zu bytes", m.name, size);
    size_t n = static_cast<size_t>(m.n_column - 1) * static_cast<size_t>(m.ld) + static_cast<size_t>(m.n_row);
    return sl_memory_is_device("cublasGemmEx", m.data, n * size) ? SUCCESS : INVALID_VALUE;
}

/* The combinations of types that a sum in f32 takes. */
bool good_types(int a, int b, int c, int compute) {
    return compute == COMPUTE_32F && a == b && ((a == R_32F && c == R_32F) || (a == R_16F && (c == a || c == R_32F)));
}

int check_gemm(int op_a, int op_b, int m, int n, int k, const matrix &a, const matrix &b, const matrix &c,
               int compute, int algo) {
    if ((op_a != OP_N && op_a != OP_T) || (op_b != OP_N && op_b != OP_T) || algo != ALGO_DEFAULT)
        return refuse(INVALID_VALUE, "operations %d and %d, algorithm %d", op_a, op_b, algo);
    if (m <= 0 || n <= 0 || k <= 0) /* cuBLAS takes 0, the backend never has it */
        return refuse(INVALID_VALUE, "a product of %d x %d x %d", m, n, k);
    if (!good_types(a.type, b.type, c.type, compute))
        return refuse(NOT_SUPPORTED, "types %d, %d and %d, computed in %d", a.type, b.type, c.type, compute);
    int result = SUCCESS;
    for (const matrix *one : {&a, &b, &c})
        if (result == SUCCESS)
            result = check_matrix(*one);
    return result;
}

int launch(const handle *h, int type, int c_type, int n, const gemm_args &args) {
    void (*kernel)(gemm_args) = type == R_32F     ? gemm_kernel<float, float>
                                : c_type == R_32F ? gemm_kernel<sl_f16, float>
                                                  : gemm_kernel<sl_f16, sl_f16>;
    dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>((args.m + 255) / 256));
    return sl_launch(kernel, grid, dim3(256), 0, h->stream, args) == 0 ? SUCCESS : EXECUTION_FAILED;
}

} // namespace

/* ---- cuBLAS's names ------------------------------------------------------------------------------ */

EXPORT int cublasCreate_v2(void **h) {
    if (!h || getenv("SLUICE_DEVICE_BLAS_FAILS"))
        return NOT_INITIALIZED;
    *h = nullptr;
    cudaError_t error = sl_call("cublasCreate", CALL_ALLOCATES | CALL_NOT_IN_CAPTURE | CALL_WAITS_FOR_ALL, [&] {
        *h = new handle{MAGIC, 0, nullptr, nullptr, 0};
        return cudaSuccess;
    });
    return error == cudaSuccess ? SUCCESS : error == cudaErrorMemoryAllocation ? ALLOC_FAILED : NOT_INITIALIZED;
}

/* Waits for the device, as cuBLAS does. */
EXPORT int cublasDestroy_v2(void *h) {
    handle *found = find(h);
    if (!found)
        return NOT_INITIALIZED;
    const cudaError_t error = sl_call("cublasDestroy", CALL_WAITS_FOR_ALL | CALL_RELEASES, [&] {
        found->magic = 0;
        delete found;
        return sl_stream_run_all();
    });
    return error == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

/* Takes the workspace away, as cuBLAS does. */
EXPORT int cublasSetStream_v2(void *h, cudaStream_t stream) {
    return call("cublasSetStream", h, [&](handle *found) {
        if (!sl_stream_find("cublasSetStream", stream))
            return INVALID_VALUE;
        found->stream = stream;
        found->workspace = nullptr;
        found->n_workspace = 0;
        return SUCCESS;
    });
}

EXPORT int cublasSetWorkspace_v2(void *h, void *workspace, size_t n_bytes) {
    return call("cublasSetWorkspace", h, [&](handle *found) {
        if (reinterpret_cast<uintptr_t>(workspace) % WORKSPACE_ALIGNMENT ||
            !sl_memory_is_device("cublasSetWorkspace", workspace, n_bytes))
            return INVALID_VALUE;
        found->workspace = static_cast<float *>(workspace);
        found->n_workspace = n_bytes / sizeof(float);
        return SUCCESS;
    });
}

EXPORT int cublasSetMathMode(void *h, int mode) {
    return call("cublasSetMathMode", h, [&](handle *found) {
        if (mode < 0 || (mode & ~MATH_FULL_REDUCTION) > MATH_TF32)
            return INVALID_VALUE;
        found->math = mode;
        return SUCCESS;
    });
}

/* Without MATH_FULL_REDUCTION cuBLAS may cut the sum into parts that it rounds to the type of the result: this one
 * always does. */
EXPORT int cublasGemmEx(void *h, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                        int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c,
                        int c_type, int ldc, int compute, int algo) {
    handle *found = find(h);
    if (!found)
        return NOT_INITIALIZED;
    int result = EXECUTION_FAILED;
    sl_call("cublasGemmEx", 0, [&] {
        result = check_gemm(op_a, op_b, m, n, k,
                            {'a', a, a_type, lda, op_a == OP_N ? m : k, op_a == OP_N ? k : m},
                            {'b', b, b_type, ldb, op_b == OP_N ? k : n, op_b == OP_N ? n : k},
                            {'c', c, c_type, ldc, m, n}, compute, algo);
        return cudaSuccess;
    });
    if (result != SUCCESS)
        return result;
    const size_t a_pitch = static_cast<size_t>(lda), b_pitch = static_cast<size_t>(ldb);
    gemm_args args = {};
    args.a = a, args.b = b, args.c = c;
    args.a_row = op_a == OP_N ? 1 : a_pitch, args.a_step = op_a == OP_N ? a_pitch : 1;
    args.b_column = op_b == OP_N ? b_pitch : 1, args.b_step = op_b == OP_N ? 1 : b_pitch;
    args.ldc = static_cast<size_t>(ldc), args.m = static_cast<size_t>(m), args.k = static_cast<size_t>(k);
    args.part = found->math & MATH_FULL_REDUCTION || k == 1 ? args.k : args.k / 2;
    args.alpha = *static_cast<const float *>(alpha), args.beta = *static_cast<const float *>(beta);
    args.workspace = found->workspace, args.n_workspace = found->n_workspace;
    return launch(found, a_type, c_type, n, args);
}
