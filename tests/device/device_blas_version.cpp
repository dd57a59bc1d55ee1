/* The last of the functions in cuBLAS's place (device_blas.cu), by itself: it differs between the libraries built of
 * them, and one goes without it. */
extern "C" __attribute__((visibility("default"))) int cublasGetVersion_v2(void *handle, int *version) {
    if (!handle || !version)
        return 7; /* CUBLAS_STATUS_INVALID_VALUE */
    *version = SL_BLAS_VERSION;
    return 0;
}
