/* Compiled, never run: the constants and prototypes of cuda_blas.c beside those of cuBLAS's own header. A call has
 * both convert the same arguments, and an enum that is passed must be an int. */
#include "backend/cuda_blas.c"

#include <cublas_v2.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(R_32F, CUDA_R_32F);
SAME(R_16F, CUDA_R_16F);
SAME(COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(ALGO_DEFAULT, CUBLAS_GEMM_DEFAULT);
SAME(OP_N, CUBLAS_OP_N);
SAME(OP_T, CUBLAS_OP_T);
SAME(MATH_DEFAULT, CUBLAS_DEFAULT_MATH);
SAME(MATH_FULL_REDUCTION, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
SAME(0, CUBLAS_STATUS_SUCCESS);

#define IS_INT(type) _Static_assert(sizeof(type) == sizeof(int), #type)
IS_INT(cublasStatus_t);
IS_INT(cublasOperation_t);
IS_INT(cublasMath_t);
IS_INT(cublasComputeType_t);
IS_INT(cublasGemmAlgo_t);
IS_INT(cudaDataType);

/* Both take these arguments, and no others. */
#define ALIKE(theirs, ours, ...) \
    _Static_assert(sizeof theirs(__VA_ARGS__) == sizeof ((ours)0)(__VA_ARGS__), #theirs)
extern void *any;
ALIKE(cublasCreate_v2, create_fn, any);
ALIKE(cublasDestroy_v2, destroy_fn, any);
ALIKE(cublasSetStream_v2, set_stream_fn, any, (cudaStream_t)0);
ALIKE(cublasSetWorkspace_v2, set_workspace_fn, any, any, (size_t)1);
ALIKE(cublasSetMathMode, set_math_mode_fn, any, (cublasMath_t)(MATH_DEFAULT | MATH_FULL_REDUCTION));
ALIKE(cublasGetVersion_v2, get_version_fn, any, (int *)0);
ALIKE(cublasGemmEx, gemm_fn, any, CUBLAS_OP_T, CUBLAS_OP_N, 1, 1, 1, (const void *)0, (const void *)0, CUDA_R_16F, 1,
      (const void *)0, CUDA_R_16F, 1, (const void *)0, any, CUDA_R_16F, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
