/* The walk of a matrix product over its tiles, shared by the vector variants.
 *
 * A tile function computes a block of rows for 1, 2, 4 or 8 tokens. Each output has its own accumulator
 * lanes and the same chain of operations in every tile, so the cut into tiles never shows in the bits. Rows go
 * outside, tokens inside: a block of rows is read from memory once and stays in the first cache for the other
 * tokens; tokens are taken in blocks of 64 so that they stay in the second. */
#ifndef SL_KERNELS_GEMM_TILES_H
#define SL_KERNELS_GEMM_TILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The operands of a tile: first row of weights, first token, output of both. */
typedef struct operands {
    const char *w, *x;
    float *y;
    size_t w_stride, x_stride, y_stride; /* bytes, bytes, elements */
    size_t k;
    bool is_first; /* of the tiles that read these weights: it prefetches */
    bool to_first; /* cache, see fetch_ahead */
} operands;

/* A tile reads many rows side by side, which the hardware takes for random access: a third of what memory
 * gives. So the weights are fetched into the second cache in the order of their addresses (rows follow each
 * other), by as many bytes as a step of a tile consumes. A request is dropped while the queue is full, hence
 * the second one. Share of a plain read's speed, q4, one core, Zen 4: same place in the next tile 35 %, in
 * address order one tile ahead 68, 32 KiB ahead 90, 64 KiB and again 32 KiB ahead 99; into the first cache 50;
 * q8 reaches 70, and 87 with two or four tokens. On Zen 5 (a first cache of 48 KB) that leaves AVX-512 behind AVX2, and
 * requests for the first cache 32 and 24 KiB ahead, just more than a tile, are better kept: a model of 1.3 B parameters
 * decodes 1.25 times as fast with one core (q4: 46 to 58 tokens a second, AVX2 54; q8: 24 to 30), 1.08 and 1.23 with two.
 * Addresses past the end of the weights are harmless. */
enum { FETCH_FAR = 65536, FETCH_NEAR = 32768, FIRST_FAR = 32768, FIRST_NEAR = 24576, CACHE_LINE = 64 };
static inline __attribute__((always_inline)) void fetch_ahead(const operands *o, size_t offset,
                                                              size_t n_bytes) {
    if (!o->is_first) return;
    const uintptr_t place = (uintptr_t)o->w + offset;
    for (size_t i = 0; o->to_first && i < n_bytes; i += CACHE_LINE) {
        __builtin_prefetch((const void *)(place + i + FIRST_FAR), 0, 3);
        __builtin_prefetch((const void *)(place + i + FIRST_NEAR), 0, 3);
    }
    for (size_t i = 0; !o->to_first && i < n_bytes; i += CACHE_LINE) {
        __builtin_prefetch((const void *)(place + i + FETCH_FAR), 0, 2);
        __builtin_prefetch((const void *)(place + i + FETCH_NEAR), 0, 2);
    }
}

/* Computes n_row <= the block's rows for a fixed number of tokens. */
typedef void tile_fn(const operands *o, size_t n_row);

enum { TOKENS_PER_BLOCK = 64 };

/* The tile functions of a kernel: tile[i] takes 2^i tokens. */
typedef struct tile_set { size_t n; tile_fn *tile[4]; } tile_set;

static inline void walk_tokens(const operands *block, size_t n_row, size_t n_tok, const tile_set *set) {
    size_t level = set->n - 1;
    for (size_t t = 0; t < n_tok; t += (size_t)1 << level) {
        operands o = *block;
        o.x += t * o.x_stride;
        o.y += t * o.y_stride;
        o.is_first = t == 0;
        while ((size_t)1 << level > n_tok - t) level--;
        set->tile[level](&o, n_row);
    }
}

static inline void walk_tiles(const operands *whole, size_t n_row, size_t n_tok, size_t block_rows,
                              const tile_set *set) {
    for (size_t t = 0; t < n_tok; t += TOKENS_PER_BLOCK) {
        for (size_t r = 0; r < n_row; r += block_rows) {
            operands o = *whole;
            o.w += r * o.w_stride;
            o.x += t * o.x_stride;
            o.y += t * o.y_stride + r;
            walk_tokens(&o, n_row - r < block_rows ? n_row - r : block_rows,
                        n_tok - t < TOKENS_PER_BLOCK ? n_tok - t : TOKENS_PER_BLOCK, set);
        }
    }
}

#endif
