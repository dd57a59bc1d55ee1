/* Error detail: filling the sl_error that a caller owns, with text that is always one clean line. */
#ifndef SL_BASE_ERROR_H
#define SL_BASE_ERROR_H

#include "sluice.h"

#if defined(__GNUC__)
#define SL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define SL_PRINTF(fmt, args)
#endif

/* Returns from the calling function if x fails; x has filled the error already. */
#define SL_TRY(x)                                                                                            \
    do {                                                                                                     \
        sl_status sl_try_status = (x);                                                                       \
        if (sl_try_status != SL_OK) return sl_try_status;                                                    \
    } while (0)

/* Sets *err (may be NULL) and returns code. The text is cut at 599 bytes at a character boundary and
 * control characters become '?'. */
sl_status sl_fail(sl_error *err, sl_status code, const char *fmt, ...) SL_PRINTF(3, 4);

/* A name from a file or a user as it may stand in an error: printable, escaped (\n, \xHH), cut to about
 * 80 bytes with "...". buf is the caller's. Returns buf. */
typedef struct sl_name_buf { char text[128]; } sl_name_buf;
const char *sl_name_escape(const void *name, size_t n_bytes, sl_name_buf *buf);
/* The same for a C string. */
const char *sl_name(const char *name, sl_name_buf *buf);

/* A number of bytes for a message: "798 bytes", "6.52 MiB". buf is the caller's. Returns its text. */
typedef struct sl_size_buf { char text[32]; } sl_size_buf;
const char *sl_size(uint64_t n_bytes, sl_size_buf *buf);

#endif
