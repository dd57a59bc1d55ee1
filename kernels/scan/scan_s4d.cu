/* S4D scan of all heads on a CUDA device: a diagonal time-invariant state space with complex poles (Gu et al.
 * 2022), bridge.md step 4, from its inputs to the norm by heads.
 *
 * A block walks one head of one run. A thread keeps POLES poles of one channel with their constants in
 * registers, lanes lie along the channels, rows of threads along the poles. Each row leaves its part of y of a
 * tile of tokens in shared memory, where the parts are added in the order of the poles. A head that has more
 * channels or poles than the block holds is walked in parts, each read and written once per tile of tokens. */
#include "kernels/cuda_kernels.h"
#include "kernels/scan/scan_cuda.h"

namespace {

enum { WARP = 32, THREADS = 256, POLES = 8, MAX_TILE = 16, TILE_FLOATS = 10240 };

struct s4d_launch {
    sl_s4d_cuda_args a;
    uint32_t width, rows;      /* channels of the block; its rows of threads, each of POLES poles */
    uint32_t n_width, n_depth; /* parts of the head */
    uint32_t tile;             /* tokens */
};

struct tile_memory {
    float *r;    /* [tile, width] */
    float *part; /* [rows, tile, width] */
    float *y;    /* [tile, n_width * width] */
};

__device__ __forceinline__ tile_memory memory_at(float *shared, const s4d_launch &l) {
    tile_memory m;
    m.r = shared;
    m.part = m.r + l.tile * l.width;
    m.y = m.part + l.rows * l.tile * l.width;
    return m;
}

uint32_t floats_per_token(const s4d_launch &l) { return (1 + l.rows + l.n_width) * l.width; }

/* The tile's place: row of its first token, tokens, and the head. */
struct place {
    uint64_t row;
    uint32_t n, head;
};

struct poles {
    float s_re[POLES], s_im[POLES], a_re[POLES], a_im[POLES], k_re[POLES], k_im[POLES];
};

/* The poles from pole on of channel c; there: the channel exists. Absent ones are zero. */
__device__ __forceinline__ void load_poles(const sl_s4d_cuda_args &a, const float *state, uint32_t pole,
                                           uint64_t c, bool there, poles &v) {
#pragma unroll
    for (uint32_t i = 0; i < POLES; i++) {
        const bool used = there && pole + i < a.n_pole;
        const uint64_t re = 2ull * (pole + i) * a.e + c, im = re + a.e;
        v.s_re[i] = used ? state[re] : 0, v.s_im[i] = used ? state[im] : 0;
        v.a_re[i] = used ? a.a[re] : 0, v.a_im[i] = used ? a.a[im] : 0;
        v.k_re[i] = used ? a.k[re] : 0, v.k_im[i] = used ? a.k[im] : 0;
    }
}

__device__ __forceinline__ void store_poles(const sl_s4d_cuda_args &a, float *state, uint32_t pole, uint64_t c,
                                            bool there, const poles &v) {
#pragma unroll
    for (uint32_t i = 0; i < POLES; i++) {
        const uint64_t re = 2ull * (pole + i) * a.e + c;
        if (there && pole + i < a.n_pole) state[re] = v.s_re[i], state[re + a.e] = v.s_im[i];
    }
}

/* r and, as the beginning of y, skip r of the channels from p0 on; past the head zeros. */
template <class T>
__device__ void stage(const s4d_launch &l, const place &at, const tile_memory &m, uint32_t p0) {
    const sl_s4d_cuda_args &a = l.a;
    for (uint32_t i = threadIdx.x; i < at.n * l.width; i += blockDim.x) {
        const uint32_t t = i / l.width, p = p0 + i % l.width;
        const uint64_t row = at.row + t, c = static_cast<uint64_t>(at.head) * a.head_dim + p;
        float r = 0, skip = 0;
        if (p < a.head_dim) {
            const T *s = static_cast<const T *>(a.s);
            const T *in = static_cast<const T *>(a.in) + row * a.in_stride + a.e + c;
            r = sl_scan_input(in, s ? s + row * a.s_stride + c : s);
            skip = a.skip[c];
        }
        m.r[i] = r;
        m.y[t * l.n_width * l.width + p] = skip * r;
    }
}

/* One token: the new state; returns the thread's part of y. */
__device__ __forceinline__ float step_poles(poles &v, float r) {
    float y = 0;
#pragma unroll
    for (int i = 0; i < POLES; i++) {
        const float re = v.a_re[i] * v.s_re[i] - v.a_im[i] * v.s_im[i] + r;
        const float im = v.a_re[i] * v.s_im[i] + v.a_im[i] * v.s_re[i];
        y += v.k_re[i] * re - v.k_im[i] * im;
        v.s_re[i] = re, v.s_im[i] = im;
    }
    return y;
}

/* The tile's tokens through one part of the head; adds to y of the channels from p0 on. */
__device__ __forceinline__ void walk(const s4d_launch &l, const tile_memory &m, uint32_t n_tok, uint32_t p0,
                                     poles &v) {
    const uint32_t p = threadIdx.x % l.width, row = threadIdx.x / l.width;
    float *part = m.part + row * l.tile * l.width + p;
    for (uint32_t t = 0; t < n_tok; t++) part[t * l.width] = step_poles(v, m.r[t * l.width + p]);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_tok * l.width; i += blockDim.x) {
        float *y = m.y + i / l.width * l.n_width * l.width + p0 + i % l.width;
        float sum = *y;
        for (uint32_t j = 0; j < l.rows; j++) sum += m.part[j * l.tile * l.width + i];
        *y = sum;
    }
}

