/* Drawing tokens on a CUDA device, a block for each row, in the order of src/run/sampler.c: repeat penalty,
 * top-k, top-p, min-p, temperature, draw.
 *
 * A candidate is one number, its rank: above the logit's bits so arranged that they order as the logit does,
 * below the id's complement; so no two are equal and the order of likelihood is that of ranks. The k-th largest
 * of the threads' own best ranks bounds the k best from below: hardly more than k reach it, and those are
 * sorted in shared memory. Where the likeliest sit with few threads, too many do: then a radix selection finds
 * the k-th best exactly. */
#include "kernels/cuda.h"
#include "kernels/cuda_kernels.h"

#include <float.h>

typedef unsigned long long rank;

enum {
    MOST = 1024,     /* threads, and ranks in the pool */
    FEW = 256,       /* threads for a small vocabulary: no fewer than SL_SAMPLE_MAX_K */
    SMALL = 16384,   /* tokens of a small vocabulary */
    MARKS = 1 << 15, /* penalised ids are marked modulo this */
    BATCH = 8        /* logits that a thread fetches at once */
};

struct workspace {
    rank pool[MOST];
    double likely[SL_SAMPLE_MAX_K], weight[SL_SAMPLE_MAX_K];
    unsigned marks[MARKS / 32], histogram[256], count;
    int32_t window[SL_SAMPLE_MAX_WINDOW];
};

struct row {
    const float *logits;
    uint32_t n_vocab, n_window;
    float penalty;
};

static __device__ rank rank_of(float logit, uint32_t id) {
    const unsigned bits = __float_as_uint(logit == 0 ? 0.0f : logit); /* -0 is as likely as 0 */
    const unsigned order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<rank>(order) << 32 | static_cast<unsigned>(~id);
}
static __device__ int32_t id_of(rank r) { return static_cast<int32_t>(~static_cast<unsigned>(r)); }
static __device__ float logit_of(rank r) {
    const unsigned order = static_cast<unsigned>(r >> 32);
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

static __device__ bool is_penalised(const row &r, const workspace *w, uint32_t id) {
    if (!(w->marks[id % MARKS / 32] >> id % 32 & 1u))
        return false;
    for (uint32_t i = 0; i < r.n_window; i++)
        if (w->window[i] == static_cast<int32_t>(id))
            return true;
    return false;
}

/* No NaN, no +inf; what was possible stays possible. */
static __device__ float clean(const row &r, const workspace *w, float x, uint32_t id) {
    if (!(x >= -FLT_MAX))
        return -INFINITY;
    x = fminf(x, FLT_MAX);
    if (!is_penalised(r, w, id))
        return x;
    x = x > 0 ? x / r.penalty : x * r.penalty;
    return fmaxf(fminf(x, FLT_MAX), -FLT_MAX);
}

/* visit(rank) for the thread's share of the vocabulary. */
template <class F> static __device__ void each_rank(const row &r, const workspace *w, F visit) {
    for (uint32_t from = threadIdx.x; from < r.n_vocab; from += BATCH * blockDim.x) {
        float x[BATCH];
        for (uint32_t i = 0; i < BATCH; i++)
            x[i] = from + i * blockDim.x < r.n_vocab ? r.logits[from + i * blockDim.x] : 0;
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t id = from + i * blockDim.x;
            if (id < r.n_vocab)
                visit(rank_of(clean(r, w, x[i], id), id));
        }
    }
}

static __device__ rank best_of_thread(const row &r, const workspace *w) {
    rank best = 0; /* below every rank */
    each_rank(r, w, [&best](rank x) { best = x > best ? x : best; });
    return best;
}

/* The largest, for thread 0. */
static __device__ rank best_of_block(workspace *w, rank mine) {
    w->pool[threadIdx.x] = mine;
    for (unsigned n = blockDim.x / 2; n > 0; n /= 2) {
        __syncthreads();
        if (threadIdx.x < n && w->pool[threadIdx.x + n] > w->pool[threadIdx.x])
            w->pool[threadIdx.x] = w->pool[threadIdx.x + n];
    }
    return w->pool[0];
}

/* Largest first; n is a power of two (Batcher's bitonic sort). Ends with a barrier. */
static __device__ void sort_pool(workspace *w, unsigned n) {
    for (unsigned size = 2; size <= n; size *= 2)
        for (unsigned step = size / 2; step > 0; step /= 2) {
            for (unsigned i = threadIdx.x; i < n / 2; i += blockDim.x) {
                const unsigned a = 2 * i - (i & (step - 1)), b = a + step;
                const rank x = w->pool[a], y = w->pool[b];
                if ((x < y) == ((a & size) == 0))
                    w->pool[a] = y, w->pool[b] = x;
            }
            __syncthreads();
        }
}

/* Into the pool all ranks from bound on, as far as they have room; returns how many there are. A barrier lies
 * between two calls. */
