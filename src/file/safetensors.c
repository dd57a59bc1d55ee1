/* Safetensors: an 8-byte length, a JSON header {"name": {"dtype", "shape", "data_offsets"}, ...}, the data.
 * The header has one fixed form and may be 100 MB long, so it is read by a scanner of its own, in one pass
 * and without a tree; names are unescaped in place. Shards and their index: safetensors_index.c. */
#include <stdlib.h>
#include <string.h>

#include "file/file.h"

static unsigned long long ull(uint64_t v) { return v; }

/* ---- scanner ------------------------------------------------------------------------------------ */

typedef struct scan { char *begin, *p, *end; sl_error *err; } scan;

static sl_status bad(const scan *s, const char *expected) {
    return sl_fail(s->err, SL_E_FORMAT, "the header is broken at byte %zu, expected %s",
                   (size_t)(s->p - s->begin),
                   expected);
}

static char peek(scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t')) s->p++;
    return s->p < s->end ? *s->p : 0;
}

static bool accept(scan *s, char c) {
    if (peek(s) != c || s->p == s->end) return false;
    s->p++;
    return true;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four hexadecimal digits, -1 if they are not. */
static int hex4(const char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0) return -1;
        v = v * 16 + digit;
    }
    return v;
}

/* Writes code point c; returns its bytes. */
static size_t put_utf8(char *out, uint32_t c) {
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    for (size_t i = n; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(lead[n] | c);
    return n;
}

/* The escape at s->p, past its backslash, to out. A character takes no more bytes than its escape did. */
static size_t unescape(scan *s, char *out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *at = s->p < s->end && *s->p ? strchr(from, *s->p) : NULL;
    if (at) return s->p++, *out = to[at - from], 1;
    if (s->end - s->p < 5 || *s->p != 'u') return 0;
    int high = hex4(s->p + 1), low;
    s->p += 5;
    if (high <= 0 || (high >= 0xDC00 && high < 0xE000)) return 0;
    if (high < 0xD800 || high >= 0xE000) return put_utf8(out, (uint32_t)high);
    if (s->end - s->p < 6 || s->p[0] != '\\' || s->p[1] != 'u') return 0;
    low = hex4(s->p + 2);
    s->p += 6;
    if (low < 0xDC00 || low >= 0xE000) return 0;
    return put_utf8(out, 0x10000 + ((uint32_t)high - 0xD800) * 0x400 + ((uint32_t)low - 0xDC00));
}

/* A text, unescaped and terminated in place. */
static sl_status text(scan *s, char **out) {
    if (!accept(s, '"')) return bad(s, "a text in quotes");
    char *w = *out = s->p;
    while (s->p < s->end && *s->p != '"') {
        if ((unsigned char)*s->p < 0x20) return bad(s, "a text without control characters");
        if (*s->p != '\\') {
            *w++ = *s->p++;
            continue;
        }
        s->p++;
        size_t n = unescape(s, w);
        if (!n) return bad(s, "a legal escape");
        w += n;
    }
    if (s->p == s->end) return bad(s, "the end of a text");
    s->p++;
    *w = 0;
    return sl_file_utf8(*out, (size_t)(w - *out)) ? SL_OK : bad(s, "UTF-8 before it");
}

static sl_status number(scan *s, uint64_t *out) {
    static const char what[] = "an integer below 2^63";
    char c = peek(s);
    if (c < '0' || c > '9') return bad(s, what);
    const char *first = s->p;
    *out = 0;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++) {
        bool fits = sl_mul(*out, 10, out) && sl_add(*out, (uint64_t)(*s->p - '0'), out) && *out <= INT64_MAX;
        if (!fits) return bad(s, what);
    }
    if (c == '0' && s->p - first > 1) return bad(s, what);
    return s->p < s->end && strchr(".eE", *s->p) ? bad(s, what) : SL_OK;
}

/* [a, b, ...] of at most max numbers. */
static sl_status numbers(scan *s, uint64_t *out, size_t max, size_t *n) {
    *n = 0;
    if (!accept(s, '[')) return bad(s, "a list of integers");
    if (accept(s, ']')) return SL_OK;
    do {
        if (*n == max) return bad(s, "the end of a list: it is too long");
        SL_TRY(number(s, &out[(*n)++]));
    } while (accept(s, ','));
    return accept(s, ']') ? SL_OK : bad(s, "',' or ']'");
}

