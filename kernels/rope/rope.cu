/* Rotary embedding on a CUDA device: the table of a pass, and the half-split rotation (Su et al. 2021, in the
 * layout of GPT-NeoX and Llama). */
#include "kernels/cuda.h"
#include "kernels/cuda_kernels.h"

enum { THREADS = 128 };

/* A block for one row of a run, a thread for each angle. */
static __global__ void rope_table(sl_rope_table_args a) {
    sl_begin();
    const uint32_t first = a.runs.start[blockIdx.y], n_tok = a.runs.start[blockIdx.y + 1] - first;
    const uint32_t token = blockIdx.x, half = a.n_rot / 2;
    if (token >= n_tok)
        return;
    float *out = a.table + static_cast<uint64_t>(first + token) * a.stride;
    const float position = static_cast<float>(a.runs.pos[blockIdx.y] + token);
    for (uint32_t j = threadIdx.x; j < half; j += blockDim.x) {
        const double angle = __fmul_rn(position, a.inv_freq[j]);
        out[j] = static_cast<float>(cos(angle)) * a.gain;
        out[half + j] = static_cast<float>(sin(angle)) * a.gain;
    }
}

int sl_rope_table_cuda(const sl_rope_table_args *args, sl_cuda_stream stream) {
    return sl_launch(rope_table, dim3(args->runs.max_tok, args->runs.n), dim3(THREADS), 0, stream, *args);
}

/* Threads a head: for its pairs, and for the rest of it, which are only stored again where they may be infinite
 * (attention reads queries as they lie). */
static __host__ __device__ uint32_t threads_of_head(const sl_rope_args &a) {
    return a.act == SL_ACT_F16 ? a.head_dim - a.n_rot / 2 : a.n_rot / 2;
}

/* Threads walk all heads of one row. */
template <class T> __global__ void rope(sl_rope_args a) {
    sl_begin();
    const uint32_t half = a.n_rot / 2, n = threads_of_head(a), row = blockIdx.y;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= (a.rows.n ? *a.rows.n : a.rows.max) || i >= a.n_head * n)
        return;
    const uint32_t head = i / n, j = i % n;
    const float *table = a.table + row * a.table_stride;
    T *lo = static_cast<T *>(a.x) + row * a.x_stride + static_cast<uint64_t>(head) * a.head_dim + j,
      *hi = lo + half;
    if (j >= half) {
        sl_store(hi, sl_load(hi));
        return;
    }
    const float x = sl_load(lo), y = sl_load(hi), c = table[j], s = table[half + j];
    sl_store(lo, x * c - y * s);
    sl_store(hi, y * c + x * s);
}

int sl_rope_cuda(const sl_rope_args *args, sl_cuda_stream stream) {
    const uint32_t n = args->n_head * threads_of_head(*args);
    if (n == 0)
        return 0;
    const dim3 grid((n + THREADS - 1) / THREADS, args->rows.max);
    return sl_launch(args->act == SL_ACT_F16 ? rope<sl_f16> : rope<float>, grid, dim3(THREADS), 0, stream,
                     *args);
}
