/* The test device tested, part one: threads of a block. Barriers, warp collectives, shared memory, atomics, and
 * the faults that a real device would leave undefined. Also the example of a kernel in the subset of
 * kernels/cuda.h. */
#include "device_check.h"
#include "kernels/mma_cuda.h"
#include "kernels/wgmma_cuda.h"

#include <sys/wait.h>
#include <unistd.h>

int sl_check_failures;

bool dies(void (*f)(void)) {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr); /* sanitizers explain themselves at length */
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status != 0;
}

/* ---- barriers and shared memory ------------------------------------------------------------------ */

struct sum_args {
    const float *x; /* [blocks, n] */
    float *y;       /* [blocks] */
    unsigned n;
};

/* The usual sum of a block: lanes, warps, barrier, one warp. */
static __global__ void sum_kernel(sum_args a) {
    sl_begin();
    SL_SHARED(float, part);
    float v = 0;
    for (unsigned i = threadIdx.x; i < a.n; i += blockDim.x)
        v += sl_load(a.x + static_cast<size_t>(blockIdx.x) * a.n + i);
    v = sl_warp_sum(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    v = sl_warp_sum(threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0)
        sl_store(a.y + blockIdx.x, v);
}

static void test_sum(void) {
    enum { N = 1000, BLOCKS = 3 };
    float x[BLOCKS * N], y[BLOCKS], want[BLOCKS] = {0};
    for (int i = 0; i < BLOCKS * N; i++)
        want[i / N] += x[i] = static_cast<float>(i * 7 % 11);
    float *dx = device_array<float>(BLOCKS * N), *dy = device_array<float>(BLOCKS);
    CHECK(cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice) == cudaSuccess);
    for (unsigned threads = 32; threads <= 1024; threads *= 2)
        for (unsigned seed = 0; seed < 4; seed++) {
            sl_device_seed(seed);
            sum_args args = {dx, dy, N};
            CHECK(sl_launch(sum_kernel, dim3(BLOCKS), dim3(threads), threads / 32 * sizeof(float), nullptr,
                            args) == 0);
            fetch(y, dy, BLOCKS);
            for (int i = 0; i < BLOCKS; i++)
                CHECK(y[i] == want[i]);
        }
    sl_device_seed(0);
    CHECK(cudaFree(dx) == cudaSuccess && cudaFree(dy) == cudaSuccess);
}

struct rounds_args {
    unsigned *y;
    unsigned rounds;
};

/* Each round every thread reads its neighbour's number of the last round: a barrier too early or late shows. */
static __global__ void rounds_kernel(rounds_args a) {
    sl_begin();
    __shared__ unsigned number[2][96];
    unsigned i = threadIdx.x + threadIdx.y * blockDim.x, n = blockDim.x * blockDim.y;
    number[0][i] = i;
    for (unsigned r = 0; r < a.rounds; r++) {
        __syncthreads();
        number[(r + 1) % 2][i] = number[r % 2][(i + 1) % n] + 1;
    }
    a.y[i] = number[a.rounds % 2][i];
}

static void test_rounds(void) {
    unsigned *dy = device_array<unsigned>(96), y[96];
    rounds_args args = {dy, 50};
    for (unsigned seed = 0; seed < 3; seed++) {
        sl_device_seed(seed);
        CHECK(sl_launch(rounds_kernel, dim3(1), dim3(24, 4), 0, nullptr, args) == 0);
        fetch(y, dy, 96);
        for (unsigned i = 0; i < 96; i++)
            CHECK(y[i] == (i + 50) % 96 + 50);
    }
    sl_device_seed(0);
    CHECK(cudaFree(dy) == cudaSuccess);
}

struct poison_args {
    unsigned *y;
};

static __global__ void poison_kernel(poison_args a) {
    sl_begin();
    SL_SHARED(unsigned, s);
    a.y[blockIdx.x] = s[0] & s[15];
    s[0] = s[15] = 0;
}

