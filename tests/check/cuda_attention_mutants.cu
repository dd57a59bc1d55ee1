/* Broken CUDA kernels: one plain attention, a thread for each query head, and one plain drawing, a thread for
 * each row, each with one defect. Without a defect they pass every check, so that it is the defect which is
 * caught. Attention on the matrix units: the kernel's own source, each time with one thing replaced. */
#include "kernels/approx_cuda.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/mma_cuda.h"

#include <float.h>

namespace {

enum { MAX_DIM = 1100, CHUNK = 128 };
enum defect {
    WINDOW_OFF,    /* one key too many */
    PAST,          /* the next token is seen */
    KV_HEAD,       /* groups of heads are interleaved */
    NOT_RESCALED,  /* chunks are added as they are */
    BY_RUN,        /* chunks are counted from where the run begins */
    OTHER_SLOT,    /* the table of slots is taken by run */
    LAST_POSITION, /* rows of a run are stored one too late */
    FLUSHED,       /* subnormal f16 become zero */
    GAIN_FIRST,    /* the angle times gain */
    EXACT_ANGLE,   /* the angle as a product in double */
    ALL_ROWS,      /* turned, however many there are */
    EIGHT_BITS,    /* results of f16 are rounded to as many as bf16 has */
    TIES_LAST,     /* of equal logits the highest id */
    BY_ID,         /* top-p over candidates in order of their ids */
    HOT_FIRST,     /* the temperature before min-p */
    PENALTY_TWICE, /* negative logits are divided as well */
    NAN_WINS       /* what is no number is the likeliest */
};

template <class A> struct mutant {
    A a;
    defect d;
};

/* One thread a block. */
template <class A>
int launch(void (*kernel)(mutant<A>), dim3 grid, const A *args, defect d, sl_cuda_stream stream) {
    return sl_launch(kernel, grid, dim3(1), 0, stream, mutant<A>{*args, d});
}

/* ---- attention ----------------------------------------------------------------------------------- */

typedef mutant<sl_attention_cuda_args> attention_mutant;

struct sums {
    float top, total, value[MAX_DIM];
};

__device__ float kv_value(const sl_attention_cuda_args &a, const void *data, uint64_t at) {
    return a.kv.f16 ? sl_half_to_float(static_cast<const uint16_t *>(data)[at])
                    : static_cast<const float *>(data)[at];
}

__device__ float query_value(const sl_attention_cuda_args &a, uint64_t at) {
    return a.act == SL_ACT_F16 ? sl_load(static_cast<const sl_f16 *>(a.q) + at)
                                : static_cast<const float *>(a.q)[at];
}

__device__ void add_key(const attention_mutant &m, uint64_t q, uint32_t slot, uint32_t kv_head, uint64_t key,
                        sums *s) {
    const void *data = m.a.kv.slots[slot].data;
    const uint64_t k = sl_kv_row(m.a.kv, slot, 0, kv_head, key), v = sl_kv_row(m.a.kv, slot, 1, kv_head, key);
    float score = 0;
    for (uint32_t i = 0; i < m.a.kv.head_dim; i++)
        score = fmaf(query_value(m.a, q + i), kv_value(m.a, data, k + i), score);
    const float top = fmaxf(s->top, score * m.a.scale), fade = expf(s->top - top),
                weight = expf(score * m.a.scale - top);
    s->top = top;
    s->total = fmaf(s->total, fade, weight);
    for (uint32_t i = 0; i < m.a.kv.head_dim; i++)
        s->value[i] = fmaf(weight, kv_value(m.a, data, v + i), s->value[i] * fade);
}

__device__ void add_chunk(const attention_mutant &m, const sums &part, sums *all) {
    const float top = fmaxf(all->top, part.top);
    const float old = m.d == NOT_RESCALED && all->total > 0 ? 1 : expf(all->top - top);
    const float now = m.d == NOT_RESCALED ? 1 : expf(part.top - top);
    all->top = top;
    all->total = fmaf(now, part.total, old * all->total);
    for (uint32_t i = 0; i < m.a.kv.head_dim; i++)
        all->value[i] = fmaf(now, part.value[i], old * all->value[i]);
}

__device__ void clear(sums *s) {
    s->top = -INFINITY;
    s->total = 0;
    for (int i = 0; i < MAX_DIM; i++)
        s->value[i] = 0;
}

__global__ void attention_kernel(attention_mutant m) {
    sl_begin();
    const uint32_t run = blockIdx.z, head = blockIdx.y, row = m.a.runs.start[run] + blockIdx.x,
                   dim = m.a.kv.head_dim;
    if (row >= m.a.runs.start[run + 1])
        return;
    const uint64_t pos = m.a.runs.pos[run] + blockIdx.x, end = pos + 1 + (m.d == PAST ? 1 : 0);
    const uint32_t window = m.a.window + (m.d == WINDOW_OFF && m.a.window ? 1 : 0);
    const uint32_t group = m.a.n_head / m.a.kv.n_kv_head,
                   kv_head = m.d == KV_HEAD ? head % m.a.kv.n_kv_head : head / group;
    const uint32_t slot = m.a.runs.slot[m.d == OTHER_SLOT ? 0 : run];
    const uint64_t shift = m.d == BY_RUN ? m.a.runs.pos[run] % 32 : 0;
    sums part, all;
    clear(&part), clear(&all);
    for (uint64_t key = window && pos + 1 > window ? pos + 1 - window : 0; key < end; key++) {
        if ((key + shift) % CHUNK == 0 && part.total > 0)
            add_chunk(m, part, &all), clear(&part);
        add_key(m, row * m.a.q_stride + static_cast<uint64_t>(head) * dim, slot, kv_head, key, &part);
    }
    add_chunk(m, part, &all);
    for (uint32_t i = 0; i < dim; i++)
        attention::store_act(m.a.y, row * m.a.y_stride + static_cast<uint64_t>(head) * dim + i,
                             all.value[i] / all.total, m.a.act);
}

int launch(const sl_attention_cuda_args *args, defect d, sl_cuda_stream stream) {
    return launch(attention_kernel, dim3(args->runs.max_tok, args->n_head, args->runs.n), args, d, stream);
}

/* ---- keys and values, angles --------------------------------------------------------------------- */

__global__ void store_kernel(mutant<sl_kv_store_args> m) {
    sl_begin();
    const uint32_t run = blockIdx.y, row = m.a.runs.start[run] + blockIdx.x, slot = m.a.runs.slot[run];
    const uint32_t width = m.a.kv.n_kv_head * m.a.kv.head_dim;
    if (row >= m.a.runs.start[run + 1])
        return;
    const uint64_t late =
        m.d == LAST_POSITION && m.a.runs.start[run] + 1 < m.a.runs.start[run + 1] ? blockIdx.x > 0 : 0;
    for (uint32_t i = 0; i < 2 * width; i++) {
        const uint32_t part = i / width, at = i % width, head = at / m.a.kv.head_dim;
        const uint64_t from = row * (part ? m.a.v_stride : m.a.k_stride) + at;
        const void *x = part ? m.a.v : m.a.k;
        const float v = m.a.act == SL_ACT_F16 ? sl_load(static_cast<const sl_f16 *>(x) + from)
                                               : static_cast<const float *>(x)[from];
        const uint64_t to =
            sl_kv_row(m.a.kv, slot, part, head, m.a.runs.pos[run] + blockIdx.x - late) + at % m.a.kv.head_dim;
        const uint16_t half = sl_float_to_half(v);
        if (m.a.kv.f16)
            static_cast<uint16_t *>(m.a.kv.slots[slot].data)[to] =
                m.d == FLUSHED && !(half & 0x7c00) ? half & 0x8000 : half;
        else
            static_cast<float *>(m.a.kv.slots[slot].data)[to] = v;
    }
}

int launch(const sl_kv_store_args *args, defect d, sl_cuda_stream stream) {
    return launch(store_kernel, dim3(args->runs.max_tok, args->runs.n), args, d, stream);
}

__global__ void table_kernel(mutant<sl_rope_table_args> m) {
    sl_begin();
    const uint32_t run = blockIdx.y, row = m.a.runs.start[run] + blockIdx.x, half = m.a.n_rot / 2;
    if (row >= m.a.runs.start[run + 1])
        return;
    const float position = static_cast<float>(m.a.runs.pos[run] + blockIdx.x);
    for (uint32_t j = 0; j < half; j++) {
        const double exact = static_cast<double>(position) * m.a.inv_freq[j];
        double angle = m.d == EXACT_ANGLE ? exact : static_cast<double>(static_cast<float>(exact));
        if (m.d == GAIN_FIRST)
            angle *= m.a.gain;
        m.a.table[row * m.a.stride + j] = static_cast<float>(cos(angle)) * (m.d == GAIN_FIRST ? 1 : m.a.gain);
        m.a.table[row * m.a.stride + half + j] =
            static_cast<float>(sin(angle)) * (m.d == GAIN_FIRST ? 1 : m.a.gain);
    }
}

int launch(const sl_rope_table_args *args, defect d, sl_cuda_stream stream) {
    return launch(table_kernel, dim3(args->runs.max_tok, args->runs.n), args, d, stream);
}

/* ---- drawing ------------------------------------------------------------------------------------- */

typedef mutant<sl_sample_args> sample_mutant;

struct candidate {
    float logit;
    int32_t id;
};

__device__ float clean(const sl_draw &draw, float x, int32_t id, defect d) {
    if (!(x >= -FLT_MAX))
        return d == NAN_WINS && x != x ? FLT_MAX : -INFINITY;
    x = fminf(x, FLT_MAX);
    for (uint32_t i = 0; i < draw.n_window; i++)
        if (draw.window[i] == id) {
            x = x > 0 || d == PENALTY_TWICE ? x / draw.repeat_penalty : x * draw.repeat_penalty;
            return fmaxf(fminf(x, FLT_MAX), -FLT_MAX);
        }
    return x;
}

__device__ bool before(candidate a, candidate b, defect d) {
    return a.logit > b.logit || (a.logit == b.logit && (d == TIES_LAST ? a.id > b.id : a.id < b.id));
}

/* The k best in order, by insertion. */
__device__ uint32_t pick(const sample_mutant &m, const sl_draw &draw, const float *logits, uint32_t k,
                         candidate *best) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < m.a.n_vocab; i++) {
        const candidate c = {clean(draw, logits[i], static_cast<int32_t>(i), m.d), static_cast<int32_t>(i)};
        if (n == k && !before(c, best[n - 1], m.d))
            continue;
        n = n < k ? n + 1 : n;
        uint32_t at = n - 1;
        for (; at > 0 && before(c, best[at - 1], m.d); at--)
            best[at] = best[at - 1];
        best[at] = c;
    }
    return n;
}

