/* What a tokenizer is made of; private to the text room. */
#ifndef SL_TEXT_TOKENIZER_PARTS_H
#define SL_TEXT_TOKENIZER_PARTS_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/normalize.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"

struct sl_tokenizer {
    sl_vocab vocab;
    sl_added_set raw;        /* added tokens searched in the text as it is */
    sl_added_set normalized; /* and in the normalised text */
    sl_normalizers normalizers;
    sl_stages stages;
    sl_bpe bpe;
    bool byte_level;         /* pieces are written in the byte alphabet */
    sl_buf space;            /* what stands for a space in pieces ("\u2581"); empty: a space */
    bool adds_space;         /* a space is put before texts */
};

#endif
