#define _POSIX_C_SOURCE 200809L
#include "os/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number of KiB after key in a file of /proc; false: not there. */
static int read_kib(const char *path, const char *key, uint64_t *bytes) {
    char line[256];
    int found = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        found = !strncmp(line, key, strlen(key));
        if (found) *bytes = strtoull(line + strlen(key), NULL, 10) * 1024;
    }
    fclose(file);
    return found;
}

uint64_t sl_os_rss(void) {
    uint64_t bytes = 0;
    read_kib("/proc/self/status", "VmRSS:", &bytes);
    return bytes;
}

void sl_os_peak_rss_reset(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (!file) return;
    fputs("5", file); /* see proc(5): VmHWM back to VmRSS */
    fclose(file);
}

uint64_t sl_os_memory_free(void) {
    uint64_t bytes = UINT64_MAX;
    read_kib("/proc/meminfo", "MemAvailable:", &bytes);
    return bytes;
}