__device__ void order_by_id(candidate *best, uint32_t n) {
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t j = i; j > 0 && best[j].id < best[j - 1].id; j--) {
            const candidate c = best[j];
            best[j] = best[j - 1], best[j - 1] = c;
        }
}

__device__ int32_t draw_from(const sl_draw &draw, const candidate *best, uint32_t n, double top, defect d) {
    double sum = 0, seen = 0;
    const double t = static_cast<double>(draw.temperature), heat = d == HOT_FIRST ? t : 1;
    uint32_t kept = 0, chosen = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((best[i].logit - top) / heat);
    for (; kept < n; kept++) {
        const double p = exp((best[kept].logit - top) / heat);
        if (kept && (seen >= static_cast<double>(draw.top_p) * sum || p < static_cast<double>(draw.min_p)))
            break;
        seen += p;
    }
    sum = 0;
    for (uint32_t i = 0; i < kept; i++)
        sum += exp((best[i].logit - top) / t);
    double left = draw.random * sum;
    for (uint32_t i = 0; i < kept; i++) {
        const double weight = exp((best[i].logit - top) / t);
        if (weight <= 0)
            continue;
        chosen = i;
        left -= weight;
        if (left < 0)
            break;
    }
    return best[chosen].id;
}

__global__ void sample_kernel(sample_mutant m) {
    sl_begin();
    const sl_draw &draw = m.a.draws[blockIdx.x];
    candidate best[SL_SAMPLE_MAX_K] = {{0, 0}};
    const uint32_t k = draw.temperature > 0 ? draw.top_k : 1;
    const uint32_t n = pick(m, draw, m.a.logits + blockIdx.x * m.a.stride, k, best);
    const double top = best[0].logit;
    if (m.d == BY_ID)
        order_by_id(best, n);
    m.a.tokens[blockIdx.x] = n == 1 || top == -INFINITY ? best[0].id : draw_from(draw, best, n, top, m.d);
}

