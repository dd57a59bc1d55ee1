/* Stages over a list of words. The rules of each behaviour are those of Hugging Face's tokenizers. */
#include "text/pretokenize.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

void sl_stages_release(sl_stages *stages) {
    for (size_t i = 0; i < stages->n; i++) {
        sl_pattern_destroy(stages->v[i].pattern);
        sl_buf_release(&stages->v[i].prefix);
    }
    stages->n = 0;
}

void sl_words_release(sl_words *words) {
    sl_buf_release(&words->text);
    free(words->v);
    *words = (sl_words){ 0 };
}

static sl_status no_memory(sl_error *err) {
    return sl_fail(err, SL_E_MEMORY, "out of memory for the words of a text");
}

static bool add_word(sl_words *words, size_t start, size_t end, bool invalid) {
    if (!sl_grow((void **)&words->v, &words->cap, words->n + 1, sizeof *words->v)) return false;
    words->v[words->n++] = (sl_word){ start, end, invalid };
    return true;
}

/* Valid stretches and single invalid bytes. */
static bool cut_invalid(const uint8_t *text, size_t n, sl_words *words) {
    words->text.n = words->n = 0;
    if (!sl_buf_append(&words->text, text, n)) return false;
    for (size_t i = 0; i < n;) {
        size_t valid = sl_utf8_valid(text + i, n - i);
        if (valid && !add_word(words, i, i + valid, false)) return false;
        i += valid;
        if (i == n) break;
        if (!add_word(words, i, i + 1, true)) return false;
        i++;
    }
    return true;
}

/* ---- splitting ---------------------------------------------------------------------------------- */

typedef struct splitter {
    sl_words *out;
    size_t first;   /* words of out before the word that is being split */
    sl_split_how how;
    bool was_match; /* of the part before */
} splitter;

static bool add_part(splitter *s, size_t start, size_t end, bool match) {
    assert(start <= end);
    if (start == end) return true;
    bool join = (s->how == SL_SPLIT_CONTIGUOUS && match == s->was_match) ||
                (s->how == SL_SPLIT_PREVIOUS && match && !s->was_match) ||
                (s->how == SL_SPLIT_NEXT && !match && s->was_match);
    s->was_match = match;
    if (s->how == SL_SPLIT_REMOVED && match) return true;
    if (join && s->out->n > s->first) {
        s->out->v[s->out->n - 1].end = end;
        return true;
    }
    return add_word(s->out, start, end, false);
}

static sl_status split_word(const sl_stage *stage, sl_matcher *matcher, const uint8_t *text, sl_word word,
                            sl_words *out, sl_error *err) {
    splitter s = { .out = out, .first = out->n, .how = stage->how };
    const uint8_t *p = text + word.start;
    size_t n = word.end - word.start, done = 0;
    for (size_t from = 0; from < n;) {
        bool found;
        size_t start, end, n_char = 0;
        SL_TRY(sl_pattern_find(stage->pattern, matcher, p, n, from, &found, &start, &end, err));
        if (!found) break;
        if (!add_part(&s, word.start + done, word.start + start, stage->invert) ||
            !add_part(&s, word.start + start, word.start + end, !stage->invert))
            return no_memory(err);
        done = end;
        if (start == end && end < n) sl_utf8_code(p + end, &n_char); /* an empty match only cuts */
        if (start == end && end == n) break;
        from = end + n_char;
    }
    if (!add_part(&s, word.start + done, word.end, stage->invert)) return no_memory(err);
    return SL_OK;
}

static sl_status split(const sl_stage *stage, sl_matcher *matcher, sl_words *words, sl_words *spare,
                       sl_error *err) {
    spare->n = 0;
    for (size_t i = 0; i < words->n; i++) {
        sl_word word = words->v[i];
        if (!word.invalid) SL_TRY(split_word(stage, matcher, words->text.data, word, spare, err));
        else if (!add_word(spare, word.start, word.end, true)) return no_memory(err);
    }
    sl_words swap = *words; /* the text stays, the words are new */
    words->v = spare->v, words->n = spare->n, words->cap = spare->cap;
    spare->v = swap.v, spare->n = swap.n, spare->cap = swap.cap;
    return SL_OK;
}

/* ---- rewriting ---------------------------------------------------------------------------------- */

static bool prefix_word(const sl_stage *stage, const uint8_t *p, size_t n, bool at_start, sl_buf *out) {
    const sl_buf *prefix = &stage->prefix;
    bool space = n && *p == ' ', has = space || (n >= prefix->n && memcmp(p, prefix->data, prefix->n) == 0);
    if (!has && (stage->always || (stage->first && at_start)) && !sl_buf_append(out, prefix->data, prefix->n))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!(p[i] == ' ' ? sl_buf_append(out, prefix->data, prefix->n) : sl_buf_append(out, p + i, 1)))
            return false;
    return true;
}

static bool map_bytes(const uint8_t *p, size_t n, const int32_t *alphabet, sl_buf *out) {
    if (!sl_grow((void **)&out->data, &out->cap, out->n + 2 * n, 1)) return false; /* codes are below 512 */
    for (size_t i = 0; i < n; i++) {
        if (alphabet[p[i]] < 0x80) out->data[out->n++] = (uint8_t)alphabet[p[i]];
        else out->n += sl_utf8_put(alphabet[p[i]], out->data + out->n);
    }
    return true;
}

/* limit: bytes that all words may come to. One word alone grows at most sl_stage.prefix for each of its bytes. */
static sl_status rewrite(const sl_stage *stage, bool first, size_t limit, sl_words *words, sl_words *spare,
                         sl_error *err) {
    int32_t alphabet[256];
    sl_byte_alphabet(alphabet);
    spare->n = spare->text.n = 0;
    for (size_t i = 0; i < words->n; i++) {
        const uint8_t *p = words->text.data + words->v[i].start;
        size_t n = words->v[i].end - words->v[i].start, start = spare->text.n;
        bool good = words->v[i].invalid             ? sl_buf_append(&spare->text, p, n)
                    : stage->kind == SL_STAGE_BYTES ? map_bytes(p, n, alphabet, &spare->text)
                                                    : prefix_word(stage, p, n, first && i == 0, &spare->text);
        if (!good || !add_word(spare, start, spare->text.n, words->v[i].invalid)) return no_memory(err);
        if (spare->text.n > limit)
            return sl_fail(err, SL_E_FORMAT, "the tokenizer's pre-tokenizer makes a text into more than %zu bytes", limit);
    }
    sl_words swap = *words;
    *words = *spare;
    *spare = swap;
    return SL_OK;
}

sl_status sl_pretokenize(const sl_stages *stages, sl_matcher *matcher, const uint8_t *text, size_t n_bytes,
                         bool first, sl_words *words, sl_words *spare, sl_error *err) {
    const size_t limit = 32 * n_bytes + SL_MAX_STAGE * 1024; /* stages of a hostile file could multiply it */
    if (!cut_invalid(text, n_bytes, words)) return no_memory(err);
    for (size_t i = 0; i < stages->n; i++) {
        const sl_stage *stage = &stages->v[i];
        if (stage->kind == SL_STAGE_SPLIT) SL_TRY(split(stage, matcher, words, spare, err));
        else SL_TRY(rewrite(stage, first, limit, words, spare, err));
    }
    return SL_OK;
}
