/* The product of src/backend/cuda_blas.h by its definition, as a launch on the stream like any other, so that
 * it is ordered, captured and replayed as cuBLAS's own would be. One thread per output. */
#include "kernels/cuda.h"

extern "C" {
#include "backend/cuda_blas.h"
}
#include "device_runtime.h"

#include <stdio.h>
#include <stdlib.h>

namespace {

struct blas_args {
    const void *w, *x;
    void *y;
    size_t w_stride, x_stride, y_stride, n_row, k;
};

float take(const float *x) { return *x; }
float take(const sl_f16 *x) { return sl_half_to_float(x->bits); }

/* Four sums at once, because one is a chain of additions that wait for each other. */
template <class T> float dot(const T *a, const T *b, size_t n) {
    float sum[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t j = 0; j < 4; j++)
            sum[j] += take(a + i + j) * take(b + i + j);
    for (; i < n; i++)
        sum[0] += take(a + i) * take(b + i);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* As cuBLAS rounds, to infinity beyond the range of f16. */
void put(float *y, float v) { *y = v; }
void put(sl_f16 *y, float v) { y->bits = sl_float_to_half(v); }

template <class T, class Y> __global__ void product_kernel(blas_args a) {
    size_t row = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, tok = blockIdx.y;
    if (row < a.n_row)
        put(static_cast<Y *>(a.y) + tok * a.y_stride + row,
            dot(static_cast<const T *>(a.w) + row * a.w_stride,
                static_cast<const T *>(a.x) + tok * a.x_stride, a.k));
}

int product(sl_blas *blas, sl_act act, bool y_f32, size_t n_row, size_t n_tok, size_t k, const void *w,
            size_t w_stride, const void *x, size_t x_stride, void *y, size_t y_stride) {
    void (*kernel)(blas_args) = act == SL_ACT_F32 ? product_kernel<float, float>
                                : y_f32           ? product_kernel<sl_f16, float>
                                                  : product_kernel<sl_f16, sl_f16>;
    blas_args args = {w, x, y, w_stride, x_stride, y_stride, n_row, k};
    dim3 grid(static_cast<unsigned>((n_row + 255) / 256), static_cast<unsigned>(n_tok));
    return sl_launch(kernel, grid, dim3(256), 0, *static_cast<sl_cuda_stream *>(blas->handle), args);
}

} // namespace

/* May fail on request, like an allocation. */
extern "C" bool sl_blas_open(sl_blas *blas, sl_cuda_stream stream, void *workspace, size_t n_bytes) {
    *blas = {};
    if (!sl_blas_is_there()) {
        snprintf(blas->name, sizeof blas->name, "the test device's product is not there");
        return false;
    }
    cudaError_t error = sl_call("cublasCreate", CALL_ALLOCATES, [&] {
        bool good = n_bytes == 0 || sl_memory_is_device("cublasSetWorkspace", workspace, n_bytes);
        blas->handle = good ? malloc(sizeof stream) : nullptr;
        return blas->handle ? cudaSuccess : cudaErrorInvalidValue;
    });
    if (error != cudaSuccess) {
        snprintf(blas->name, sizeof blas->name, "the test device's product does not start (status %d)", error);
        return false;
    }
    snprintf(blas->name, sizeof blas->name, "the test device's product");
    memcpy(blas->handle, &stream, sizeof stream);
    blas->product = product;
    return true;
}

extern "C" bool sl_blas_is_there(void) { return getenv("SLUICE_DEVICE_NO_BLAS") == nullptr; }

extern "C" void sl_blas_close(sl_blas *blas) {
    free(blas->handle);
    blas->handle = nullptr;
    blas->product = nullptr;
}
