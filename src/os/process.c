#define _GNU_SOURCE
#include "os/process.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sl_os_peak_rss_reset(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (!file) return;
    fputs("5", file); /* VmHWM back to VmRSS, see proc(5) */
    fclose(file);
}

uint64_t sl_os_memory_free(void) {
    static const char key[] = "MemAvailable:";
    char line[256];
    uint64_t bytes = UINT64_MAX;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, sizeof key - 1)) bytes = strtoull(line + sizeof key - 1, NULL, 10) * 1024;
    if (file) fclose(file);
    return bytes;
}

double sl_os_load(void) {
    double load;
    return getloadavg(&load, 1) == 1 ? load : -1;
}

void sl_os_pin_thread(size_t i) {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all)) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all) || i--) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}
