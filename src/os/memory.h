/* How much memory this process has and could have. */
#ifndef SL_OS_MEMORY_H
#define SL_OS_MEMORY_H

#include <stdint.h>

uint64_t sl_os_rss(void);            /* bytes resident now; 0: unknown */
void sl_os_peak_rss_reset(void);     /* sl_os_peak_rss counts from now on, where the system can */
uint64_t sl_os_memory_free(void);    /* bytes that could be had without swapping; UINT64_MAX: unknown */

#endif
