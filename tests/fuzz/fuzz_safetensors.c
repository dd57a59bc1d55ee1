/* Safetensors header: the first eight bytes are the size of the data, the rest is the header. What is
 * accepted must cover the data: the byte counts of all tensors add up to it. */
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    uint64_t data_bytes, sum = 0;
    if (n < 8) return 0;
    memcpy(&data_bytes, data, 8);
    data_bytes &= (1ull << 40) - 1;
    char *json = malloc(n - 8 + 1); /* exactly as long as the reader may look */
    memcpy(json, data + 8, n - 8);
    json[n - 8] = 0;
    sl_safetensors st = { 0 };
    sl_error err = { 0 };
    sl_status status = sl_safetensors_parse(json, n - 8, 0, data_bytes, 0, &st, &err);
    for (size_t i = 0; i < st.n_tensor; i++) sum += st.tensors[i].bytes;
    if (status == SL_OK ? sum != data_bytes : !err.text[0]) abort();
    sl_safetensors_close(&st);
    free(json);
    return 0;
}
