/* Runs the blocks of a launch, one after another, on the calling OS thread. */
#ifndef SL_TESTS_DEVICE_DEVICE_BLOCK_H
#define SL_TESTS_DEVICE_DEVICE_BLOCK_H

#include "device_host.h"

struct sl_grid {
    void (*kernel)(void);
    void (*invoke)(void (*)(void), const void *);
    const char *label; /* __PRETTY_FUNCTION__ of sl_launch_kernel: names the argument struct */
    dim3 grid, block;
    size_t shared_bytes;
};

/* The argument struct that a label names, without namespaces. */
void sl_kernel_name(const char *label, char *out, size_t size);

/* SL_DEFAULT_SHARED: of a kernel that has not been allowed more. */
enum { SL_MAX_THREADS = 1024, SL_MAX_SHARED = 227 * 1024, SL_DEFAULT_SHARED = 48 * 1024 };

/* seed 0: blocks and threads in increasing order. False: a fault, explained by sl_fault_text. */
bool sl_grid_run(const sl_grid *grid, const void *args, unsigned long seed);

/* The running thread's number in its block. */
unsigned sl_device_thread(void);

/* Copies of the running thread that are under way (device_mma.cpp). */
enum { SL_MAX_COPIES = 64 };
struct sl_device_copying {
    void *to;
    const void *from; /* NULL: zeros */
    unsigned group;
};
struct sl_device_copies {
    sl_device_copying list[SL_MAX_COPIES];
    unsigned n, n_group;
    bool at_once; /* then the list only says what is not to be read yet */
};
sl_device_copies *sl_device_copies_here(void);

/* Its products of a warpgroup that are under way (device_wgmma.cpp). */
enum { SL_MAX_PRODUCTS = 16 };
struct sl_device_multiplying {
    float *d;                 /* the thread's sums side by side, */
    uint32_t *const *registers; /* or each in a variable of its own: then it happens at once */
    unsigned n_col, group;
    uint64_t x, w; /* descriptors */
    const void *code;
    uint32_t epoch; /* of the races' clock when it was asked for */
};
struct sl_device_products {
    sl_device_multiplying list[SL_MAX_PRODUCTS];
    unsigned n, n_group;
    bool begun; /* sl_wgmma_begin has been called since the last group ended */
};
sl_device_products *sl_device_products_here(void);
/* At the begin of a block; at its end, where it is a trap if the warps of a warpgroup have asked for different numbers. */
void sl_device_products_begin(void);
void sl_device_products_end(void);

/* Suspends until all 32 lanes of the warp call it with the same function, which the last of them calls with
 * everyone's data in the order of the lanes. */
typedef void (*sl_device_meeting)(void *const data[32]);
void sl_device_meet(sl_device_meeting meeting, void *data);

/* The one line of the last fault. */
char *sl_fault_text(void);
__attribute__((format(printf, 1, 2))) void sl_fault_set(const char *format, ...);

#endif
