/* Tokenizer: byte-level BPE as in a tokenizer.json (Hugging Face), from its text.
 *
 * Pipeline: added tokens, normalizer (none or NFC), pre-tokenizer (ByteLevel or Split with a known
 * pattern, through PCRE2), BPE with a heap, ids. Input is bytes: invalid UTF-8 is encoded byte by byte,
 * and decode(encode(x)) == x for every byte string when the normalizer is none. */
#ifndef SL_TEXT_TOKENIZER_H
#define SL_TEXT_TOKENIZER_H

#include "base/error.h"

typedef struct sl_tokenizer sl_tokenizer;

/* json: the text of tokenizer.json. A kind that is not supported is refused by name (SL_E_UNSUPPORTED), a
 * broken one with what and where (SL_E_FORMAT): ids unique and below n_vocab, merges of known pieces. */
sl_status sl_tokenizer_create(const char *json, size_t n_bytes, size_t n_vocab, sl_tokenizer **out, sl_error *err);
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
size_t sl_tokenizer_n_vocab(const sl_tokenizer *tokenizer);

#endif