int launch(const sl_sample_args *args, defect d, sl_cuda_stream stream) {
    return launch(sample_kernel, dim3(args->n_row), args, d, stream);
}

__device__ float to_bf16(float v) { return sl_bf16_bits_to_float(sl_float_to_bf16_bits(v)); }

__global__ void rope_kernel(mutant<sl_rope_args> m) {
    sl_begin();
    const sl_rope_args &a = m.a;
    const uint32_t half = a.n_rot / 2, row = blockIdx.x;
    if (m.d != ALL_ROWS && row >= (a.rows.n ? *a.rows.n : a.rows.max))
        return;
    for (uint32_t i = 0; i < a.n_head * half; i++) {
        const uint64_t lo = row * a.x_stride + i / half * a.head_dim + i % half, hi = lo + half;
        const float c = a.table[row * a.table_stride + i % half],
                    s = a.table[row * a.table_stride + half + i % half];
        if (a.act == SL_ACT_F16) {
            sl_f16 *x = static_cast<sl_f16 *>(a.x);
            const float p = sl_load(x + lo), q = sl_load(x + hi);
            const float u = p * c - q * s, v = q * c + p * s;
            sl_store(x + lo, m.d == EIGHT_BITS ? to_bf16(u) : u);
            sl_store(x + hi, m.d == EIGHT_BITS ? to_bf16(v) : v);
        } else {
            float *x = static_cast<float *>(a.x);
            const float p = x[lo], q = x[hi];
            x[lo] = p * c - q * s, x[hi] = q * c + p * s;
        }
    }
}

