/* Byte-pair encoding of one word: the adjacent pair of lowest rank is merged, leftmost first, until none is
 * left. A heap of pairs makes that O(n log n) for a word of n characters. */
#ifndef SL_TEXT_BPE_H
#define SL_TEXT_BPE_H

#include "text/vocab.h"

enum { SL_MAX_MERGE = 8 << 20 };

typedef struct sl_merge {
    uint64_t pair;
    uint32_t rank;
} sl_merge;

typedef struct sl_bpe {
    const sl_vocab *vocab;
    sl_merge *table;   /* [mask + 1] by hash of left << 32 | right, open addressing */
    size_t mask;
    uint64_t seed;
    int32_t *result;   /* [n] id that the merge of this rank gives */
    size_t n;
    int32_t byte_id[256]; /* how a byte is written that is no part of a character, or has none; -1: nothing */
    int32_t unk;          /* -1: none */
    bool byte_fallback;   /* an unknown character becomes the ids of its bytes */
    bool fuse_unk;        /* adjacent unknown characters are one unk */
    bool ignore_merges;   /* a word that is a piece is taken whole */
} sl_bpe;

/* Room for n merges over a vocabulary that outlives bpe. Starts from a zeroed struct. */
sl_status sl_bpe_init(sl_bpe *bpe, const sl_vocab *vocab, size_t n, sl_error *err);
void sl_bpe_release(sl_bpe *bpe);
/* The merge of the next rank, of two pieces given by their keys. All three pieces must be known. */
sl_status sl_bpe_add(sl_bpe *bpe, uint32_t rank, const void *left, size_t n_left, const void *right,
                     size_t n_right, sl_error *err);

/* Memory of one encoding, used again for word after word. Starts zeroed. */
typedef struct sl_symbol {
    int32_t id;
    uint32_t prev, next, rank;
} sl_symbol;
typedef struct sl_bpe_work {
    sl_symbol *symbols;
    uint64_t *heap; /* rank << 32 | position */
    size_t n, cap, n_heap, heap_cap;
} sl_bpe_work;
void sl_bpe_work_release(sl_bpe_work *work);

/* Appends the ids of a word of valid UTF-8; never a special token (but unk). */
sl_status sl_bpe_encode(const sl_bpe *bpe, sl_bpe_work *work, const uint8_t *word, size_t n_bytes,
                        int32_t **tokens, size_t *n, size_t *cap, sl_error *err);

#endif
