/* seal FILE...: sets the header checksum of .slu files right, so that a file damaged on purpose is refused
 * for what is wrong with it and not for its checksum. For tests/hostile/make.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

static int seal(const char *path) {
    char *data;
    size_t n;
    sl_error err;
    uint64_t meta_bytes, checksum;
    uint32_t n_tensor;
    if (sl_os_read_file(path, 1 << 28, &data, &n, &err) != SL_OK || n < SL_SLU_HEADER) return 1;
    memcpy(&n_tensor, data + 16, 4);
    memcpy(&meta_bytes, data + 24, 8);
    uint64_t end = sl_slu_data_offset(meta_bytes, n_tensor);
    bool ok = end <= n && sl_slu_header_checksum((const uint8_t *)data, end, &checksum);
    FILE *file = ok ? fopen(path, "r+b") : NULL;
    ok = file && !fseek(file, SL_SLU_CHECKSUM_AT, SEEK_SET) && fwrite(&checksum, 8, 1, file) == 1;
    if (file) ok = !fclose(file) && ok;
    free(data);
    return !ok;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) failed |= seal(argv[i]);
    return failed;
}
