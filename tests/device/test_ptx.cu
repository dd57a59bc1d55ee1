/* The translation of PTX tested (tests/device/ptx, device_ptx.h): nvcc compiles the kernels below, and the results are
 * what the instruction set says, where C++ says something else or nothing. */
#include "kernels/cuda.h"

/* Each asks one instruction: a name, what it is given (as far as it takes them), what comes out. */
#define ONE(X)                                                                     \
    X(SHL, "shl.b32 %0, %1, %2;", 1u, 32u, 0u, 0u)                                 \
    X(SHL_31, "shl.b32 %0, %1, %2;", 3u, 31u, 0u, 0x80000000u)                     \
    X(SHR_UNSIGNED, "shr.u32 %0, %1, %2;", ~0u, 99u, 0u, 0u)                       \
    X(SHR_SIGNED, "shr.s32 %0, %1, %2;", 0x80000000u, 99u, 0u, ~0u)                \
    X(SHIFT_BOTH, "shf.l.wrap.b32 %0, %1, %2, %3;", 0xf0000000u, 1u, 36u, 0x1fu)   \
    X(PERMUTE, "prmt.b32 %0, %1, %2, %3;", 0x33221100u, 0x77665544u, 0x7420u, 0x77442200u) \
    X(PERMUTE_SIGN, "prmt.b32 %0, %1, %2, %3;", 0x80u, 0x7fu, 0xc848u, 0x00ff7fffu) \
    X(FIELD, "bfe.u32 %0, %1, %2, 8;", 0xabcdu, 4u, 0u, 0xbcu)                     \
    X(FIELD_BEYOND, "bfe.u32 %0, %1, %2, 8;", 0xf0000000u, 28u, 0u, 0xfu)          \
    X(INSERT, "bfi.b32 %0, %1, %2, 4, 8;", 0xfffu, 0u, 0u, 0xff0u)                 \
    X(MUL_HIGH, "mul.hi.u32 %0, %1, %2;", ~0u, ~0u, 0u, 0xfffffffeu)               \
    X(MUL_HIGH_SIGNED, "mul.hi.s32 %0, %1, %2;", ~0u, ~0u, 0u, 0u)                 \
    X(MAD_WRAPS, "mad.lo.s32 %0, %1, %2, %3;", 0x7fffffffu, 3u, 5u, 0x80000002u)   \
    X(CARRY, "{ .reg .b32 t; add.cc.u32 t, %1, %2; addc.u32 %0, %3, 0; }", ~0u, 1u, 7u, 8u) \
    X(NO_CARRY, "{ .reg .b32 t; add.cc.u32 t, %1, %2; addc.u32 %0, %3, 0; }", 2u, 1u, 7u, 7u) \
    X(BORROW, "{ .reg .b32 t; sub.cc.u32 t, %1, %2; subc.u32 %0, %3, 0; }", 1u, 2u, 7u, 6u) \
    X(COUNT, "popc.b32 %0, %1;", 0xf0f0u, 0u, 0u, 8u)                              \
    X(ROUND_EVEN, "cvt.rni.s32.f32 %0, %1;", 0x40200000u, 0u, 0u, 2u)              \
    X(ROUND_SATURATES, "cvt.rni.s32.f32 %0, %1;", 0xff000000u, 0u, 0u, 0x80000000u) \
    X(CUT_HIGH, "cvt.rzi.s32.f32 %0, %1;", 0x4f000000u, 0u, 0u, 0x7fffffffu)       \
    X(CUT_NEGATIVE, "cvt.rzi.u32.f32 %0, %1;", 0xbfc00000u, 0u, 0u, 0u)            \
    X(CUT_NONE, "cvt.rzi.s32.f32 %0, %1;", 0x7fc00000u, 0u, 0u, 0u)                \
    X(SATURATE, "cvt.sat.f32.f32 %0, %1;", 0xc0000000u, 0u, 0u, 0u)                \
    X(SATURATE_NONE, "cvt.sat.f32.f32 %0, %1;", 0x7fc00000u, 0u, 0u, 0u)           \
    X(MIN_NONE, "min.f32 %0, %1, %2;", 0x7fc00000u, 0x40000000u, 0u, 0x40000000u)  \
    X(MIN_ZEROS, "min.f32 %0, %1, %2;", 0u, 0x80000000u, 0u, 0x80000000u)          \
    X(MAX_ZEROS, "max.f32 %0, %1, %2;", 0x80000000u, 0u, 0u, 0u)                   \
    X(FUSED, "fma.rn.f32 %0, %1, %2, %3;", 0x3f800001u, 0x3f800001u, 0xbf800002u, 0x28800000u) \
    X(FUSED_DOWN, "fma.rm.f32 %0, %1, %2, %3;", 0x3f800000u, 0x3f800000u, 0xa8800000u, 0x3f7fffffu) \
    X(FUSED_UP, "fma.rp.f32 %0, %1, %2, %3;", 0x3f800000u, 0x3f800000u, 0x28800000u, 0x3f800001u) \
    X(ADD_CUT, "add.rz.f32 %0, %1, %2;", 0xbf800000u, 0x28800000u, 0u, 0xbf7fffffu) \
    X(LESS_NONE, "{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }", 0x7fc00000u, 0u, 0u, 0u) \
    X(NOT_NONE, "{ .reg .pred p; setp.ne.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }", 0x7fc00000u, 0u, 0u, 0u) \
    X(UNORDERED, "{ .reg .pred p; setp.ltu.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }", 0x7fc00000u, 0u, 0u, 1u) \
    X(BOTH, "{ .reg .pred p, q; setp.eq.u32 p|q, %1, %2; selp.u32 %0, 1, 2, q; }", 4u, 4u, 0u, 2u) \
    X(UNDER, "{ .reg .pred p; setp.eq.u32 p, %1, %2; mov.u32 %0, 1; @!p mov.u32 %0, %3; }", 4u, 5u, 9u, 9u) \
    X(HALVES, "cvt.rn.f16x2.f32 %0, %1, %2;", 0x3f800000u, 0x40000000u, 0u, 0x3c004000u) \
    X(BF16_HALVES, "cvt.rn.bf16x2.f32 %0, %1, %2;", 0x3f808000u, 0x3f818000u, 0u, 0x3f803f82u) \
    X(HALVES_LEAST, "min.NaN.f16x2 %0, %1, %2;", 0x7e003c00u, 0x3c007c00u, 0u, 0x7fff3c00u) \
    X(HALVES_MUL, "mul.f16x2 %0, %1, %2;", 0x3c014000u, 0x3c017bffu, 0u, 0x3c027c00u) \
    X(WORD, "{ .reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, l}; }", 0x12345678u, 0u, 0u, 0x56781234u) \
    X(POWER, "ex2.approx.f32 %0, %1;", 0xc0400000u, 0u, 0u, 0x3e000000u)           \
    X(POWER_SMALL, "ex2.approx.ftz.f32 %0, %1;", 0xc2fe0000u, 0u, 0u, 0u)

