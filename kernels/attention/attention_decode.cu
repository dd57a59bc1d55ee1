/* Causal attention of single queries on a CUDA device, of what attention_mma_short.cu does not take, and the folding of
 * chunks for both. The chunks of a query's keys (attention_cuda.h) are
 * dealt out to the blocks of a grid that depends on host numbers only; each chunk's sums go to scratch, and a
 * second launch folds them together in order. One reading of keys and values serves up to HEADS query heads of
 * their group. */
#include "kernels/attention/attention_cuda.h"

using namespace attention;

enum {
    HEADS = 8,    /* query heads of a block: two for each warp to score */
    WIDEST = 512 /* components of the result of a block; beyond, more blocks score the same keys again */
};

struct decode {
    sl_attention_cuda_args a;
    uint32_t group, head_pieces, col_pieces;
    uint32_t cols;   /* of the result in a block, at most */
    uint32_t stride; /* floats of a row of a tile */
    bool q_aligned, kv_aligned;
};

/* A block's share: heads head .. head + n_head - 1 over one kv head, components col .. col + n_col - 1. */
template <class T> struct share {
    const T *k, *v; /* position 0 */
    uint64_t row;
    uint32_t head, n_head, col, n_col;
    bool aligned;
};

struct tiles {
    float *q, *k, *v; /* [HEADS][stride], [KEYS][stride] */
    float *weight;    /* [KEYS][HEADS] */
    float *fade;      /* [HEADS] */
    float *sum;       /* [HEADS][cols] */
};

static __device__ tiles lay_out(const decode &d, float *shared) {
    tiles t;
    t.q = shared;
    t.k = t.q + HEADS * d.stride;
    t.v = t.k + KEYS * d.stride;
    t.weight = t.v + KEYS * d.stride;
    t.fade = t.weight + KEYS * HEADS;
    t.sum = t.fade + HEADS;
    return t;
}

static size_t shared_bytes(const decode &d) {
    return ((HEADS + 2 * KEYS) * d.stride + KEYS * HEADS + HEADS + HEADS * d.cols) * sizeof(float);
}

template <class T> static __device__ share<T> share_of(const decode &d, uint32_t run) {
    const uint32_t head_piece = blockIdx.y / d.col_pieces % d.head_pieces;
    const uint32_t kv_head = blockIdx.y / d.col_pieces / d.head_pieces, slot = d.a.runs.slot[run];
    const T *data = sl_kv_data<const T>(d.a.kv, slot);
    share<T> s;
    s.k = data + sl_kv_row(d.a.kv, slot, 0, kv_head, 0);
    s.v = data + sl_kv_row(d.a.kv, slot, 1, kv_head, 0);
    s.row = d.a.runs.start[run];
    s.head = kv_head * d.group + head_piece * HEADS;
    s.n_head = min(static_cast<uint32_t>(HEADS), d.group - head_piece * HEADS);
    s.col = blockIdx.y % d.col_pieces * d.cols;
    s.n_col = min(d.cols, d.a.kv.head_dim - s.col);
    s.aligned = d.kv_aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    return s;
}

/* Keys from .. to - 1 of the block at base. */
struct block {
    uint64_t base;
    unsigned from, to;
};

/* Components col .. col + width - 1 of the keys, from a and next elements on (0: not), to their rows of the tile. */
template <class T> static __device__ void stage_keys(const decode &d, const share<T> &s, float *tile,
                                                     const T *a, ptrdiff_t next, const block &keys, uint32_t col,
                                                     uint32_t width) {
    const uint32_t dim = d.a.kv.head_dim;
    const uint64_t at = (keys.base + keys.from) * dim + col;
    stage<8>(tile + keys.from * d.stride, d.stride,
             source<T>{a + at, next, dim, keys.to - keys.from, width, s.aligned});
}

/* The scores of a lane's key for its warp's two heads. Values come along if they fit. */
template <class T> static __device__ void score_block(const decode &d, const share<T> &s, const tiles &t,
                                                      const block &keys, bool first, float score[2]) {
    const uint32_t dim = d.a.kv.head_dim;
    const float *key = t.k + threadIdx.x % 32 * d.stride, *q = t.q + threadIdx.x / 32 * 2 * d.stride;
    score[0] = score[1] = 0;
    for (uint32_t c = 0; c < dim; c += PIECE) {
        const uint32_t width = min(dim - c, static_cast<uint32_t>(PIECE));
        __syncthreads(); /* nobody reads the tiles any more */
        stage_keys(d, s, t.k, s.k, dim > PIECE ? 0 : s.v - s.k, keys, c, width);
        if (first || dim > PIECE)
            stage_q(t.q, d.stride, d.a, s.row * d.a.q_stride + static_cast<uint64_t>(s.head) * dim + c, dim,
                    s.n_head, width, d.q_aligned);
        __syncthreads();
        if (threadIdx.x / 32 * 2 >= s.n_head)
            continue;
        for (uint32_t i = 0; i < width; i += 4) {
            const float4 k = *reinterpret_cast<const float4 *>(key + i);
            for (unsigned h = 0; h < 2; h++)
                score[h] = dot4(*reinterpret_cast<const float4 *>(q + h * d.stride + i), k, score[h]);
        }
    }
}

