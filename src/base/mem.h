/* Checked size arithmetic and allocation. */
#ifndef SL_BASE_MEM_H
#define SL_BASE_MEM_H

#include "base/error.h"

/* *out = a op b; false if it does not fit (then *out is unspecified). */
static inline bool sl_add(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool sl_mul(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
/* a rounded up to a multiple of b (> 0), where that fits. */
static inline bool sl_align(uint64_t a, uint64_t b, uint64_t *out) {
    return sl_add(a, b - 1, out) && (*out -= *out % b, true);
}
static inline size_t sl_round_up(size_t a, size_t b) { return (a + b - 1) / b * b; }
static inline size_t sl_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t sl_max(size_t a, size_t b) { return a > b ? a : b; }

/* Zeroed memory of n elements, 64-byte aligned; released with free(). NULL if it does not fit or there is
 * none. n or size 0 gives a valid pointer. */
void *sl_calloc(size_t n, size_t size);
/* As sl_calloc, with a status and a text naming what it was for. *out is NULL on failure. */
sl_status sl_alloc(void **out, size_t n, size_t size, const char *what, sl_error *err);

/* A growing array of bytes. Starts zeroed; failure leaves it as it was. */
typedef struct sl_buf { uint8_t *data; size_t n, cap; } sl_buf;
bool sl_buf_append(sl_buf *buf, const void *data, size_t n);
void sl_buf_release(sl_buf *buf);

/* Grows *array (elements of size bytes) so that it holds at least need; doubles. False: out of memory,
 * everything as it was. */
bool sl_grow(void **array, size_t *cap, size_t need, size_t size);

#endif