static void test_poison(void) {
    unsigned *dy = device_array<unsigned>(2), y[2];
    CHECK(sl_launch(poison_kernel, dim3(2), dim3(1), 64, nullptr, poison_args{dy}) == 0);
    fetch(y, dy, 2);
    CHECK(y[0] == 0xffffffffu && y[1] == 0xffffffffu);
    CHECK(cudaFree(dy) == cudaSuccess);
}

static void shared_overrun(void) {
    unsigned *dy = device_array<unsigned>(1);
    sl_launch(poison_kernel, dim3(1), dim3(1), 15 * sizeof(unsigned) - 16, nullptr, poison_args{dy});
    cudaDeviceSynchronize();
}

/* ---- warps --------------------------------------------------------------------------------------- */

struct warp_args {
    int *y; /* [64, 10] */
};

static __global__ void warp_kernel(warp_args a) {
    sl_begin();
    int i = static_cast<int>(threadIdx.x), *y = a.y + 10 * i;
    const unsigned all = 0xffffffffu;
    y[0] = __shfl_sync(all, i, 5);
    y[1] = __shfl_up_sync(all, i, 3);
    y[2] = __shfl_down_sync(all, i, 3);
    y[3] = __shfl_xor_sync(all, i, 9);
    y[4] = static_cast<int>(__shfl_sync(all, static_cast<float>(i) * 0.5f, i + 1) * 2);
    y[5] = static_cast<int>(__ballot_sync(all, i % 3 == 0));
    y[6] = __any_sync(all, i == 40) * 2 + __all_sync(all, i < 32);
    y[7] = __shfl_xor_sync(all, i, 3, 8);
    if (i % 2) /* each half of the lanes for itself */
        y[8] = __shfl_down_sync(0xaaaaaaaau, i, 2);
    else
        y[8] = __shfl_up_sync(0x55555555u, i, 2);
    __syncwarp();
    y[9] = static_cast<int>(__ballot_sync(all, 1));
}

static void test_warp(void) {
    int *dy = device_array<int>(64 * 10), y[64][10];
    for (unsigned seed = 0; seed < 3; seed++) {
        sl_device_seed(seed);
        CHECK(sl_launch(warp_kernel, dim3(1), dim3(64), 0, nullptr, warp_args{dy}) == 0);
        fetch(y[0], dy, 64 * 10);
        for (int i = 0; i < 64; i++) {
            int lane = i % 32, base = i - lane;
            CHECK(y[i][0] == base + 5);
            CHECK(y[i][1] == (lane < 3 ? i : i - 3));
            CHECK(y[i][2] == (lane > 28 ? i : i + 3));
            CHECK(y[i][3] == (i ^ 9));
            CHECK(y[i][4] == base + (lane + 1) % 32);
            CHECK(static_cast<unsigned>(y[i][5]) == (base ? 0x92492492u : 0x49249249u));
            CHECK(y[i][6] == (base ? 2 : 1));
            CHECK(y[i][7] == (i ^ 3));
            CHECK(y[i][8] == (i % 2 ? (lane > 29 ? i : i + 2) : (lane < 2 ? i : i - 2)));
            CHECK(y[i][9] == -1);
        }
    }
    sl_device_seed(0);
    CHECK(cudaFree(dy) == cudaSuccess);
}

struct atomic_args {
    int *count;
    unsigned *top;
    float *sum;
    unsigned long long *big;
};

static __global__ void atomic_kernel(atomic_args a) {
    sl_begin();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(a.count, 1);
    atomicMax(a.top, i), atomicMin(a.top + 1, i);
    atomicAdd(a.sum, 0.5f);
    atomicAdd(a.big, 1ull << 32);
    atomicCAS(a.top + 2, 0u, i + 1);
    atomicExch(a.top + 3, 7u);
}

