#include "cli/batch_io.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "os/append.h"
#include "os/os.h"

/* ---- lines --------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 16, RESULT_BYTES = 1 << 28 /* the longest result that is read back */ };

sl_status sl_reader_open(sl_reader *lines, const char *path, uint64_t max_bytes, sl_error *err) {
    sl_name_buf buf;
    *lines = (sl_reader){ .path = path, .max_bytes = max_bytes };
    if (sl_os_kind_of(path) == SL_OS_FOLDER)
        return sl_fail(err, SL_E_IO, "%s is a folder, expected a file of lines", sl_name(path, &buf));
    lines->file = fopen(path, "rb");
    if (!lines->file) return sl_fail(err, SL_E_IO, "%s: cannot open: %s", sl_name(path, &buf), strerror(errno));
    return SL_OK;
}

/* Appends a piece of the file to buf. */
static sl_status fill(sl_reader *lines, sl_error *err) {
    sl_buf *buf = &lines->buf;
    sl_name_buf name;
    if (!sl_grow((void **)&buf->data, &buf->cap, buf->n + PIECE, 1))
        return sl_fail(err, SL_E_MEMORY, "out of memory: a line of %zu bytes", buf->n);
    size_t n = fread(buf->data + buf->n, 1, PIECE, lines->file);
    buf->n += n;
    if (n < PIECE && ferror(lines->file))
        return sl_fail(err, SL_E_IO, "%s: cannot read: %s", sl_name(lines->path, &name), strerror(errno));
    lines->at_end = n == 0;
    return SL_OK;
}

/* Drops the bytes before the present line once they are many, so that the buffer stays small. */
static void drop_used(sl_reader *lines) {
    sl_buf *buf = &lines->buf;
    if (lines->at < PIECE && lines->at < buf->n) return;
    if (lines->at < buf->n) memmove(buf->data, buf->data + lines->at, buf->n - lines->at);
    buf->n -= lines->at;
    lines->at = 0;
}

/* Finds the end of the line that starts at `at`, reading on; *length does not count the newline. What is read
 * of a line that is too long is dropped. */
static sl_status find_end(sl_reader *lines, uint64_t *length, sl_error *err) {
    size_t from = lines->at; /* not searched yet */
    uint64_t dropped = 0;
    for (;;) {
        sl_buf *buf = &lines->buf;
        uint8_t *newline = buf->n > from ? memchr(buf->data + from, '\n', buf->n - from) : NULL;
        size_t end = newline ? (size_t)(newline - buf->data) : buf->n;
        *length = end - lines->at + dropped;
        lines->too_long = *length > lines->max_bytes;
        lines->finished = newline != NULL;
        if (newline || lines->at_end) {
            lines->text = (char *)buf->data + lines->at;
            lines->at = end + (newline != NULL);
            return SL_OK;
        }
        if (lines->too_long) {
            dropped += buf->n - lines->at;
            buf->n = lines->at;
        }
        from = buf->n;
        SL_TRY(fill(lines, err));
    }
}

sl_status sl_reader_next(sl_reader *lines, bool *more, sl_error *err) {
    uint64_t length;
    drop_used(lines);
    lines->offset = lines->next_offset;
    SL_TRY(find_end(lines, &length, err));
    *more = length || lines->finished;
    lines->n = lines->too_long ? 0 : (size_t)length;
    lines->next_offset = lines->offset + length + lines->finished;
    lines->index = lines->begun ? lines->index + 1 : 0;
    lines->begun = true;
    return SL_OK;
}

void sl_reader_close(sl_reader *lines) {
    if (lines->file) fclose(lines->file);
    sl_buf_release(&lines->buf);
    *lines = (sl_reader){ 0 };
}

/* ---- a set of texts ------------------------------------------------------------------------------ */

sl_text_hash sl_text_hash_of(const void *text, size_t n) {
    XXH128_hash_t hash = XXH3_128bits(text, n);
    if (!hash.low64 && !hash.high64) hash.low64 = 1; /* zero marks a free slot */
    return (sl_text_hash){ hash.low64, hash.high64 };
}

static bool is_free(sl_text_hash hash) { return !hash.low && !hash.high; }
static bool is_same(sl_text_hash a, sl_text_hash b) { return a.low == b.low && a.high == b.high; }

/* The slot that holds hash or could; cap is a power of two and never full. */
static size_t find_slot(const sl_text_set *set, sl_text_hash hash) {
    size_t i = (size_t)hash.low & (set->cap - 1);
    while (!is_free(set->slots[i]) && !is_same(set->slots[i], hash)) i = (i + 1) & (set->cap - 1);
    return i;
}

