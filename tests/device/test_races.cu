/* The watch for races tested (device_races.h), what is one and what is none; and the count of what warps ask of memory
 * (device_traffic.cpp). */
#include "device_check.h"
#include "kernels/mma_cuda.h"
#include "kernels/wgmma_cuda.h"

#include <sys/wait.h>
#include <unistd.h>

int sl_check_failures;

enum kind {
    OTHER_WARP,
    BARRIER,
    SAME_WARP,
    SYNCWARP,
    SYNCWARP_OF_OTHERS,
    SHUFFLE,
    LATE_WRITE,
    STATIC_SHARED,
    BLOCKS_WRITE,
    BLOCKS_READ,
    BLOCKS_ADD,
    ADD_AND_READ,
    SET_AND_ADD,
    BLOCKS_SET_AND_ADD,
    BYTES,
    COPY,
    COPY_WAIT,
    COPY_OVER,
    MATRIX,
    MATRIX_SYNC,
    GROUP,
    GROUP_UNPUBLISHED,
    GROUP_LATE,
    GROUP_OVER,
    GROUP_OVER_BEFORE
};

enum { TILES = (64 + 32) * 8 /* chunks */ };

struct race_args {
    kind what;
    uint4 *x;    /* [64], 16-byte aligned */
    unsigned *y; /* [128] */
};

/* Two warps; thread i reads what thread i ^ step wrote. */
static __device__ void exchange(kind what, unsigned *s, unsigned *y) {
    const unsigned i = threadIdx.x, step = what == OTHER_WARP || what == BARRIER ? 32 : 1;
    s[i] = i;
    if (what == BARRIER)
        __syncthreads();
    if (what == SYNCWARP)
        __syncwarp();
    if (what == SYNCWARP_OF_OTHERS)
        __syncwarp(i % 32 < 8 ? 0xffu : i % 2 ? 0xaaaaaa00u : 0x55555500u);
    if (what == SHUFFLE)
        y[i] = __shfl_xor_sync(0xffffffffu, i, 1);
    y[i] = s[i ^ step];
}

/* The writers come a barrier after the readers, or not. */
static __device__ void write_late(unsigned *s, unsigned *y) {
    const unsigned i = threadIdx.x;
    s[i] = i;
    __syncthreads();
    y[i] = s[(i + 32) % 64];
    s[i] = 2 * i;
}

static __device__ void between_blocks(const race_args &a) {
    const unsigned i = threadIdx.x, b = blockIdx.x;
    if (a.what == BLOCKS_WRITE)
        a.y[i] = i;
    if (a.what == BLOCKS_READ)
        a.y[i / 2 + 32 * b] = a.y[0];
    if (a.what == BLOCKS_ADD || (a.what == ADD_AND_READ && i > 0))
        atomicAdd(a.y + i % 4, 1u);
    if (a.what == ADD_AND_READ && i == 0)
        a.y[32] = a.y[1];
    if ((a.what == SET_AND_ADD || (a.what == BLOCKS_SET_AND_ADD && b == 0)) && i == 0)
        a.y[0] = 0;
    if (a.what == SET_AND_ADD || a.what == BLOCKS_SET_AND_ADD)
        atomicAdd(a.y, 1u);
    if (a.what == BYTES && b == 0)
        reinterpret_cast<unsigned char *>(a.y)[i] = static_cast<unsigned char>(i);
}

static __device__ void copy_and_read(const race_args &a, uint4 *s) {
    const unsigned i = threadIdx.x;
    sl_copy_async16(s + i, a.x + i);
    sl_copy_async_commit();
    if (a.what != COPY)
        sl_copy_async_wait<0>();
    __syncthreads();
    a.y[i] = s[(i + 32) % 64].x;
    if (a.what == COPY_OVER) /* of what others may still read */
        sl_copy_async16(s + i, a.x + i);
    sl_copy_async_commit();
    sl_copy_async_wait<0>();
}

static __device__ void load_rows(const race_args &a, uint4 *s) {
    const unsigned i = threadIdx.x;
    uint32_t r[4];
    s[i] = a.x[i];
    if (a.what == MATRIX_SYNC)
        __syncwarp();
    sl_mma_load(r, s + (i ^ 1));
    a.y[i] = r[0];
}

/* A warpgroup; a tile is written again in the end. */
static __device__ void multiply_tiles(const race_args &a, uint4 *s) {
    const unsigned i = threadIdx.x;
    float d[4][4] = {};
    for (unsigned j = i; j < TILES; j += 128)
        s[j] = a.x[i % 64];
    if (a.what != GROUP_UNPUBLISHED && a.what != GROUP_LATE)
        sl_wgmma_publish();
    __syncthreads();
    if (a.what == GROUP_LATE)
        sl_wgmma_publish();
    sl_wgmma_begin();
    sl_wgmma_f16(d, sl_wgmma_tile(s), sl_wgmma_tile(s + 64 * 8));
    sl_wgmma_commit();
    if (a.what != GROUP_OVER && a.what != GROUP_OVER_BEFORE)
        sl_wgmma_wait<0>();
    __syncthreads();
    s[i] = a.x[i % 64];
    if (a.what == GROUP_OVER_BEFORE) {
        sl_wgmma_publish();
        __syncthreads();
    }
    sl_wgmma_wait<0>();
    a.y[i] = __float_as_uint(d[0][0]);
}

