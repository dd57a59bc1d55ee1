/* config.json: any bytes become metadata or are refused; metadata goes through every architecture's reading
 * of hyperparameters and list of tensors. */
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    sl_meta meta;
    sl_error err = { 0 };
    if (sl_config_parse((const char *)data, n, &meta, &err) != SL_OK) {
        if (!err.text[0]) abort();
        return 0;
    }
    const sl_arch *arch;
    void *hyper = NULL;
    sl_schema schema = { 0 };
    if (sl_arch_of(&meta, &arch, &err) == SL_OK && (hyper = calloc(1, arch->hyper_bytes)) &&
        arch->hyper(&meta, hyper, &err) == SL_OK) {
        if (arch->schema(hyper, &schema, &err) == SL_OK && !schema.n) abort();
        sl_schema_release(&schema);
    }
    free(hyper);
    sl_meta_release(&meta);
    return 0;
}