static void test_atomics(void) {
    int *count = device_array<int>(1), n;
    unsigned *top = device_array<unsigned>(4), t[4];
    float *sum = device_array<float>(1), s;
    unsigned long long *big = device_array<unsigned long long>(1), b;
    CHECK(cudaMemset(top + 1, 0xff, sizeof *top) == cudaSuccess);
    CHECK(sl_launch(atomic_kernel, dim3(3), dim3(50), 0, nullptr, atomic_args{count, top, sum, big}) == 0);
    fetch(&n, count, 1), fetch(t, top, 4), fetch(&s, sum, 1), fetch(&b, big, 1);
    CHECK(n == 150 && t[0] == 149 && t[1] == 0 && t[2] == 1 && t[3] == 7 && s == 75.0f && b == 150ull << 32);
    CHECK(cudaFree(count) == cudaSuccess && cudaFree(top) == cudaSuccess);
    CHECK(cudaFree(sum) == cudaSuccess && cudaFree(big) == cudaSuccess);
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static void test_numbers(void) {
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        uint16_t half = static_cast<uint16_t>(bits);
        float v = sl_half_to_float(half), w = sl_bf16_bits_to_float(half);
        CHECK(v != v ? (sl_float_to_half(v) & 0x7fff) > 0x7c00 : sl_float_to_half(v) == half);
        CHECK(v != v ? (sl_float_to_f16(v) & 0x7fff) > 0x7c00
                     : sl_float_to_f16(v) == (isinf(v) ? (half & 0x8000) | 0x7bff : half));
        CHECK(w != w ? (sl_float_to_bf16_bits(w) & 0x7fff) > 0x7f80 : sl_float_to_bf16_bits(w) == half);
    }
    CHECK(sl_half_to_float(0x3c00) == 1.0f && sl_half_to_float(0x0001) == ldexpf(1, -24));
    CHECK(sl_half_to_float(0x7bff) == 65504.0f && isinf(sl_half_to_float(0xfc00)));
    /* halfway goes to even, in the normal and the subnormal range, and at the edge to infinity */
    CHECK(sl_float_to_half(1.0f + ldexpf(1, -11)) == 0x3c00 &&
          sl_float_to_half(1.0f + 3 * ldexpf(1, -11)) == 0x3c02);
    CHECK(sl_float_to_half(ldexpf(1, -25)) == 0 && sl_float_to_half(3 * ldexpf(1, -25)) == 2);
    CHECK(sl_float_to_half(65519.9f) == 0x7bff && sl_float_to_half(65520.0f) == 0x7c00);
    CHECK(sl_float_to_f16(65520.0f) == 0x7bff && sl_float_to_f16(-3e38f) == 0xfbff);
    CHECK(sl_pack_half(65520, -1) == 0xbc007c00 && sl_pack_f16(65520, -1e9f) == 0xfbff7bff);
    CHECK(sl_float_to_bf16_bits(1.0f + ldexpf(1, -8)) == 0x3f80 &&
          sl_float_to_bf16_bits(1.0f + 3 * ldexpf(1, -8)) == 0x3f82);
    alignas(16) float x[8], y[8];
    alignas(16) sl_f16 b[8];
    for (int i = 0; i < 8; i++)
        x[i] = static_cast<float>(i) - 3.5f;
    sl_store4(b, x), sl_store4(b + 4, x + 4), sl_load8(b, y);
    CHECK(memcmp(x, y, sizeof x) == 0);
    /* an infinity is read as the largest number */
    b[0].bits = 0x7c00, b[1].bits = 0xfc00, b[2].bits = 0x7e00;
    sl_load8(b, y);
    CHECK(y[0] == 65504 && y[1] == -65504 && y[2] != y[2] && y[3] == -0.5f);
    CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7140) == 0x77114400u);
    sl_load4(b, y);
    CHECK(y[0] == 65504 && y[1] == -65504 && sl_load(b) == 65504 && sl_load(b + 1) == -65504);
    CHECK(__dp4a(0x01ff7f80, 0x02038001, 5) == 5 + -128 * 1 + 127 * -128 + -1 * 3 + 1 * 2);
}

