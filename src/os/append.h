/* A file that grows by whole records and survives a kill at any moment: each record is one write(2) at the
 * end of the file, and a record that did not fit is taken back. One program at a time may hold it. */
#ifndef SL_OS_APPEND_H
#define SL_OS_APPEND_H

#include "base/error.h"

typedef struct sl_os_append {
    int fd;
    bool open, is_file; /* is_file false: a pipe or device, which keeps no size */
    uint64_t size;
} sl_os_append;

/* Bytes of the file at path; false: there is none, or it is not a regular file. */
bool sl_os_file_bytes(const char *path, uint64_t *n_bytes);

/* Opens path, creating it if need be. The file must have exactly `found` bytes, as the caller saw it, and is
 * cut to `keep` of them. A file that another program holds open in this way is refused. */
sl_status sl_os_append_open(sl_os_append *file, const char *path, uint64_t found, uint64_t keep, sl_error *err);
sl_status sl_os_append_write(sl_os_append *file, const void *data, size_t n_bytes, sl_error *err);
sl_status sl_os_append_sync(sl_os_append *file, sl_error *err);
void sl_os_append_close(sl_os_append *file); /* does not sync */

#endif
