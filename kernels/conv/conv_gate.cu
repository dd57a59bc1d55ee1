/* Gated causal depthwise convolution with its norm by heads on a CUDA device: bridge.md step 3.
 *
 * Of four taps and heads of 8, 16, .. 256 channels a thread walks eight channels through a chunk of a run's tokens, four
 * at a time, with the last three samples, taps and weights in registers: 25 instructions an output. Of other shapes a
 * block takes a chunk for a few heads, a warp one token of one head at a time, lanes over the channels, and every output
 * multiplies its k samples afresh: 240.
 *
 * State. A chunk is at least k - 1 tokens, so only the first chunk of a run looks behind the run's start. Its
 * block also writes the new state when it has read the old one, a thread a channel (or eight) in the order of rows: none
 * reads what was replaced. */
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
    sl_begin();
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

/* ---- four taps, heads of whole octets ------------------------------------------------------------ */

enum { TAPS = 4, OCTET = 8, THREADS = 128, OCTET_CHUNK = 16, BATCH = 4 };

/* z of eight channels of a token */
template <class T> __device__ __forceinline__ void sample_octet(const T *p, uint64_t e, float z[OCTET]) {
    float v[OCTET];
    sl_load8(p, z);
    sl_load8(p + 2 * e, v);
    for (int i = 0; i < OCTET; i++) z[i] *= v[i];
}

/* Of the eight channels of a thread. */
struct octet {
    float taps[TAPS][OCTET], bias[OCTET], norm[OCTET];

    /* z: of TAPS tokens, the output's own last. */
    __device__ __forceinline__ void convolve(const float z[][OCTET], float sum[OCTET]) const {
#pragma unroll
        for (int i = 0; i < OCTET; i++) {
            sum[i] = bias[i];
#pragma unroll
            for (int j = 0; j < TAPS; j++) sum[i] += taps[j][i] * z[j][i];
        }
    }
};

/* Over the lanes of a head. */
__device__ __forceinline__ void norm_octet(float v[OCTET], const float norm[OCTET], uint32_t head_dim, float eps) {
    float squares = 0;
    for (int i = 0; i < OCTET; i++) squares += v[i] * v[i];
    for (uint32_t step = head_dim / OCTET / 2; step > 0; step /= 2)
        squares += __shfl_xor_sync(0xffffffffu, squares, static_cast<int>(step));
    const float scale = 1 / sqrtf(squares / static_cast<float>(head_dim) + eps);
    for (int i = 0; i < OCTET; i++) v[i] = v[i] * scale * norm[i];
}

template <class T> __global__ void __launch_bounds__(THREADS) conv_octets(sl_conv_cuda_args a) {
    sl_begin();
    const uint32_t from = blockIdx.z * OCTET_CHUNK, start = a.runs.start[blockIdx.y];
    const uint32_t n_tok = a.runs.start[blockIdx.y + 1] - start, n = min(static_cast<uint32_t>(OCTET_CHUNK), n_tok - from);
    if (from >= n_tok) return;
    const uint32_t at = (blockIdx.x * THREADS + threadIdx.x) * OCTET, c = at < a.e ? at : 0; /* all lanes shuffle */
    const T *rows = static_cast<const T *>(a.pqv) + start * a.in_stride + c;
    float *state = a.state.data + a.runs.slot[blockIdx.y] * a.state.slot_stride + c;

    octet o;
    for (uint64_t j = 0; j < TAPS; j++) sl_load8(a.taps + j * a.e + c, o.taps[j]);
    sl_load8(a.bias + c, o.bias);
    if (a.norm) sl_load8(a.norm + c, o.norm);
    float z[TAPS - 1 + BATCH][OCTET] = {}; /* of the tokens before, and of those that follow, asked for together */
    for (uint64_t j = 0; j < TAPS - 1; j++)
        if (from > 0) sample_octet(rows + (from - (TAPS - 1) + j) * a.in_stride, a.e, z[j]);
        else if (at < a.e) sl_load8(state + j * a.e, z[j]); /* which the thread itself replaces in the end */
    T *s = static_cast<T *>(a.s) + start * a.s_stride + c;
    for (uint32_t t = 0; t < n; t += BATCH) {
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++)
            sample_octet(rows + (from + min(t + i, n - 1)) * a.in_stride, a.e, z[TAPS - 1 + i]);
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            float sum[OCTET];
            if (t + i >= n) break;
            o.convolve(z + i, sum);
            if (a.norm) norm_octet(sum, o.norm, a.head_dim, a.eps);
            if (at < a.e) sl_store8(s + (from + t + i) * a.s_stride, sum);
        }
        for (int j = 0; j < TAPS - 1; j++)
            for (int i = 0; i < OCTET; i++) z[j][i] = z[BATCH + j][i];
    }
    for (uint32_t j = 0; from == 0 && at < a.e && j < TAPS - 1; j++) {
        float kept[OCTET];
        if (n_tok + j < TAPS - 1) sl_load8(state + static_cast<uint64_t>(n_tok + j) * a.e, kept);
        else sample_octet(rows + (n_tok + j - (TAPS - 1)) * a.in_stride, a.e, kept);
        sl_store8(state + static_cast<uint64_t>(j) * a.e, kept);
    }
}

static bool is_octets(const sl_conv_cuda_args &a) {
    const uint32_t lanes = a.head_dim / OCTET;
    const uint64_t size = sl_act_size(a.act), piece = sizeof(uint4); /* read at once */
    return a.k == TAPS && a.head_dim % OCTET == 0 && lanes <= WARP && (lanes & (lanes - 1)) == 0 &&
           sl_is_aligned(a.pqv, a.in_stride * size, piece) && sl_is_aligned(a.s, a.s_stride * size, piece) &&
           sl_is_aligned(a.state.data, a.state.slot_stride * sizeof(float), piece) && sl_is_aligned(a.taps, 0, piece) &&
           sl_is_aligned(a.bias, 0, piece) && sl_is_aligned(a.norm, 0, piece);
}

} /* namespace */

int sl_conv_gate_cuda(const sl_conv_cuda_args *args, sl_cuda_stream stream) {
    if (is_octets(*args))
        return sl_launch(args->act == SL_ACT_F16 ? conv_octets<sl_f16> : conv_octets<float>,
                         dim3(sl_ceil_div(args->e, OCTET * THREADS), args->runs.n, sl_ceil_div(args->runs.max_tok, OCTET_CHUNK)),
                         dim3(THREADS), 0, stream, *args);
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
