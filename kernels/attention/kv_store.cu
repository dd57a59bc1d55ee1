/* Keys and values into the memory of their slots, and made-up ones for the bench. */
#include "kernels/attention/attention_cuda.h"

enum { THREADS = 256 };

/* A block for one row of a run and k or v. */
template <class T> __global__ void kv_store(sl_kv_store_args a) {
    sl_begin();
    const uint32_t first = a.runs.start[blockIdx.y], n_tok = a.runs.start[blockIdx.y + 1] - first;
    const uint32_t token = blockIdx.x, part = blockIdx.z, width = a.kv.n_kv_head * a.kv.head_dim;
    if (token >= n_tok)
        return;
    const uint32_t slot = a.runs.slot[blockIdx.y];
    void *data = sl_kv_data<void>(a.kv, slot);
    const uint64_t row = first + token, pos = a.runs.pos[blockIdx.y] + token;
    const T *x =
        part ? static_cast<const T *>(a.v) + row * a.v_stride : static_cast<const T *>(a.k) + row * a.k_stride;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const uint32_t head = i / a.kv.head_dim;
        const uint64_t at = sl_kv_row(a.kv, slot, part, head, pos) + (i - head * a.kv.head_dim);
        if (a.kv.f16)
            static_cast<uint16_t *>(data)[at] = sl_float_to_half(sl_load(x + i));
        else
            static_cast<float *>(data)[at] = sl_load(x + i);
    }
}

int sl_kv_store_cuda(const sl_kv_store_args *args, sl_cuda_stream stream) {
    const dim3 grid(args->runs.max_tok, args->runs.n, 2);
    return sl_launch(args->act == SL_ACT_F16 ? kv_store<sl_f16> : kv_store<float>, grid, dim3(THREADS), 0,
                     stream, *args);
}

struct fill_args {
    void *data;
    uint64_t row_stride, n; /* elements */
    bool f16;
};

/* The bytes that the CPU's device fills in: 0.004 to 0.008, no exponent unusual. */
static __global__ void fill_kv(fill_args a) {
    sl_begin();
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (i >= a.n)
        return;
    const uint64_t at = row * a.row_stride + i;
    const unsigned r = static_cast<unsigned>(row), e = static_cast<unsigned>(i);
    if (a.f16)
        static_cast<uint16_t *>(a.data)[at] = static_cast<uint16_t>(0x1c00u | ((r + 14 * e) & 0xffu));
    else
        static_cast<unsigned *>(a.data)[at] =
            0x3b000000u | ((r + 28 * e + 14) & 0xffu) << 16 | ((r + 28 * e) & 0xffu);
}

int sl_fill_kv_cuda(void *data, uint64_t cap, uint64_t n_pos, uint64_t n_rows, uint32_t head_dim, bool f16,
                    sl_cuda_stream stream) {
    const fill_args args = {data, cap * head_dim, n_pos * head_dim, f16};
    if (args.n == 0 || n_rows == 0)
        return 0;
    const dim3 grid(static_cast<unsigned>((args.n + THREADS - 1) / THREADS), static_cast<unsigned>(n_rows));
    return sl_launch(fill_kv, grid, dim3(THREADS), 0, stream, args);
}
