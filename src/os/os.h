/* The only door to the operating system: mapping, pages, clock, atomic replacement of files, memory in use.
 * Threads belong to the CPU backend (OpenMP). */
#ifndef SL_OS_OS_H
#define SL_OS_OS_H

#include "base/error.h"

typedef struct sl_os_map { const void *data; uint64_t size; } sl_os_map;
/* Maps a regular file read-only. Refuses folders, devices, pipes and empty files by name. */
sl_status sl_os_map_file(sl_os_map *map, const char *path, sl_error *err);
void sl_os_unmap(sl_os_map *map);
/* Lets the system take back the pages of a range that was read; they come again when touched. */
void sl_os_map_drop(const void *data, uint64_t n_bytes);

/* A regular file read by position, for data that need not stay in memory. close accepts a zeroed struct. */
typedef struct sl_os_in { int fd; uint64_t size; bool open; } sl_os_in;
sl_status sl_os_in_open(sl_os_in *in, const char *path, sl_error *err);
sl_status sl_os_in_read(const sl_os_in *in, void *data, uint64_t n_bytes, uint64_t offset, sl_error *err);
void sl_os_in_close(sl_os_in *in);

/* A path as it may stand in an error: sl_name of it, a long one by its end. */
const char *sl_os_path_name(const char *path, sl_name_buf *buf);

/* What a path names, links followed; a link to nowhere is something other. */
typedef enum sl_os_kind { SL_OS_NOTHING, SL_OS_FILE, SL_OS_FOLDER, SL_OS_OTHER } sl_os_kind;
sl_os_kind sl_os_kind_of(const char *path);
bool sl_os_same_file(const char *a, const char *b); /* false if either is missing */

/* Zeroed anonymous pages, huge where the system grants them; touched on use only. NULL: none. */
void *sl_os_pages(uint64_t n_bytes);
/* As many as one likes, more than the machine has memory: for a block most of which is never touched. Where memory
 * runs out at a touch the system ends the program, so whoever means to touch it all asks for free memory first. */
void *sl_os_pages_unreserved(uint64_t n_bytes);
void sl_os_pages_free(void *p, uint64_t n_bytes);

/* A file being written in the folder of path: without a name where the file system has such files, else under
 * a temporary one (temp). commit syncs the file, gives it its name in one step and syncs the folder; abort (also
 * after a failed commit) drops it. Killed in between, path is as it was, and a nameless file is gone. */
typedef struct sl_os_out { int fd; char *path, *temp; } sl_os_out;
sl_status sl_os_out_open(sl_os_out *out, const char *path, sl_error *err);
sl_status sl_os_out_write(sl_os_out *out, const void *data, uint64_t n_bytes, sl_error *err);
sl_status sl_os_out_pwrite(sl_os_out *out, const void *data, uint64_t n_bytes, uint64_t offset, sl_error *err);
sl_status sl_os_out_commit(sl_os_out *out, sl_error *err);
void sl_os_out_abort(sl_os_out *out);

/* The whole of a regular file or pipe (at most max_bytes) as malloc'd bytes, NUL-terminated besides. */
sl_status sl_os_read_file(const char *path, uint64_t max_bytes, char **data, size_t *n_bytes, sl_error *err);

double sl_os_seconds(void);         /* monotonic clock */
uint64_t sl_os_peak_rss(void);      /* bytes; 0: unknown */
/* Starts up to n threads (all at once) that do nothing and end; how many did start. */
size_t sl_os_start_threads(size_t n);
size_t sl_os_processors(void);      /* usable by this process */
uint64_t sl_os_memory(void);        /* bytes of main memory; 0: unknown */
/* A shared library by its name, and a symbol in it; NULL: not there. Libraries stay loaded. */
void *sl_os_library(const char *name);
void *sl_os_symbol(void *library, const char *name);
/* Folder of the running program with a trailing '/', malloc'd; NULL: unknown. */
char *sl_os_program_folder(void);

#endif
