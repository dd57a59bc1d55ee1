/* What the attention kernels for CUDA share: which keys a query sees, in which pieces its sums are made, and
 * the steps of online softmax (Milakov and Gimelshein 2018). Where activations or keys are f32, or more than 256
 * components, prefill and decode take these steps alike and so give the same bits; on the matrix units
 * attention_mma_short.cu takes the same chunks in steps of its own, attention_mma.cu goes its own way.
 *
 * The chain behind one query head. Its keys are cut into chunks at multiples of a power of two of absolute
 * positions, which depends on how many keys it sees; a chunk into blocks of KEYS. In a block: scores, each one
 * fma after the other along head_dim; the largest score so far; the old sums times fade; the weights summed by
 * a tree; w v added key by key. The sums of the chunks are folded together in order. Keys out of sight take
 * part in nothing. */
#ifndef SL_KERNELS_ATTENTION_CUDA_H
#define SL_KERNELS_ATTENTION_CUDA_H

#include "kernels/cuda.h"
#include "kernels/cuda_kernels.h"

namespace attention {

enum {
    KEYS = 32,    /* of a block: one per lane */
    CHUNKS = 64,  /* no query has more */
    SHORTEST = 7, /* log2 of the length of a chunk, at least */
    THREADS = 128,
    PIECE = 128 /* components of head_dim in shared memory at a time */
};
/* On the matrix units: to logarithms to base 2; weights stand for 2^LIFT times themselves, so that small ones keep their
 * bits in f16. */
constexpr float LOG2_E = 1.44269504f, LIFT = 15;

/* Eight elements of an aligned row, as they lie in memory, and what they are. */
struct raw16 {
    uint4 x;
};
struct raw32 {
    float4 x, y;
};
__device__ __forceinline__ raw16 fetch(const sl_f16 *p) {
    return {*reinterpret_cast<const uint4 *>(p)};
}
__device__ __forceinline__ raw32 fetch(const float *p) {
    return {*reinterpret_cast<const float4 *>(p), *(reinterpret_cast<const float4 *>(p) + 1)};
}
/* Of eight lanes side by side four put their second half first: so all eight are in different banks. */
__device__ __forceinline__ void put8(float *to, raw32 r) {
    const unsigned turned = threadIdx.x / 4 % 2;
    float4 *at = reinterpret_cast<float4 *>(to);
    at[turned] = turned ? r.y : r.x;
    at[1 - turned] = turned ? r.x : r.y;
}
__device__ __forceinline__ void put8(float *to, raw16 r) {
    float v[8];
    sl_unpack_half(r.x.x, v), sl_unpack_half(r.x.y, v + 2), sl_unpack_half(r.x.z, v + 4);
    sl_unpack_half(r.x.w, v + 6);
    put8(to, raw32{make_float4(v[0], v[1], v[2], v[3]), make_float4(v[4], v[5], v[6], v[7])});
}

/* Rows of width components, row_stride apart, from one place or from another too, next elements on (0: none). aligned:
 * width and row_stride are multiples of 8 and the rows begin at multiples of 8 elements of aligned memory. */
template <class T> struct source {
    const T *at;
    ptrdiff_t next;
    uint64_t row_stride;
    unsigned n_row, width;
    bool aligned;
};

/* Row r of both places one after the other, and where it goes: rows of the first to tile, stride floats apart, those of
 * the other KEYS rows behind them. */
template <class T> __device__ __forceinline__ const T *row_of(const source<T> &s, unsigned r) {
    const ptrdiff_t row = static_cast<ptrdiff_t>((r < s.n_row ? r : r - s.n_row) * s.row_stride);
    return s.at + (r < s.n_row ? row : s.next + row);
}
template <class T>
__device__ __forceinline__ float *place_of(float *tile, unsigned stride, const source<T> &s, unsigned r) {
    return tile + (r < s.n_row ? r : r - s.n_row + KEYS) * stride;
}

/* To f32 in shared memory, where rows are 16-byte aligned and filled with zeros to multiples of four
 * components. All threads call; each asks for AT_ONCE times 16 bytes of memory before it waits for any. */
template <int AT_ONCE, class T> __device__ void stage(float *tile, unsigned stride, const source<T> &s) {
    const unsigned n = s.next ? 2 * s.n_row : s.n_row;
    if (!s.aligned) {
        const unsigned padded = (s.width + 3) / 4 * 4;
        for (unsigned i = threadIdx.x; i < n * padded; i += THREADS) {
            const unsigned r = i / padded, at = i % padded;
            place_of(tile, stride, s, r)[at] = at < s.width ? sl_load(row_of(s, r) + at) : 0;
        }
        return;
    }
    const unsigned units = s.width / 8, step = THREADS / units, at = threadIdx.x % units * 8;
    if (threadIdx.x / units >= step)
        return;
    enum { PIECES = AT_ONCE * 16 / sizeof(fetch(s.at)) };
    for (unsigned first = threadIdx.x / units; first < n; first += PIECES * step) {
        decltype(fetch(s.at)) raw[PIECES];
#pragma unroll
        for (unsigned i = 0; i < PIECES; i++) /* past the end the last row again: without a condition */
            raw[i] = fetch(row_of(s, min(first + i * step, n - 1)) + at);
#pragma unroll
        for (unsigned i = 0; i < PIECES; i++)
            if (first + i * step < n)
                put8(place_of(tile, stride, s, first + i * step) + at, raw[i]);
    }
}

/* Rows of q from element at on. */
__device__ __forceinline__ void stage_q(float *tile, unsigned stride, const sl_attention_cuda_args &a,
                                        uint64_t at, uint64_t row_stride, unsigned n_row, unsigned width,
                                        bool aligned) {
    if (a.act == SL_ACT_F16)
        stage<4>(tile, stride,
                 source<sl_f16>{static_cast<const sl_f16 *>(a.q) + at, 0, row_stride, n_row, width,
                                 aligned});
    else
        stage<4>(
            tile, stride,
            source<float>{static_cast<const float *>(a.q) + at, 0, row_stride, n_row, width, aligned});
}

__device__ __forceinline__ void store_act(void *y, uint64_t at, float v, sl_act act) {
    if (act == SL_ACT_F16)
        sl_store(static_cast<sl_f16 *>(y) + at, v);
    else
        sl_store(static_cast<float *>(y) + at, v);
}

/* Keys begin .. end - 1 of a query; chunks end at multiples of 1 << shift. */
struct sight {
    uint64_t begin, end;
    unsigned shift;
};
__device__ __forceinline__ sight see(uint64_t pos, uint32_t window) {
    sight s = {0, pos + 1, SHORTEST};
    if (window && s.end > window)
        s.begin = s.end - window;
    while ((s.end - 1 - s.begin) >> s.shift > CHUNKS - 2) /* wherever it begins, it meets at most two more */
        s.shift++;
    return s;
}

__device__ __forceinline__ uint64_t chunks_of(sight s) {
    return ((s.end - 1) >> s.shift) - (s.begin >> s.shift) + 1;
}

/* Four more terms of a score. */
__device__ __forceinline__ float dot4(const float4 q, const float4 k, float sum) {
    return fmaf(q.w, k.w, fmaf(q.z, k.z, fmaf(q.y, k.y, fmaf(q.x, k.x, sum))));
}

/* Sums of a chunk or of all so far: they stand for exp(top) times themselves. The values' sums lie elsewhere.
 */
struct softmax {
    float top, total;
};
__device__ __forceinline__ softmax nothing(void) { return {-INFINITY, 0}; }

/* How the sums so far and those of the next chunk go into one: old * sum + now * part. base_2: they stand for exp2(top)
 * times themselves. */
struct fold {
    float old, now;
};
template <bool base_2> __device__ __forceinline__ fold fold_with(softmax *sum, softmax part) {
    const float top = fmaxf(sum->top, part.top), down = sum->top - top, part_down = part.top - top;
    const fold f = {base_2 ? exp2f(down) : expf(down), base_2 ? exp2f(part_down) : expf(part_down)};
    *sum = {top, fmaf(f.now, part.total, __fmul_rn(f.old, sum->total))};
    return f;
}
__device__ __forceinline__ float folded(fold f, float sum, float part) {
    return fmaf(f.now, part, __fmul_rn(f.old, sum));
}

/* Where the sums of a single query's chunk go: top, total, head_dim components. */
__device__ __forceinline__ float *partial(const sl_attention_cuda_args &a, uint32_t run, uint32_t head, uint32_t chunk) {
    const uint64_t i = (static_cast<uint64_t>(run) * a.n_head + head) * CHUNKS + chunk;
    return a.scratch + i * (a.kv.head_dim + 2);
}

/* Blocks that share the chunks of each of that many queries and heads: about BLOCKS in all if there is work for them. */
static inline uint32_t split_of(uint64_t shares) {
    enum { BLOCKS = 4096 };
    const uint64_t split = shares >= BLOCKS ? 1 : BLOCKS / shares, most = CHUNKS;
    return static_cast<uint32_t>(split < most ? split : most);
}

} // namespace attention

