/* Broken CUDA kernels for sequences: the kernels' own sources, each with one thing replaced. They are meant for
 * the test device, where what goes wrong without a barrier goes wrong every time. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/mma_cuda.h"
#include "kernels/norm/norm_cuda.h"
#include "kernels/scan/scan_cuda.h"

/* Threads do not wait for each other. In the convolution that is a state overwritten before it has been read.
 */
#define __syncthreads() ((void)0)
namespace no_barrier_bridge {
#include "kernels/bridge/bridge.cu"
}
namespace no_barrier_conv {
#include "kernels/conv/conv_gate.cu"
}
namespace no_barrier_s6 {
#include "kernels/scan/scan_s6.cu"
}
namespace no_barrier_s6_chunk {
#include "kernels/scan/scan_s6_chunk.cu"
}
namespace no_barrier_s4d {
#include "kernels/scan/scan_s4d.cu"
}
namespace no_barrier_split {
#include "kernels/norm/route_split.cu"
}
#undef __syncthreads

/* exp(x) - 1 from a rounded exp(x): long memories lose their length. */
#define expm1f(x) (expf(x) - 1)
namespace rounded_bridge {
#include "kernels/bridge/bridge.cu"
}
namespace rounded_s6 {
#include "kernels/scan/scan_s6.cu"
}
#undef expm1f

/* The state of earlier chunks does not decay in a chunk; or is gone. */
#define expm1f(x) ((x) * 0.0f)
namespace undecayed_s6_chunk {
#include "kernels/scan/scan_s6_chunk.cu"
}
#undef expm1f
#define expm1f(x) ((x) * 0.0f - 1)
namespace not_passed_s6_chunk {
#include "kernels/scan/scan_s6_chunk.cu"
}
#undef expm1f

/* The mask lets the next token through. */
static __device__ __forceinline__ float next_decay(const float *steps, uint32_t j, uint32_t i) {
    return sl_scan_decay(steps, j, j <= i + 1 ? max(i, j) : i);
}
#define sl_scan_decay next_decay
namespace sees_next_s6_chunk {
#include "kernels/scan/scan_s6_chunk.cu"
}
#undef sl_scan_decay

/* f32 operands as one bf16. */
static __device__ __forceinline__ void round_bf16(float v, uint16_t *hi, uint16_t *lo) {
    *hi = sl_float_to_bf16_bits(v);
    *lo = 0;
}
#define sl_split_bf16 round_bf16
namespace not_split_s6_chunk {
#include "kernels/scan/scan_s6_chunk.cu"
}
#undef sl_split_bf16

/* Each lane norms what it has itself. */
#define sl_warp_sum(v) (v)
namespace lanes_conv {
#include "kernels/conv/conv_gate.cu"
}
#undef sl_warp_sum

/* Each eight channels are normed by themselves. */
#define __shfl_xor_sync(mask, v, step) (v)
namespace alone_conv {
#include "kernels/conv/conv_gate.cu"
}
#undef __shfl_xor_sync

extern "C" {
int mutant_cuda_bridge_no_barrier(const sl_bridge_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_bridge::sl_bridge_cuda(a, s);
}
int mutant_cuda_bridge_rounded(const sl_bridge_cuda_args *a, sl_cuda_stream s) {
    return rounded_bridge::sl_bridge_cuda(a, s);
}
int mutant_cuda_conv_no_barrier(const sl_conv_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_conv::sl_conv_gate_cuda(a, s);
}
int mutant_cuda_conv_alone(const sl_conv_cuda_args *a, sl_cuda_stream s) {
    return alone_conv::sl_conv_gate_cuda(a, s);
}
int mutant_cuda_conv_lanes(const sl_conv_cuda_args *a, sl_cuda_stream s) {
    return lanes_conv::sl_conv_gate_cuda(a, s);
}
int mutant_cuda_s6_no_barrier(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_s6::sl_s6_cuda(a, s);
}
int mutant_cuda_s6_rounded(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return rounded_s6::sl_s6_cuda(a, s);
}
int mutant_cuda_s6_chunk_no_barrier(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_s6_chunk::sl_s6_chunk_cuda(a, s);
}
int mutant_cuda_s6_chunk_undecayed(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return undecayed_s6_chunk::sl_s6_chunk_cuda(a, s);
}
int mutant_cuda_s6_chunk_not_passed(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return not_passed_s6_chunk::sl_s6_chunk_cuda(a, s);
}
int mutant_cuda_s6_chunk_sees_next(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return sees_next_s6_chunk::sl_s6_chunk_cuda(a, s);
}
int mutant_cuda_s6_chunk_not_split(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return not_split_s6_chunk::sl_s6_chunk_cuda(a, s);
}
int mutant_cuda_s4d_no_barrier(const sl_s4d_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_s4d::sl_s4d_cuda(a, s);
}
int mutant_cuda_split_no_barrier(const sl_split_args *a, sl_cuda_stream s) {
    return no_barrier_split::sl_route_split_cuda(a, s);
}
}
