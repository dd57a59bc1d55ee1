/* Broken CUDA kernels for sequences: the kernels' own sources, each with one thing replaced. They are meant for
 * the test device, where what goes wrong without a barrier goes wrong every time. */
#include "kernels/cuda_kernels.h"
#include "kernels/elementwise/elementwise_cuda.h"
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

/* Each lane norms what it has itself. */
#define sl_warp_sum(v) (v)
namespace lanes_conv {
#include "kernels/conv/conv_gate.cu"
}
#undef sl_warp_sum

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
int mutant_cuda_conv_lanes(const sl_conv_cuda_args *a, sl_cuda_stream s) {
    return lanes_conv::sl_conv_gate_cuda(a, s);
}
int mutant_cuda_s6_no_barrier(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_s6::sl_s6_cuda(a, s);
}
int mutant_cuda_s6_rounded(const sl_s6_cuda_args *a, sl_cuda_stream s) {
    return rounded_s6::sl_s6_cuda(a, s);
}
int mutant_cuda_s4d_no_barrier(const sl_s4d_cuda_args *a, sl_cuda_stream s) {
    return no_barrier_s4d::sl_s4d_cuda(a, s);
}
int mutant_cuda_split_no_barrier(const sl_split_args *a, sl_cuda_stream s) {
    return no_barrier_split::sl_route_split_cuda(a, s);
}
}
