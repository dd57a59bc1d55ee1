/* Block-diagonal products: the kernels of the plain ones, block beside block in one launch. */
#include "kernels/gemm/product_cuda.h"

int sl_block_linear_cuda(const sl_block_args *args, sl_cuda_stream stream) {
    sl_blocks_args a = {};
    a.p.w = args->w;
    a.p.w_row_bytes = args->w_row_bytes;
    a.p.type = args->type;
    a.p.act = args->act;
    a.p.x = args->x;
    a.p.x_stride = args->x_stride;
    a.p.y = args->y;
    a.p.y_stride = args->y_stride;
    a.p.out = SL_OUT_ACT;
    a.p.gain = 1;
    a.p.n_row = a.p.k = args->b;
    a.p.rows = args->rows;
    a.n_block = args->n_block;
    a.x_step = a.y_step = args->b;
    const sl_pair_args pair = sl_pair_of(a, args->w2, args->y2);
    if (args->rows.max <= args->n_few) return sl_gemv_blocks_cuda(pair, stream);
    const int status = sl_gemm_blocks_cuda(a, stream);
    return status || !pair.both ? status : sl_gemm_blocks_cuda(sl_second_of(pair), stream);
}
