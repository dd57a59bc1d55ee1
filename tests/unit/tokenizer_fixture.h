/* The tokenizers of tests/unit/tokenizers, as they are or changed by a test. */
#ifndef SL_TESTS_TOKENIZER_FIXTURE_H
#define SL_TESTS_TOKENIZER_FIXTURE_H

#include <jansson.h>

#include "base/mem.h"
#include "text/tokenizer.h"

enum { FIXTURE_N_VOCAB = 60000 };

typedef struct ids { int32_t *v; size_t n, cap; } ids;

/* {"tokenizer": ..., "cases": ...}; fails the test if it cannot be read. */
json_t *fixture_load(const char *name);
sl_status fixture_create(const json_t *tokenizer, sl_tokenizer **out, sl_error *err);
/* A fixture's tokenizer with more special tokens, a NULL-terminated list (or NULL), from id 1000 on. Fails the
 * test on error. */
sl_tokenizer *fixture_open(const char *name, const char *const *special);
/* out becomes the ids; fails the test on error. */
void fixture_encode(const sl_tokenizer *t, const void *text, size_t n, bool special, ids *out);

#endif
