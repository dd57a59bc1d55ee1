/* Buffers of the kernel harness: pages with canaries in front and a page without access behind. */
#define _DEFAULT_SOURCE
#include "runner.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_BUFFER = 64 };
static struct buffer { unsigned char *pages, *data; size_t n_pages_bytes; } buffers[MAX_BUFFER];
static size_t n_buffer;

static size_t page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

void *check_buffer(check *c, size_t n_bytes) {
    const size_t page = page_bytes(), usable = (n_bytes + 64 + page - 1) / page * page;
    unsigned char *pages = MAP_FAILED;
    if (n_buffer < MAX_BUFFER) {
        pages = mmap(NULL, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (pages == MAP_FAILED || mprotect(pages + usable, page, PROT_NONE) != 0) {
        fprintf(stderr, "%s: no buffer of %zu bytes\n", c->kernel, n_bytes);
        _exit(1);
    }
    memset(pages, CHECK_CANARY, usable);
    struct buffer *b = &buffers[n_buffer++];
    *b = (struct buffer){ pages, pages + usable - n_bytes, usable };
    return b->data;
}

void check_seal(check *c, const void *data) {
    for (size_t i = 0; i < n_buffer; i++) {
        const struct buffer *b = &buffers[i];
        if (b->data == data && mprotect(b->pages, b->n_pages_bytes, PROT_READ) == 0) return;
    }
    check_fail(c, "check_seal: not a buffer");
}

static bool all_canaries(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != CHECK_CANARY) return false;
    }
    return true;
}

void check_gaps(check *c, const char *name, const void *p, size_t width, size_t stride, size_t n_row) {
    const unsigned char *row = p;
    for (size_t r = 0; r + 1 < n_row; r++, row += stride) {
        if (all_canaries(row + width, stride - width)) continue;
        check_fail(c, "%s: bytes between rows %zu and %zu were written", name, r, r + 1);
        return;
    }
}

void check_release(check *c, bool verify) {
    for (size_t i = 0; i < n_buffer; i++) {
        const struct buffer *b = &buffers[i];
        if (verify && !all_canaries(b->pages, (size_t)(b->data - b->pages))) {
            check_fail(c, "bytes before buffer %zu of the case were written", i);
        }
        munmap(b->pages, b->n_pages_bytes + page_bytes());
    }
    n_buffer = 0;
}

void check_end(check *c) {
    check_release(c, true);
}