static __device__ unsigned collect(const row &r, workspace *w, rank bound) {
    if (threadIdx.x == 0)
        w->count = 0;
    __syncthreads();
    each_rank(r, w, [w, bound](rank x) {
        if (x < bound)
            return;
        const unsigned at = atomicAdd(&w->count, 1u);
        if (at < MOST)
            w->pool[at] = x;
    });
    __syncthreads();
    return w->count;
}

/* The k-th largest rank, which is not below bound: eight bits after eight. */
static __device__ rank select_rank(const row &r, workspace *w, unsigned k, rank bound) {
    rank known = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (unsigned i = threadIdx.x; i < 256; i += blockDim.x)
            w->histogram[i] = 0;
        __syncthreads();
        each_rank(r, w, [=](rank x) {
            if (x >= bound && (x & mask) == known)
                atomicAdd(&w->histogram[x >> shift & 255], 1u);
        });
        __syncthreads();
        unsigned digit = 255;
        for (; w->histogram[digit] < k; digit--)
            k -= w->histogram[digit];
        known |= static_cast<rank>(digit) << shift;
        mask |= 255ull << shift;
    }
    return known;
}

/* The k best to the front of the pool, in order. */
static __device__ void pick_best(const row &r, workspace *w, unsigned k) {
    w->pool[threadIdx.x] = best_of_thread(r, w);
    __syncthreads();
    sort_pool(w, blockDim.x);
    const rank bound = w->pool[k - 1];
    unsigned n = collect(r, w, bound);
    if (n > MOST)
        n = collect(r, w, select_rank(r, w, k, bound));
    unsigned power = 1;
    while (power < n)
        power *= 2;
    for (unsigned i = n + threadIdx.x; i < power; i += blockDim.x)
        w->pool[i] = 0;
    __syncthreads();
    sort_pool(w, power);
}

/* How many of the k candidates top-p and min-p leave: until their probabilities reach top_p. */
static __device__ unsigned keep_likely(const sl_draw &draw, const workspace *w, unsigned k) {
    double sum = 0, seen = 0;
    for (unsigned i = 0; i < k; i++)
        sum += w->likely[i];
    for (unsigned i = 0; i < k; i++) {
        if (i > 0 &&
            (seen >= static_cast<double>(draw.top_p) * sum || w->likely[i] < static_cast<double>(draw.min_p)))
            return i;
        seen += w->likely[i];
    }
    return k;
}

static __device__ unsigned draw_one(const sl_draw &draw, const workspace *w, unsigned n) {
    double sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += w->weight[i];
    double left = draw.random * sum;
    unsigned chosen = 0;
    for (unsigned i = 0; i < n; i++) {
        if (w->weight[i] <= 0)
            continue;
        chosen = i; /* rounding may leave something after the last */
        left -= w->weight[i];
        if (left < 0)
            break;
    }
    return chosen;
}

static __device__ void read_window(const sl_draw &draw, workspace *w) {
    for (unsigned i = threadIdx.x; i < MARKS / 32; i += blockDim.x)
        w->marks[i] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < draw.n_window; i += blockDim.x) {
        const unsigned id = static_cast<unsigned>(draw.window[i]);
        w->window[i] = draw.window[i];
        atomicOr(&w->marks[id % MARKS / 32], 1u << id % 32);
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(MOST) sample(sl_sample_args a) {
    sl_begin();
    __shared__ workspace space;
    workspace *w = &space;
    const sl_draw &draw = a.draws[blockIdx.x];
    const row r = {a.logits + blockIdx.x * a.stride, a.n_vocab, draw.n_window, draw.repeat_penalty};
    int32_t *token = a.tokens + blockIdx.x;
    read_window(draw, w);
    if (!(draw.temperature > 0)) {
        const rank best = best_of_block(w, best_of_thread(r, w));
        if (threadIdx.x == 0)
            *token = id_of(best);
        return;
    }
    const unsigned k = min(draw.top_k, a.n_vocab);
    pick_best(r, w, k);
    const double best = logit_of(w->pool[0]);
    if (threadIdx.x < k) {
        const double distance = logit_of(w->pool[threadIdx.x]) - best;
        w->likely[threadIdx.x] = exp(distance);
        w->weight[threadIdx.x] = exp(distance / static_cast<double>(draw.temperature));
    }
    __syncthreads();
    if (threadIdx.x == 0) /* nothing is possible: as at temperature 0 */
        *token = id_of(
            w->pool[best == -static_cast<double>(INFINITY) ? 0 : draw_one(draw, w, keep_likely(draw, w, k))]);
}

int sl_sample_cuda(const sl_sample_args *args, sl_cuda_stream stream) {
    const unsigned threads = args->n_vocab <= SMALL ? FEW : MOST;
    return sl_launch(sample, dim3(args->n_row), dim3(threads), 0, stream, *args);
}
