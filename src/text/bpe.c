/* BPE over a doubly linked list of symbols and a binary heap of candidate merges. A heap entry is stale, and
 * dropped, when the symbol at its position no longer begins a pair of its rank. */
#include "text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "text/utf8.h"

static const uint64_t FREE = UINT64_MAX;  /* no pair: ids are not negative */
static const uint32_t NONE = UINT32_MAX;  /* no neighbour, no rank */

/* ---- the table of merges ------------------------------------------------------------------------ */

sl_status sl_bpe_init(sl_bpe *bpe, const sl_vocab *vocab, size_t n, sl_error *err) {
    size_t size = 64;
    while (size < 2 * n) size *= 2;
    SL_TRY(sl_alloc((void **)&bpe->table, size, sizeof *bpe->table, "the merges of the tokenizer", err));
    SL_TRY(sl_alloc((void **)&bpe->result, n, sizeof *bpe->result, "the merges of the tokenizer", err));
    for (size_t i = 0; i < size; i++) bpe->table[i].pair = FREE;
    bpe->vocab = vocab;
    bpe->mask = size - 1;
    bpe->seed = (uint64_t)(uintptr_t)bpe->table;
    bpe->n = n;
    return SL_OK;
}

void sl_bpe_release(sl_bpe *bpe) {
    free(bpe->table);
    free(bpe->result);
    *bpe = (sl_bpe){ 0 };
}

static sl_merge *find_merge(const sl_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    size_t i = XXH3_64bits_withSeed(&pair, sizeof pair, bpe->seed) & bpe->mask;
    while (bpe->table[i].pair != pair && bpe->table[i].pair != FREE) i = (i + 1) & bpe->mask;
    return &bpe->table[i];
}

static sl_status unknown_piece(uint32_t rank, const void *key, size_t n_key, sl_error *err) {
    sl_name_buf name;
    return sl_fail(err, SL_E_FORMAT,
                   "tokenizer.json: merge %u needs the piece \"%s\", which is not in the vocabulary", rank,
                   sl_name_escape(key, n_key, &name));
}

/* A piece of the BPE vocabulary; -1: no such piece, or only an added token. */
static int32_t find_piece(const sl_bpe *bpe, const void *key, size_t n_key) {
    int32_t id = sl_vocab_find(bpe->vocab, key, n_key);
    return id >= 0 && bpe->vocab->pieces[id].in_model ? id : -1;
}

sl_status sl_bpe_add(sl_bpe *bpe, uint32_t rank, const void *left, size_t n_left, const void *right,
                     size_t n_right, sl_error *err) {
    uint8_t both[2 * SL_MAX_PIECE_BYTES];
    assert(rank < bpe->n);
    int32_t a = find_piece(bpe, left, n_left), b = find_piece(bpe, right, n_right);
    if (a < 0) return unknown_piece(rank, left, n_left, err);
    if (b < 0) return unknown_piece(rank, right, n_right, err);
    memcpy(both, left, n_left);
    memcpy(both + n_left, right, n_right);
    int32_t id = find_piece(bpe, both, n_left + n_right);
    if (id < 0) return unknown_piece(rank, both, n_left + n_right, err);
    if (bpe->vocab->pieces[id].special) return SL_OK;
    sl_merge *merge = find_merge(bpe, a, b);
    *merge =
        (sl_merge){ .pair = (uint64_t)a << 32 | (uint32_t)b, .rank = rank }; /* given twice: the later counts */
    bpe->result[rank] = id;
    return SL_OK;
}

/* ---- one word ----------------------------------------------------------------------------------- */

void sl_bpe_work_release(sl_bpe_work *work) {
    free(work->symbols);
    free(work->heap);
    *work = (sl_bpe_work){ 0 };
}

static bool heap_push(sl_bpe_work *w, uint64_t entry) {
    if (!sl_grow((void **)&w->heap, &w->heap_cap, w->n_heap + 1, sizeof *w->heap)) return false;
    size_t i = w->n_heap++;
    for (; i > 0 && w->heap[(i - 1) / 2] > entry; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = entry;
    return true;
}

static uint64_t heap_pop(sl_bpe_work *w) {
    uint64_t top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child]) child++;
        if (last <= w->heap[child]) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

