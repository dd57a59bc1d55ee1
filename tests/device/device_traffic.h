/* What warps ask of memory; called by device_races.cpp. */
#ifndef SL_TESTS_DEVICE_DEVICE_TRAFFIC_H
#define SL_TESTS_DEVICE_DEVICE_TRAFFIC_H

#include <stddef.h>
#include <stdint.h>

void sl_traffic_open(void);
void sl_traffic_access(unsigned thread, const void *p, size_t n_bytes, bool writes, bool shared, uint32_t code);
void sl_traffic_end_block(void);

#endif