int launch(const sl_rope_args *args, defect d, sl_cuda_stream stream) {
    return launch(rope_kernel, dim3(args->rows.max), args, d, stream);
}

} // namespace

#define MUTANT(kernel, args_type, name, which)                                                                 \
    extern "C" int mutant_cuda_##kernel##_##name(const args_type *args, sl_cuda_stream stream) {               \
        return launch(args, which, stream);                                                                    \
    }
MUTANT(attention, sl_attention_cuda_args, window, WINDOW_OFF)
MUTANT(attention, sl_attention_cuda_args, past, PAST)
MUTANT(attention, sl_attention_cuda_args, kv_head, KV_HEAD)
MUTANT(attention, sl_attention_cuda_args, not_rescaled, NOT_RESCALED)
MUTANT(attention, sl_attention_cuda_args, by_run, BY_RUN)
MUTANT(attention, sl_attention_cuda_args, other_slot, OTHER_SLOT)
MUTANT(kv_store, sl_kv_store_args, last_position, LAST_POSITION)
MUTANT(kv_store, sl_kv_store_args, flushed, FLUSHED)
MUTANT(rope, sl_rope_args, all_rows, ALL_ROWS)
MUTANT(rope, sl_rope_args, eight_bits, EIGHT_BITS)
MUTANT(rope_table, sl_rope_table_args, gain_first, GAIN_FIRST)
MUTANT(rope_table, sl_rope_table_args, exact_angle, EXACT_ANGLE)
MUTANT(sample, sl_sample_args, ties_last, TIES_LAST)
MUTANT(sample, sl_sample_args, by_id, BY_ID)
MUTANT(sample, sl_sample_args, hot_first, HOT_FIRST)
MUTANT(sample, sl_sample_args, penalty_twice, PENALTY_TWICE)
MUTANT(sample, sl_sample_args, nan_wins, NAN_WINS)