/* ---- header ------------------------------------------------------------------------------------- */

static const struct { const char *name; sl_type type; uint64_t size; } dtypes[] = {
    { "F32", SL_F32, 4 }, { "F16", SL_F16, 2 }, { "BF16", SL_BF16, 2 },
};

static sl_status check_tensor(const sl_st_tensor *t, const char *dtype, uint64_t begin, uint64_t end,
                              uint64_t data_bytes, sl_error *err) {
    sl_name_buf buf;
    uint64_t bytes = 0;
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(dtype, dtypes[i].name)) bytes = dtypes[i].size;
    bool fits = true;
    for (uint32_t i = 0; i < t->n_dim; i++) fits = fits && sl_mul(bytes, t->shape[i], &bytes);
    if (begin > end || end > data_bytes)
        return sl_fail(err, SL_E_FORMAT,
                       "tensor %s: data_offsets are %llu and %llu, expected a range within %llu bytes "
                       "of data", sl_name(t->name, &buf), ull(begin), ull(end), ull(data_bytes));
    if (!fits || bytes != end - begin)
        return sl_fail(err, SL_E_FORMAT,
                       "tensor %s: data_offsets give %llu bytes, expected %llu%s for its shape",
                       sl_name(t->name, &buf), ull(end - begin), ull(fits ? bytes : UINT64_MAX),
                       fits ? "" : " and more");
    return SL_OK;
}

static sl_status tensor_type(sl_st_tensor *t, const char *dtype, sl_error *err) {
    sl_name_buf name, type;
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(dtype, dtypes[i].name)) {
            t->type = dtypes[i].type;
            return SL_OK;
        }
    return sl_fail(err, SL_E_UNSUPPORTED, "tensor %s: dtype is %s, expected F32, F16 or BF16",
                   sl_name(t->name, &name),
                   sl_name(dtype, &type));
}

enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4, HAS_ALL = 7 };

/* One of the three fields; its bit, or 0 for another name. */
static unsigned field_bit(const char *field) {
    if (!strcmp(field, "dtype")) return HAS_DTYPE;
    if (!strcmp(field, "shape")) return HAS_SHAPE;
    return strcmp(field, "data_offsets") ? 0 : HAS_OFFSETS;
}

