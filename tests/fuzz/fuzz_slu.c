/* Weight file: any bytes are read and verified, or refused with a line. The header's checksum is set right
 * on a copy besides, so that the fuzzer gets past it; what then opens is held against its architecture. */
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void read_one(const uint8_t *data, size_t n) {
    sl_slu slu;
    sl_error err = { 0 };
    if (sl_slu_parse(&slu, data, n, &err) != SL_OK) {
        if (!err.text[0]) abort();
        return;
    }
    const sl_arch *arch;
    void *hyper;
    if (sl_slu_check(&slu, &arch, &hyper, &err) == SL_OK) free(hyper);
    sl_slu_verify(&slu, NULL, NULL, &err);
    sl_meta_release(&slu.meta);
    free(slu.tensors);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    read_one(data, n);
    if (n < SL_SLU_HEADER) return 0;
    uint32_t n_tensor;
    uint64_t meta_bytes, size = n, checksum;
    memcpy(&n_tensor, data + 16, 4);
    memcpy(&meta_bytes, data + 24, 8);
    uint64_t end = meta_bytes < n ? sl_slu_data_offset(meta_bytes, n_tensor) : UINT64_MAX;
    if (end > n) return 0;
    uint8_t *copy = malloc(n);
    memcpy(copy, data, n);
    memcpy(copy + 32, &size, 8);
    if (sl_slu_header_checksum(copy, end, &checksum)) memcpy(copy + SL_SLU_CHECKSUM_AT, &checksum, 8);
    read_one(copy, n);
    free(copy);
    return 0;
}
