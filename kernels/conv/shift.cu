/* Rows moved by one token within their sequences on a CUDA device: bridge.md step 4, shifted keys.
 *
 * A block takes a chunk of a run's tokens for some columns, a thread a column at a time: it carries the row before in a
 * register. Only the first chunk of a run reads the state, and the same thread writes it afterwards. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace {

enum { N_THREAD = 128, CHUNK = 16 };

template <class T> __global__ void __launch_bounds__(N_THREAD, 8) shift(sl_shift_args a) {
    sl_begin();
    const uint32_t run = blockIdx.y, start = a.runs.start[run], n_tok = a.runs.start[run + 1] - start;
    const uint32_t from = blockIdx.z * CHUNK, end = min(from + CHUNK, n_tok), c = blockIdx.x * N_THREAD + threadIdx.x;
    if (from >= n_tok || c >= a.n) return;
    const T *x = static_cast<const T *>(a.x) + start * a.x_stride + c;
    T *y = static_cast<T *>(a.y) + start * a.y_stride + c;
    float *state = a.state.data + a.runs.slot[run] * a.state.slot_stride + c;
    float before = from ? sl_load(x + (from - 1) * a.x_stride) : *state;
    for (uint32_t t = from; t < end; t++) {
        sl_store(y + t * a.y_stride, before);
        before = sl_load(x + t * a.x_stride);
    }
    if (!from) *state = sl_load(x + (n_tok - 1) * a.x_stride);
}

} // namespace

int sl_shift_cuda(const sl_shift_args *args, sl_cuda_stream stream) {
    const dim3 grid(sl_ceil_div(args->n, N_THREAD), args->runs.n, sl_ceil_div(args->runs.max_tok, CHUNK));
    return sl_launch(args->act == SL_ACT_F16 ? shift<sl_f16> : shift<float>, grid, dim3(N_THREAD), 0, stream, *args);
}
