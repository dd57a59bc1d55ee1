/* Pieces in one pool of bytes, found through a table of ids with linear probing. */
#include "text/vocab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

sl_status sl_vocab_init(sl_vocab *vocab, size_t n, size_t n_key, sl_error *err) {
    size_t size = 64;
    while (size < 2 * n_key + 2) size *= 2;
    SL_TRY(sl_alloc((void **)&vocab->pieces, n, sizeof *vocab->pieces, "the vocabulary", err));
    vocab->n = n;
    SL_TRY(sl_alloc((void **)&vocab->table, size, sizeof *vocab->table, "the vocabulary", err));
    memset(vocab->table, 0xFF, size * sizeof *vocab->table);
    vocab->mask = size - 1;
    if (!sl_grow((void **)&vocab->pool.data, &vocab->pool.cap, 64, 1)) /* never NULL, also with empty pieces */
        return sl_fail(err, SL_E_MEMORY, "out of memory: 64 bytes for the vocabulary");
    vocab->seed = (uint64_t)(uintptr_t)vocab->table;
    return SL_OK;
}

void sl_vocab_release(sl_vocab *vocab) {
    free(vocab->pieces);
    free(vocab->table);
    sl_buf_release(&vocab->pool);
    *vocab = (sl_vocab){ 0 };
}

/* Where the key is, or the free place where it would go. */
static int32_t *find_place(const sl_vocab *vocab, const void *key, size_t n_key) {
    size_t i = XXH3_64bits_withSeed(key, n_key, vocab->seed) & vocab->mask;
    for (; vocab->table[i] >= 0; i = (i + 1) & vocab->mask) {
        const sl_piece *piece = &vocab->pieces[vocab->table[i]];
        if (piece->n_key == n_key && memcmp(vocab->pool.data + piece->key, key, n_key) == 0) break;
    }
    return &vocab->table[i];
}

static sl_status pool_add(sl_vocab *vocab, const void *data, size_t n, uint32_t *offset, sl_error *err) {
    if (vocab->pool.n + n > UINT32_MAX || !sl_buf_append(&vocab->pool, data, n))
        return sl_fail(err, SL_E_MEMORY, "out of memory: %zu bytes for the pieces of the tokenizer",
                       vocab->pool.n + n);
    *offset = (uint32_t)(vocab->pool.n - n);
    return SL_OK;
}

sl_status sl_vocab_add(sl_vocab *vocab, int32_t id, const void *key, size_t n_key, sl_error *err) {
    sl_name_buf name, other;
    assert(id >= 0 && (size_t)id < vocab->n);
    sl_piece *piece = &vocab->pieces[id];
    if (n_key > SL_MAX_PIECE_BYTES)
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: piece \"%s\" has %zu bytes; expected at most %d",
                       sl_name_escape(key, n_key, &name), n_key, SL_MAX_PIECE_BYTES);
    if (piece->known)
        return sl_fail(err, SL_E_FORMAT,
                       "tokenizer.json: id %d is given to both \"%s\" and \"%s\"; expected unique ids", id,
                       sl_name_escape(vocab->pool.data + piece->key, piece->n_key, &other),
                       sl_name_escape(key, n_key, &name));
    int32_t *place = find_place(vocab, key, n_key);
    if (*place >= 0)
        return sl_fail(err, SL_E_FORMAT, "tokenizer.json: piece \"%s\" has both id %d and id %d; expected one",
                       sl_name_escape(key, n_key, &name), *place, id);
    SL_TRY(pool_add(vocab, key, n_key, &piece->key, err));
    piece->n_key = (uint32_t)n_key;
    piece->known = true;
    *place = id;
    return SL_OK;
}

sl_status sl_vocab_set_out(sl_vocab *vocab, int32_t id, const void *out, size_t n_out, sl_error *err) {
    assert(id >= 0 && (size_t)id < vocab->n && vocab->pieces[id].known);
    sl_piece *piece = &vocab->pieces[id];
    SL_TRY(pool_add(vocab, out, n_out, &piece->out, err));
    piece->n_out = (uint32_t)n_out;
    return SL_OK;
}

int32_t sl_vocab_find(const sl_vocab *vocab, const void *key, size_t n_key) {
    return *find_place(vocab, key, n_key);
}

int32_t sl_vocab_find_text(const sl_vocab *vocab, const void *key, size_t n_key) {
    int32_t id = sl_vocab_find(vocab, key, n_key);
    return id >= 0 && vocab->pieces[id].in_model && !vocab->pieces[id].special ? id : -1;
}

const uint8_t *sl_vocab_key(const sl_vocab *vocab, int32_t id, size_t *n_key) {
    assert(id >= 0 && (size_t)id < vocab->n && vocab->pieces[id].known);
    *n_key = vocab->pieces[id].n_key;
    return vocab->pool.data + vocab->pieces[id].key;
}