/* One tile. v holds the state from the first tile of the run to the last if the head has one part. */
template <class T>
__device__ __forceinline__ void walk_tile(const s4d_launch &l, const place &at, const tile_memory &m,
                                          float *state, bool first, bool last, poles &v) {
    const bool whole = l.n_width * l.n_depth == 1;
    for (uint32_t i = 0; i < l.n_width * l.n_depth; i++) {
        const uint32_t p0 = i / l.n_depth * l.width, p = p0 + threadIdx.x % l.width;
        const uint32_t pole = (i % l.n_depth * l.rows + threadIdx.x / l.width) * POLES;
        const uint64_t c = static_cast<uint64_t>(at.head) * l.a.head_dim + p;
        if (!whole || first) load_poles(l.a, state, pole, c, p < l.a.head_dim, v);
        if (i % l.n_depth == 0) stage<T>(l, at, m, p0);
        __syncthreads();
        walk(l, m, at.n, p0, v);
        if (!whole || last) store_poles(l.a, state, pole, c, p < l.a.head_dim, v);
        __syncthreads();
    }
}

template <class T> __global__ void __launch_bounds__(THREADS, 2) scan_s4d(s4d_launch l) {
    sl_begin();
    SL_SHARED(float, shared);
    const sl_s4d_cuda_args &a = l.a;
    const uint32_t run = blockIdx.y, start = a.runs.start[run], n_tok = a.runs.start[run + 1] - start;
    if (n_tok == 0) return;
    place at = {start, 0, blockIdx.x};
    float *state = a.state.data + a.runs.slot[run] * a.state.slot_stride;
    const tile_memory m = memory_at(shared, l);
    const uint64_t c = static_cast<uint64_t>(at.head) * a.head_dim;
    poles v;
    for (uint32_t from = 0; from < n_tok; from += at.n, at.row += at.n) {
        at.n = min(l.tile, n_tok - from);
        walk_tile<T>(l, at, m, state, from == 0, from + at.n == n_tok, v);
        for (uint32_t t = threadIdx.x / WARP; t < at.n; t += blockDim.x / WARP)
            sl_scan_finish(m.y + t * l.n_width * l.width,
                           static_cast<const T *>(a.in) + (at.row + t) * a.in_stride + c,
                           a.norm ? a.norm + c : a.norm, static_cast<T *>(a.m) + (at.row + t) * a.m_stride + c,
                           a.head_dim, a.eps);
        __syncthreads();
    }
}

uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Follows from the shapes alone, but for the tile; neither it nor the width changes a result. */
s4d_launch plan(const sl_s4d_cuda_args &a) {
    s4d_launch l = {};
    l.a = a;
    l.width = smaller(sl_ceil_div(a.head_dim, WARP) * WARP, THREADS);
    l.rows = smaller(THREADS / l.width, sl_ceil_div(a.n_pole, POLES));
    l.n_width = sl_ceil_div(a.head_dim, l.width);
    l.n_depth = sl_ceil_div(a.n_pole, l.rows * POLES);
    const uint32_t room = TILE_FLOATS / floats_per_token(l);
    l.tile = smaller(smaller(MAX_TILE, a.runs.max_tok), room > 1 ? room : 1);
    return l;
}

} /* namespace */

int sl_s4d_cuda(const sl_s4d_cuda_args *args, sl_cuda_stream stream) {
    const s4d_launch l = plan(*args);
    const dim3 grid(args->e / args->head_dim, args->runs.n), block(l.width * l.rows);
    return sl_launch(args->act == SL_ACT_F16 ? scan_s4d<sl_f16> : scan_s4d<float>, grid, block,
                     l.tile * floats_per_token(l) * sizeof(float), stream, l);
}