static __global__ void race_kernel(race_args a) {
    sl_begin();
    SL_SHARED(uint4, shared);
    unsigned *s = reinterpret_cast<unsigned *>(shared);
    __shared__ unsigned fixed[64];
    switch (a.what) {
    case STATIC_SHARED: exchange(OTHER_WARP, fixed, a.y); return;
    case LATE_WRITE: write_late(s, a.y); return;
    case COPY:
    case COPY_WAIT:
    case COPY_OVER: copy_and_read(a, shared); return;
    case MATRIX:
    case MATRIX_SYNC: load_rows(a, shared); return;
    case GROUP:
    case GROUP_UNPUBLISHED:
    case GROUP_LATE:
    case GROUP_OVER:
    case GROUP_OVER_BEFORE: multiply_tiles(a, shared); return;
    default: break;
    }
    if (a.what < LATE_WRITE)
        exchange(a.what, s, a.y + 64 * blockIdx.x);
    else
        between_blocks(a);
}

/* text: of the race; NULL: there is none. The same in any order of threads and blocks. */
static void expect(kind what, unsigned n_block, const char *text) {
    for (unsigned seed = 0; seed < 4; seed++) {
        sl_device_seed(seed);
        const race_args a = {what, device_array<uint4>(64), device_array<unsigned>(128)};
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        for (int again = 0; again < (text ? 1 : 2); again++) /* launches are ordered */
            CHECK(sl_launch(race_kernel, dim3(n_block), dim3(what < GROUP ? 64 : 128), TILES * sizeof(uint4), nullptr, a) == 0);
        const cudaError_t status = cudaDeviceSynchronize();
        if (status != (text ? cudaErrorLaunchFailure : cudaSuccess))
            sl_check_failures++, fprintf(stderr, "kind %d, seed %u: %s\n", what, seed, sl_device_fault());
        if (text) {
            CHECK_FAULT("a race: thread");
            CHECK_FAULT(text);
        }
        CHECK(cudaDeviceReset() == cudaSuccess);
    }
}

/* ---- traffic ------------------------------------------------------------------------------------- */

struct traffic_args {
    const float *x; /* [64] */
    float2 *y;      /* [64 * 8] */
};

/* Two warps: 4-byte words in order; four lanes to a bank; eight bytes in order; and each in a sector of its own. */
static __global__ void traffic_kernel(traffic_args a) {
    sl_begin();
    SL_SHARED(float, shared);
    const unsigned i = threadIdx.x;
    shared[4 * i] = a.x[i];
    __syncthreads();
    const float v = shared[4 * (i ^ 1)];
    __syncthreads();
    reinterpret_cast<float2 *>(shared)[i] = make_float2(v, v);
    a.y[8 * i] = make_float2(v, v);
}

/* "device reads 2 256 8 8" for each place: instructions, bytes, sectors or passes, how many would do. */
static void count_traffic(const char *path) {
    setenv("SLUICE_DEVICE_TRAFFIC", path, 1); /* read at the first launch, written at the end */
    const traffic_args a = {device_array<float>(64), device_array<float2>(512)};
    CHECK(sl_launch(traffic_kernel, dim3(1), dim3(64), 256 * sizeof(float), nullptr, a) == 0);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    exit(sl_check_failures);
}

static void test_traffic(void) {
    static const char *const wanted[] = {"device reads 2 256 8 8", "shared writes 2 256 8 2", "shared reads 2 256 8 2",
                                         "shared writes 2 512 4 4", "device writes 2 512 64 16"};
    char path[] = "/tmp/sluice-traffic-XXXXXX", line[256];
    const int file = mkstemp(path);
    int status = -1;
    const pid_t child = fork();
    if (child == 0)
        count_traffic(path);
    CHECK(file >= 0 && waitpid(child, &status, 0) == child && status == 0);
    FILE *lines = fdopen(file, "r");
    unsigned n = 0, n_known = 0;
    while (lines && fgets(line, sizeof line, lines)) {
        const char *rest = strchr(line, ' ');
        bool known = false;
        for (const char *w : wanted)
            known = known || (rest && strncmp(rest + 1, w, strlen(w)) == 0);
        if (!known)
            fprintf(stderr, "traffic: %s", line);
        n++, n_known += known;
    }
    CHECK(n == 5 && n_known == 5);
    if (lines)
        fclose(lines);
    unlink(path);
}

int main() {
    test_traffic();
    expect(OTHER_WARP, 1, "unordered");
    expect(BARRIER, 2, nullptr);
    expect(SAME_WARP, 1, "unordered");
    expect(SYNCWARP, 2, nullptr);
    expect(SYNCWARP_OF_OTHERS, 1, "unordered");
    expect(SHUFFLE, 1, "unordered");
    expect(LATE_WRITE, 1, "read");
    expect(STATIC_SHARED, 1, "unordered");
    expect(BLOCKS_WRITE, 2, "of block number");
    expect(BLOCKS_WRITE, 1, nullptr);
    expect(BLOCKS_READ, 2, "block");
    expect(BLOCKS_ADD, 2, nullptr);
    expect(ADD_AND_READ, 2, "unordered");
    expect(SET_AND_ADD, 1, "unordered");
    expect(BLOCKS_SET_AND_ADD, 2, "block");
    expect(BYTES, 1, nullptr);
    expect(COPY, 1, "wrote");
    expect(COPY_WAIT, 1, nullptr);
    expect(COPY_OVER, 1, "unordered");
    expect(MATRIX, 1, "reads");
    expect(MATRIX_SYNC, 1, nullptr);
    expect(GROUP, 1, nullptr);
    expect(GROUP_UNPUBLISHED, 1, "wrote and did not publish");
    expect(GROUP_LATE, 1, "wrote and did not publish");
    expect(GROUP_OVER, 1, "wrote");
    expect(GROUP_OVER_BEFORE, 1, "wrote while a product read it");
    if (sl_check_failures == 0)
        printf("races: all checks hold\n");
    return sl_check_failures != 0;
}
