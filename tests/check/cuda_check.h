/* Helpers for checks of CUDA kernels, on a GPU or on the test device.
 *
 * An adapter has the signature of a member of the CPU's table (kernels/kernels.h): it takes the inputs to the device,
 * runs the CUDA kernel and brings the outputs back, so that the family's test holds it to the same reference, sizes and
 * bounds. What has no member there has a test of its own. Both are registered in cuda_variants.def.
 *
 *     void check_cuda_silu_mul(const float *g, const float *u, float *y, size_t n) {
 *         sl_silu_args a = { .n = (uint32_t)n, .act = SL_ACT_F32, .rows = { .max = 1 } };
 *         a.gate = cuda_put_rows(SL_ACT_F32, g, n, n, 1, &a.gate_stride);
 *         a.up = cuda_put_rows(SL_ACT_F32, u, n, n, 1, &a.up_stride);
 *         cuda_run(cuda.silu_mul(&a, NULL));
 *         cuda_get_rows(SL_ACT_F32, y, n, n, 1, a.gate, a.gate_stride);
 *         cuda_free();
 *     }
 *
 * Each variant runs in a process of its own; a call that fails is reported and ends it. */
#ifndef SL_TESTS_CHECK_CUDA_CHECK_H
#define SL_TESTS_CHECK_CUDA_CHECK_H

#include "check.h"
#include "kernels/cuda_kernels.h"

#include <math.h>

/* The CUDA kernels of kernels.def by name; a mutant takes the place of one. */
typedef struct cuda_kernels {
#define SL_KERNEL(member, isa, function)
#define SL_CUDA_KERNEL(name, function) __typeof__(&function) name;
#include "kernels/kernels.def"
#undef SL_KERNEL
} cuda_kernels;
extern cuda_kernels cuda;

/* ---- device memory ------------------------------------------------------------------------------ */

/* A type of activations: its name for reports, and what it holds of a number. */
static inline const char *cuda_act_name(sl_act act) { return act == SL_ACT_F32 ? "f32" : "f16"; }
static inline uint16_t cuda_f16(float x) { return sl_f32_to_f16(x > 65504 ? 65504 : x < -65504 ? -65504 : x); }
static inline float cuda_rounded(sl_act act, float x) {
    return act == SL_ACT_F32 ? x : sl_f16_to_f32(cuda_f16(x));
}
/* What rounding a result near x may change: half a unit of 11 bits, which below 2^-14 is one of 2^-24. (f32's own
 * is part of the bounds of sums.) */
static inline double cuda_rounding(sl_act act, double x) {
    return act == SL_ACT_F32 ? 0 : fmax(0x1.01p-11 * fabs(x), 0x1.01p-25);
}

/* n_bytes of 0xFF (NaN in every type), or a copy. The end is the end of an allocation, to align bytes (a power of two, at
 * most 256) that the start is aligned to: on the test device reading past it is a fault. */
void *cuda_new(size_t n_bytes, size_t align);
void *cuda_put(const void *from, size_t n_bytes, size_t align);
void cuda_set(void *device, const void *from, size_t n_bytes);
void cuda_get(void *to, const void *device, size_t n_bytes);

/* Rows of n activations at 16-byte aligned starts, *stride elements apart, with 0xFF between them; in f16 rounded to
 * nearest even. */
void *cuda_new_rows(sl_act act, size_t n, size_t n_row, uint64_t *stride);
void *cuda_put_rows(sl_act act, const float *from, size_t from_stride, size_t n, size_t n_row, uint64_t *stride);
/* Back to f32; a failure if the bytes between the rows have changed. */
void cuda_get_rows(sl_act act, float *to, size_t to_stride, size_t n, size_t n_row, const void *device, uint64_t stride);

/* Frees everything the above have allocated. */
void cuda_free(void);

/* ---- running ------------------------------------------------------------------------------------ */

/* Is there a device? Else why not. Where the kernels run, nobody may have asked before. */
bool cuda_present(const char **why);
/* Bytes of shared memory that a block can have. */
size_t cuda_shared(void);
/* Waits for what a call that returned this status has launched. */
void cuda_run(int status);

/* ---- registration ------------------------------------------------------------------------------- */

/* cuda_variants.def: adapters SL_CUDA_VARIANT(member, kernel, function), tests SL_CUDA_TEST(kernel, function), broken
 * kernels SL_CUDA_MUTANT(kernel, function) that one of the kernel's adapters or tests must catch. */
#define SL_CUDA_VARIANT(member, kernel, function) extern __typeof__(*(((sl_kernels *)0)->member)) function;
#define SL_CUDA_TEST(kernel, function) void function(check *c);
#define SL_CUDA_MUTANT(kernel, function) extern __typeof__(*(((cuda_kernels *)0)->kernel)) function;
#include "cuda_variants.def"
#undef SL_CUDA_VARIANT
#undef SL_CUDA_TEST
#undef SL_CUDA_MUTANT

#endif
