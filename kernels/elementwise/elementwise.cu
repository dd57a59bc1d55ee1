/* Activations and copies of rows on a CUDA device. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

enum { THREADS = 256, WIDE = 4 };

/* ---- gate = silu(gate) * up, scaled ---------------------------------------------------------------------- */

struct silu_launch {
    sl_silu_args a;
    float scale; /* a power of two */
    bool wide;   /* groups of four elements are aligned */
};

/* A thread takes four neighbouring elements of a row. */
template <class T> __global__ void silu_mul(silu_launch launch) {
    sl_begin();
    const sl_silu_args &a = launch.a;
    const uint32_t at = (blockIdx.x * THREADS + threadIdx.x) * WIDE;
    const uint64_t row = blockIdx.y;
    if (row >= sl_row_count(a.rows) || at >= a.n)
        return;
    T *gate = static_cast<T *>(a.gate) + row * a.gate_stride + at;
    const T *up = static_cast<const T *>(a.up) + row * a.up_stride + at;
    if (launch.wide && at + WIDE <= a.n) {
        float g[WIDE], u[WIDE];
        sl_load4(gate, g);
        sl_load4(up, u);
        for (int i = 0; i < WIDE; i++)
            g[i] = sl_silu<T>(g[i]) * (u[i] * launch.scale);
        sl_store4(gate, g);
        return;
    }
    for (uint32_t i = 0; i < WIDE && at + i < a.n; i++)
        sl_store(gate + i, sl_silu<T>(sl_load(gate + i)) * (sl_load(up + i) * launch.scale));
}

static bool is_wide(const void *p, uint64_t stride, sl_act act) {
    return sl_is_aligned(p, stride * sl_act_size(act), WIDE * sl_act_size(act));
}

int sl_silu_mul_cuda(const sl_silu_args *args, sl_cuda_stream stream) {
    const silu_launch launch = {*args, ldexpf(1, -static_cast<int>(args->lift)),
                                is_wide(args->gate, args->gate_stride, args->act) &&
                                           is_wide(args->up, args->up_stride, args->act)};
    const dim3 grid(sl_ceil_div(args->n, THREADS * WIDE), args->rows.max);
    return sl_launch(args->act == SL_ACT_F16 ? silu_mul<sl_f16> : silu_mul<float>, grid, dim3(THREADS), 0,
                     stream, launch);
}

/* ---- rows by index ------------------------------------------------------------------------------- */

static __global__ void gather(sl_gather_args a) {
    sl_begin();
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    const uint64_t row = blockIdx.y;
    if (row >= sl_row_count(a.rows) || at >= a.bytes / sizeof(uint4))
        return;
    const uint64_t from = a.rows.index ? a.rows.index[row] : row;
    const unsigned char *src = static_cast<const unsigned char *>(a.src) + from * a.src_stride_bytes;
    unsigned char *dst = static_cast<unsigned char *>(a.dst) + row * a.dst_stride_bytes;
    reinterpret_cast<uint4 *>(dst)[at] = reinterpret_cast<const uint4 *>(src)[at];
}

int sl_gather_cuda(const sl_gather_args *args, sl_cuda_stream stream) {
    const dim3 grid(sl_ceil_div(args->bytes / sizeof(uint4), THREADS), args->rows.max);
    return sl_launch(gather, grid, dim3(THREADS), 0, stream, *args);
}
