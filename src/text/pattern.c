/* Oniguruma's Ruby syntax rewritten to PCRE2's where the two read the same text differently, and matched by
 * PCRE2's interpreter, which keeps its stack on the heap: a hostile pattern meets limits, not the stack.
 *
 * Differences that matter: white space (PCRE2 counts U+180E), names of scripts (PCRE2 means extensions),
 * \uHHHH, \v, and ^ $ at every line. Escapes with other differences (\w, \b, \h ...) do not occur in the
 * patterns of published tokenizers and are refused, as are nested classes. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pattern.h"

#include <assert.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

struct sl_pattern {
    pcre2_code *code;
};
struct sl_matcher {
    pcre2_match_data *data;
    pcre2_match_context *limits;
};

#define SPACES                                                                                                 \
    "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"

/* ---- from Oniguruma to PCRE2 -------------------------------------------------------------------- */

typedef struct reader {
    const char *p, *end;
    bool in_class;
    sl_buf *out;
    sl_error *err;
} reader;

static sl_status refuse(const reader *r, const char *what, const char *text, size_t n) {
    sl_name_buf name;
    return sl_fail(r->err, SL_E_UNSUPPORTED, "tokenizer.json: pattern has %s \"%s\", which is not supported",
                   what, sl_name_escape(text, n, &name));
}

static sl_status put(const reader *r, const void *text, size_t n) {
    if (sl_buf_append(r->out, text, n)) return SL_OK;
    return sl_fail(r->err, SL_E_MEMORY, "out of memory for a pattern of the tokenizer");
}

static sl_status put_text(const reader *r, const char *text) { return put(r, text, strlen(text)); }

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

/* \p{L}, \p{^L}, \P{Lu}, \p{Han}: a general category as it is, a script by its exact property. */
static sl_status read_property(reader *r) {
    const char *start = r->p - 1,
               *close = r->p + 1 < r->end && r->p[1] == '{' ? memchr(r->p, '}', (size_t)(r->end - r->p)) : NULL;
    if (!close) return refuse(r, "an escape", start, 2);
    const char *name = r->p + 2 + (r->p[2] == '^');
    size_t n_name = (size_t)(close - name);
    for (size_t i = 0; i < n_name; i++)
        if (!is_letter(name[i]) && name[i] != '_')
            return refuse(r, "a property", start, (size_t)(close + 1 - start));
    SL_TRY(put(r, start, (size_t)(name - start)));
    if (n_name > 2 && !(n_name == 3 && memcmp(name, "Any", 3) == 0)) SL_TRY(put_text(r, "sc:"));
    r->p = close + 1;
    return put(r, name, n_name + 1);
}

static sl_status read_code(reader *r) { /* \uHHHH */
    for (size_t i = 1; i <= 4; i++)
        if (r->p + i >= r->end || !is_hex(r->p[i])) return refuse(r, "an escape", r->p - 1, 2);
    SL_TRY(put_text(r, "\\x{"));
    SL_TRY(put(r, r->p + 1, 4));
    r->p += 5;
    return put_text(r, "}");
}

/* At the character after a backslash. */
static sl_status read_escape(reader *r) {
    if (r->p == r->end) return refuse(r, "an escape", "\\", 1);
    char c = *r->p;
    if (c == 'p' || c == 'P') return read_property(r);
    if (c == 'u') return read_code(r);
    const char *text = NULL;
    if (c == 's') text = r->in_class ? SPACES : "[" SPACES "]";
    if (c == 'S') text = r->in_class ? "\\P{Xps}\\x{180E}" : "[^" SPACES "]";
    if (c == 'v') text = "\\x0B";
    if (text) {
        r->p++;
        return put_text(r, text);
    }
    bool same =
        strchr("dDrntfx", c) || ((c == 'A' || c == 'z') && !r->in_class) || (!is_letter(c) && !is_digit(c));
    if (!same) return refuse(r, "an escape", r->p - 1, 2);
    SL_TRY(put(r, "\\", 1));
    return put(r, r->p++, 1);
}

static sl_status read_class_start(reader *r) {
    r->in_class = true;
    size_t n = 1 + (r->p + 1 < r->end && r->p[1] == '^');
    if (r->p + n < r->end && r->p[n] == ']') n++; /* a bracket that comes first is itself */
    SL_TRY(put(r, r->p, n));
    r->p += n;
    return SL_OK;
}