static bool add_symbol(sl_bpe_work *w, int32_t id) {
    if (w->n >= NONE || !sl_grow((void **)&w->symbols, &w->cap, w->n + 1, sizeof *w->symbols)) return false;
    uint32_t i = (uint32_t)w->n++;
    w->symbols[i] = (sl_symbol){ .id = id, .prev = i ? i - 1 : NONE, .next = i + 1, .rank = NONE };
    return true;
}

/* A character that is no piece: its bytes, or unk, or nothing. */
static bool add_unknown(const sl_bpe *bpe, sl_bpe_work *w, const uint8_t *p, size_t n_char, bool *was_unk) {
    bool bytes = bpe->byte_fallback;
    for (size_t i = 0; i < n_char; i++) bytes = bytes && bpe->byte_id[p[i]] >= 0;
    for (size_t i = 0; bytes && i < n_char; i++)
        if (!add_symbol(w, bpe->byte_id[p[i]])) return false;
    if (bytes || bpe->unk < 0) return true;
    bool fused = *was_unk && bpe->fuse_unk;
    *was_unk = true;
    return fused || add_symbol(w, bpe->unk);
}

static bool add_symbols(const sl_bpe *bpe, sl_bpe_work *w, const uint8_t *word, size_t n_bytes) {
    bool was_unk = false;
    w->n = w->n_heap = 0;
    for (size_t i = 0, n_char; i < n_bytes; i += n_char) {
        n_char = sl_utf8_char(word + i, n_bytes - i);
        assert(n_char > 0);
        int32_t id = sl_vocab_find_text(bpe->vocab, word + i, n_char);
        if (id >= 0) {
            was_unk = false;
            if (!add_symbol(w, id)) return false;
            continue;
        }
        if (!add_unknown(bpe, w, word + i, n_char, &was_unk)) return false;
    }
    if (w->n) w->symbols[w->n - 1].next = NONE;
    return true;
}

/* Looks up the pair that begins at symbol i. */
static bool update_pair(const sl_bpe *bpe, sl_bpe_work *w, uint32_t i) {
    sl_symbol *s = &w->symbols[i];
    s->rank = NONE;
    if (s->next == NONE) return true;
    const sl_merge *merge = find_merge(bpe, s->id, w->symbols[s->next].id);
    if (merge->pair == FREE) return true;
    s->rank = merge->rank;
    return heap_push(w, (uint64_t)merge->rank << 32 | i);
}

static bool merge_all(const sl_bpe *bpe, sl_bpe_work *w) {
    for (size_t i = 0; i + 1 < w->n; i++)
        if (!update_pair(bpe, w, (uint32_t)i)) return false;
    while (w->n_heap) {
        uint64_t entry = heap_pop(w);
        uint32_t i = (uint32_t)entry;
        sl_symbol *s = &w->symbols[i];
        if (s->rank != entry >> 32) continue;
        assert(s->next != NONE && s->rank < bpe->n);
        sl_symbol *dead = &w->symbols[s->next];
        s->id = bpe->result[s->rank];
        s->next = dead->next;
        dead->rank = NONE;
        if (s->next != NONE) w->symbols[s->next].prev = i;
        if (!update_pair(bpe, w, i)) return false;
        if (s->prev != NONE && !update_pair(bpe, w, s->prev)) return false;
    }
    return true;
}

static bool append(int32_t id, int32_t **tokens, size_t *n, size_t *cap) {
    if (!sl_grow((void **)tokens, cap, *n + 1, sizeof **tokens)) return false;
    (*tokens)[(*n)++] = id;
    return true;
}

sl_status sl_bpe_encode(const sl_bpe *bpe, sl_bpe_work *work, const uint8_t *word, size_t n_bytes,
                        int32_t **tokens, size_t *n, size_t *cap, sl_error *err) {
    int32_t whole = bpe->ignore_merges ? sl_vocab_find_text(bpe->vocab, word, n_bytes) : -1;
    bool fits = whole >= 0 ? append(whole, tokens, n, cap)
                           : add_symbols(bpe, work, word, n_bytes) && merge_all(bpe, work);
    if (whole < 0 && fits && work->n)
        for (uint32_t i = 0; fits && i != NONE; i = work->symbols[i].next)
            fits = append(work->symbols[i].id, tokens, n, cap);
    return fits ? SL_OK
                : sl_fail(err, SL_E_MEMORY, "out of memory while encoding a word of %zu bytes", n_bytes);
}
