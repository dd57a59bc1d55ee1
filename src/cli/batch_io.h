/* The two files of a batch job: lines in, of any number and length, and the journal of results out. */
#ifndef SL_CLI_BATCH_IO_H
#define SL_CLI_BATCH_IO_H

#include <stdio.h>

#include "base/mem.h"

/* ---- lines --------------------------------------------------------------------------------------- */

/* Reads a file line by line through a buffer of its own; a line longer than max_bytes is skipped over and
 * reported as such. */
typedef struct sl_reader {
    FILE *file;
    const char *path;
    uint64_t max_bytes;
    sl_buf buf;             /* what was read and not yet handed out */
    size_t at;              /* start of the present line in buf */
    /* the present line */
    const char *text;       /* [n] bytes without the newline, valid until the next call */
    size_t n;
    bool too_long, finished; /* finished: a newline ended it */
    uint64_t index, offset;  /* line number from 0 and its first byte in the file */
    uint64_t next_offset;    /* first byte of the line after it */
    bool begun, at_end;
} sl_reader;

sl_status sl_reader_open(sl_reader *lines, const char *path, uint64_t max_bytes, sl_error *err);
/* The next line; *more false: there is none. */
sl_status sl_reader_next(sl_reader *lines, bool *more, sl_error *err);
void sl_reader_close(sl_reader *lines);

/* ---- a set of texts ------------------------------------------------------------------------------ */

/* 128-bit hashes of the texts seen, 16 bytes each. */
typedef struct sl_text_hash { uint64_t low, high; } sl_text_hash;
typedef struct sl_text_set { sl_text_hash *slots; size_t n, cap; } sl_text_set;
sl_text_hash sl_text_hash_of(const void *text, size_t n);
/* *added false: it was there already. */
sl_status sl_text_set_add(sl_text_set *set, sl_text_hash hash, bool *added, sl_error *err);
void sl_text_set_release(sl_text_set *set);

/* ---- the journal --------------------------------------------------------------------------------- */

/* What an earlier run finished, from its output. */
typedef struct sl_done { uint64_t index; sl_text_hash id; } sl_done;
typedef struct sl_journal {
    sl_done *done;        /* [n] by index, each once */
    size_t n, cap;
    uint64_t n_error;     /* of them, results of bad lines */
    uint64_t found_bytes; /* of the file */
    uint64_t keep_bytes;  /* up to the end of the last finished line */
} sl_journal;

/* Reads the results at path (which may be absent); the file is not touched. Refused: a file whose finished
 * lines are not results, or that has two for one line. Only the last line may be broken; it is not kept. */
sl_status sl_journal_read(sl_journal *journal, const char *path, sl_error *err);
void sl_journal_release(sl_journal *journal);

#endif