static sl_status translate(reader *r) {
    while (r->p < r->end) {
        char c = *r->p;
        if (c == '\\') {
            r->p++;
            SL_TRY(read_escape(r));
        } else if (c == '[' && !r->in_class) {
            SL_TRY(read_class_start(r));
        } else {
            bool both = c == '&' && r->p + 1 < r->end && r->p[1] == '&';
            if (r->in_class && (c == '[' || both))
                return refuse(r, "a nested class", r->p, (size_t)(r->end - r->p));
            if (!r->in_class && c == '(' && r->p + 1 < r->end && r->p[1] == '*')
                return refuse(r, "a verb", r->p, (size_t)(r->end - r->p));
            if (c == ']') r->in_class = false;
            SL_TRY(put(r, r->p++, 1));
        }
    }
    return SL_OK;
}

/* ---- compiling and matching --------------------------------------------------------------------- */

static sl_status compile(const sl_buf *text, bool literal, sl_pattern *pattern, sl_error *err) {
    uint32_t options =
        PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return sl_fail(err, SL_E_MEMORY, "out of memory for a pattern of the tokenizer");
    int code = 0;
    size_t offset = 0;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pattern->code = pcre2_compile(text->data, text->n, options, &code, &offset, context);
    pcre2_compile_context_free(context);
    if (pattern->code) return SL_OK;
    char why[120] = "";
    sl_name_buf name;
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return sl_fail(err, SL_E_FORMAT, "tokenizer.json: pattern \"%s\" does not compile at byte %zu: %s",
                   sl_name_escape(text->data, text->n, &name), offset, why);
}

sl_status sl_pattern_create(const void *text, size_t n_bytes, bool literal, sl_pattern **out, sl_error *err) {
    if (!n_bytes || n_bytes > SL_MAX_PATTERN_BYTES)
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: a pattern has %zu bytes; expected 1..%d", n_bytes,
                       SL_MAX_PATTERN_BYTES);
    sl_pattern *pattern = calloc(1, sizeof *pattern);
    sl_buf rewritten = { 0 };
    reader r = { .p = text, .end = (const char *)text + n_bytes, .out = &rewritten, .err = err };
    sl_status status = !pattern  ? sl_fail(err, SL_E_MEMORY, "out of memory for a pattern of the tokenizer")
                       : literal ? put(&r, text, n_bytes)
                                 : translate(&r);
    if (status == SL_OK) status = compile(&rewritten, literal, pattern, err);
    sl_buf_release(&rewritten);
    if (status == SL_OK) *out = pattern;
    else sl_pattern_destroy(pattern);
    return status;
}

void sl_pattern_destroy(sl_pattern *pattern) {
    if (!pattern) return;
    pcre2_code_free(pattern->code);
    free(pattern);
}

sl_status sl_matcher_create(sl_matcher **out, sl_error *err) {
    sl_matcher *matcher = calloc(1, sizeof *matcher);
    if (matcher) {
        matcher->data = pcre2_match_data_create(1, NULL);
        matcher->limits = pcre2_match_context_create(NULL);
    }
    if (!matcher || !matcher->data || !matcher->limits) {
        sl_matcher_destroy(matcher);
        return sl_fail(err, SL_E_MEMORY, "out of memory for matching a pattern");
    }
    pcre2_set_heap_limit(matcher->limits, 256 * 1024); /* KiB */
    *out = matcher;
    return SL_OK;
}

void sl_matcher_destroy(sl_matcher *matcher) {
    if (!matcher) return;
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->limits);
    free(matcher);
}

sl_status sl_pattern_find(const sl_pattern *pattern, sl_matcher *matcher, const uint8_t *text, size_t n,
                          size_t from, bool *found, size_t *start, size_t *end, sl_error *err) {
    /* Sound patterns step back over a run once or twice for each of their alternatives. The limit holds for
     * each place where a match may begin, so a pattern that is not sound costs at most its square. */
    assert(from <= n);
    size_t steps = 16 * (n - from) + 4096;
    pcre2_set_match_limit(matcher->limits, (uint32_t)sl_min(steps, UINT32_MAX));
    int rc = pcre2_match(pattern->code, text, n, from, PCRE2_NO_UTF_CHECK, matcher->data, matcher->limits);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return SL_OK;
    if (rc < 0) {
        char why[120] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return sl_fail(err, SL_E_FORMAT, "the tokenizer's pattern fails on a text of %zu bytes: %s", n, why);
    }
    const size_t *range = pcre2_get_ovector_pointer(matcher->data);
    assert(range[0] >= from && range[1] >= range[0] && range[1] <= n); /* \K, which breaks this, is refused */
    *start = range[0];
    *end = range[1];
    return SL_OK;
}
