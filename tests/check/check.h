/* The kernel harness: what a family's test needs.
 *
 * A family is a table member (or a few of one kind). Its test is one function that is called once for every
 * variant in kernels.def that this machine can run: c->test->member is the variant, c->ref->member the
 * reference. It registers with one line in families.def, its broken twins with one line each in mutants.def.
 *
 *     void check_narrow(check *c) {
 *         for (size_t n = 1; n <= 65 && !c->failed; n++) {
 *             check_case(c, "n=%zu", n);
 *             float *x = check_buffer(c, n * sizeof *x);
 *             uint16_t *y = check_buffer(c, n * sizeof *y), *want = check_buffer(c, n * sizeof *want);
 *             check_fill(c, x, n, CHECK_WIDE);
 *             check_seal(c, x);
 *             c->test->narrow_f16(x, y, n);
 *             c->ref->narrow_f16(x, want, n);
 *             check_same(c, "y", y, want, n * sizeof *y);
 *             check_end(c);
 *         }
 *     }
 *
 * A failed comparison prints kernel, case, place and values, and sets c->failed; a test goes on or returns
 * as it likes. A fault (a read past a buffer, a write to a sealed input) ends the test of that variant and
 * is reported with kernel and case. */
#ifndef SL_TESTS_CHECK_CHECK_H
#define SL_TESTS_CHECK_CHECK_H

#include "kernels/kernels.h"

#include <stdio.h>

typedef struct check {
    const sl_kernels *ref;  /* all reference */
    const sl_kernels *test; /* the same with one member replaced by the variant under test */
    const char *member;     /* "gemm_q4" */
    const char *kernel;     /* the variant, "sl_gemm_q4_avx2" */
    size_t failed;          /* comparisons of this variant that failed */
    bool cuda;              /* a CUDA kernel behind an adapter: q8 and q4 products take f32 inputs there */
    bool quiet;             /* a mutant: failures are expected and not printed */
    uint64_t rng;
    char what[256];         /* the case, for reports */
} check;

/* Names the case that follows, for reports. */
void check_case(check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Ends the case: verifies the bytes before every buffer and releases all buffers. */
void check_end(check *c);
/* A failure with a text of its own. */
void check_fail(check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- memory ------------------------------------------------------------------------------------- */

/* n bytes that end at a page without access; so a start is aligned as n is: ask for multiples of 64 where a
 * kernel needs 64. All bytes and those in front are CHECK_CANARY. */
enum { CHECK_CANARY = 0xc5 };
void *check_buffer(check *c, size_t n_bytes);
/* From here on writing into the buffer (made by check_buffer) is a fault. */
void check_seal(check *c, const void *buffer);
/* The bytes between rows of an output are still canaries; sizes in bytes; stride >= width. */
void check_gaps(check *c, const char *name, const void *p, size_t width, size_t stride, size_t n_row);

/* ---- numbers ------------------------------------------------------------------------------------ */

uint64_t check_random(check *c);                      /* 64 random bits */
size_t check_index(check *c, size_t n);               /* 0 .. n - 1 */
float check_uniform(check *c, float low, float high);

/* Kinds of input: in -1 .. 1; signs and magnitudes 2^-20 .. 2^20; around 0 with exact zeros, -0 and
 * subnormals; +-1000 only (saturates sigmoids and quantisers). */
enum { CHECK_UNIFORM, CHECK_WIDE, CHECK_TINY, CHECK_LARGE, CHECK_N_KIND };
extern const char *const check_kind_name[CHECK_N_KIND];
void check_fill(check *c, float *x, size_t n, int kind);
void check_fill_range(check *c, float *x, size_t n, float low, float high);

/* ---- comparison --------------------------------------------------------------------------------- */

#define CHECK_U 0x1p-24 /* half the distance of neighbouring floats at 1 */

/* Bit for bit; name and index of the first difference are reported. false: they differ. */
bool check_same(check *c, const char *name, const void *got, const void *want, size_t n_bytes);
/* |got - want| <= bound; NaN never. i: index for the report. */
bool check_near(check *c, const char *name, size_t i, double got, double want, double bound);
/* Within ulps units in the last place of want as a float (of the smallest normal float, if it is smaller). */
bool check_ulp(check *c, const char *name, size_t i, double got, double want, double ulps);

/* ---- benches ------------------------------------------------------------------------------------ */

/* Times call: nanoseconds, GB/s for bytes, GFLOP/s for flops (0: leave out), ratio to the reference under
 * the same label. Best of several rounds. */
#define CHECK_BENCH(c, label, bytes, flops, call)                                                            \
    do {                                                                                                     \
        for (check_bench_begin(c); check_bench_again(c);) { call; }                                          \
        check_bench_end(c, label, bytes, flops);                                                             \
    } while (0)
void check_bench_begin(check *c);
bool check_bench_again(check *c);
void check_bench_end(check *c, const char *label, double bytes, double flops);

/* ---- registration ------------------------------------------------------------------------------- */

/* families.def: SL_CHECK(member, test function, bench function), one line per table member. */
#define SL_CHECK(member, test_function, bench_function)                                                      \
    void test_function(check *c);                                                                            \
    void bench_function(check *c);
#include "families.def"
#undef SL_CHECK

/* mutants.def: SL_MUTANT(member, function), a kernel broken in one way that the test of member must catch. */
#define SL_MUTANT(member, function) extern __typeof__(*(((sl_kernels *)0)->member)) function;
#include "mutants.def"
#undef SL_MUTANT

#endif
