/* Text files of a model folder, and the small checks all readers of text share. */
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

sl_status sl_file_context(const char *what, sl_status status, sl_error *err) {
    if (!err) return status;
    sl_error inner = *err;
    return sl_fail(err, status, "%s: %s", what, inner.text);
}

/* Bytes of the sequence that begins with lead, 0 if none does; *low and *high bound the second byte, which
 * rules out overlong forms, surrogates and code points past U+10FFFF (Unicode, table 3-7). */
static size_t utf8_length(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

bool sl_file_utf8(const void *text, size_t n_bytes) {
    const uint8_t *p = text;
    for (size_t i = 0; i < n_bytes;) {
        uint8_t low, high;
        size_t n = utf8_length(p[i], &low, &high);
        if (!n || n > n_bytes - i) return false;
        if (n > 1 && (p[i + 1] < low || p[i + 1] > high)) return false;
        for (size_t j = 2; j < n; j++)
            if ((p[i + j] & 0xC0) != 0x80) return false;
        i += n;
    }
    return true;
}

char *sl_file_path(const char *folder, const char *name) {
    size_t n = strlen(folder) + strlen(name) + 2;
    char *path = malloc(n);
    if (path) snprintf(path, n, "%s/%s", folder, name);
    return path;
}

static sl_status read_text(const char *path, uint64_t max_bytes, char **text, size_t *n_bytes, sl_error *err) {
    sl_os_in in;
    sl_name_buf buf;
    SL_TRY(sl_os_in_open(&in, path, err));
    sl_status status = SL_OK;
    if (in.size > max_bytes)
        status = sl_fail(err, SL_E_FORMAT, "%s has %llu bytes, expected at most %llu",
                         sl_os_path_name(path, &buf),
                         (unsigned long long)in.size, (unsigned long long)max_bytes);
    if (status == SL_OK) status = sl_alloc((void **)text, (size_t)in.size + 1, 1, "the content of a file", err);
    if (status == SL_OK) {
        *n_bytes = (size_t)in.size;
        status = sl_os_in_read(&in, *text, in.size, 0, err);
        if (status != SL_OK) status = sl_file_context(sl_os_path_name(path, &buf), status, err);
    }
    sl_os_in_close(&in);
    return status;
}

sl_status sl_file_text(const char *folder, const char *name, uint64_t max_bytes, char **text, size_t *n_bytes,
                       sl_error *err) {
    *text = NULL;
    *n_bytes = 0;
    char *path = sl_file_path(folder, name);
    if (!path) return sl_fail(err, SL_E_MEMORY, "out of memory");
    sl_status status = SL_OK;
    if (sl_os_kind_of(path) != SL_OS_NOTHING) status = read_text(path, max_bytes, text, n_bytes, err);
    if (status != SL_OK) {
        free(*text);
        *text = NULL;
    }
    free(path);
    return status;
}
