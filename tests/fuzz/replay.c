/* Runs a fuzz target over the files of folders, without a fuzzer: the kept corpus as an ordinary test. */
#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int replay(const char *path) {
    char *data;
    size_t n;
    sl_error err;
    if (sl_os_read_file(path, 1 << 28, &data, &n, &err) != SL_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    uint8_t *exact = malloc(n ? n : 1); /* without a zero byte after it: a sanitizer sees one too many */
    memcpy(exact, data, n);
    free(data);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    return 0;
}

int main(int argc, char **argv) {
    size_t n = 0;
    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        if (!folder) return fprintf(stderr, "%s: cannot open the folder\n", argv[i]), 1;
        for (struct dirent *entry; (entry = readdir(folder));) {
            char path[4096];
            if (entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", argv[i], entry->d_name);
            if (replay(path)) return 1;
            n++;
        }
        closedir(folder);
    }
    printf("%zu inputs\n", n);
    return n ? 0 : 1;
}
