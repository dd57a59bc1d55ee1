/* The pieces of a tokenizer: id to text and bytes, text to id. */
#ifndef SL_TEXT_VOCAB_H
#define SL_TEXT_VOCAB_H

#include "base/mem.h"

enum {
    SL_MAX_PIECE = 1 << 20,      /* ids; the largest known vocabularies have 262,144 (BPE) and 901,629 (others) */
    SL_MAX_PIECE_BYTES = 64 << 10
};

/* Offsets into the pool. key: the text as it stands in the file; out: the bytes that decoding gives. */
typedef struct sl_piece {
    uint32_t key, n_key, out, n_out;
    bool known;    /* there is a piece with this id */
    bool in_model; /* of the BPE vocabulary, not only an added token */
    bool added, special;
} sl_piece;

typedef struct sl_vocab {
    sl_piece *pieces; /* [n] by id; ids without a piece have known == false */
    size_t n;
    sl_buf pool;
    int32_t *table;   /* [mask + 1] ids by hash of the key, open addressing, -1: free */
    size_t mask;
    uint64_t seed;    /* of the hash, so that no file can be prepared to collide */
} sl_vocab;

/* n: one more than the highest id; n_key: keys there will be. Starts from a zeroed struct. */
sl_status sl_vocab_init(sl_vocab *vocab, size_t n, size_t n_key, sl_error *err);
void sl_vocab_release(sl_vocab *vocab);
/* Adds a key of at most SL_MAX_PIECE_BYTES under an id below n; neither may be there yet (SL_E_FORMAT). */
sl_status sl_vocab_add(sl_vocab *vocab, int32_t id, const void *key, size_t n_key, sl_error *err);
/* Sets the bytes of a known piece. */
sl_status sl_vocab_set_out(sl_vocab *vocab, int32_t id, const void *out, size_t n_out, sl_error *err);
/* -1: no such key. */
int32_t sl_vocab_find(const sl_vocab *vocab, const void *key, size_t n_key);
/* The same among the pieces that ordinary text may become: of the BPE vocabulary and not special. */
int32_t sl_vocab_find_text(const sl_vocab *vocab, const void *key, size_t n_key);
const uint8_t *sl_vocab_key(const sl_vocab *vocab, int32_t id, size_t *n_key);

#endif
