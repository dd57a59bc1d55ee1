/* S6 selective scan of all heads on a CUDA device: bridge.md step 4, from its inputs to the norm by heads.
 *
 * A block walks one head of one run. A thread keeps 4 channels x 4 states in registers; the lanes of a warp
 * that share channels lie side by side along the states and add their parts of y by shuffles. B, C, Delta r and
 * the decays of a tile of tokens wait in shared memory. A head that has more channels or states than the
 * block's threads hold is walked in parts, each read and written once per tile of tokens. A decode step is a
 * tile of one token: the state is read once and written once, four floats at a time.
 *
 * Every element takes the same steps wherever a sequence is cut: decode steps, short runs and resumed ones
 * give the same bits, no segment sums are needed and nothing is rounded but inputs and outputs. It takes every
 * shape, and all runs of f32 activations; long runs of f16 activations, for which one block per head and 4 P N
 * operations per token and head on f32 units are too little of a GPU, go to scan_s6_chunk.cu. */
#include "kernels/scan/scan_cuda.h"

namespace {

enum {
    WARP = 32,
    THREADS = 256,
    SIDE = 4 /* channels and states of a thread */,
    MAX_TILE = 32,
    TILE_FLOATS = 10240
};

struct s6_launch {
    sl_s6_cuda_args a;
    uint32_t lanes;             /* threads side by side along the states: 4, 8 or 16 */
    uint32_t width, depth;      /* channels and states that the block holds */
    uint32_t n_width, n_depth;  /* parts of the head */
    uint32_t tile;              /* tokens */
    uint32_t chunked;           /* runs of so many tokens are left to scan_s6_chunk.cu */
    bool wide;                  /* state rows are aligned for four floats */
};

/* Shared memory of a tile; rows of tokens. */
struct tile_memory {
    float *x; /* [tile, width] Delta r */
    float *b, *c; /* [tile, depth] */
    float *y; /* [tile, n_width * width] */
    float *delta, *fade; /* [tile]; fade = exp(-decay Delta) - 1 */
};

__device__ __forceinline__ tile_memory memory_at(float *shared, const s6_launch &l) {
    tile_memory m;
    m.x = shared;
    m.b = m.x + l.tile * l.width;
    m.c = m.b + l.tile * l.depth;
    m.y = m.c + l.tile * l.depth;
    m.delta = m.y + l.tile * l.n_width * l.width;
    m.fade = m.delta + l.tile;
    return m;
}

uint32_t floats_per_token(const s6_launch &l) { return (1 + l.n_width) * l.width + 2 * l.depth + 2; }

/* The tile's place: deep row of its first token, tokens, and the head. */
struct place {
    uint64_t row;
    uint32_t n, head;
};

template <class T>
__device__ void stage_delta(const sl_s6_cuda_args &a, const place &at, const tile_memory &m) {
    for (uint32_t t = threadIdx.x; t < at.n; t += blockDim.x) {
        m.delta[t] = sl_s6_delta<T>(a, at.row + t, at.head);
        m.fade[t] = expm1f(-a.decay[at.head] * m.delta[t]);
    }
}

/* Delta r and, as the beginning of y, skip r of the channels from p0 on; past the head zeros. */
template <class T>
__device__ void stage_x(const s6_launch &l, const place &at, const tile_memory &m, uint32_t p0) {
    const sl_s6_cuda_args &a = l.a;
    for (uint32_t i = threadIdx.x; i < at.n * l.width; i += blockDim.x) {
        const uint32_t t = i / l.width, p = p0 + i % l.width;
        const uint64_t row = at.row + t, c = static_cast<uint64_t>(at.head) * a.head_dim + p;
        float r = 0, skip = 0;
        if (p < a.head_dim) {
            r = sl_scan_input(sl_s6_in<T>(a, row, a.e + c), sl_s6_s<T>(a, row, c));
            skip = a.skip[c];
        }
        m.x[i] = m.delta[t] * r;
        m.y[t * l.n_width * l.width + p] = skip * r;
    }
}

/* B and C of the states from n0 on; past the last zeros. */
template <class T>
__device__ void stage_bc(const s6_launch &l, const place &at, const tile_memory &m, uint32_t n0) {
    const sl_s6_cuda_args &a = l.a;
    const uint64_t b = sl_s6_b(a, at.head), c = sl_s6_c(a, at.head);
    for (uint32_t i = threadIdx.x; i < at.n * l.depth; i += blockDim.x) {
        const uint32_t n = n0 + i % l.depth;
        const uint64_t row = at.row + i / l.depth;
        m.b[i] = n < a.n_state ? sl_load(sl_s6_in<T>(a, row, b + n)) : 0;
        m.c[i] = n < a.n_state ? sl_load(sl_s6_in<T>(a, row, c + n)) : 0;
    }
}

/* A thread's part of the state: s[i][j] is state n + i of channel p + j. */
struct patch {
    float s[SIDE][SIDE];
};

template <bool store>
__device__ __forceinline__ void move_patch(const s6_launch &l, float *head, uint32_t p, uint32_t n, patch &v) {
#pragma unroll
    for (uint32_t i = 0; i < SIDE; i++) {
        float *row = head + static_cast<uint64_t>(n + i) * l.a.head_dim + p;
        const bool there = n + i < l.a.n_state;
        if (l.wide && there && p < l.a.head_dim) {
            if (store) sl_store4(row, v.s[i]);
            else sl_load4(row, v.s[i]);
            continue;
        }
#pragma unroll
        for (uint32_t j = 0; j < SIDE; j++) {
            if (store && there && p + j < l.a.head_dim) row[j] = v.s[i][j];
            if (!store) v.s[i][j] = there && p + j < l.a.head_dim ? row[j] : 0;
        }
    }
}

/* One token: the new state and y of the thread's channels over its states. */
__device__ __forceinline__ void step_patch(patch &v, float fade, const float *x, const float *b, const float *c,
                                           float *y) {
#pragma unroll
    for (int j = 0; j < SIDE; j++) y[j] = 0;
#pragma unroll
    for (int i = 0; i < SIDE; i++) {
#pragma unroll
        for (int j = 0; j < SIDE; j++) {
            v.s[i][j] += fade * v.s[i][j] + x[j] * b[i];
            y[j] += v.s[i][j] * c[i];
        }
    }
}

/* y[0 .. 3] summed over the lanes along the states; lane i of each four gets channel i. */
__device__ __forceinline__ float sum_lanes(const float *y, uint32_t lane, uint32_t lanes) {
    const bool odd = lane & 1, upper = lane & 2;
    float even_odd[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const float other = odd ? y[2 * j] : y[2 * j + 1], own = odd ? y[2 * j + 1] : y[2 * j];
        even_odd[j] = own + __shfl_xor_sync(0xffffffffu, other, 1);
    }
    const float give = upper ? even_odd[0] : even_odd[1], keep = upper ? even_odd[1] : even_odd[0];
    float sum = keep + __shfl_xor_sync(0xffffffffu, give, 2);
    for (uint32_t step = 4; step < lanes; step *= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, static_cast<int>(step));
    return sum;
}

/* The tile's tokens through one part of the head; adds to y of the channels from p0 on. */
__device__ __forceinline__ void walk(const s6_launch &l, const tile_memory &m, uint32_t n_tok, uint32_t p0,
                                     patch &v) {
    const uint32_t lane = threadIdx.x % l.lanes, p = threadIdx.x / l.lanes * SIDE,
                   y_stride = l.n_width * l.width;
    for (uint32_t t = 0; t < n_tok; t++) {
        float x[SIDE], b[SIDE], c[SIDE], y[SIDE];
        sl_load4(m.x + t * l.width + p, x);
        sl_load4(m.b + t * l.depth + lane * SIDE, b);
        sl_load4(m.c + t * l.depth + lane * SIDE, c);
        step_patch(v, m.fade[t], x, b, c, y);
        const float sum = sum_lanes(y, lane, l.lanes);
        if (lane < SIDE) m.y[t * y_stride + p0 + p + lane] += sum;
    }
}

/* One tile. v holds the state from the first tile of the run to the last if the head has one part. */
template <class T>
__device__ __forceinline__ void walk_tile(const s6_launch &l, const place &at, const tile_memory &m,
                                          float *head, bool first, bool last, patch &v) {
    const bool whole = l.n_width * l.n_depth == 1;
    for (uint32_t part = 0; part < l.n_width * l.n_depth; part++) {
        const uint32_t p0 = part / l.n_depth * l.width, n0 = part % l.n_depth * l.depth;
        const uint32_t p = p0 + threadIdx.x / l.lanes * SIDE, n = n0 + threadIdx.x % l.lanes * SIDE;
        if (!whole || first) move_patch<false>(l, head, p, n, v);
        if (part == 0) {
            stage_delta<T>(l.a, at, m);
            __syncthreads();
        }
        if (n0 == 0) stage_x<T>(l, at, m, p0);
        stage_bc<T>(l, at, m, n0);
        __syncthreads();
        walk(l, m, at.n, p0, v);
        if (!whole || last) move_patch<true>(l, head, p, n, v);
        __syncthreads();
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) scan_s6(s6_launch l) {
    sl_begin();
    SL_SHARED(float, shared);
    const sl_s6_cuda_args &a = l.a;
    const uint32_t run = blockIdx.y, start = a.runs.start[run], n_tok = a.runs.start[run + 1] - start;
    if (n_tok == 0 || n_tok >= l.chunked) return;
    place at = {start, 0, blockIdx.x};
    float *head = a.state.data + a.runs.slot[run] * a.state.slot_stride +
                  static_cast<uint64_t>(at.head) * a.n_state * a.head_dim;
    const tile_memory m = memory_at(shared, l);
    patch v;
    for (uint32_t from = 0; from < n_tok; from += at.n, at.row += at.n) {
        at.n = min(l.tile, n_tok - from);
        walk_tile<T>(l, at, m, head, from == 0, from + at.n == n_tok, v);
        for (uint32_t t = threadIdx.x / WARP; t < at.n; t += blockDim.x / WARP)
            sl_s6_finish<T>(a, at.row + t, at.head, m.y + t * l.n_width * l.width);
        /* The next tile writes y behind its first barrier. */
    }
}

uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Follows from the shapes alone, but for the tile, which changes no result. */
s6_launch plan(const sl_s6_cuda_args &a) {
    s6_launch l = {};
    l.a = a;
    l.chunked = sl_s6_chunked(&a);
    l.lanes = a.n_state > 8 * SIDE ? 16 : a.n_state > 4 * SIDE ? 8 : 4;
    l.depth = l.lanes * SIDE;
    const uint32_t columns = smaller(sl_ceil_div(a.head_dim, SIDE), THREADS / l.lanes);
    l.width = sl_ceil_div(columns * l.lanes, WARP) * WARP / l.lanes * SIDE; /* whole warps */
    l.n_width = sl_ceil_div(a.head_dim, l.width);
    l.n_depth = sl_ceil_div(a.n_state, l.depth);
    const uint32_t room = TILE_FLOATS / floats_per_token(l);
    l.tile = smaller(smaller(MAX_TILE, a.runs.max_tok), room > 1 ? room : 1);
    l.wide = a.head_dim % SIDE == 0 && a.state.slot_stride % SIDE == 0 &&
             reinterpret_cast<uintptr_t>(a.state.data) % sizeof(float4) == 0;
    return l;
}

} /* namespace */

int sl_s6_cuda(const sl_s6_cuda_args *args, sl_cuda_stream stream) {
    const s6_launch l = plan(*args);
    const dim3 grid(args->e / args->head_dim, args->runs.n), block(l.width / SIDE * l.lanes);
    return sl_launch(args->act == SL_ACT_F16 ? scan_s6<sl_f16> : scan_s6<float>, grid, block,
                     l.tile * floats_per_token(l) * sizeof(float), stream, l);
}