/* The elements of all positions in one row of bytes. */
extern "C" int mutant_cuda_fill_kv_dense(void *data, uint64_t, uint64_t n_pos, uint64_t n_rows,
                                         uint32_t head_dim, bool f16, sl_cuda_stream stream) {
    return sl_fill_kv_cuda(data, n_pos, n_pos, n_rows, head_dim, f16, stream);
}

/* ---- attention on the matrix units --------------------------------------------------------------- */

/* Threads do not wait for each other's copies (short runs: sums). */
#define __syncthreads() ((void)0)
namespace matrix_no_barrier {
#include "kernels/attention/attention_mma.cu"
}
namespace short_no_barrier {
#include "kernels/attention/attention_mma_short.cu"
}
#undef __syncthreads

/* One key too many at the far end of a window. */
#define see(pos, window) see(pos, (window) ? (window) + 1 : 0)
namespace matrix_window {
#include "kernels/attention/attention_mma.cu"
}
namespace short_window {
#include "kernels/attention/attention_mma_short.cu"
}
#undef see

/* The next token is seen. */
#define see(pos, window) see((pos) + 1, window)
namespace matrix_past {
#include "kernels/attention/attention_mma.cu"
}
namespace short_past {
#include "kernels/attention/attention_mma_short.cu"
}
#undef see

/* Weights are rounded to f16 as they are, the small ones to subnormal numbers. */
namespace {
__device__ float coarse(float weight) {
    return sl_half_to_float(sl_float_to_half(weight * 0x1p-15f)) * 0x1p15f;
}
} // namespace
#define sl_pack_half(low, high) sl_pack_half(coarse(low), coarse(high))
namespace matrix_coarse {
#include "kernels/attention/attention_mma.cu"
}
namespace short_coarse {
#include "kernels/attention/attention_mma_short.cu"
}
#undef sl_pack_half

/* Each lane knows the largest score and the total of its own columns only. */
#define __shfl_xor_sync(mask, v, lanes) (v)
namespace matrix_lanes {
#include "kernels/attention/attention_mma.cu"
}
namespace short_lanes {
#include "kernels/attention/attention_mma_short.cu"
}
#undef __shfl_xor_sync

/* Keys and values beyond what is seen come as they lie in memory. */
#define sl_copy_async16_zero(to, from, valid) sl_copy_async16_zero(to, from, at < dim)
namespace matrix_unseen {
#include "kernels/attention/attention_mma.cu"
}
#undef sl_copy_async16_zero

/* Two keys change places where low halves meet, but not where high ones do. */
#define __byte_perm(a, b, halves) __byte_perm(a, b, (halves) == 0x5410 ? 0x1054 : (halves))
namespace short_order {
#include "kernels/attention/attention_mma_short.cu"
}
#undef __byte_perm

/* The sums of a block's warps are added as they are. */
#define exp2f(x) (1.0f)
namespace short_not_rescaled {
#include "kernels/attention/attention_mma_short.cu"
}
#undef exp2f

/* The good kernels, then the broken one over its runs. */
#define MATRIX_MUTANT(length, name)                                                                            \
    extern "C" int mutant_cuda_attention_##length##_##name(const sl_attention_cuda_args *args,                 \
                                                           sl_cuda_stream stream) {                            \
        const int status = sl_attention_cuda(args, stream);                                                    \
        if (status || !sl_attention_on_matrix(args))                                                           \
            return status;                                                                                     \
        return length##_##name::sl_attention_##length##_cuda(args, stream);                                    \
    }
MATRIX_MUTANT(matrix, no_barrier)
MATRIX_MUTANT(matrix, window)
MATRIX_MUTANT(matrix, past)
MATRIX_MUTANT(matrix, coarse)
MATRIX_MUTANT(matrix, lanes)
MATRIX_MUTANT(matrix, unseen)
MATRIX_MUTANT(short, no_barrier)
MATRIX_MUTANT(short, window)
MATRIX_MUTANT(short, past)
MATRIX_MUTANT(short, coarse)
MATRIX_MUTANT(short, lanes)
MATRIX_MUTANT(short, order)
MATRIX_MUTANT(short, not_rescaled)
