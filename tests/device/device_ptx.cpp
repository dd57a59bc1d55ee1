/* The kernels that have been translated from PTX, by what sl_launch is given. */
#include "device_ptx.h"

#include <map>
#include <stdio.h>
#include <stdlib.h>

/* Not a global object: the lists of other files come first in some order. */
static std::map<void (*)(void), const sl_ptx_kernel *> *known(void) {
    static std::map<void (*)(void), const sl_ptx_kernel *> kernels;
    return &kernels;
}

/* SLUICE_DEVICE_COUNTS=file: a line for each kernel that has run: threads, instructions, bytes of device and of
 * shared memory as threads asked for them, products of the matrix units, name. */
static void write_counts(void) {
    FILE *file = fopen(getenv("SLUICE_DEVICE_COUNTS"), "w");
    if (!file)
        return;
    for (const auto &pair : *known()) {
        const ptx_counts *c = pair.second->counts;
        if (c->threads)
            fprintf(file, "%lu %lu %lu %lu %lu %s\n", c->threads, c->instructions, c->device_bytes,
                    c->shared_bytes, c->products / 32, pair.second->name);
    }
    fclose(file);
}

sl_ptx_kernels::sl_ptx_kernels(const sl_ptx_kernel *list, size_t n) {
    if (known()->empty() && getenv("SLUICE_DEVICE_COUNTS"))
        atexit(write_counts);
    for (size_t i = 0; i < n; i++)
        (*known())[list[i].kernel] = &list[i];
}

const sl_ptx_kernel *sl_ptx_find(void (*kernel)(void)) {
    auto found = known()->find(kernel);
    return found == known()->end() ? nullptr : found->second;
}
