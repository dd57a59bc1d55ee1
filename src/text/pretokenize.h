/* Pre-tokenizers: text to words, in stages. A stage cuts words further, puts a prefix before them, or writes
 * them in the byte alphabet. */
#ifndef SL_TEXT_PRETOKENIZE_H
#define SL_TEXT_PRETOKENIZE_H

#include "text/pattern.h"

enum { SL_MAX_STAGE = 32 };

typedef enum sl_split_how {
    SL_SPLIT_ISOLATED, /* matches and what lies between them are words */
    SL_SPLIT_REMOVED,  /* only what lies between them */
    SL_SPLIT_PREVIOUS, /* a match ends the word before it */
    SL_SPLIT_NEXT,     /* a match begins the word after it */
    SL_SPLIT_CONTIGUOUS /* adjacent matches are one word */
} sl_split_how;

typedef enum sl_stage_kind { SL_STAGE_SPLIT, SL_STAGE_PREFIX, SL_STAGE_BYTES } sl_stage_kind;

typedef struct sl_stage {
    sl_stage_kind kind;
    sl_pattern *pattern; /* SPLIT; owned */
    sl_split_how how;
    bool invert;         /* matches and the rest change roles */
    sl_buf prefix; /* PREFIX: stands for every space, and before words that do not begin with it; owned */
    bool always,
        first; /* PREFIX: before every word; only before one at the start of the whole text; else never */
} sl_stage;

typedef struct sl_stages {
    sl_stage v[SL_MAX_STAGE];
    size_t n;
} sl_stages;
void sl_stages_release(sl_stages *stages);

/* A word is valid UTF-8 or one byte that is not part of any. */
typedef struct sl_word {
    size_t start, end;
    bool invalid;
} sl_word;
typedef struct sl_words {
    sl_buf text;
    sl_word *v;
    size_t n, cap;
} sl_words;
void sl_words_release(sl_words *words);

/* words becomes the words of text; spare is used in between. Both keep their memory for the next call.
 * first: the text is the beginning of the whole. */
sl_status sl_pretokenize(const sl_stages *stages, sl_matcher *matcher, const uint8_t *text, size_t n_bytes,
                         bool first, sl_words *words, sl_words *spare, sl_error *err);

#endif
