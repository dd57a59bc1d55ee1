#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

void *sl_calloc(size_t n, size_t size) {
    uint64_t bytes;
    if (!sl_mul(n, size, &bytes) || !sl_align(bytes + !bytes, 64, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    void *p = aligned_alloc(64, (size_t)bytes);
    if (p) memset(p, 0, (size_t)bytes);
    return p;
}

sl_status sl_alloc(void **out, size_t n, size_t size, const char *what, sl_error *err) {
    *out = sl_calloc(n, size);
    if (*out) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "out of memory: %zu x %zu bytes for %s", n, size, what);
}

bool sl_grow(void **array, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return true;
    size_t want = *cap ? *cap : 16;
    while (want < need) {
        if (want > SIZE_MAX / 4) return false;
        want *= 2;
    }
    uint64_t bytes;
    if (!sl_mul(want, size, &bytes) || bytes > SIZE_MAX / 2) return false;
    void *p = realloc(*array, (size_t)bytes);
    if (!p) return false;
    *array = p;
    *cap = want;
    return true;
}

bool sl_buf_append(sl_buf *buf, const void *data, size_t n) {
    if (n > SIZE_MAX - buf->n || !sl_grow((void **)&buf->data, &buf->cap, buf->n + n, 1)) return false;
    if (n) memcpy(buf->data + buf->n, data, n);
    buf->n += n;
    return true;
}

void sl_buf_release(sl_buf *buf) {
    free(buf->data);
    *buf = (sl_buf){ 0 };
}
