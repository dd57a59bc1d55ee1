/* One pass over a copy of the text, with a stack of the open lists and objects. */
#include "text/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "text/utf8.h"

enum { FEW_KEYS = 8, MAX_EXPONENT = 100000 };

typedef struct reader {
    sl_json_doc *doc;
    const char *json;      /* the text as it was given */
    char *begin, *p, *end; /* the copy; *end is 0 */
    size_t max_values;
    uint32_t stack[SL_JSON_DEPTH];
    size_t depth;
    uint32_t *table;       /* keys of one object by hash, as values + 1; 0: free */
    size_t table_cap;
    sl_error *err;
} reader;

/* Where p is, for messages: counted in the original, since unescaped texts may hold lines of their own. */
static size_t line_of(const reader *r, const char *p, size_t *column) {
    const char *start = r->json, *at = r->json + (p - r->begin);
    size_t line = 1;
    for (const char *next; (next = memchr(start, '\n', (size_t)(at - start))); start = next + 1) line++;
    *column = (size_t)(at - start) + 1;
    return line;
}

/* What is found at r->p is not what was expected. */
static sl_status bad(reader *r, const char *expected) {
    sl_name_buf buf;
    size_t column, line = line_of(r, r->p, &column);
    const char *found = r->json + (r->p - r->begin), *end = r->json + (r->end - r->begin);
    r->doc->at = (size_t)(r->p - r->begin);
    if (found == end)
        return sl_fail(r->err, SL_E_FORMAT, "line %zu, column %zu: the text ends, expected %s", line, column, expected);
    size_t n = 1; /* as much as makes a word */
    while (n < 24 && found + n < end && !strchr(",:]}\" \t\r\n", found[n])) n++;
    return sl_fail(r->err, SL_E_FORMAT, "line %zu, column %zu: found \"%s\", expected %s", line, column,
                   sl_name_escape(found, n, &buf), expected);
}

static void skip_space(reader *r) {
    while (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t') r->p++;
}

static sl_status add(reader *r, sl_json_kind kind, sl_json **out) {
    sl_json_doc *doc = r->doc;
    if (doc->n >= r->max_values)
        return sl_fail(r->err, SL_E_FORMAT, "more than %zu values and keys of JSON, expected at most that many",
                       r->max_values);
    if (!sl_grow((void **)&doc->values, &doc->cap, doc->n + 1, sizeof *doc->values))
        return sl_fail(r->err, SL_E_MEMORY, "out of memory: %zu bytes for the values of a JSON text",
                       2 * doc->cap * sizeof *doc->values);
    *out = &doc->values[doc->n++];
    **out = (sl_json){ .kind = kind, .span = 1 };
    return SL_OK;
}

/* ---- texts -------------------------------------------------------------------------------------- */

static int hex4(const char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1; /* also at the final zero */
        v = v * 16 + digit;
    }
    return v;
}

/* The code after "\u" at r->p, its surrogates joined; 0: none that may stand in a text. */
static int32_t unicode_escape(reader *r) {
    int high = hex4(r->p);
    if (high < 0) return 0;
    r->p += 4;
    if (high < 0xD800 || high > 0xDFFF) return high;
    int low = high < 0xDC00 && r->p[0] == '\\' && r->p[1] == 'u' ? hex4(r->p + 2) : -1;
    if (low < 0xDC00 || low > 0xDFFF) return 0;
    r->p += 6;
    return 0x10000 + (high - 0xD800) * 0x400 + (low - 0xDC00);
}

/* After a backslash; false: no legal escape. No character takes more bytes than its escape. */
static bool unescape(reader *r, char **w) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *r->p;
    const char *known = c ? strchr(from, c) : NULL;
    if (known) *(*w)++ = to[known - from];
    r->p += known || c == 'u';
    if (known || c != 'u') return known;
    int32_t code = unicode_escape(r);
    if (code) *w += sl_utf8_put(code, (uint8_t *)*w);
    return code;
}

/* At a quote. The text's bytes move to its beginning, and a zero takes the place of a quote. */
static sl_status read_text(reader *r) {
    sl_json *value;
    SL_TRY(add(r, SL_JSON_TEXT, &value));
    char *start = ++r->p, *w = start;
    for (;;) {
        char *run = r->p;
        while (*r->p != '"' && *r->p != '\\' && (unsigned char)*r->p >= 0x20) r->p++;
        if (w != run) memmove(w, run, (size_t)(r->p - run));
        w += r->p - run;
        if (*r->p == '"') break;
        if (*r->p != '\\') return bad(r, "a text without control characters, and its closing quote");
        r->p++;
        if (!unescape(r, &w)) return bad(r, "an escape of JSON (no zero, no half of a surrogate pair)");
    }
    r->p++;
    *w = 0;
    value->v.text = start;
    value->n = (uint32_t)(w - start);
    return SL_OK;
}