enum {
#define X(name, text, a, b, c, want) name,
    ONE(X)
#undef X
        N_ONE
};

struct ask_args {
    const unsigned *x; /* [N_ONE, 3] */
    unsigned *y;       /* [N_ONE] */
};
__global__ void ask(ask_args a) {
    sl_begin();
#ifdef __CUDACC__
#define X(name, text, one, two, three, want) \
    asm volatile(text : "=r"(a.y[name]) : "r"(a.x[3 * name]), "r"(a.x[3 * name + 1]), "r"(a.x[3 * name + 2]));
    ONE(X)
#undef X
#else
    (void)a;
#endif
}

enum wrong { NONE, MISALIGNED, BEYOND_SHARED, DIVIDED };
struct fault_args {
    wrong what;
    unsigned *y; /* [64] */
};
__global__ void __launch_bounds__(64) fault(fault_args a) {
    sl_begin();
    SL_SHARED(unsigned, s);
    const unsigned i = threadIdx.x;
    s[a.what == BEYOND_SHARED ? i + 1 : i] = i;
    __syncthreads();
    if (a.what == MISALIGNED)
        *reinterpret_cast<uint2 *>(a.y + 1) = make_uint2(1, 2);
    a.y[i] = s[i ^ 1] / (a.what == DIVIDED ? i : i + 1);
}