/* Weights of the block's keys and the fading of what was before, by the warp of a head. */
static __device__ void weigh(const tiles &t, unsigned head, float score, bool visible, softmax *state) {
    const unsigned lane = threadIdx.x % 32;
    const float top = fmaxf(state->top, sl_warp_max(visible ? score : -INFINITY));
    const float weight = visible ? expf(score - top) : 0, fade = expf(state->top - top);
    float total = weight;
    for (int step = 16; step > 0; step >>= 1)
        total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, step));
    *state = {top, fmaf(state->total, fade, total)};
    t.weight[lane * HEADS + head] = weight;
    if (lane == 0)
        t.fade[head] = fade;
}

/* sum = fade sum + weight v, four heads and one component at a time. */
static __device__ void add_values(const decode &d, uint32_t n_head, const tiles &t, const block &keys,
                                  uint32_t col, uint32_t width) {
    for (uint32_t i = threadIdx.x; i < (n_head + 3) / 4 * width; i += THREADS) {
        const uint32_t c = i % width, quad = i / width * 4;
        float *at = t.sum + quad * d.cols + col + c, sum[4];
        for (unsigned h = 0; h < 4; h++)
            sum[h] = __fmul_rn(at[h * d.cols], t.fade[quad + h]);
#pragma unroll 4
        for (unsigned key = keys.from; key < keys.to; key++) {
            const float v = t.v[key * d.stride + c];
            const float4 w = *reinterpret_cast<const float4 *>(t.weight + key * HEADS + quad);
            sum[0] = fmaf(w.x, v, sum[0]);
            sum[1] = fmaf(w.y, v, sum[1]);
            sum[2] = fmaf(w.z, v, sum[2]);
            sum[3] = fmaf(w.w, v, sum[3]);
        }
        for (unsigned h = 0; h < 4; h++)
            at[h * d.cols] = sum[h];
    }
}

template <class T> static __device__ void attend_block(const decode &d, const share<T> &s, const tiles &t,
                                                       const block &keys, bool first, softmax state[2]) {
    const unsigned lane = threadIdx.x % 32, head = threadIdx.x / 32 * 2;
    float score[2];
    score_block(d, s, t, keys, first, score);
    for (unsigned h = 0; h < 2; h++)
        if (head + h < s.n_head)
            weigh(t, head + h, __fmul_rn(score[h], d.a.scale), lane >= keys.from && lane < keys.to, &state[h]);
    for (uint32_t c = 0; c < s.n_col; c += PIECE) {
        const uint32_t width = min(s.n_col - c, static_cast<uint32_t>(PIECE));
        if (d.a.kv.head_dim > PIECE) {
            __syncthreads();
            stage_keys(d, s, t.v, s.v, 0, keys, s.col + c, width);
        }
        __syncthreads();
        add_values(d, s.n_head, t, keys, c, width);
    }
}

template <class T> static __device__ void put_partial(const decode &d, const share<T> &s, const tiles &t,
                                                      uint32_t run, uint32_t chunk, const softmax state[2]) {
    for (uint32_t i = threadIdx.x; i < s.n_head * d.cols; i += THREADS) { /* a thread's are those that it zeroes */
        const uint32_t h = i / d.cols, c = i % d.cols;
        if (c < s.n_col)
            partial(d.a, run, s.head + h, chunk)[2 + s.col + c] = t.sum[i];
    }
    const unsigned head = threadIdx.x / 32 * 2 + threadIdx.x % 32;
    if (threadIdx.x % 32 >= 2 || head >= s.n_head || s.col > 0)
        return;
    const softmax part = threadIdx.x % 32 ? state[1] : state[0];
    float *out = partial(d.a, run, s.head + head, chunk);
    out[0] = part.top;
    out[1] = part.total;
}

