/* tokenizer.json, a zero byte, a text. Any bytes become a tokenizer or are refused; a tokenizer encodes any
 * text into ids that have bytes. */
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer.h"

enum { N_VOCAB = 1 << 20, MAX_TEXT = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(const sl_tokenizer *t, const uint8_t *text, size_t n, bool special) {
    int32_t *tokens = NULL;
    size_t n_token = 0, cap = 0, n_bytes;
    sl_error err = { 0 };
    sl_status status = sl_tokenizer_encode(t, text, n, special, &tokens, &n_token, &cap, &err);
    if (status != SL_OK && (n_token || !err.text[0])) abort();
    for (size_t i = 0; i < n_token; i++)
        if (!sl_tokenizer_bytes(t, tokens[i], &n_bytes)) abort();
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const uint8_t *zero = n ? memchr(data, 0, n) : NULL;
    size_t n_json = zero ? (size_t)(zero - data) : n, n_text = zero ? n - n_json - 1 : 0;
    if (n_text > MAX_TEXT) n_text = MAX_TEXT; /* a slow pattern costs the square of it */
    sl_tokenizer *t = NULL;
    sl_error err = { 0 };
    if (sl_tokenizer_create((const char *)data, n_json, N_VOCAB, &t, &err) != SL_OK) {
        if (t || !err.text[0]) abort();
        return 0;
    }
    check(t, zero ? zero + 1 : data, n_text, false);
    check(t, zero ? zero + 1 : data, n_text, true);
    sl_tokenizer_destroy(t);
    return 0;
}