/* ---- copies under way ---------------------------------------------------------------------------- */

struct copy_args {
    const uint4 *x; /* [96] */
    unsigned *y;    /* [32, 5] */
};

/* What a thread sees of its three groups of copies after each wait; the third is zeros instead. */
static __global__ void copy_kernel(copy_args a) {
    sl_begin();
    __shared__ uint4 got[3][32];
    const unsigned i = threadIdx.x;
    unsigned *y = a.y + 5 * i;
    for (int g = 0; g < 3; g++) {
        got[g][i] = make_uint4(7, 7, 7, 7);
        sl_copy_async16_zero(&got[g][i], a.x + 32 * g + i, g < 2);
        if (g == 0)
            sl_copy_async_wait<0>(); /* of a group not yet ended */
        if (g == 0)
            y[0] = got[0][i].w;
        sl_copy_async_commit();
    }
    sl_copy_async_wait<2>();
    y[1] = got[0][i].x, y[2] = got[1][i].x;
    sl_copy_async_wait<0>();
    y[3] = got[1][i].w, y[4] = got[2][i].y;
}

static void test_copies(void) {
    uint4 *dx = device_array<uint4>(96), x[96];
    unsigned *dy = device_array<unsigned>(32 * 5), y[32][5];
    for (unsigned i = 0; i < 96; i++)
        x[i] = make_uint4(1000 + i, 0, 0, 2000 + i);
    CHECK(cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice) == cudaSuccess);
    for (unsigned seed = 0; seed < 2; seed++) { /* 1: at once */
        sl_device_seed(seed);
        CHECK(sl_launch(copy_kernel, dim3(1), dim3(32), 0, nullptr, copy_args{dx, dy}) == 0);
        fetch(y[0], dy, 32 * 5);
        for (unsigned i = 0; i < 32; i++) {
            CHECK(y[i][0] == (seed ? 2000 + i : 7) && y[i][1] == 1000 + i);
            CHECK(y[i][2] == (seed ? 1032 + i : 7));
            CHECK(y[i][3] == 2032 + i && y[i][4] == 0);
        }
    }
    sl_device_seed(0);
    CHECK(cudaFree(dx) == cudaSuccess && cudaFree(dy) == cudaSuccess);
}

/* ---- products of a warpgroup --------------------------------------------------------------------- */

enum { GROUP_ROWS = 64, GROUP_COLS = 32, GROUP_CHUNKS = 8 /* of a row, 16 bytes each */ };
struct group_args {
    const uint16_t *x, *w; /* [GROUP_ROWS, 64], [GROUP_COLS, 64] */
    float *before, *after; /* [GROUP_ROWS, GROUP_COLS]: of the first product, of the second */
};

static __device__ void put_tile(uint4 *tile, const uint16_t *rows, unsigned n_row) {
    for (unsigned i = threadIdx.x; i < n_row * GROUP_CHUNKS; i += 128) {
        const unsigned row = i / GROUP_CHUNKS, chunk = i % GROUP_CHUNKS;
        tile[row * GROUP_CHUNKS + (chunk ^ row % 8)] = reinterpret_cast<const uint4 *>(rows)[i];
    }
}

/* Where kernels/wgmma_cuda.h says that they are. */
static __device__ void put_sums(float *to, const float d[GROUP_COLS / 8][4]) {
    const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (unsigned j = 0; j < GROUP_COLS / 8; j++)
        for (unsigned i = 0; i < 4; i++)
            to[(16 * warp + g + i / 2 * 8) * GROUP_COLS + 8 * j + 2 * q + i % 2] = d[j][i];
}

