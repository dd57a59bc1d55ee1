/* Gated causal depthwise convolution with its norm by heads on a CUDA device: bridge.md step 3.
 *
 * A block takes a chunk of a run's tokens for a few heads, a warp one token of one head at a time, lanes over
 * the channels. Every output multiplies its k samples afresh from p and v, which the first-level cache holds: 2
 * k loads from there cost less than the three values per output from memory, and no token waits for another.
 *
 * State. A chunk is at least k - 1 tokens, so only the first chunk of a run looks behind the run's start. Its
 * block also writes the new state, after a barrier, a thread a channel in the order of rows: none reads what
 * was replaced. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace {

enum { WARP = 32, MAX_WARP = 8, CHUNK = 32, SHARED_FLOATS = 8192 };

struct conv_launch {
    sl_conv_cuda_args a;
    uint32_t n_head, block_heads, chunk;
};

/* A run's rows and its slot's state. */
template <class T> struct conv_run {
    const T *pqv;
    float *state;
    uint32_t n_tok;
};

/* z of channel c, k - 1 tokens before the run at the earliest */
template <class T>
__device__ __forceinline__ float sample(const sl_conv_cuda_args &a, const conv_run<T> &run, int64_t t,
                                        uint32_t c) {
    if (t < 0) return run.state[static_cast<uint64_t>(a.k - 1 + t) * a.e + c];
    const T *row = run.pqv + static_cast<uint64_t>(t) * a.in_stride + c;
    return sl_load(row) * sl_load(row + 2 * static_cast<uint64_t>(a.e));
}

template <class T>
__device__ __forceinline__ float convolve(const sl_conv_cuda_args &a, const conv_run<T> &run, int64_t t,
                                          uint32_t c) {
    float sum = a.bias[c];
    const int64_t oldest = t - (a.k - 1);
    for (uint32_t j = 0; j < a.k; j++)
        sum += a.taps[static_cast<uint64_t>(j) * a.e + c] * sample(a, run, oldest + j, c);
    return sum;
}

/* One head of one token, by a warp; row: [head_dim] shared floats of its own. */
template <class T>
__device__ void one_head(const sl_conv_cuda_args &a, const conv_run<T> &run, int64_t t, uint32_t c, float *row,
                         T *out) {
    const uint32_t lane = threadIdx.x % WARP;
    float squares = 0;
    for (uint32_t i = lane; i < a.head_dim; i += WARP) {
        const float v = convolve(a, run, t, c + i);
        squares += v * v;
        row[i] = v;
    }
    const float scale = a.norm ? 1 / sqrtf(sl_warp_sum(squares) / static_cast<float>(a.head_dim) + a.eps) : 1;
    for (uint32_t i = lane; i < a.head_dim; i += WARP)
        sl_store(out + c + i, a.norm ? row[i] * scale * a.norm[c + i] : row[i]);
}

/* The last k - 1 rows of z, oldest first. */
template <class T>
__device__ void advance(const sl_conv_cuda_args &a, const conv_run<T> &run, uint32_t first, uint32_t end) {
    for (uint32_t c = first + threadIdx.x; c < end; c += blockDim.x)
        for (uint32_t j = 0; j + 1 < a.k; j++) {
            const int64_t t = static_cast<int64_t>(run.n_tok) - (a.k - 1) + j;
            run.state[static_cast<uint64_t>(j) * a.e + c] = sample(a, run, t, c);
        }
}

template <class T> __global__ void conv_gate(conv_launch launch) {
    SL_SHARED(float, shared);
    const sl_conv_cuda_args &a = launch.a;
    const uint32_t run_at = blockIdx.y, from = blockIdx.z * launch.chunk, start = a.runs.start[run_at];
    const conv_run<T> run = {static_cast<const T *>(a.pqv) + start * a.in_stride,
                             a.state.data + a.runs.slot[run_at] * a.state.slot_stride,
                             a.runs.start[run_at + 1] - start};
    if (from >= run.n_tok) return;
    const uint32_t n = min(launch.chunk, run.n_tok - from), first = blockIdx.x * launch.block_heads;
    const uint32_t n_head = min(launch.block_heads, launch.n_head - first), n_warp = blockDim.x / WARP;
    float *row = shared + threadIdx.x / WARP * a.head_dim;
    T *s = static_cast<T *>(a.s) + start * a.s_stride;
    for (uint32_t i = threadIdx.x / WARP; i < n * n_head; i += n_warp) {
        const uint32_t t = from + i / n_head, head = first + i % n_head;
        one_head(a, run, t, head * a.head_dim, row, s + t * a.s_stride);
    }
    if (from > 0) return;
    __syncthreads(); /* the old state has been read */
    advance(a, run, first * a.head_dim, (first + n_head) * a.head_dim);
}

} /* namespace */

int sl_conv_gate_cuda(const sl_conv_cuda_args *args, sl_cuda_stream stream) {
    const uint32_t n_head = args->e / args->head_dim, room = SHARED_FLOATS / args->head_dim;
    const uint32_t n_warp = room < 1 ? 1 : room < MAX_WARP ? room : static_cast<uint32_t>(MAX_WARP);
    const uint32_t chunk = args->k - 1 > CHUNK ? args->k - 1 : static_cast<uint32_t>(CHUNK);
    /* a decode step has one token a run: the warps share out heads instead */
    const conv_launch launch = {*args, n_head, args->runs.max_tok == 1 ? n_warp : 1, chunk};
    const dim3 grid(sl_ceil_div(n_head, launch.block_heads), args->runs.n,
                    sl_ceil_div(args->runs.max_tok, chunk));
    return sl_launch(args->act == SL_ACT_F16 ? conv_gate<sl_f16> : conv_gate<float>, grid,
                     dim3(n_warp * WARP), n_warp * args->head_dim * sizeof(float), stream, launch);
}
