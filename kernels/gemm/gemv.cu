/* Products of stored weights with 1 to 16 rows of f32 activations: the weights are read once, straight from their
 * stored form, and everything else follows from that. (f16 ones go to the matrix units: gemv_mma.cu.)
 *
 * A warp computes n_out weight rows for all rows of x. Its lanes walk the weight rows chunk by chunk
 * (weights_cuda.h: 16 bytes), n_flight chunks of each row requested before the first is used: at 4.8 TB/s and
 * 0.7 us some 25 KB per SM must be under way, which 12 warps of 2 rows and 4 chunks exceed. x is read through
 * the first-level cache, where the warps of a block meet. Each lane sums its chunks in their order, the lanes
 * are added in a tree: the order depends on the number of elements only, not on how many rows there are or
 * where they lie. */
#include "kernels/gemm/product_cuda.h"
#include "kernels/gemm/weights_cuda.h"

namespace {

enum { N_WARP = 4, WARP = 32 };

/* One chunk of n_out weight rows, all its elements there, times n rows of x (16-byte aligned). */
template <sl_type type, int n_tok, int n_out>
__device__ __forceinline__ void add_chunk(const sl_chunk<type> *chunk, const float *x, size_t x_stride, uint32_t n,
                                          uint32_t c, float *sum) {
#pragma unroll
    for (int p = 0; p < sl_chunk<type>::n_piece; p++) {
        float w[n_out][8];
#pragma unroll
        for (int i = 0; i < n_out; i++) chunk[i].unpack(p, w[i]);
        const float *at = x + sl_chunk<type>::start(c, p);
#pragma unroll
        for (int t = 0; t < n_tok; t++, at += x_stride) {
            if (t > 0 && t >= (int)n) continue;
            float v[8];
            sl_load8(at, v);
#pragma unroll
            for (int i = 0; i < n_out; i++) {
#pragma unroll
                for (int j = 0; j < 8; j++) sum[t * n_out + i] = fmaf(w[i][j], v[j], sum[t * n_out + i]);
            }
        }
    }
}

/* The same sum in the same order, element by element: the last chunk of a row, or rows of x without
 * alignment. */
template <sl_type type, int n_tok, int n_out>
__device__ __forceinline__ void add_chunk_slowly(const unsigned char *const *row, uint32_t groups, uint32_t k,
                                                 const float *x, size_t x_stride, uint32_t n, uint32_t c,
                                                 float *sum) {
#pragma unroll 1
    for (int e = 0; e < 8 * sl_chunk<type>::n_piece; e++) {
        const uint32_t at = sl_chunk<type>::start(c, e / 8) + e % 8;
        if (at >= k) continue;
        float w[n_out];
#pragma unroll
        for (int i = 0; i < n_out; i++) w[i] = sl_weight<type>(row[i], groups, at);
#pragma unroll
        for (int t = 0; t < n_tok; t++) {
            const float v = t < (int)n ? sl_load(x + t * x_stride + at) : 0;
#pragma unroll
            for (int i = 0; i < n_out; i++) sum[t * n_out + i] = fmaf(w[i], v, sum[t * n_out + i]);
        }
    }
}

/* Adds n sums over the lanes, of which each lane keeps max(1, n / 32): those from the returned number on. At
 * every step a lane hands over half of what it has, so this takes about n exchanges, not 5 n. */
template <int n, int step = WARP / 2> __device__ __forceinline__ uint32_t add_lanes(float *sum, uint32_t lane) {
    constexpr int half = n / 2;
    const bool upper = lane & step;
    if constexpr (half == 0) sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
#pragma unroll
    for (int i = 0; i < half; i++) {
        const float given = upper ? sum[i] : sum[i + half], kept = upper ? sum[i + half] : sum[i];
        sum[i] = kept + __shfl_xor_sync(0xffffffffu, given, step);
    }
    const uint32_t first = upper ? half : 0;
    if constexpr (step > 1) return first + add_lanes<half == 0 ? 1 : half, step / 2>(sum, lane);
    else return first;
}

template <sl_type type, int n_tok, int n_out, int n_flight>
__global__ void __launch_bounds__(N_WARP *WARP) gemv_kernel(sl_blocks_args a) {
    sl_begin();
    const sl_product_args &p = a.p;
    const uint32_t n = sl_row_count(p.rows);
    const uint32_t n_tile = (p.n_row + N_WARP * n_out - 1) / (N_WARP * n_out);
    const uint32_t block = blockIdx.x / n_tile, lane = threadIdx.x % WARP;
    const uint32_t r = (blockIdx.x % n_tile * N_WARP + threadIdx.x / WARP) * n_out; /* inside the block */
    if (n == 0 || r >= p.n_row) return;

    const unsigned char *row[n_out];
#pragma unroll
    for (int i = 0; i < n_out; i++) {
        const uint32_t last = p.n_row - 1;
        row[i] = (const unsigned char *)p.w + ((size_t)block * p.n_row + (r + i < last ? r + i : last))
            * p.w_row_bytes;
    }
    const float *x = (const float *)p.x + (size_t)block * a.x_step;
    const uint32_t groups = sl_groups_of(p.k), n_chunk = sl_chunk<type>::count(p.k);
    const bool w_aligned = ((uintptr_t)p.w | p.w_row_bytes) % 16 == 0;
    const bool x_aligned = ((uintptr_t)x | p.x_stride * sizeof(float)) % 16 == 0;
    const uint32_t n_full = x_aligned ? sl_chunk<type>::count_full(p.k) : 0;

    float sum[n_tok * n_out] = {};
    for (uint32_t c = lane; c < n_full; c += WARP * n_flight) {
        sl_chunk<type> chunk[n_flight][n_out];
#pragma unroll
        for (int f = 0; f < n_flight; f++) {
#pragma unroll
            for (int i = 0; i < n_out; i++) {
                if (c + WARP * f < n_full) chunk[f][i].template load<false>(row[i], groups, c + WARP * f, w_aligned);
            }
        }
#pragma unroll
        for (int f = 0; f < n_flight; f++) {
            if (c + WARP * f < n_full)
                add_chunk<type, n_tok, n_out>(chunk[f], x, p.x_stride, n, c + WARP * f, sum);
        }
    }
    for (uint32_t c = n_full + (lane - n_full) % WARP; c < n_chunk; c += WARP) /* c % WARP is still lane */
        add_chunk_slowly<type, n_tok, n_out>(row, groups, p.k, x, p.x_stride, n, c, sum);

    const uint32_t first = add_lanes<n_tok * n_out>(sum, lane);
    constexpr int n_kept = n_tok * n_out < WARP ? 1 : n_tok * n_out / WARP;
    constexpr int n_same = n_tok * n_out < WARP ? WARP / (n_tok * n_out) : 1; /* lanes with the same sum */
#pragma unroll
    for (int i = 0; i < n_kept; i++) {
        const uint32_t t = (first + i) / n_out, ri = r + (first + i) % n_out;
        if (lane % n_same != 0 || t >= n || ri >= p.n_row) continue;
        sl_put_sum(p, t, ri, (size_t)block * a.y_step + ri, sum[i]);
    }
}

template <sl_type type, int n_tok, int n_out, int n_flight>
int launch_rows(const sl_blocks_args &a, sl_cuda_stream stream) {
    const unsigned n_tile = (a.p.n_row + N_WARP * n_out - 1) / (N_WARP * n_out);
    return sl_launch(gemv_kernel<type, n_tok, n_out, n_flight>, dim3(n_tile * a.n_block),
        dim3(N_WARP * WARP), 0, stream, a);
}

template <sl_type type> int launch(const sl_blocks_args &a, sl_cuda_stream stream) {
    constexpr int n_flight = type == SL_F16 || type == SL_BF16 ? 4 : 2;
    if (a.p.rows.max <= 4) return launch_rows<type, 4, 2, n_flight>(a, stream);
    return launch_rows<type, SL_GEMV_ROWS, 4, 1>(a, stream);
}

} // namespace

