/* What the attention kernels for CUDA share: which keys a query sees, in which pieces its sums are made, and
 * the steps of online softmax (Milakov and Gimelshein 2018). Prefill and decode take these steps alike and so
 * give the same bits.
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

/* One stored element in f16. */
struct half_bits {
    uint16_t bits;
};
__device__ __forceinline__ float load(const half_bits *p) { return sl_half_to_float(p->bits); }
__device__ __forceinline__ float load(const float *p) { return *p; }
__device__ __forceinline__ float load(const sl_bf16 *p) { return sl_load(p); }

/* Eight elements of an aligned row. */
__device__ __forceinline__ void load8(const half_bits *p, float v[8]) {
    const uint4 x = *reinterpret_cast<const uint4 *>(p);
    const unsigned words[4] = {x.x, x.y, x.z, x.w};
    for (int i = 0; i < 4; i++) {
        v[2 * i] = sl_half_to_float(static_cast<uint16_t>(words[i] & 0xffffu));
        v[2 * i + 1] = sl_half_to_float(static_cast<uint16_t>(words[i] >> 16));
    }
}
__device__ __forceinline__ void load8(const float *p, float v[8]) { sl_load8(p, v); }
__device__ __forceinline__ void load8(const sl_bf16 *p, float v[8]) { sl_load8(p, v); }

/* Columns of n_row rows to f32 in shared memory; there row r begins at tile + r * stride, 16-byte aligned, and
 * is filled with zeros to a multiple of four columns. All threads call. */
template <class T> __device__ void stage_rows(float *tile, unsigned stride, const T *rows, uint64_t row_stride,
                                              unsigned n_row, unsigned width, bool aligned) {
    if (aligned) { /* width is a multiple of 8 */
        const unsigned units = width / 8, step = THREADS / units, unit = threadIdx.x % units * 8;
        unsigned r = threadIdx.x / units;
        if (r >= step)
            return;
#pragma unroll 4
        for (; r < n_row; r += step) {
            float v[8];
            load8(rows + r * row_stride + unit, v);
            sl_store4(tile + r * stride + unit, v);
            sl_store4(tile + r * stride + unit + 4, v + 4);
        }
        return;
    }
    const unsigned padded = (width + 3) / 4 * 4;
    for (unsigned i = threadIdx.x; i < n_row * padded; i += THREADS) {
        const unsigned r = i / padded, at = i % padded;
        tile[r * stride + at] = at < width ? load(rows + r * row_stride + at) : 0;
    }
}

__device__ __forceinline__ void stage(float *tile, unsigned stride, const void *data, uint64_t at, bool f16,
                                      uint64_t row_stride, unsigned n_row, unsigned width, bool aligned) {
    if (f16)
        stage_rows(tile, stride, static_cast<const half_bits *>(data) + at, row_stride, n_row, width, aligned);
    else
        stage_rows(tile, stride, static_cast<const float *>(data) + at, row_stride, n_row, width, aligned);
}

__device__ __forceinline__ void stage_q(float *tile, unsigned stride, const void *q, uint64_t at, sl_act act,
                                        uint64_t row_stride, unsigned n_row, unsigned width, bool aligned) {
    if (act == SL_ACT_BF16)
        stage_rows(tile, stride, static_cast<const sl_bf16 *>(q) + at, row_stride, n_row, width, aligned);
    else
        stage_rows(tile, stride, static_cast<const float *>(q) + at, row_stride, n_row, width, aligned);
}

__device__ __forceinline__ void store_act(void *y, uint64_t at, float v, sl_act act) {
    if (act == SL_ACT_BF16)
        sl_store(static_cast<sl_bf16 *>(y) + at, v);
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

/* How the sums so far and those of the next chunk go into one: old * sum + now * part. */
struct fold {
    float old, now;
};
__device__ __forceinline__ fold fold_with(softmax *sum, softmax part) {
    const float top = fmaxf(sum->top, part.top);
    const fold f = {expf(sum->top - top), expf(part.top - top)};
    *sum = {top, fmaf(f.now, part.total, __fmul_rn(f.old, sum->total))};
    return f;
}
__device__ __forceinline__ float folded(fold f, float sum, float part) {
    return fmaf(f.now, part, __fmul_rn(f.old, sum));
}

} // namespace attention

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

/* Runs of one row (attention_decode.cu). */
int sl_attention_decode_cuda(const sl_attention_cuda_args *args, sl_stream stream);

#endif
