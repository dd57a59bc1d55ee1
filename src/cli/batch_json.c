#include "cli/batch_json.h"

#include <stdio.h>
#include <string.h>

#include "text/utf8.h"

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* From the opening quote to past the closing one (or the end). */
static size_t skip_string(const char *text, size_t n, size_t at) {
    for (at++; at < n && text[at] != '"'; at++)
        if (text[at] == '\\') at++;
    return at < n ? at + 1 : n;
}

static void keep_value(const char *text, size_t from, size_t to, sl_span *values, size_t cap, size_t *n_value) {
    while (from < to && is_space(text[from])) from++;
    while (to > from && is_space(text[to - 1])) to--;
    if (*n_value < cap) values[*n_value] = (sl_span){ text + from, to - from };
    (*n_value)++;
}

bool sl_json_scan(const char *text, size_t n, size_t max_depth, sl_span *values, size_t cap, size_t *n_value) {
    size_t depth = 0, from = 0, at = 0;
    *n_value = 0;
    while (at < n) {
        char c = text[at];
        if (c == '"') {
            at = skip_string(text, n, at);
            continue;
        }
        if ((c == '}' || c == ',') && depth == 1 && from) {
            keep_value(text, from, at, values, cap, n_value);
            from = 0;
        }
        if (c == ':' && depth == 1) from = at + 1;
        if (c == '{' || c == '[')
            if (++depth > max_depth) return false;
        if ((c == '}' || c == ']') && depth) depth--;
        at++;
    }
    return true;
}

static bool append(sl_buf *out, const char *text) { return sl_buf_append(out, text, strlen(text)); }

/* U+0085, U+2028 and U+2029, which some readers take for line ends; NULL: another character. */
static const char *line_end_escape(const char *p, size_t length) {
    if (length == 2 && !memcmp(p, "\xC2\x85", 2)) return "\\u0085";
    if (length == 3 && !memcmp(p, "\xE2\x80\xA8", 3)) return "\\u2028";
    if (length == 3 && !memcmp(p, "\xE2\x80\xA9", 3)) return "\\u2029";
    return NULL;
}

static bool append_character(sl_buf *out, const char *p, size_t length, bool valid) {
    const char *escape = line_end_escape(p, length);
    char hex[8];
    if (!valid) return append(out, SL_UTF8_REPLACEMENT);
    if (escape) return append(out, escape);
    switch (*p) {
    case '"': return append(out, "\\\"");
    case '\\': return append(out, "\\\\");
    case '\n': return append(out, "\\n");
    case '\r': return append(out, "\\r");
    case '\t': return append(out, "\\t");
    default: break;
    }
    if ((unsigned char)*p >= 0x20) return sl_buf_append(out, p, length);
    snprintf(hex, sizeof hex, "\\u%04x", (unsigned)*p);
    return append(out, hex);
}

bool sl_json_string(sl_buf *out, const void *text, size_t n) {
    const uint8_t *p = text;
    bool good = append(out, "\"");
    for (size_t at = 0; good && at < n;) {
        bool valid;
        size_t length = sl_utf8_part(p + at, n - at, &valid);
        good = append_character(out, (const char *)p + at, length, valid);
        at += length;
    }
    return good && append(out, "\"");
}

/* A string token of valid JSON: as it is, but for the raw line ends of Unicode. */
static bool copy_string(sl_buf *out, const char *text, size_t n) {
    bool good = true;
    for (size_t at = 0; good && at < n;) {
        bool valid;
        size_t length = sl_utf8_part((const uint8_t *)text + at, n - at, &valid);
        const char *escape = line_end_escape(text + at, length);
        good = escape ? append(out, escape) : sl_buf_append(out, text + at, length);
        at += length;
    }
    return good;
}

bool sl_json_compact(sl_buf *out, const char *text, size_t n) {
    bool good = true;
    for (size_t at = 0; good && at < n;) {
        size_t end = text[at] == '"' ? skip_string(text, n, at) : at + 1;
        if (text[at] == '"') good = copy_string(out, text + at, end - at);
        else if (!is_space(text[at])) good = sl_buf_append(out, text + at, 1);
        at = end;
    }
    return good;
}