/* 16 elements from the 48th on, added to 3 twice. */
static __global__ void group_kernel(group_args a) {
    sl_begin();
    SL_SHARED_AT(uint4, shared, 1024);
    uint4 *x = shared, *w = shared + GROUP_ROWS * GROUP_CHUNKS;
    float d[GROUP_COLS / 8][4];
    for (unsigned i = 0; i < GROUP_COLS / 2; i++)
        d[i / 4][i % 4] = 3;
    put_tile(x, a.x, GROUP_ROWS), put_tile(w, a.w, GROUP_COLS);
    sl_wgmma_publish();
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        sl_wgmma_begin();
        sl_wgmma_f16(d, sl_wgmma_tile(x) + 6, sl_wgmma_tile(w) + 6);
        sl_wgmma_commit();
    }
    sl_wgmma_wait<1>();
    put_sums(a.before, d); /* on a GPU they are not to be read yet */
    sl_wgmma_wait<0>();
    sl_wgmma_end(d);
    put_sums(a.after, d);
}

static void test_products(void) {
    static uint16_t x[GROUP_ROWS][64], w[GROUP_COLS][64];
    static float before[GROUP_ROWS][GROUP_COLS], after[GROUP_ROWS][GROUP_COLS];
    for (int r = 0; r < GROUP_ROWS; r++)
        for (int k = 0; k < 64; k++) {
            x[r][k] = sl_device_float_to_half(static_cast<float>((7 * r + 3 * k) % 11 - 5));
            w[r % GROUP_COLS][k] = sl_device_float_to_half(static_cast<float>((5 * (r % GROUP_COLS) + k * k) % 13 - 6));
        }
    group_args a = {device_array<uint16_t>(sizeof x / 2), device_array<uint16_t>(sizeof w / 2),
                    device_array<float>(GROUP_ROWS * GROUP_COLS), device_array<float>(GROUP_ROWS * GROUP_COLS)};
    CHECK(cudaMemcpy(const_cast<uint16_t *>(a.x), x, sizeof x, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(const_cast<uint16_t *>(a.w), w, sizeof w, cudaMemcpyHostToDevice) == cudaSuccess);
    for (unsigned seed = 0; seed < 2; seed++) { /* when they are waited for, or at once */
        sl_device_seed(seed);
        CHECK(sl_launch(group_kernel, dim3(1), dim3(128), (GROUP_ROWS + GROUP_COLS) * 128, nullptr, a) == 0);
        fetch(before[0], a.before, GROUP_ROWS * GROUP_COLS);
        fetch(after[0], a.after, GROUP_ROWS * GROUP_COLS);
        for (int r = 0; r < GROUP_ROWS; r++)
            for (int c = 0; c < GROUP_COLS; c++) {
                float sum = 0;
                for (int k = 48; k < 64; k++)
                    sum += sl_device_half_to_float(x[r][k]) * sl_device_half_to_float(w[c][k]);
                CHECK(after[r][c] == 3 + 2 * sum);
                CHECK(before[r][c] == 3 + (seed ? 2 : 1) * sum);
            }
    }
    sl_device_seed(0);
    CHECK(cudaDeviceReset() == cudaSuccess);
}

/* ---- faults -------------------------------------------------------------------------------------- */

struct fault_args {
    int kind;
};

/* Two ways to misuse a copy, two to misuse the matrix units, one to misuse a prefetch. */
static __device__ void matrix_faults(int kind, unsigned i) {
    __shared__ uint4 tile[64], other[8];
    uint32_t r[4] = {0, 0, 0, 0};
    float d[4] = {0, 0, 0, 0};
    switch (kind) {
    case 8: sl_copy_async16(tile + i, other); return;
    case 9: sl_copy_async16(tile + i, reinterpret_cast<char *>(other) + 4); return;
    case 18: sl_prefetch(tile); return;
    case 10: sl_mma_load(r, reinterpret_cast<char *>(tile) + 2); return;
    case 11: /* two instructions of the same shape */
        if (i < 16)
            sl_mma_bf16(d, r, r);
        else
            sl_mma_f16(d, r, r);
        return;
    }
}

/* And the products of a warpgroup, with 12 KB. */
static __device__ void group_faults(int kind, unsigned i) {
    SL_SHARED_AT(unsigned char, shared, 1024);
    float d[4][4] = {};
    const unsigned at = kind == 13 ? 128 : kind == 14 ? 8 << 10 : 0;
    if (kind != 19)
        sl_wgmma_begin();
    if (kind == 20 && i / 32 == 3)
        return;
    const bool other = (kind == 15 && i % 32 == 5) || (kind == 16 && i / 32 == 1);
    sl_wgmma_f16(d, sl_wgmma_tile(shared + at) + (other ? 2 : 0), sl_wgmma_tile(shared + (8 << 10)));
    if (kind != 17)
        sl_wgmma_commit();
    sl_wgmma_wait<0>();
}

static __global__ void fault_kernel(fault_args a) {
    if (a.kind != 12) /* which leaves it out */
        sl_begin();
    unsigned i = threadIdx.x;
    switch (a.kind) {
    case 0: /* one thread leaves before the barrier */
        if (i == 7)
            return;
        __syncthreads();
        return;
    case 1: /* half the block waits for the barrier, the other for its warp */
        if (i < 16)
            __syncthreads();
        else
            __syncwarp();
        return;
    case 2: /* a lane that has returned */
        if (i == 3)
            return;
        sl_warp_sum(1);
        return;
    case 3: /* lanes that the block does not have */
        if (i >= 32)
            sl_warp_sum(1);
        return;
    case 4: __ballot_sync(2u, 1); return;
    case 5: __shfl_sync(0xffffu, 1, 20); return;
    case 6:
        if (i == 9)
            __trap();
        return;
    case 7: /* two different collectives of one warp */
        if (i < 16)
            __syncwarp();
        else
            __ballot_sync(0xffffffffu, 1);
        return;
    case 13:
    case 14:
    case 15:
    case 16:
    case 17:
    case 19:
    case 20: group_faults(a.kind, i); return;
    default: matrix_faults(a.kind, i);
    }
}

static void expect_fault(int kind, unsigned threads, const char *text) {
    CHECK(sl_launch(fault_kernel, dim3(2), dim3(threads), kind < 13 ? 0 : 12 << 10, nullptr, fault_args{kind}) == 0);
    CHECK(cudaStreamSynchronize(nullptr) == cudaErrorLaunchFailure);
    CHECK_FAULT(text);
    CHECK_FAULT("kernel of fault_args, block (0, 0, 0)");
    void *p;
    CHECK(cudaMalloc(&p, 16) == cudaErrorLaunchFailure); /* and so it stays */
    CHECK(cudaDeviceReset() == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess);
}

static void test_faults(void) {
    for (int again = 0; again < 2; again++) { /* stacks of abandoned threads are used again */
        expect_fault(0, 64, "thread 7 returned while 7 threads wait at __syncthreads");
        expect_fault(1, 32,
                     "no thread can go on: thread 0 waits at __syncthreads, thread 16 waits at __syncwarp");
        expect_fault(2, 32, "thread 3 returned while thread 0 waits for it at __shfl_xor_sync");
        expect_fault(3, 40, "names lanes that the block does not have");
        expect_fault(4, 32, "mask 0x00000002 does not name the calling lane 0");
        expect_fault(5, 16, "lane 0 reads lane 20");
        expect_fault(6, 32, "thread 9: __trap");
        expect_fault(7, 32, "no thread can go on: thread 0 waits at __syncwarp");
        expect_fault(8, 32, "thread 0 returned with 1 copies under way");
        expect_fault(9, 32, "thread 0: a copy of sl_copy_async16 does not start at a multiple of 16 bytes");
        expect_fault(10, 32, "thread 0: a row of sl_mma_load does not start at a multiple of 16 bytes");
        expect_fault(11, 32, "thread 0 waits at a matrix instruction");
        expect_fault(12, 32, "thread 0 returned without sl_begin");
        expect_fault(13, 128, "a tile of a warpgroup's product does not begin at a multiple of 1024 bytes");
        expect_fault(14, 128, "a tile of a warpgroup's product lies beyond the block's shared memory");
        expect_fault(15, 128, "the lanes of a warp ask for different products");
        expect_fault(16, 128, "the warps of a warpgroup ask for different products");
        expect_fault(17, 128, "returned with 1 products under way");
        expect_fault(19, 128, "a warpgroup's product without sl_wgmma_begin");
        expect_fault(20, 128, "a product that not all four warps of a warpgroup have asked for");
        expect_fault(18, 32, "sl_prefetch of what is not device memory");
        test_sum();
    }
}

static void test_limits(void) {
    fault_args a = {-1};
    const int refused = cudaErrorInvalidConfiguration;
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1024), 163 * 1024, nullptr, a) == 0);
    CHECK(sl_launch(fault_kernel, dim3(1, 65535), dim3(4, 4, 64), 0, nullptr, a) == 0);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1025), 0, nullptr, a) == refused);
    CHECK_FAULT("a block of 1025 x 1 x 1 threads");
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(2, 2, 65), 0, nullptr, a) == refused);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(32, 33), 0, nullptr, a) == refused);
    CHECK(sl_launch(fault_kernel, dim3(0), dim3(1), 0, nullptr, a) == refused);
    CHECK(sl_launch(fault_kernel, dim3(1, 65536), dim3(1), 0, nullptr, a) == refused);
    CHECK(sl_launch(fault_kernel, dim3(1, 1, 65536), dim3(1), 0, nullptr, a) == refused);
    CHECK(sl_launch(fault_kernel, dim3(0x80000000u), dim3(1), 0, nullptr, a) == refused);
    CHECK(cudaDeviceReset() == cudaSuccess);
}

