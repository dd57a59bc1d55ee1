/* Patterns of tokenizers (Oniguruma syntax, as Hugging Face's tokenizers use them), compiled with PCRE2. */
#ifndef SL_TEXT_PATTERN_H
#define SL_TEXT_PATTERN_H

#include "base/mem.h"

enum { SL_MAX_PATTERN_BYTES = 8192 };

typedef struct sl_pattern sl_pattern;     /* a compiled pattern; may be used by many threads */
typedef struct sl_matcher sl_matcher;     /* memory of one thread's matching */

/* literal: the text itself. A pattern that PCRE2 would read differently, or not at all, is refused. */
sl_status sl_pattern_create(const void *text, size_t n_bytes, bool literal, sl_pattern **out, sl_error *err);
void sl_pattern_destroy(sl_pattern *pattern);

sl_status sl_matcher_create(sl_matcher **out, sl_error *err);
void sl_matcher_destroy(sl_matcher *matcher);

/* The first match in text[from .. n) of valid UTF-8; from is the start of a character. *found is false if
 * there is none. A pattern that takes too many steps is an error (SL_E_FORMAT). */
sl_status sl_pattern_find(const sl_pattern *pattern, sl_matcher *matcher, const uint8_t *text, size_t n,
                          size_t from, bool *found, size_t *start, size_t *end, sl_error *err);

#endif
