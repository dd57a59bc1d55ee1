#define _POSIX_C_SOURCE 200809L
#include "os/append.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool sl_os_file_bytes(const char *path, uint64_t *n_bytes) {
    struct stat st;
    if (stat(path, &st) || !S_ISREG(st.st_mode)) return false;
    *n_bytes = (uint64_t)st.st_size;
    return true;
}

static sl_status fail_errno(sl_error *err, const char *path, const char *what) {
    sl_name_buf buf;
    return sl_fail(err, SL_E_IO, "%s: %s: %s", sl_name(path, &buf), what, strerror(errno));
}

/* The lock ends with the process, however it ends. File systems without locks are used without. */
static sl_status lock(int fd, const char *path, sl_error *err) {
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    sl_name_buf buf;
    if (fcntl(fd, F_SETLK, &whole) && (errno == EACCES || errno == EAGAIN))
        return sl_fail(err, SL_E_IO, "%s is being written by another program", sl_name(path, &buf));
    return SL_OK;
}

static sl_status prepare(sl_os_append *file, const char *path, uint64_t found, uint64_t keep, sl_error *err) {
    struct stat st;
    sl_name_buf buf;
    if (fstat(file->fd, &st)) return fail_errno(err, path, "cannot open");
    file->is_file = S_ISREG(st.st_mode);
    if (!file->is_file) return SL_OK;
    SL_TRY(lock(file->fd, path, err));
    if (fstat(file->fd, &st)) return fail_errno(err, path, "cannot open");
    if ((uint64_t)st.st_size != found)
        return sl_fail(err, SL_E_IO, "%s has %llu bytes, expected %llu: another program writes it",
                       sl_name(path, &buf), (unsigned long long)st.st_size, (unsigned long long)found);
    if (keep != found && ftruncate(file->fd, (off_t)keep))
        return fail_errno(err, path, "cannot cut the last line");
    file->size = keep;
    return SL_OK;
}

sl_status sl_os_append_open(sl_os_append *file, const char *path, uint64_t found, uint64_t keep,
                            sl_error *err) {
    *file = (sl_os_append){ .fd = -1 };
    file->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file->fd < 0) return fail_errno(err, path, "cannot open for writing");
    file->open = true;
    sl_status status = prepare(file, path, found, keep, err);
    if (status != SL_OK) sl_os_append_close(file);
    return status;
}

sl_status sl_os_append_write(sl_os_append *file, const void *data, size_t n_bytes, sl_error *err) {
    const char *p = data;
    size_t done = 0;
    while (done < n_bytes) {
        ssize_t n = write(file->fd, p + done, n_bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            sl_fail(err, SL_E_IO, "cannot write: %s", strerror(errno));
            if (file->is_file && done && ftruncate(file->fd, (off_t)file->size)) /* then --resume repairs it */
                sl_fail(err, SL_E_IO, "cannot write, and the last line is cut: %s", strerror(errno));
            return SL_E_IO;
        }
        done += (size_t)n; /* short only when the space ends: the next write says why */
    }
    file->size += n_bytes;
    return SL_OK;
}

sl_status sl_os_append_sync(sl_os_append *file, sl_error *err) {
    if (!fsync(file->fd) || errno == EINVAL || errno == ENOTSUP || errno == EROFS) return SL_OK;
    return sl_fail(err, SL_E_IO, "cannot write: %s", strerror(errno));
}

void sl_os_append_close(sl_os_append *file) {
    if (file->open) close(file->fd);
    *file = (sl_os_append){ .fd = -1 };
}
