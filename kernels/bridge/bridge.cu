/* Recurrent gating bridge on a CUDA device: bridge.md steps 5 and 6; the recurrence is that of De et al. 2024
 * (Griffin).
 *
 * Only h = h + (fade h + in) is sequential. A block takes the channels of one run in tiles of tokens: all
 * threads find fade = expm1(log a) and in = sqrt(1 - a^2) i s of the tile's tokens, one row of threads then
 * walks h through them in shared memory, and all threads turn h into outputs. So the five exponentials per
 * element run in parallel along the time as well, and the chain is two operations a token. Every element takes
 * the same steps in any tile: a sequence gives the same bits however it is cut. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace {

struct bridge_launch {
    sl_bridge_cuda_args a;
    uint32_t width, tile; /* channels of a block (its threads: width x rows) and tokens of a tile */
};

struct channel {
    float bias_i, bias_f, lambda, kappa, omega, gamma;
};

/* (fade, in) of batch row b */
template <class T>
__device__ __forceinline__ float2 gates(const sl_bridge_cuda_args &a, const channel &p, uint64_t b,
                                        uint32_t c) {
    const float gate_i = sl_load(static_cast<const T *>(a.gate_i) + b * a.gate_stride + c);
    const float gate_f = sl_load(static_cast<const T *>(a.gate_f) + b * a.gate_stride + c);
    const float s = sl_load(static_cast<const T *>(a.s) + b * a.s_stride + c);
    const float fade = expm1f(p.lambda * sl_sigmoid<T>(gate_f + p.bias_f));
    return make_float2(fade, sqrtf(-fade * (2 + fade)) * sl_sigmoid<T>(gate_i + p.bias_i) * s); /* 1 - a^2 = -fade (1 + a) */
}

template <class T>
__device__ __forceinline__ void output(const sl_bridge_cuda_args &a, const channel &p, uint64_t b, uint32_t c,
                                       float h) {
    const float s = sl_load(static_cast<const T *>(a.s) + b * a.s_stride + c);
    const float q = sl_load(static_cast<const T *>(a.q) + b * a.q_stride + c);
    const float beta = sl_sigmoid<T>(p.omega * h + p.gamma);
    float o = (1 - beta) * (q * (s + p.kappa * h));
    const int64_t row = a.row_of ? a.row_of[b] : static_cast<int64_t>(b);
    if (row >= 0) {
        const float m = sl_load(static_cast<const T *>(a.m) + static_cast<uint64_t>(row) * a.m_stride + c);
        o += beta * (a.rho ? a.rho[b] : 1) * m;
    }
    sl_store(static_cast<T *>(a.o) + b * a.o_stride + c, o);
}

/* h after each of the n tokens replaces fade; returns the last. */
__device__ __forceinline__ float walk(float2 *steps, uint32_t width, uint32_t n, float h) {
    for (uint32_t t = 0; t < n; t++) {
        const float2 step = steps[t * width];
        h += step.x * h + step.y;
        steps[t * width].x = h;
    }
    return h;
}

template <class T> __global__ void bridge(bridge_launch launch) {
    sl_begin();
    SL_SHARED(float2, shared); /* [tile, width] */
    const sl_bridge_cuda_args &a = launch.a;
    const uint32_t c = blockIdx.x * launch.width + threadIdx.x % launch.width;
    const uint32_t row = threadIdx.x / launch.width, n_row = blockDim.x / launch.width;
    const uint32_t start = a.runs.start[blockIdx.y], n_tok = a.runs.start[blockIdx.y + 1] - start;
    if (n_tok == 0) return;
    const bool used = c < a.e;
    channel p = {};
    if (used) p = {a.bias_i[c], a.bias_f[c], a.lambda[c], a.kappa[c], a.omega[c], a.gamma[c]};
    float *state = a.state.data + a.runs.slot[blockIdx.y] * a.state.slot_stride + c;
    float2 *steps = shared + threadIdx.x % launch.width;
    float h = used && row == 0 ? *state : 0;
    for (uint32_t from = 0; from < n_tok; from += launch.tile) {
        const uint32_t n = min(launch.tile, n_tok - from), b = start + from;
        for (uint32_t t = row; used && t < n; t += n_row) steps[t * launch.width] = gates<T>(a, p, b + t, c);
        __syncthreads();
        if (used && row == 0) h = walk(steps, launch.width, n, h);
        __syncthreads();
        for (uint32_t t = row; used && t < n; t += n_row) output<T>(a, p, b + t, c, steps[t * launch.width].x);
        /* a thread overwrites in the next tile only what it has read itself */
    }
    if (used && row == 0) *state = h;
}

} /* namespace */

int sl_bridge_cuda(const sl_bridge_cuda_args *args, sl_cuda_stream stream) {
    const bool step = args->runs.max_tok == 1;
    const bridge_launch launch = {*args, step ? 128u : 32u, step ? 1u : 64u};
    const dim3 grid(sl_ceil_div(args->e, launch.width), args->runs.n), block(step ? 128 : 256);
    return sl_launch(args->act == SL_ACT_F16 ? bridge<sl_f16> : bridge<float>, grid, block,
                     launch.width * launch.tile * sizeof(float2), stream, launch);
}