/* More than 48 KB only where the kernel has been allowed it: all that the device has, whatever a launch takes. */
static void test_shared_limit(void) {
    fault_args a = {-1};
    const int too_much = cudaErrorLaunchOutOfResources;
    CHECK(sl_launch_kernel(fault_kernel, dim3(1), dim3(1), 48 * 1024 + 1, nullptr, a) == cudaErrorInvalidValue);
    CHECK_FAULT("49153 bytes of dynamic shared memory, the kernel's limit is 49152");
    unsigned long before = sl_device_calls();
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 48 * 1024, nullptr, a) == 0);
    CHECK(sl_device_calls() - before == 1); /* which nobody asks for */
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 100 * 1024, nullptr, a) == 0);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 60 * 1024, nullptr, a) == 0);
    /* what another thread would launch now, that had asked before the last one did */
    CHECK(sl_launch_kernel(fault_kernel, dim3(1), dim3(1), 163 * 1024, nullptr, a) == cudaSuccess);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 163 * 1024 + 1, nullptr, a) == too_much);
    sl_device_shared_limit(99 * 1024);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 99 * 1024, nullptr, a) == 0);
    CHECK(sl_launch(fault_kernel, dim3(1), dim3(1), 100 * 1024, nullptr, a) == too_much);
    const void *kernel = reinterpret_cast<const void *>(static_cast<void (*)(fault_args)>(fault_kernel));
    const cudaFuncAttribute attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    CHECK(cudaFuncSetAttribute(kernel, attribute, 99 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK_FAULT("101377 bytes of shared memory of 101376");
    sl_device_shared_limit(163 * 1024);
    CHECK(cudaDeviceReset() == cudaSuccess);
}

int main() {
    test_sum();
    test_rounds();
    test_poison();
    CHECK(dies(shared_overrun));
    test_warp();
    test_atomics();
    test_numbers();
    test_copies();
    test_products();
    test_faults();
    test_limits();
    test_shared_limit();
    test_runtime();
    if (sl_check_failures == 0)
        printf("test device: all checks hold\n");
    return sl_check_failures != 0;
}
