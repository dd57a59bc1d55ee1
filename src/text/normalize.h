/* Normalizers: what a tokenizer does to text before it cuts it. Bytes that are not valid UTF-8 pass
 * unchanged; the text between them is normalised stretch by stretch. */
#ifndef SL_TEXT_NORMALIZE_H
#define SL_TEXT_NORMALIZE_H

#include "base/mem.h"

enum { SL_MAX_NORMALIZER = 16 };

typedef enum sl_normalizer_kind {
    SL_NORMALIZE_UNICODE, /* NFC, NFD, NFKC, NFKD: by compat and compose */
    SL_NORMALIZE_PREPEND, /* to, before a text that is not empty */
    SL_NORMALIZE_REPLACE  /* every from by to */
} sl_normalizer_kind;

typedef struct sl_normalizer {
    sl_normalizer_kind kind;
    bool compat, compose;
    sl_buf from, to; /* owned */
} sl_normalizer;

typedef struct sl_normalizers {
    sl_normalizer v[SL_MAX_NORMALIZER];
    size_t n;
} sl_normalizers;

void sl_normalizers_release(sl_normalizers *list);
/* out becomes the normalised text; spare is used in between. Both keep their memory for the next call. A text
 * that grows beyond 32 times its length is refused (SL_E_FORMAT): no sound tokenizer does that. budget, if not
 * NULL: bytes that the rules may still read and write; lessened by what they did, and refused when it is spent. */
sl_status sl_normalize(const sl_normalizers *list, const uint8_t *text, size_t n_bytes, size_t *budget, sl_buf *out,
                       sl_buf *spare, sl_error *err);

#endif
