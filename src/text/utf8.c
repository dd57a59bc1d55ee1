/* UTF-8 by the table of well-formed sequences (Unicode standard, table 3-7), and the byte alphabet of GPT-2. */
#include "text/utf8.h"

#include <assert.h>
#include <utf8proc.h>

static bool is_tail(uint8_t c) { return (c & 0xC0) == 0x80; }

/* Bytes a character has that begins with c, and the range of its second byte; 0: c begins none. */
static size_t lead(uint8_t c, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xBF;
    if (c < 0x80) return 1;
    if (c < 0xC2 || c > 0xF4) return 0;
    if (c < 0xE0) return 2;
    if (c == 0xE0) *low = 0xA0;  /* no overlong forms */
    if (c == 0xED) *high = 0x9F; /* no surrogates */
    if (c == 0xF0) *low = 0x90;
    if (c == 0xF4) *high = 0x8F; /* nothing above U+10FFFF */
    return c < 0xF0 ? 3 : 4;
}

size_t sl_utf8_char(const uint8_t *p, size_t n) {
    if (!n) return 0;
    uint8_t low, high;
    size_t len = lead(p[0], &low, &high);
    if (len <= 1) return len;
    if (len > n || p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < len; i++)
        if (!is_tail(p[i])) return 0;
    return len;
}

size_t sl_utf8_part(const uint8_t *p, size_t n, bool *valid) {
    uint8_t low, high;
    size_t need = lead(p[0], &low, &high), len = sl_utf8_char(p, n);
    *valid = len > 0;
    if (len) return len;
    for (len = 1; len < need && len < n; len++)
        if (len == 1 ? p[1] < low || p[1] > high : !is_tail(p[len])) break;
    return len;
}

size_t sl_utf8_valid(const uint8_t *p, size_t n) {
    size_t i = 0;
    for (size_t len; (len = sl_utf8_char(p + i, n - i)) > 0; i += len) {}
    return i;
}

int32_t sl_utf8_code(const uint8_t *p, size_t *n_char) {
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    int32_t code = n == 1 ? p[0] : p[0] & (0x7F >> n);
    for (size_t i = 1; i < n; i++) code = code << 6 | (p[i] & 0x3F);
    if (n_char) *n_char = n;
    return code;
}

int32_t sl_utf8_last(const uint8_t *p, size_t n, size_t *n_char) {
    size_t i = 1;
    while (i < 4 && i < n && is_tail(p[n - i])) i++;
    if (i > n || sl_utf8_char(p + n - i, i) != i) return -1;
    return sl_utf8_code(p + n - i, n_char);
}

size_t sl_utf8_put(int32_t code, uint8_t out[4]) {
    assert(code >= 0 && code <= 0x10FFFF);
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3F));
    out[0] = (uint8_t)((0xF00 >> n) | code); /* n ones, a zero, then bits of the code */
    return n;
}

size_t sl_utf8_whole(const uint8_t *p, size_t n) {
    for (size_t i = 1; i <= 3 && i <= n; i++) {
        const uint8_t *q = p + n - i;
        if (is_tail(*q)) continue;
        uint8_t low, high;
        size_t len = lead(*q, &low, &high);
        bool open = len > i && (i < 2 || (q[1] >= low && q[1] <= high));
        return open ? n - i : n;
    }
    return n;
}

bool sl_utf8_is_space(int32_t code) {
    if (code >= 0x09 && code <= 0x0D) return true;
    if (code >= 0x2000 && code <= 0x200A) return true;
    switch (code) {
    case 0x20: case 0x85: case 0xA0: case 0x1680: case 0x2028: case 0x2029: case 0x202F: case 0x205F:
    case 0x3000:
        return true;
    default: return false;
    }
}

bool sl_utf8_is_word(int32_t code) {
    if (code == 0x200C || code == 0x200D) return true;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC:
        return true;
    default: return false;
    }
}

void sl_byte_alphabet(int32_t code[256]) {
    int32_t next = 256; /* bytes that do not print are moved up, in order */
    for (int32_t b = 0; b < 256; b++) {
        bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        code[b] = prints ? b : next++;
    }
}
