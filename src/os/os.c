/* Linux and other POSIX systems. Files that must be regular are asked for their kind before they are opened
 * (opening a pipe waits, opening a device may act) and again after. */
#define _GNU_SOURCE
#include "os/os.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { IO_PIECE = 1 << 26 }; /* the kernel takes at most 2 GiB per call */

const char *sl_os_path_name(const char *path, sl_name_buf *buf) {
    static const size_t room = 75;
    char end[80] = "...";
    size_t n = strlen(path);
    if (n <= room) return sl_name(path, buf);
    strcat(end, path + n - room + 3);
    return sl_name(end, buf);
}

static sl_status fail_errno(sl_error *err, const char *path, const char *what) {
    sl_name_buf buf;
    return sl_fail(err, SL_E_IO, "%s: %s: %s", sl_os_path_name(path, &buf), what, strerror(errno));
}

/* ---- reading ------------------------------------------------------------------------------------ */

static const char *mode_name(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

static sl_status open_regular(const char *path, int *fd, uint64_t *size, sl_error *err) {
    sl_name_buf buf;
    struct stat st;
    if (stat(path, &st)) return fail_errno(err, path, "cannot open");
    if (!S_ISREG(st.st_mode))
        return sl_fail(err, SL_E_IO, "%s is %s, expected a file", sl_os_path_name(path, &buf),
                       mode_name(st.st_mode));
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return fail_errno(err, path, "cannot open");
    if (fstat(*fd, &st) || !S_ISREG(st.st_mode)) {
        close(*fd);
        return sl_fail(err, SL_E_IO, "%s is not a regular file", sl_os_path_name(path, &buf));
    }
    *size = (uint64_t)st.st_size;
    return SL_OK;
}

sl_status sl_os_map_file(sl_os_map *map, const char *path, sl_error *err) {
    int fd = -1;
    sl_name_buf buf;
    *map = (sl_os_map){ 0 };
    SL_TRY(open_regular(path, &fd, &map->size, err));
    if (!map->size) {
        close(fd);
        return sl_fail(err, SL_E_FORMAT, "%s is empty", sl_os_path_name(path, &buf));
    }
    void *data = mmap(NULL, (size_t)map->size, PROT_READ, MAP_SHARED, fd, 0);
    int code = errno;
    close(fd);
    errno = code;
    if (data == MAP_FAILED) return fail_errno(err, path, "cannot map");
    map->data = data;
    return SL_OK;
}

void sl_os_unmap(sl_os_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    *map = (sl_os_map){ 0 };
}

void sl_os_map_drop(const void *data, uint64_t n_bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data;
    uintptr_t end = (begin + (uintptr_t)n_bytes) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

sl_status sl_os_in_open(sl_os_in *in, const char *path, sl_error *err) {
    *in = (sl_os_in){ 0 };
    SL_TRY(open_regular(path, &in->fd, &in->size, err));
    in->open = true;
    return SL_OK;
}

sl_status sl_os_in_read(const sl_os_in *in, void *data, uint64_t n_bytes, uint64_t offset, sl_error *err) {
    for (uint8_t *p = data; n_bytes;) {
        ssize_t n = pread(in->fd, p, sl_min((size_t)n_bytes, IO_PIECE), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sl_fail(err, SL_E_IO, "cannot read: %s", strerror(errno));
        if (!n) return sl_fail(err, SL_E_IO, "the file ended at byte %llu while it was read",
                               (unsigned long long)offset);
        p += n;
        n_bytes -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return SL_OK;
}

void sl_os_in_close(sl_os_in *in) {
    if (in->open) close(in->fd);
    *in = (sl_os_in){ 0 };
}

sl_os_kind sl_os_kind_of(const char *path) {
    struct stat st;
    if (stat(path, &st)) {
        bool none = lstat(path, &st) && (errno == ENOENT || errno == ENOTDIR);
        return none ? SL_OS_NOTHING : SL_OS_OTHER;
    }
    return S_ISREG(st.st_mode) ? SL_OS_FILE : S_ISDIR(st.st_mode) ? SL_OS_FOLDER : SL_OS_OTHER;
}

bool sl_os_same_file(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Appends all of fd to buf, at most max_bytes. */
static sl_status read_all(int fd, const char *path, uint64_t max_bytes, sl_buf *buf, sl_error *err) {
    static const size_t piece = 1 << 16;
    sl_name_buf name;
    for (;;) {
        if (!sl_grow((void **)&buf->data, &buf->cap, buf->n + piece + 1, 1))
            return sl_fail(err, SL_E_MEMORY, "out of memory for the content of %s",
                           sl_os_path_name(path, &name));
        ssize_t n = read(fd, buf->data + buf->n, piece);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, path, "cannot read");
        if (!n) break;
        buf->n += (size_t)n;
        if (buf->n > max_bytes)
            return sl_fail(err, SL_E_IO, "%s is longer than %llu bytes", sl_os_path_name(path, &name),
                           (unsigned long long)max_bytes);
    }
    buf->data[buf->n] = 0;
    return SL_OK;
}

sl_status sl_os_read_file(const char *path, uint64_t max_bytes, char **data, size_t *n_bytes, sl_error *err) {
    sl_buf buf = { 0 };
    sl_name_buf name;
    if (sl_os_kind_of(path) == SL_OS_FOLDER)
        return sl_fail(err, SL_E_IO, "%s is a folder, expected a file", sl_os_path_name(path, &name));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(err, path, "cannot open");
    sl_status status = read_all(fd, path, max_bytes, &buf, err);
    close(fd);
    if (status != SL_OK) {
        sl_buf_release(&buf);
        return status;
    }
    *data = (char *)buf.data;
    *n_bytes = buf.n;
    return SL_OK;
}

/* ---- pages -------------------------------------------------------------------------------------- */

static void *map_pages(uint64_t n_bytes, int flags) {
    if (!n_bytes || n_bytes > SIZE_MAX / 2) return NULL;
    void *p = mmap(NULL, (size_t)n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, (size_t)n_bytes, MADV_HUGEPAGE); /* a wish: fewer TLB misses where the system grants it */
    return p;
}

void *sl_os_pages(uint64_t n_bytes) { return map_pages(n_bytes, 0); }

void *sl_os_pages_unreserved(uint64_t n_bytes) { return map_pages(n_bytes, MAP_NORESERVE); }

void sl_os_pages_free(void *p, uint64_t n_bytes) {
    if (p) munmap(p, (size_t)n_bytes);
}

/* ---- atomic files ------------------------------------------------------------------------------- */

/* The folder of path with a trailing '/', or "" for the present one; malloc'd with extra bytes to spare. */
static char *folder_of(const char *path, size_t extra) {
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) + 1 : 0;
    char *folder = malloc(n + extra + 1);
    if (!folder) return NULL;
    memcpy(folder, path, n);
    folder[n] = 0;
    return folder;
}

/* path itself, or what it points to: a link stays a link and its target is replaced. */
static sl_status resolve(const char *path, char **out, sl_error *err) {
    struct stat st;
    sl_name_buf buf;
    if (!lstat(path, &st) && S_ISLNK(st.st_mode)) {
        *out = realpath(path, NULL);
        if (!*out) return fail_errno(err, path, "cannot follow the link");
    } else {
        *out = strdup(path);
        if (!*out) return sl_fail(err, SL_E_MEMORY, "out of memory");
    }
    if (!stat(*out, &st) && !S_ISREG(st.st_mode))
        return sl_fail(err, SL_E_IO, "%s is %s, expected a file to write", sl_os_path_name(path, &buf),
                       mode_name(st.st_mode));
    return SL_OK;
}

static void descriptor_path(int fd, char path[32]) { snprintf(path, 32, "/proc/self/fd/%d", fd); }

/* Gives the file of fd, which has none, a name; -1: errno says why not, EEXIST for a name that is taken. */
static int link_fd(int fd, const char *path) {
    char from[32];
    descriptor_path(fd, from);
    return linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

/* A file without a name in the folder of path: nothing of it is left if the program is killed. -1: the file
 * system has no such files, or it could not be named later. */
static int open_nameless(const char *path) {
    char self[32], *folder = folder_of(path, 1);
    if (!folder) return -1;
    if (!folder[0]) strcpy(folder, ".");
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    free(folder);
    if (fd < 0) return -1;
    descriptor_path(fd, self);
    if (!access(self, F_OK)) return fd;
    close(fd);
    return -1;
}

/* Finds a free short name in the folder of out->path: for the open file that has none, or for a new one. */
static sl_status take_temp(sl_os_out *out, sl_error *err) {
    static const size_t room = 64;
    for (unsigned i = 0; i < 1000; i++) {
        out->temp = folder_of(out->path, room);
        if (!out->temp) return sl_fail(err, SL_E_MEMORY, "out of memory");
        size_t n = strlen(out->temp);
        snprintf(out->temp + n, room, ".sluice-%ld-%u.tmp", (long)getpid(), i);
        const bool is_open = out->fd >= 0;
        if (!is_open) out->fd = open(out->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (is_open ? !link_fd(out->fd, out->temp) : out->fd >= 0) return SL_OK;
        free(out->temp);
        out->temp = NULL;
        if (errno != EEXIST) break;
    }
    return fail_errno(err, out->path, "cannot create a file beside it");
}

/* Where it has them already nothing is set: not every file system would let it. */
static sl_status take_mode(sl_os_out *out, mode_t mode, sl_error *err) {
    struct stat now;
    if (!fstat(out->fd, &now) && ((now.st_mode & 0777) == mode || !fchmod(out->fd, mode))) return SL_OK;
    return fail_errno(err, out->path, "cannot give a new file its permissions");
}

sl_status sl_os_out_open(sl_os_out *out, const char *path, sl_error *err) {
    *out = (sl_os_out){ .fd = -1 };
    sl_name_buf buf;
    size_t n = strlen(path);
    if (!n || path[n - 1] == '/')
        return sl_fail(err, SL_E_IO, "\"%s\" is not the name of a file to write", sl_os_path_name(path, &buf));
    sl_status status = resolve(path, &out->path, err);
    if (status == SL_OK) out->fd = open_nameless(out->path);
    if (status == SL_OK && out->fd < 0) status = take_temp(out, err);
    struct stat old; /* who may read the file that is replaced may read the new one, and nobody else */
    if (status == SL_OK && !stat(out->path, &old)) status = take_mode(out, old.st_mode & 0777, err);
    if (status != SL_OK) sl_os_out_abort(out);
    return status;
}

sl_status sl_os_out_write(sl_os_out *out, const void *data, uint64_t n_bytes, sl_error *err) {
    for (const uint8_t *p = data; n_bytes;) {
        ssize_t n = write(out->fd, p, sl_min((size_t)n_bytes, IO_PIECE));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, out->path, "cannot write");
        p += n;
        n_bytes -= (uint64_t)n;
    }
    return SL_OK;
}

sl_status sl_os_out_pwrite(sl_os_out *out, const void *data, uint64_t n_bytes, uint64_t offset, sl_error *err) {
    for (const uint8_t *p = data; n_bytes;) {
        ssize_t n = pwrite(out->fd, p, sl_min((size_t)n_bytes, IO_PIECE), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(err, out->path, "cannot write");
        p += n;
        n_bytes -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return SL_OK;
}

/* Makes the rename itself durable; some file systems cannot, and the data is safe without. */
static void sync_folder(const char *path) {
    char *folder = folder_of(path, 1);
    if (!folder) return;
    if (!folder[0]) strcpy(folder, ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

static void out_release(sl_os_out *out) {
    free(out->path);
    free(out->temp);
    *out = (sl_os_out){ .fd = -1 };
}

/* A file that is there can only be replaced by one with a name: it has one for that moment. */
static sl_status name_out(sl_os_out *out, sl_error *err) {
    if (!out->temp) {
        if (!link_fd(out->fd, out->path)) return SL_OK;
        if (errno != EEXIST) return fail_errno(err, out->path, "cannot name it");
        SL_TRY(take_temp(out, err));
    }
    if (rename(out->temp, out->path)) return fail_errno(err, out->path, "cannot replace");
    return SL_OK;
}

sl_status sl_os_out_commit(sl_os_out *out, sl_error *err) {
    if (fsync(out->fd) && errno != EINVAL && errno != ENOTSUP)
        return fail_errno(err, out->path, "cannot write");
    SL_TRY(name_out(out, err));
    close(out->fd); /* what a close could still report was written by fsync */
    sync_folder(out->path);
    out_release(out);
    return SL_OK;
}

void sl_os_out_abort(sl_os_out *out) {
    if (out->fd >= 0 && out->path) close(out->fd);
    if (out->temp) unlink(out->temp);
    out_release(out);
}

/* ---- time, memory, processors ------------------------------------------------------------------- */

double sl_os_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* VmHWM rather than getrusage: the latter counts the parent's memory before exec. */
uint64_t sl_os_peak_rss(void) {
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "re");
    if (file) {
        while (fgets(line, sizeof line, file))
            if (!strncmp(line, "VmHWM:", 6)) kib = strtoull(line + 6, NULL, 10);
        fclose(file);
    }
    struct rusage usage;
    if (!kib && !getrusage(RUSAGE_SELF, &usage)) kib = (unsigned long long)usage.ru_maxrss;
    return (uint64_t)kib * 1024;
}

/* Waits until all have been started or one has failed to. */
static void *wait_for_gate(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

size_t sl_os_start_threads(size_t n) {
    pthread_t *threads = calloc(n ? n : 1, sizeof *threads);
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    size_t started = 0;
    if (!threads) return 0;
    pthread_mutex_lock(&gate);
    while (started < n && !pthread_create(&threads[started], NULL, wait_for_gate, &gate)) started++;
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    free(threads);
    return started;
}

size_t sl_os_processors(void) {
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) > 0) return (size_t)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (size_t)n : 1;
}

uint64_t sl_os_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 0;
}

void *sl_os_library(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void *sl_os_symbol(void *library, const char *name) { return dlsym(library, name); }

char *sl_os_program_folder(void) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0 || (size_t)n >= sizeof path - 1) return NULL;
    path[n] = 0;
    return folder_of(path, 0);
}