/* T: of keys and values. */
template <class T> __global__ void __launch_bounds__(THREADS, 4) attend_chunks(decode d) {
    sl_begin();
    SL_SHARED(float, shared);
    const uint32_t run = blockIdx.z;
    if (d.a.runs.start[run + 1] - d.a.runs.start[run] != 1)
        return;
    const share<T> s = share_of<T>(d, run);
    const tiles t = lay_out(d, shared);
    const sight seen = see(d.a.runs.pos[run], d.a.window);
    const uint64_t first_chunk = seen.begin >> seen.shift, n_chunk = chunks_of(seen);
    for (unsigned i = threadIdx.x; i < KEYS * HEADS + HEADS; i += THREADS)
        t.weight[i] = 0; /* fade as well; heads that are not there stay so */
    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        const uint64_t from = max(seen.begin, (first_chunk + chunk) << seen.shift);
        const uint64_t to = min(seen.end, (first_chunk + chunk + 1) << seen.shift);
        softmax state[2] = {nothing(), nothing()};
        for (uint32_t i = threadIdx.x; i < HEADS * d.cols; i += THREADS)
            t.sum[i] = 0;
        for (uint64_t base = from / KEYS * KEYS; base < to; base += KEYS) {
            const block keys = {base, static_cast<unsigned>(max(from, base) - base),
                                static_cast<unsigned>(min(to - base, static_cast<uint64_t>(KEYS)))};
            attend_block(d, s, t, keys, chunk == blockIdx.x && base <= from, state);
        }
        __syncthreads();
        put_partial(d, s, t, run, chunk, state);
    }
}

/* A block for one head of one run. */
template <bool base_2> static __global__ void __launch_bounds__(THREADS) fold_chunks(sl_attention_cuda_args a) {
    sl_begin();
    __shared__ softmax part[CHUNKS];
    __shared__ fold folds[CHUNKS];
    const uint32_t head = blockIdx.x, run = blockIdx.y, dim = a.kv.head_dim;
    if (a.runs.start[run + 1] - a.runs.start[run] != 1)
        return;
    const sight seen = see(a.runs.pos[run], a.window);
    const uint32_t n = static_cast<uint32_t>(chunks_of(seen));
    if (threadIdx.x < n) {
        const float *at = partial(a, run, head, threadIdx.x);
        part[threadIdx.x] = {at[0], at[1]};
    }
    __syncthreads();
    if (threadIdx.x < n) {
        softmax sum = nothing();
        for (uint32_t i = 0; i < threadIdx.x; i++)
            sum.top = fmaxf(sum.top, part[i].top);
        folds[threadIdx.x] = fold_with<base_2>(&sum, part[threadIdx.x]);
    }
    __syncthreads();
    const uint64_t y =
        static_cast<uint64_t>(a.runs.start[run]) * a.y_stride + static_cast<uint64_t>(head) * dim;
    for (uint32_t c = threadIdx.x; c < dim; c += THREADS) {
        float sum = 0, total = 0;
        const float *at = partial(a, run, head, 0) + 2 + c;
#pragma unroll 8
        for (uint32_t i = 0; i < n; i++, at += dim + 2) {
            sum = folded(folds[i], sum, *at);
            total = folded(folds[i], total, part[i].total);
        }
        store_act(a.y, y + c, __fmul_rn(sum, 1 / total), a.act);
    }
}

int sl_attention_decode_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream) {
    const uint32_t dim = args->kv.head_dim, group = args->n_head / args->kv.n_kv_head;
    decode d = {*args, group, (group + HEADS - 1) / HEADS, (dim + WIDEST - 1) / WIDEST, 0, 0, false, false};
    d.cols = d.col_pieces > 1 ? static_cast<uint32_t>(WIDEST) : dim;
    d.stride = (dim < PIECE ? (dim + 3) / 4 * 4 : static_cast<uint32_t>(PIECE)) + 4; /* 4 more: other banks */
    d.kv_aligned = dim % 8 == 0;
    d.q_aligned = sl_attention_q_aligned(args);
    const uint32_t pieces = args->kv.n_kv_head * d.head_pieces * d.col_pieces;
    const dim3 grid(split_of(static_cast<uint64_t>(pieces) * args->runs.n), pieces, args->runs.n);
    const int status = sl_launch(args->kv.f16 ? attend_chunks<sl_f16> : attend_chunks<float>, grid,
                                 dim3(THREADS), shared_bytes(d), stream, d);
    return status ? status : sl_attention_fold_cuda(args, false, stream);
}

int sl_attention_fold_cuda(const sl_attention_cuda_args *args, bool base_2, sl_cuda_stream stream) {
    return sl_launch(base_2 ? fold_chunks<true> : fold_chunks<false>, dim3(args->n_head, args->runs.n), dim3(THREADS), 0,
                     stream, *args);
}

uint64_t sl_attention_scratch_cuda(uint32_t n_run, uint32_t n_head, uint32_t head_dim) {
    return static_cast<uint64_t>(n_run) * n_head * CHUNKS * (head_dim + 2);
}
