/* Unicode normal forms (UAX #15) with the tables of utf8proc. Its own reordering of combining marks takes
 * quadratic time for a long run of them, so runs are sorted here, by counting. */
#include "text/normalize.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

void sl_normalizers_release(sl_normalizers *list) {
    for (size_t i = 0; i < list->n; i++) {
        sl_buf_release(&list->v[i].from);
        sl_buf_release(&list->v[i].to);
    }
    list->n = 0;
}

static bool is_ascii(const uint8_t *p, size_t n) {
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) any |= p[i];
    return any < 0x80;
}

static unsigned combining_class(int32_t code) { return (unsigned)utf8proc_get_property(code)->combining_class; }

/* Sorts codes[0..n) by combining class, equal classes in the order they have; spare has room for n. */
static void sort_marks(int32_t *codes, int32_t *spare, size_t n) {
    size_t start[257] = { 0 };
    for (size_t i = 0; i < n; i++) start[combining_class(codes[i]) + 1]++;
    for (size_t c = 0; c < 256; c++) start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++) spare[start[combining_class(codes[i])]++] = codes[i];
    memcpy(codes, spare, n * sizeof *codes);
}

/* The canonical order: every run of marks (class > 0) sorted. */
static void order_marks(int32_t *codes, int32_t *spare, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t end = i;
        bool sorted = true;
        for (unsigned last = 0, c; end < n && (c = combining_class(codes[end])) > 0; end++, last = c)
            sorted = sorted && last <= c;
        if (!sorted) sort_marks(codes + i, spare, end - i);
        i = end > i ? end : i + 1;
    }
}

/* Appends the codes of valid text, decomposed. */
static bool decompose(const uint8_t *p, size_t n, utf8proc_option_t options, int32_t **codes, size_t *n_code,
                      size_t *cap) {
    int boundary = 0;
    for (size_t i = 0, n_char; i < n; i += n_char) {
        int32_t code = sl_utf8_code(p + i, &n_char);
        for (;;) {
            utf8proc_ssize_t room = (utf8proc_ssize_t)(*cap - *n_code);
            utf8proc_ssize_t got = utf8proc_decompose_char(code, *codes + *n_code, room, options, &boundary);
            if (got < 0) return false;
            if (got <= room) {
                *n_code += (size_t)got;
                break;
            }
            if (!sl_grow((void **)codes, cap, *n_code + (size_t)got, sizeof **codes)) return false;
        }
    }
    return true;
}

static bool put_codes(const int32_t *codes, size_t n, sl_buf *out) {
    uint8_t utf8[4];
    for (size_t i = 0; i < n; i++)
        if (!sl_buf_append(out, utf8, sl_utf8_put(codes[i], utf8))) return false;
    return true;
}

/* Appends the normal form of valid text. */
static bool normal_form(const sl_normalizer *form, const uint8_t *p, size_t n, sl_buf *out) {
    if (is_ascii(p, n)) return sl_buf_append(out, p, n);
    unsigned options = UTF8PROC_STABLE | (form->compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                       (form->compat ? UTF8PROC_COMPAT : 0);
    int32_t *codes = NULL, *spare = NULL;
    size_t n_code = 0, cap = 0, spare_cap = 0;
    bool good = sl_grow((void **)&codes, &cap, n, sizeof *codes) &&
                decompose(p, n, (utf8proc_option_t)options, &codes, &n_code, &cap) &&
                sl_grow((void **)&spare, &spare_cap, n_code, sizeof *spare);
    if (good) {
        order_marks(codes, spare, n_code);
        utf8proc_ssize_t got = (utf8proc_ssize_t)n_code;
        if (form->compose) got = utf8proc_normalize_utf32(codes, got, (utf8proc_option_t)options);
        good = got >= 0 && put_codes(codes, (size_t)got, out);
    }
    free(codes);
    free(spare);
    return good;
}

static bool normalize_unicode(const sl_normalizer *form, const uint8_t *p, size_t n, sl_buf *out) {
    for (size_t i = 0; i < n;) {
        size_t valid = sl_utf8_valid(p + i, n - i);
        if (valid && !normal_form(form, p + i, valid, out)) return false;
        i += valid;
        if (i < n && !sl_buf_append(out, p + i++, 1)) return false;
    }
    return true;
}

static bool replace(const sl_normalizer *rule, const uint8_t *p, size_t n, size_t limit, sl_buf *out) {
    assert(rule->from.n > 0);
    size_t done = 0;
    for (size_t i = 0; i + rule->from.n <= n && out->n <= limit;) {
        if (memcmp(p + i, rule->from.data, rule->from.n) != 0) {
            i++;
            continue;
        }
        if (!sl_buf_append(out, p + done, i - done) || !sl_buf_append(out, rule->to.data, rule->to.n))
            return false;
        done = i += rule->from.n;
    }
    return sl_buf_append(out, p + done, n - done);
}

static bool apply(const sl_normalizer *rule, const uint8_t *p, size_t n, size_t limit, sl_buf *out) {
    switch (rule->kind) {
    case SL_NORMALIZE_UNICODE: return normalize_unicode(rule, p, n, out);
    case SL_NORMALIZE_PREPEND:
        return (!n || sl_buf_append(out, rule->to.data, rule->to.n)) && sl_buf_append(out, p, n);
    case SL_NORMALIZE_REPLACE: return replace(rule, p, n, limit, out);
    }
    return false;
}

sl_status sl_normalize(const sl_normalizers *list, const uint8_t *text, size_t n_bytes, size_t *budget, sl_buf *out,
                       sl_buf *spare, sl_error *err) {
    size_t limit = 32 * n_bytes + SL_MAX_NORMALIZER * 1024;
    out->n = 0;
    bool good = sl_buf_append(out, text, n_bytes);
    for (size_t i = 0; good && i < list->n; i++) {
        sl_buf swap = *spare;
        *spare = *out;
        *out = swap;
        out->n = 0;
        good = apply(&list->v[i], spare->data, spare->n, limit, out);
        if (good && out->n > limit)
            return sl_fail(err, SL_E_FORMAT, "the tokenizer's normalizer makes %zu bytes into more than %zu",
                           n_bytes, limit);
        size_t work = spare->n + out->n;
        if (budget && work > *budget)
            return sl_fail(err, SL_E_FORMAT,
                           "the tokenizer's normalizers pass %zu bytes for one more added token; expected at most %zu, "
                           "what is left for all of them", work, *budget);
        if (budget) *budget -= work;
    }
    return good ? SL_OK : sl_fail(err, SL_E_MEMORY, "out of memory while normalising %zu bytes", n_bytes);
}