/* ---- numbers and words -------------------------------------------------------------------------- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Digits at r->p, at least one. *whole goes on as long as it fits 64 bits. */
static bool digits(reader *r, uint64_t *whole, bool *fits, double *about) {
    char *first = r->p;
    for (; is_digit(*r->p); r->p++) {
        uint64_t digit = (uint64_t)(*r->p - '0');
        *fits = *fits && sl_mul(*whole, 10, whole) && sl_add(*whole, digit, whole);
        *about = *about * 10 + (double)digit;
    }
    return r->p > first;
}

/* The fraction and exponent after a number's first digits. */
static bool fraction(reader *r, double *about) {
    int64_t exponent = 0;
    double scale = 1;
    if (*r->p == '.') {
        char *first = ++r->p;
        for (; is_digit(*r->p); r->p++) *about += (*r->p - '0') * (scale /= 10);
        if (r->p == first) return false;
    }
    if (*r->p != 'e' && *r->p != 'E') return true;
    bool minus = *++r->p == '-';
    r->p += *r->p == '+' || *r->p == '-';
    char *first = r->p;
    for (; is_digit(*r->p); r->p++) exponent = exponent < MAX_EXPONENT ? exponent * 10 + (*r->p - '0') : exponent;
    if (*about != 0) *about *= pow(10, (double)(minus ? -exponent : exponent));
    return r->p > first;
}

static sl_status read_number(reader *r) {
    sl_json *value;
    uint64_t whole = 0;
    double about = 0;
    bool fits = true, minus = *r->p == '-';
    SL_TRY(add(r, SL_JSON_INT, &value));
    r->p += minus;
    char *first = r->p;
    if (!digits(r, &whole, &fits, &about) || (*first == '0' && r->p - first > 1)) return bad(r, "a number of JSON");
    bool real = *r->p == '.' || *r->p == 'e' || *r->p == 'E';
    if (real && !fraction(r, &about)) return bad(r, "a number of JSON");
    if (real && !isfinite(about)) about = strtod(first, NULL); /* exact, where rounding may have gone past the end */
    const char *expected = real ? (isfinite(about) ? NULL : "a finite number")
                                : fits && whole <= (uint64_t)INT64_MAX ? NULL : "an integer of 64 bits";
    if (expected) return r->p = first, bad(r, expected);
    value->kind = real ? SL_JSON_REAL : SL_JSON_INT;
    if (real) value->v.real = minus ? -about : about;
    else value->v.i = minus ? -(int64_t)whole : (int64_t)whole;
    return SL_OK;
}

static sl_status read_word(reader *r) {
    static const char *const words[] = { "null", "false", "true" };
    sl_json *value;
    for (size_t i = 0; i < 3; i++)
        if (!strncmp(r->p, words[i], strlen(words[i]))) {
            r->p += strlen(words[i]);
            return add(r, (sl_json_kind)i, &value);
        }
    return bad(r, "a value");
}

/* ---- lists and objects -------------------------------------------------------------------------- */

static bool same_text(const sl_json *a, const sl_json *b) { return a->n == b->n && !memcmp(a->v.text, b->v.text, a->n); }

/* Puts a key in the table; the one that is there already, or NULL. */
static const sl_json *put_key(const reader *r, const sl_json *key, size_t mask) {
    /* The seed is an address, so that no file can be prepared to collide. */
    size_t i = XXH3_64bits_withSeed(key->v.text, key->n, (uint64_t)(uintptr_t)r->table) & mask;
    for (; r->table[i]; i = (i + 1) & mask) {
        const sl_json *other = &r->doc->values[r->table[i] - 1];
        if (same_text(other, key)) return other;
    }
    r->table[i] = (uint32_t)(key - r->doc->values) + 1;
    return NULL;
}

static const sl_json *few_keys_twice(const sl_json *object) {
    const sl_json *a = sl_json_first(object);
    for (size_t i = 0; i < object->n; i++, a = sl_json_next_key(a)) {
        const sl_json *b = sl_json_first(object);
        for (size_t j = 0; j < i; j++, b = sl_json_next_key(b))
            if (same_text(a, b)) return a;
    }
    return NULL;
}

static sl_status check_keys(reader *r, const sl_json *object) {
    sl_name_buf buf;
    size_t size = 4 * FEW_KEYS;
    const sl_json *twice = object->n <= FEW_KEYS ? few_keys_twice(object) : NULL;
    if (object->n > FEW_KEYS) {
        while (size < 2 * (size_t)object->n) size *= 2;
        if (!sl_grow((void **)&r->table, &r->table_cap, size, sizeof *r->table))
            return sl_fail(r->err, SL_E_MEMORY, "out of memory: %zu bytes for the keys of a JSON text",
                           size * sizeof *r->table);
        memset(r->table, 0, size * sizeof *r->table);
        const sl_json *key = sl_json_first(object);
        for (size_t i = 0; i < object->n && !twice; i++, key = sl_json_next_key(key))
            if (put_key(r, key, size - 1)) twice = key;
    }
    if (!twice) return SL_OK;
    r->doc->at = (size_t)(twice->v.text - r->begin);
    return sl_fail(r->err, SL_E_FORMAT, "duplicate key \"%s\", expected each once",
                   sl_name_escape(twice->v.text, twice->n, &buf));
}

