/* Encoding: added tokens are cut out of the text as it is, the rest is normalised, other added tokens are cut
 * out of that, and what remains goes through the pre-tokenizer and BPE word by word. */
#include "text/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_parts.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

void sl_tokenizer_destroy(sl_tokenizer *tokenizer) {
    if (!tokenizer) return;
    sl_added_release(&tokenizer->raw);
    sl_added_release(&tokenizer->normalized);
    sl_normalizers_release(&tokenizer->normalizers);
    sl_stages_release(&tokenizer->stages);
    sl_bpe_release(&tokenizer->bpe);
    sl_buf_release(&tokenizer->space);
    sl_vocab_release(&tokenizer->vocab);
    free(tokenizer);
}

const uint8_t *sl_tokenizer_bytes(const sl_tokenizer *tokenizer, int32_t id, size_t *n_bytes) {
    *n_bytes = 0;
    if (id < 0 || (size_t)id >= tokenizer->vocab.n || !tokenizer->vocab.pieces[id].known) return NULL;
    *n_bytes = tokenizer->vocab.pieces[id].n_out;
    return tokenizer->vocab.pool.data + tokenizer->vocab.pieces[id].out;
}

bool sl_tokenizer_is_special(const sl_tokenizer *tokenizer, int32_t id) {
    return id >= 0 && (size_t)id < tokenizer->vocab.n && tokenizer->vocab.pieces[id].special;
}

bool sl_tokenizer_is_added(const sl_tokenizer *tokenizer, int32_t id) {
    return id >= 0 && (size_t)id < tokenizer->vocab.n && tokenizer->vocab.pieces[id].added;
}

int32_t sl_tokenizer_special(const sl_tokenizer *tokenizer, const char *text) {
    int32_t id = sl_vocab_find(&tokenizer->vocab, text, strlen(text));
    return sl_tokenizer_is_added(tokenizer, id) ? id : -1;
}

size_t sl_tokenizer_n_vocab(const sl_tokenizer *tokenizer) { return tokenizer->vocab.n; }

bool sl_tokenizer_adds_space(const sl_tokenizer *tokenizer) { return tokenizer->adds_space; }

const char *sl_tokenizer_kind(const sl_tokenizer *tokenizer) {
    return tokenizer->byte_level ? "byte-level BPE" : tokenizer->bpe.byte_fallback ? "BPE with byte fallback" : "BPE";
}

/* ---- encoding ----------------------------------------------------------------------------------- */

typedef struct encoder {
    const sl_tokenizer *tokenizer;
    bool special;
    sl_buf text, spare_text; /* normalised */
    sl_words words, spare_words;
    sl_bpe_work work;
    sl_matcher *matcher;
    int32_t *tokens;         /* the caller's, while encoding */
    size_t n, cap;
    sl_error *err;
} encoder;

static sl_status put_token(encoder *e, int32_t id) {
    if (!sl_grow((void **)&e->tokens, &e->cap, e->n + 1, sizeof *e->tokens))
        return sl_fail(e->err, SL_E_MEMORY, "out of memory for %zu tokens", e->n + 1);
    e->tokens[e->n++] = id;
    return SL_OK;
}

/* A byte that is no part of a character: its own id, or unk, or as the replacement character U+FFFD. */
static sl_status put_byte(encoder *e, uint8_t byte) {
    const sl_bpe *bpe = &e->tokenizer->bpe;
    if (bpe->byte_id[byte] >= 0) return put_token(e, bpe->byte_id[byte]);
    if (bpe->unk >= 0) return put_token(e, bpe->unk);
    assert(bpe->byte_id[0xEF] >= 0 && bpe->byte_id[0xBF] >= 0 && bpe->byte_id[0xBD] >= 0);
    SL_TRY(put_token(e, bpe->byte_id[0xEF]));
    SL_TRY(put_token(e, bpe->byte_id[0xBF]));
    return put_token(e, bpe->byte_id[0xBD]);
}

/* Text without added tokens, normalised. */
static sl_status encode_words(encoder *e, const uint8_t *text, size_t n, bool first) {
    const sl_tokenizer *t = e->tokenizer;
    SL_TRY(sl_pretokenize(&t->stages, e->matcher, text, n, first, &e->words, &e->spare_words, e->err));
    for (size_t i = 0; i < e->words.n; i++) {
        sl_word word = e->words.v[i];
        const uint8_t *p = e->words.text.data + word.start;
        size_t n_word = word.end - word.start;
        if (word.invalid) SL_TRY(put_byte(e, *p));
        else SL_TRY(sl_bpe_encode(&t->bpe, &e->work, p, n_word, &e->tokens, &e->n, &e->cap, e->err));
    }
    return SL_OK;
}

/* Text without the added tokens that are searched as they are. */
static sl_status encode_piece(encoder *e, const uint8_t *text, size_t n, bool first) {
    const sl_tokenizer *t = e->tokenizer;
    SL_TRY(sl_normalize(&t->normalizers, text, n, NULL, &e->text, &e->spare_text, e->err));
    text = e->text.data;
    n = e->text.n;
    size_t done = 0;
    for (sl_added_match m; sl_added_find(&t->normalized, text, n, done, e->special, &m); done = m.end) {
        if (m.start > done) SL_TRY(encode_words(e, text + done, m.start - done, first && done == 0));
        SL_TRY(put_token(e, m.id));
    }
    return n > done ? encode_words(e, text + done, n - done, first && done == 0) : SL_OK;
}

static sl_status encode(encoder *e, const uint8_t *text, size_t n) {
    size_t done = 0;
    SL_TRY(sl_matcher_create(&e->matcher, e->err));
    for (sl_added_match m; sl_added_find(&e->tokenizer->raw, text, n, done, e->special, &m); done = m.end) {
        if (m.start > done) SL_TRY(encode_piece(e, text + done, m.start - done, done == 0));
        SL_TRY(put_token(e, m.id));
    }
    return n > done ? encode_piece(e, text + done, n - done, done == 0) : SL_OK;
}

sl_status sl_tokenizer_encode(const sl_tokenizer *tokenizer, const void *text, size_t n_bytes, bool special,
                              int32_t **tokens, size_t *n, size_t *cap, sl_error *err) {
    if (n_bytes > MAX_TEXT_BYTES)
        return sl_fail(err, SL_E_ARG, "a text of %zu bytes; expected at most %d", n_bytes, MAX_TEXT_BYTES);
    encoder e = {
        .tokenizer = tokenizer, .special = special, .tokens = *tokens, .n = *n, .cap = *cap, .err = err
    };
    sl_status status = encode(&e, text, n_bytes);
    *tokens = e.tokens;
    *cap = e.cap;
    if (status == SL_OK) *n = e.n;
    sl_buf_release(&e.text);
    sl_buf_release(&e.spare_text);
    sl_words_release(&e.words);
    sl_words_release(&e.spare_words);
    sl_bpe_work_release(&e.work);
    sl_matcher_destroy(e.matcher);
    return status;
}