static sl_status set_grow(sl_text_set *set, sl_error *err) {
    sl_text_set bigger = { .n = set->n, .cap = set->cap ? 2 * set->cap : 1024 };
    SL_TRY(sl_alloc((void **)&bigger.slots, bigger.cap, sizeof *bigger.slots, "the ids seen", err));
    for (size_t i = 0; i < set->cap; i++)
        if (!is_free(set->slots[i])) bigger.slots[find_slot(&bigger, set->slots[i])] = set->slots[i];
    free(set->slots);
    *set = bigger;
    return SL_OK;
}

sl_status sl_text_set_add(sl_text_set *set, sl_text_hash hash, bool *added, sl_error *err) {
    if (set->n >= set->cap / 2) SL_TRY(set_grow(set, err));
    size_t i = find_slot(set, hash);
    *added = is_free(set->slots[i]);
    set->slots[i] = hash;
    set->n += *added;
    return SL_OK;
}

void sl_text_set_release(sl_text_set *set) {
    free(set->slots);
    *set = (sl_text_set){ 0 };
}

/* ---- the journal --------------------------------------------------------------------------------- */

/* The parts of a result that a resumed run needs; false: not a result. */
static bool read_result(const char *text, size_t n, sl_done *done, bool *is_error) {
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    const json_t *id = json_object_get(root, "id"), *index = json_object_get(root, "index");
    const json_t *reason = json_object_get(root, "finish_reason");
    bool good = json_is_string(id) && json_is_number(index) && json_is_string(reason);
    double number = good ? json_number_value(index) : -1;
    good = good && number >= 0 && number < 9007199254740992.0 && number == (double)(uint64_t)number; /* 2^53 */
    if (good) {
        *done = (sl_done){ (uint64_t)number, sl_text_hash_of(json_string_value(id), json_string_length(id)) };
        *is_error = !strcmp(json_string_value(reason), "error");
    }
    json_decref(root);
    return good;
}

static sl_status add_done(sl_journal *journal, sl_done done, bool is_error, sl_error *err) {
    if (!sl_grow((void **)&journal->done, &journal->cap, journal->n + 1, sizeof *journal->done))
        return sl_fail(err, SL_E_MEMORY, "out of memory: %zu results", journal->n);
    journal->done[journal->n++] = done;
    journal->n_error += is_error;
    return SL_OK;
}

/* All finished lines. A line that is no result is let pass only if nothing comes after it. */
static sl_status read_results(sl_journal *journal, sl_reader *lines, sl_error *err) {
    sl_name_buf buf;
    uint64_t broken = 0; /* number of a line that is no result, from 1 */
    for (bool more;;) {
        sl_done done;
        bool is_error;
        SL_TRY(sl_reader_next(lines, &more, err));
        if (!more) break;
        if (broken)
            return sl_fail(err, SL_E_FORMAT, "%s: line %llu is not a result of batch, so it is not continued",
                           sl_name(lines->path, &buf), (unsigned long long)broken);
        if (!lines->finished || lines->too_long || !read_result(lines->text, lines->n, &done, &is_error)) {
            broken = lines->index + 1;
            continue;
        }
        SL_TRY(add_done(journal, done, is_error, err));
        journal->keep_bytes = lines->next_offset;
    }
    journal->found_bytes = lines->next_offset;
    return SL_OK;
}

/* A file with nothing but one broken line is only continued if it could be a cut result. */
static sl_status check_beginning(const sl_journal *journal, const char *path, sl_error *err) {
    sl_name_buf buf;
    if (journal->n || !journal->found_bytes) return SL_OK;
    FILE *file = fopen(path, "rb");
    int first = file ? fgetc(file) : '{';
    if (file) fclose(file);
    if (first == '{') return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "%s holds no results of batch, so it is not continued",
                   sl_name(path, &buf));
}

static int by_index(const void *a, const void *b) {
    const sl_done *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

static sl_status check_results(sl_journal *journal, const char *path, sl_error *err) {
    sl_name_buf buf;
    if (journal->n) qsort(journal->done, journal->n, sizeof *journal->done, by_index);
    for (size_t i = 1; i < journal->n; i++)
        if (journal->done[i].index == journal->done[i - 1].index)
            return sl_fail(err, SL_E_FORMAT, "%s has two results with index %llu, expected one",
                           sl_name(path, &buf), (unsigned long long)journal->done[i].index);
    return SL_OK;
}

sl_status sl_journal_read(sl_journal *journal, const char *path, sl_error *err) {
    sl_reader lines;
    *journal = (sl_journal){ 0 };
    if (sl_os_kind_of(path) == SL_OS_NOTHING) return SL_OK;
    sl_status status = sl_reader_open(&lines, path, RESULT_BYTES, err);
    if (status == SL_OK) status = read_results(journal, &lines, err);
    if (status == SL_OK) status = check_results(journal, path, err);
    if (status == SL_OK) status = check_beginning(journal, path, err);
    sl_reader_close(&lines);
    if (status != SL_OK) sl_journal_release(journal);
    return status;
}

void sl_journal_release(sl_journal *journal) {
    free(journal->done);
    *journal = (sl_journal){ 0 };
}
