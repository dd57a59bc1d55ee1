/* Random stored weights, made on the device, for measurements that need a model's size and not its sense. The
 * value of an element is a hash (Murmur3's finaliser, Appleby) of seed, row and element. */
#include "kernels/cuda.h"
#include "kernels/cuda_kernels.h"

namespace {

enum { N_THREAD = 256 };
constexpr unsigned max_grid_y = 65535;

__device__ __forceinline__ uint64_t mix(uint64_t v) {
    v = (v ^ v >> 33) * 0xff51afd7ed558ccdu;
    v = (v ^ v >> 33) * 0xc4ceb9fe1a85ec53u;
    return v ^ v >> 33;
}

/* Uniform in -1 .. 1; beyond the row 0. */
__device__ __forceinline__ float draw(const sl_random_args &a, uint64_t row, uint32_t i) {
    if (i >= a.k) return 0;
    return (float)(int32_t)(mix(mix(a.seed + row) + i) >> 32) * 0x1p-31f;
}

/* Units of a row: elements; of q8 and q4 bytes of quants, then scales. */
__host__ __device__ __forceinline__ uint32_t quant_bytes(sl_type type, uint32_t k) {
    return (k + SL_GROUP - 1) / SL_GROUP * (type == SL_Q8 ? SL_GROUP : SL_GROUP / 2);
}
__host__ __device__ __forceinline__ uint32_t count_units(sl_type type, uint32_t k) {
    const bool scaled = type == SL_Q8 || type == SL_Q4;
    return scaled ? quant_bytes(type, k) + (k + SL_GROUP - 1) / SL_GROUP * 2 : k;
}

__device__ void put_plain(const sl_random_args &a, void *row, uint32_t i, float v) {
    if (a.type == SL_F32) ((float *)row)[i] = v;
    else ((uint16_t *)row)[i] = a.type == SL_F16 ? sl_float_to_half(v) : sl_float_to_bf16_bits(v);
}

__device__ void put_quant(const sl_random_args &a, void *row, uint64_t r, uint32_t unit) {
    const uint32_t bytes = quant_bytes(a.type, a.k);
    uint8_t *q = (uint8_t *)row;
    if (unit >= bytes) {
        ((uint16_t *)(q + bytes))[unit - bytes] = sl_float_to_half(a.scale / (a.type == SL_Q8 ? 127 : 7));
    } else if (a.type == SL_Q8) {
        q[unit] = (uint8_t)(int8_t)rintf(127 * draw(a, r, unit));
    } else {
        const uint32_t low = unit / SL_BLOCK * SL_GROUP + unit % SL_BLOCK;
        const int a0 = (int)rintf(7 * draw(a, r, low)) + 8, a1 = (int)rintf(7 * draw(a, r, low + SL_BLOCK)) + 8;
        q[unit] = (uint8_t)(a0 | a1 << 4);
    }
}

__global__ void __launch_bounds__(N_THREAD) random_kernel(sl_random_args a) {
    sl_begin();
    const uint32_t unit = blockIdx.x * N_THREAD + threadIdx.x;
    if (unit >= count_units(a.type, a.k)) return;
    for (uint64_t r = blockIdx.y; r < a.n_row; r += gridDim.y) {
        void *row = (char *)a.w + r * a.w_row_bytes;
        if (a.type == SL_Q8 || a.type == SL_Q4) put_quant(a, row, r, unit);
        else put_plain(a, row, unit, a.scale * draw(a, r, unit));
    }
}

} // namespace

int sl_random_cuda(const sl_random_args *args, sl_cuda_stream stream) {
    const unsigned n_y = args->n_row < max_grid_y ? (unsigned)args->n_row : max_grid_y;
    const dim3 grid((count_units(args->type, args->k) + N_THREAD - 1) / N_THREAD, n_y);
    return sl_launch(random_kernel, grid, dim3(N_THREAD), 0, stream, *args);
}