struct lanes_args {
    float *x;    /* [32] */
    unsigned *y; /* [32, 3] */
};
__global__ void lanes(lanes_args a) {
    sl_begin();
    const unsigned i = threadIdx.x;
    a.y[3 * i] = __shfl_down_sync(~0u, i, 3, 8);
    a.y[3 * i + 1] = __ballot_sync(~0u, i % 3 == 0);
    a.y[3 * i + 2] = static_cast<unsigned>(__shfl_sync(~0u, static_cast<int>(i) * 2, 9, 16));
    a.x[i] = expf(a.x[i]);
}

#ifndef __CUDACC__
#include "device_check.h"

int sl_check_failures;

static void test_instructions(void) {
#define X(name, text, a, b, c, want) a, b, c,
    static const unsigned given[] = {ONE(X)};
#undef X
#define X(name, text, a, b, c, want) want,
    static const unsigned wanted[] = {ONE(X)};
#undef X
#define X(name, text, a, b, c, want) #name,
    static const char *const names[] = {ONE(X)};
#undef X
    unsigned *x = device_array<unsigned>(3 * N_ONE), *y = device_array<unsigned>(N_ONE), got[N_ONE];
    CHECK(cudaMemcpy(x, given, sizeof given, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(sl_launch(ask, dim3(1), dim3(1), 0, nullptr, ask_args{x, y}) == 0);
    fetch(got, y, N_ONE);
    for (int i = 0; i < N_ONE; i++)
        if (got[i] != wanted[i]) {
            sl_check_failures++;
            fprintf(stderr, "%s is 0x%08x, not 0x%08x\n", names[i], got[i], wanted[i]);
        }
}

/* Shuffles and votes; exponentials near, and not all equal to, the best there are. */
static void test_lanes(void) {
    float *x = device_array<float>(32), given[32], got[32];
    unsigned *y = device_array<unsigned>(96), seen[96], n_other = 0;
    for (int i = 0; i < 32; i++)
        given[i] = -10.0f + 0.73f * static_cast<float>(i);
    CHECK(cudaMemcpy(x, given, sizeof given, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(sl_launch(lanes, dim3(1), dim3(32), 0, nullptr, lanes_args{x, y}) == 0);
    fetch(got, x, 32), fetch(seen, y, 96);
    for (unsigned i = 0; i < 32; i++) {
        CHECK(seen[3 * i] == (i % 8 + 3 < 8 ? i + 3 : i));
        CHECK(seen[3 * i + 1] == 0x49249249u);
        CHECK(seen[3 * i + 2] == (i < 16 ? 18u : 50u));
        const float best = static_cast<float>(exp(static_cast<double>(given[i])));
        CHECK(fabsf(got[i] - best) <= best * 0x1p-21f);
        n_other += got[i] != best;
    }
    CHECK(n_other > 0);
}

static void test_fault(wrong what, unsigned n_thread, const char *text) {
    unsigned *y = device_array<unsigned>(64);
    const int status = sl_launch(fault, dim3(1), dim3(n_thread), n_thread * 4, nullptr, fault_args{what, y});
    const bool ran = status == 0 && cudaDeviceSynchronize() == cudaSuccess;
    CHECK(ran == !text);
    if (text)
        CHECK_FAULT(text);
    cudaDeviceReset();
}

int main() {
    test_instructions();
    test_lanes();
    test_fault(NONE, 64, nullptr);
    test_fault(NONE, 96, "compiled for 64 at most");
    test_fault(MISALIGNED, 64, "not at a multiple of its size");
    test_fault(BEYOND_SHARED, 64, "beyond the block's shared memory");
    test_fault(DIVIDED, 64, "divided by 0");
    if (sl_check_failures == 0)
        printf("PTX: all checks hold\n");
    return sl_check_failures != 0;
}
#endif
