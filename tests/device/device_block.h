/* Runs the blocks of a launch, one after another, on the calling OS thread. */
#ifndef SL_TESTS_DEVICE_DEVICE_BLOCK_H
#define SL_TESTS_DEVICE_DEVICE_BLOCK_H

#include "device_host.h"

struct sl_grid {
    void (*kernel)(void);
    void (*invoke)(void (*)(void), const void *);
    const char *label; /* __PRETTY_FUNCTION__ of sl_launch: names the argument struct */
    dim3 grid, block;
    size_t shared_bytes;
};

enum { SL_MAX_THREADS = 1024, SL_MAX_SHARED = 163 * 1024 };

/* seed 0: blocks and threads in increasing order. False: a fault, explained by sl_fault_text. */
bool sl_grid_run(const sl_grid *grid, const void *args, unsigned long seed);

/* The one line of the last fault. */
char *sl_fault_text(void);
__attribute__((format(printf, 1, 2))) void sl_fault_set(const char *format, ...);

#endif