static sl_status open_group(reader *r, sl_json_kind kind) {
    sl_json *value;
    if (r->depth == SL_JSON_DEPTH) {
        r->doc->at = (size_t)(r->p - r->begin);
        return sl_fail(r->err, SL_E_FORMAT, "brackets nest deeper than %d levels", SL_JSON_DEPTH);
    }
    SL_TRY(add(r, kind, &value));
    r->stack[r->depth++] = (uint32_t)(value - r->doc->values);
    r->p++;
    return SL_OK;
}

static sl_status close_group(reader *r) {
    sl_json *group = &r->doc->values[r->stack[--r->depth]];
    group->span = (uint32_t)(r->doc->n - r->stack[r->depth]);
    r->p++;
    return group->kind == SL_JSON_OBJECT ? check_keys(r, group) : SL_OK;
}

static sl_status read_key(reader *r) {
    skip_space(r);
    if (*r->p != '"') return bad(r, "a key in quotes");
    SL_TRY(read_text(r));
    skip_space(r);
    if (*r->p != ':') return bad(r, "':'");
    r->p++;
    return SL_OK;
}

/* A value, or the opening of one: then it is not complete. */
static sl_status read_value(reader *r, bool *complete) {
    skip_space(r);
    *complete = *r->p != '{' && *r->p != '[';
    if (*r->p == '{') return open_group(r, SL_JSON_OBJECT);
    if (*r->p == '[') return open_group(r, SL_JSON_LIST);
    if (*r->p == '"') return read_text(r);
    return *r->p == '-' || is_digit(*r->p) ? read_number(r) : read_word(r);
}

/* After a complete value: the ends of groups, then a comma. *more: another value of a group follows. */
static sl_status read_ends(reader *r, bool *more) {
    for (*more = false; r->depth; ) {
        const sl_json *group = &r->doc->values[r->stack[r->depth - 1]];
        const bool object = group->kind == SL_JSON_OBJECT;
        skip_space(r);
        *more = *r->p == ',';
        if (*more) return r->p++, SL_OK;
        if (*r->p != (object ? '}' : ']')) return bad(r, object ? "',' or '}'" : "',' or ']'");
        SL_TRY(close_group(r));
    }
    return SL_OK;
}

static sl_status read_all(reader *r) {
    bool complete, more = true;
    while (more) {
        if (r->depth) {
            sl_json *group = &r->doc->values[r->stack[r->depth - 1]];
            group->n++;
            if (group->kind == SL_JSON_OBJECT) SL_TRY(read_key(r));
        }
        SL_TRY(read_value(r, &complete));
        if (!complete) { /* an empty group is a complete value, in another only its first is next */
            skip_space(r);
            const bool object = r->doc->values[r->stack[r->depth - 1]].kind == SL_JSON_OBJECT;
            if (*r->p != (object ? '}' : ']')) continue;
            SL_TRY(close_group(r));
        }
        SL_TRY(read_ends(r, &more));
    }
    skip_space(r);
    return r->p == r->end ? SL_OK : bad(r, "nothing after the value");
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static sl_status read_copy(reader *r, const char *json, size_t n, sl_error *err) {
    if (n >= UINT32_MAX) return sl_fail(err, SL_E_FORMAT, "%zu bytes of JSON, expected less than 4 GiB", n);
    r->doc->text = malloc(n + 1);
    if (!r->doc->text) return sl_fail(err, SL_E_MEMORY, "out of memory: %zu bytes for a JSON text", n + 1);
    memcpy(r->doc->text, json, n);
    r->doc->text[n] = 0;
    r->json = json;
    r->begin = r->p = r->doc->text;
    r->end = r->begin + n;
    size_t valid = sl_utf8_valid((const uint8_t *)json, n);
    if (valid < n) {
        r->p += valid;
        return bad(r, "UTF-8");
    }
    return read_all(r);
}

sl_status sl_json_read(sl_json_doc *doc, const char *json, size_t n_bytes, size_t max_values, sl_error *err) {
    *doc = (sl_json_doc){ 0 };
    reader r = { .doc = doc, .max_values = max_values, .err = err };
    sl_status status = read_copy(&r, json, n_bytes, err);
    free(r.table);
    size_t at = doc->at;
    if (status != SL_OK) sl_json_release(doc);
    doc->at = at;
    return status;
}

void sl_json_release(sl_json_doc *doc) {
    free(doc->values);
    free(doc->text);
    *doc = (sl_json_doc){ 0 };
}

const sl_json *sl_json_get(const sl_json *object, const char *key) {
    if (!sl_json_is(object, SL_JSON_OBJECT)) return NULL;
    size_t n = strlen(key);
    const sl_json *at = sl_json_first(object);
    for (size_t i = 0; i < object->n; i++, at = sl_json_next_key(at))
        if (at->n == n && !memcmp(at->v.text, key, n)) return at + 1;
    return NULL;
}
