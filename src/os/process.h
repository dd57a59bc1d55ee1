/* What the system says of this process, and where a thread runs: for the bench. */
#ifndef SL_OS_PROCESS_H
#define SL_OS_PROCESS_H

#include <stddef.h>
#include <stdint.h>

void sl_os_peak_rss_reset(void);     /* sl_os_peak_rss counts from now on, where the system can */
uint64_t sl_os_memory_free(void);    /* bytes that could be had without swapping; UINT64_MAX: unknown */
double sl_os_load(void);             /* programs that wanted to run in the last minute; -1: unknown */
void sl_os_pin_thread(size_t i);     /* keeps the calling thread on the i-th of its processors, if any */

#endif