static sl_status tensor(scan *s, sl_st_tensor *t, uint64_t data_bytes) {
    sl_name_buf name, other;
    unsigned seen = 0;
    char *dtype = NULL;
    uint64_t range[2] = { 0, 0 };
    size_t n_dim = 0, n_range = 0;
    if (!accept(s, '{')) return bad(s, "a tensor {\"dtype\", \"shape\", \"data_offsets\"}");
    do {
        char *field;
        SL_TRY(text(s, &field));
        if (!accept(s, ':')) return bad(s, "':'");
        unsigned bit = field_bit(field);
        if (!bit || seen & bit)
            return sl_fail(s->err, SL_E_FORMAT,
                           "tensor %s: field %s is %s, expected dtype, shape and data_offsets once",
                           sl_name(t->name, &name), sl_name(field, &other), bit ? "there twice" : "unknown");
        seen |= bit;
        SL_TRY(bit == HAS_DTYPE   ? text(s, &dtype)
               : bit == HAS_SHAPE ? numbers(s, t->shape, SL_ST_MAX_DIM, &n_dim)
                                  : numbers(s, range, 2, &n_range));
    } while (accept(s, ','));
    if (!accept(s, '}')) return bad(s, "',' or '}'");
    if (seen != HAS_ALL || n_range != 2)
        return sl_fail(s->err, SL_E_FORMAT, "tensor %s: expected dtype, shape and two data_offsets",
                       sl_name(t->name, &name));
    t->n_dim = (uint32_t)n_dim;
    SL_TRY(tensor_type(t, dtype, s->err));
    t->offset = range[0];
    t->bytes = range[1] - range[0];
    return check_tensor(t, dtype, range[0], range[1], data_bytes, s->err);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* "__metadata__": texts by name, which nobody reads. */
static sl_status metadata(scan *s) {
    sl_name_buf buf;
    const char **keys = NULL;
    size_t n = 0, cap = 0;
    sl_status status = SL_OK;
    if (!accept(s, '{')) return bad(s, "an object of texts");
    if (accept(s, '}')) return SL_OK;
    do {
        char *key, *value;
        status = text(s, &key);
        if (status == SL_OK && !accept(s, ':')) status = bad(s, "':'");
        if (status == SL_OK) status = text(s, &value);
        if (status == SL_OK && !sl_grow((void **)&keys, &cap, n + 1, sizeof *keys))
            status = sl_fail(s->err, SL_E_MEMORY, "out of memory for __metadata__");
        if (status == SL_OK) keys[n++] = key;
    } while (status == SL_OK && accept(s, ','));
    if (status == SL_OK && !accept(s, '}')) status = bad(s, "',' or '}'");
    if (status == SL_OK) qsort(keys, n, sizeof *keys, by_text);
    for (size_t i = 1; i < n && status == SL_OK; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            status = sl_fail(s->err, SL_E_FORMAT, "__metadata__ has the key %s twice", sl_name(keys[i], &buf));
    free(keys);
    return status;
}

static sl_status entry(scan *s, uint32_t shard, uint64_t data_bytes, bool *has_metadata, sl_safetensors *st) {
    char *name;
    SL_TRY(text(s, &name));
    if (!accept(s, ':')) return bad(s, "':'");
    if (!strcmp(name, "__metadata__")) {
        if (*has_metadata) return sl_fail(s->err, SL_E_FORMAT, "__metadata__ is there twice");
        *has_metadata = true;
        return metadata(s);
    }
    if (st->n_tensor >= SL_ST_MAX_TENSOR)
        return sl_fail(s->err, SL_E_FORMAT, "there are more than %d tensors", SL_ST_MAX_TENSOR);
    if (!sl_grow((void **)&st->tensors, &st->tensor_cap, st->n_tensor + 1, sizeof *st->tensors))
        return sl_fail(s->err, SL_E_MEMORY, "out of memory for the list of tensors");
    sl_st_tensor *t = &st->tensors[st->n_tensor++];
    *t = (sl_st_tensor){ .name = name, .shard = shard };
    return tensor(s, t, data_bytes);
}

/* ---- ranges ------------------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b) {
    const sl_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const sl_st_tensor *)a)->name, ((const sl_st_tensor *)b)->name);
}

static sl_status check_unique(sl_st_tensor *t, size_t n, sl_error *err) {
    sl_name_buf buf;
    qsort(t, n, sizeof *t, by_name);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(t[i - 1].name, t[i].name))
            return sl_fail(err, SL_E_FORMAT, "tensor %s is there twice", sl_name(t[i].name, &buf));
    return SL_OK;
}

/* The ranges of t follow one another from 0 to data_bytes. */
static sl_status check_cover(sl_st_tensor *t, size_t n, uint64_t data_bytes, sl_error *err) {
    sl_name_buf buf;
    uint64_t next = 0;
    if (n) qsort(t, n, sizeof *t, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (t[i].offset != next)
            return sl_fail(err, SL_E_FORMAT, "tensor %s: data_offsets begin at %llu, expected %llu (%s)",
                           sl_name(t[i].name, &buf), ull(t[i].offset), ull(next),
                           t[i].offset < next ? "ranges overlap" : "there is a hole");
        next += t[i].bytes; /* both at most data_bytes */
    }
    if (next == data_bytes) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "there are %llu bytes of data, expected %llu: the tensors end before",
                   ull(data_bytes),
                   ull(next));
}

sl_status sl_safetensors_parse(char *json, size_t n_bytes, uint64_t data_offset, uint64_t data_bytes,
                               uint32_t shard,
                               sl_safetensors *st, sl_error *err) {
    scan s = { json, json, json + n_bytes, err };
    bool has_metadata = false;
    size_t first = st->n_tensor;
    if (!n_bytes || *json != '{') return bad(&s, "'{'");
    s.p++;
    if (!accept(&s, '}')) {
        do SL_TRY(entry(&s, shard, data_bytes, &has_metadata, st));
        while (accept(&s, ','));
        if (!accept(&s, '}')) return bad(&s, "',' or '}'");
    }
    peek(&s);
    if (s.p != s.end) return bad(&s, "nothing after the last '}'");
    size_t n = st->n_tensor - first;
    sl_st_tensor *own = n ? st->tensors + first : NULL;
    if (n) SL_TRY(check_unique(own, n, err));
    SL_TRY(check_cover(own, n, data_bytes, err));
    for (size_t i = 0; i < n; i++) own[i].offset += data_offset;
    return SL_OK;
}