/* A slot's memory. nvcc cannot know of an address from a table that it is the device's, and takes accesses that would do
 * for shared memory as well; of one by its distance from another it knows what it knows of the other. */
template <class T> __device__ __forceinline__ T *sl_kv_data(const sl_kv_table &kv, uint32_t slot) {
    char *data = static_cast<char *>(kv.slots[slot].data);
#ifdef __CUDACC__
    char *table = reinterpret_cast<char *>(const_cast<sl_kv_slot *>(kv.slots));
    ptrdiff_t distance = data - table;
    asm("" : "+l"(distance)); /* or both tables cancel */
    data = table + distance;
#endif
    return reinterpret_cast<T *>(data);
}

/* Element of a slot's memory at which position pos of k (part 0) or v (1) of a head begins. */
__device__ __forceinline__ uint64_t sl_kv_row(const sl_kv_table &kv, uint32_t slot, uint32_t part,
                                              uint32_t head, uint64_t pos) {
    const uint64_t rows = (2 * static_cast<uint64_t>(kv.store) + part) * kv.n_kv_head + head;
    return (rows * kv.slots[slot].cap + pos) * kv.head_dim;
}

/* Whether rows of q can be read eight elements at a time. */
static inline bool sl_attention_q_aligned(const sl_attention_cuda_args *a) {
    return a->kv.head_dim % 8 == 0 && a->q_stride % 8 == 0 && reinterpret_cast<uintptr_t>(a->q) % 16 == 0;
}

/* Runs of one row, and the sums of their chunks folded together (attention_decode.cu). */
int sl_attention_decode_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream);
int sl_attention_fold_cuda(const sl_attention_cuda_args *args, bool base_2, sl_cuda_stream stream);

/* f16 over f16, head_dim up to SL_ATTENTION_MATRIX_DIM: runs of more rows than SL_ATTENTION_SHORT (attention_mma.cu), and
 * all others (attention_mma_short.cu). Up to that number the products of a pass have the same bits for any number of
 * rows, and so has attention. */
enum { SL_ATTENTION_SHORT = SL_GEMV_ROWS, SL_ATTENTION_MATRIX_DIM = 256 };
static inline bool sl_attention_on_matrix(const sl_attention_cuda_args *a) {
    return a->act == SL_ACT_F16 && a->kv.f16 && a->kv.head_dim <= SL_ATTENTION_MATRIX_DIM;
}
int sl_attention_matrix_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream);
int sl_attention_short_cuda(const sl_attention_cuda_args *args, sl_cuda_stream stream);

#endif
