/* Fibers: stacks that take turns on one OS thread. */
#ifndef SL_TESTS_DEVICE_DEVICE_FIBER_H
#define SL_TESTS_DEVICE_DEVICE_FIBER_H

#include <stddef.h>

struct sl_fiber {
    void *context;        /* saved stack pointer, or ucontext_t */
    unsigned char *stack; /* lowest usable byte, or where the first fiber's caller runs */
    size_t stack_bytes;
    void *fake_stack; /* of AddressSanitizer */
    sl_fiber *next;   /* free list of the owner */
};

/* A new fiber that will call entry (which must not return), its stack between guard pages; NULL: no memory. */
sl_fiber *sl_fiber_create(void (*entry)(void));
/* As after creation, wherever it was suspended. */
void sl_fiber_rewind(sl_fiber *fiber, void (*entry)(void));
/* Suspends the running fiber `from` and resumes `to`. A zeroed sl_fiber stands for the caller's own stack. */
void sl_fiber_switch(sl_fiber *from, sl_fiber *to);
/* First thing in an entry function: `from` is who resumed it. */
void sl_fiber_entered(void);

#endif