static int launch_one(const sl_blocks_args &a, sl_cuda_stream stream) {
    switch (a.p.type) {
    case SL_F32: return launch<SL_F32>(a, stream);
    case SL_F16: return launch<SL_F16>(a, stream);
    case SL_BF16: return launch<SL_BF16>(a, stream);
    case SL_Q8: return launch<SL_Q8>(a, stream);
    default: return launch<SL_Q4>(a, stream);
    }
}

/* Here a pair is two launches. */
int sl_gemv_blocks_cuda(const sl_pair_args &a, sl_cuda_stream stream) {
    if (a.first.p.act == SL_ACT_F16) return sl_gemv_mma_blocks_cuda(a, stream);
    const int status = launch_one(a.first, stream);
    return status || !a.both ? status : launch_one(sl_second_of(a), stream);
}

int sl_gemv_cuda(const sl_product_args *args, sl_cuda_stream stream) {
    return sl_gemv_pair_cuda(args, nullptr, nullptr, stream);
}

int sl_gemv_pair_cuda(const sl_product_args *args, const void *w2, void *y2, sl_cuda_stream stream) {
    return sl_gemv_blocks_cuda(sl_pair_of({*args, 1, 0, 0}, w2, y2), stream);
}

int sl_gemv_gated_cuda(const sl_product_args *args, const void *w2, uint32_t lift, sl_cuda_stream stream) {
    sl_pair_args pair = sl_pair_of({*args, 1, 0, 0}, w2, nullptr);
    pair.both = false, pair.gated = true, pair.scale = ldexpf(1, -static_cast<int>(lift));
    return sl_gemv_mma_blocks_cuda(pair, stream);
}
