#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *sl_version(void) { return SLUICE_VERSION; }

const char *sl_status_text(sl_status status) {
    switch (status) {
    case SL_OK: return "ok";
    case SL_E_ARG: return "bad argument";
    case SL_E_MEMORY: return "out of memory";
    case SL_E_IO: return "input/output error";
    case SL_E_FORMAT: return "bad format";
    case SL_E_UNSUPPORTED: return "not supported";
    case SL_E_STATE: return "bad state";
    case SL_E_DEVICE: return "device failure";
    }
    return "unknown status";
}

sl_status sl_fail(sl_error *err, sl_status code, const char *fmt, ...) {
    if (!err) return code;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    err->code = code;
    size_t len = strlen(err->text);
    if (n >= (int)sizeof err->text)
        while (len && ((unsigned char)err->text[len - 1] & 0xC0) == 0x80) len--; /* whole characters only */
    if (n >= (int)sizeof err->text && len && (unsigned char)err->text[len - 1] >= 0xC0) len--;
    err->text[len] = 0;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)err->text[i] < 0x20 || err->text[i] == 0x7F) err->text[i] = '?';
    return code;
}

const char *sl_name_escape(const void *name, size_t n_bytes, sl_name_buf *buf) {
    const unsigned char *p = name;
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (n > 80) {
            memcpy(buf->text + n, "...", 4);
            return buf->text;
        }
        if (p[i] >= 0x20 && p[i] < 0x7F && p[i] != '\\') buf->text[n++] = (char)p[i];
        else n += (size_t)snprintf(buf->text + n, sizeof buf->text - n, p[i] == '\n' ? "\\n" : "\\x%02x", p[i]);
    }
    buf->text[n] = 0;
    return buf->text;
}

const char *sl_name(const char *name, sl_name_buf *buf) { return sl_name_escape(name, strlen(name), buf); }

const char *sl_size(uint64_t n_bytes, sl_size_buf *buf) {
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    double size = (double)n_bytes;
    size_t unit = 0;
    for (; size >= 1024 && unit < 4; unit++) size /= 1024;
    if (unit) snprintf(buf->text, sizeof buf->text, "%.2f %s", size, units[unit]);
    else snprintf(buf->text, sizeof buf->text, "%llu bytes", (unsigned long long)n_bytes);
    return buf->text;
}
