/* Tokenizer: BPE as in a tokenizer.json (Hugging Face), from its text.
 *
 * Pipeline: added tokens, normalizer (none, Unicode normal forms, Prepend, Replace), pre-tokenizer
 * (ByteLevel, Split through PCRE2, Digits, Punctuation, Metaspace), BPE with a heap, ids; the Llama kind with
 * byte_fallback too. Input is bytes: invalid UTF-8 is encoded byte by byte, and decode(encode(x)) == x for
 * every byte string when there is no normalizer and every byte has a piece (a byte without one becomes
 * U+FFFD; only bytes that UTF-8 never has may lack one). */
#ifndef SL_TEXT_TOKENIZER_H
#define SL_TEXT_TOKENIZER_H

#include "base/error.h"

enum { SL_TOKENIZER_MAX_BYTES = 48 << 20 }; /* of a tokenizer.json; the largest known one has 35 MB */

typedef struct sl_tokenizer sl_tokenizer;

/* json: the text of tokenizer.json. A kind that is not supported is refused by name (SL_E_UNSUPPORTED), a
 * broken one with what and where (SL_E_FORMAT): ids unique and below n_vocab, merges of known pieces. */
sl_status sl_tokenizer_create(const char *json, size_t n_bytes, size_t n_vocab, sl_tokenizer **out,
                              sl_error *err);
void sl_tokenizer_destroy(sl_tokenizer *tokenizer);

/* Text to ids, appended to *tokens (grown with sl_grow; cap and n are the caller's). special: added tokens
 * in the text become their ids; otherwise only those that are not special do. */
sl_status sl_tokenizer_encode(const sl_tokenizer *tokenizer, const void *text, size_t n_bytes, bool special,
                              int32_t **tokens, size_t *n, size_t *cap, sl_error *err);
/* Bytes of a token; NULL: no such id. */
const uint8_t *sl_tokenizer_bytes(const sl_tokenizer *tokenizer, int32_t id, size_t *n_bytes);
bool sl_tokenizer_is_special(const sl_tokenizer *tokenizer, int32_t id);
/* Id of an added token by its exact text; -1: none. */
int32_t sl_tokenizer_special(const sl_tokenizer *tokenizer, const char *text);
bool sl_tokenizer_is_added(const sl_tokenizer *tokenizer, int32_t id);
/* One more than the highest id. */
size_t sl_tokenizer_n_vocab(const sl_tokenizer *tokenizer);
/* True for the Llama kind, which puts a space before the text and after each added token: to get a whole
 * text back from its ids, drop the first space there. */
bool sl_tokenizer_adds_space(const sl_tokenizer *tokenizer);
/* What it is, in words: "byte-level BPE", "BPE with byte fallback", or "BPE" where some bytes have no piece. */
const char *sl_tokenizer_kind(const sl_tokenizer *tokenizer);

#endif
