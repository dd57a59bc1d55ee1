/* What a test asks of the test device beyond the runtime's own interface. */
#ifndef SL_TESTS_DEVICE_TEST_DEVICE_H
#define SL_TESTS_DEVICE_TEST_DEVICE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One line about the last fault or refused call; empty if there was none since cudaDeviceReset. */
const char *sl_device_fault(void);
/* Allocations, streams, graphs and events not released. */
size_t sl_device_leaks(void);
/* The n-th call from now that can fail does (once); 0: none. Overrides SLUICE_DEVICE_FAIL. */
void sl_device_fail_at(unsigned long n);
/* Calls that can fail, so far. */
unsigned long sl_device_calls(void);
/* Order of blocks and threads in the launches to come; 0: increasing. Overrides SLUICE_DEVICE_SEED. */
void sl_device_seed(unsigned long seed);
/* Whether a host that touches device memory crashes. Overrides SLUICE_DEVICE_PROTECT. */
void sl_device_protect(int on);
/* Bytes of device memory; at first SLUICE_DEVICE_MEMORY or 2 GiB. */
void sl_device_memory(size_t bytes);
/* The error (0: none) by which work for a stream that captures is refused, as by a driver that knows no graphs of it. */
void sl_device_refuse_capture(int error);
/* Calls f (NULL: nothing) whenever a capture has begun, before cudaStreamBeginCapture returns. */
void sl_device_on_capture(void (*f)(void *arg), void *arg);
/* Dynamic shared memory that a block can have at most, at first (and at most) 163 KB, from compute capability 9.0 on
 * 227; no kernel has been allowed more than 48 KB of it. */
void sl_device_shared_limit(size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
