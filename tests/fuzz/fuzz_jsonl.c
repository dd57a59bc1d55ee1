/* Lines of a batch job: any bytes become a request or an error, and the result of either is one line of JSON
 * that says the same id. The bytes also stand for the output of an earlier run. */
#define _POSIX_C_SOURCE 200809L

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/batch_io.h"
#include "cli/batch_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(bool good) {
    if (!good) abort();
}

static void check_result(const sl_line *line, const char *bytes, size_t n, const char *error) {
    sl_buf out = { 0 };
    require(sl_result_format(&out, line, bytes, n, "stop", 1, 2, error));
    require(out.n && out.data[out.n - 1] == '\n' && !memchr(out.data, '\n', out.n - 1) && !memchr(out.data, '\r', out.n));
    json_t *root = json_loadb((char *)out.data, out.n, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    const json_t *id = json_object_get(root, "id");
    require(id && json_string_length(id) == line->n_id && !memcmp(json_string_value(id), line->id, line->n_id));
    require(json_object_get(root, "text") && json_object_get(root, "metadata"));
    json_decref(root);
    sl_buf_release(&out);
}

static void check_line(const char *text, size_t n) {
    const sl_line_defaults defaults = { .sampler = sl_sampler_params_default(), .max_token = 8 };
    sl_line line;
    sl_error err = { 0 };
    sl_status status = sl_line_parse(&line, 41, text, n, &defaults, &err);
    if (status == SL_OK) require((line.prompt != NULL) != (line.messages != NULL) && line.has_id);
    else require(err.text[0] && !strchr(err.text, '\n'));
    check_result(&line, text, n, status == SL_OK ? NULL : err.text);
    sl_line_release(&line);
}

static void check_journal(const char *path) {
    sl_journal journal;
    sl_error err = { 0 };
    if (sl_journal_read(&journal, path, &err) != SL_OK) {
        require(err.text[0] && !journal.done);
        return;
    }
    require(journal.keep_bytes <= journal.found_bytes && journal.n_error <= journal.n);
    for (size_t i = 1; i < journal.n; i++) require(journal.done[i - 1].index < journal.done[i].index);
    sl_journal_release(&journal);
}

/* Every byte of the file is in exactly one line. */
static void check_reader(const char *path, size_t n) {
    sl_reader reader;
    uint64_t sum = 0;
    require(sl_reader_open(&reader, path, 64, NULL) == SL_OK);
    for (bool more;;) {
        require(sl_reader_next(&reader, &more, NULL) == SL_OK);
        if (!more) break;
        require(reader.offset == sum && reader.n <= 64 && !(reader.n && reader.too_long));
        if (!reader.too_long) check_line(reader.text, reader.n);
        sum = reader.next_offset;
    }
    require(sum == n);
    sl_reader_close(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    char path[] = "/tmp/sluice-fuzz-XXXXXX";
    check_line((const char *)data, n);
    int fd = mkstemp(path);
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n && !close(fd));
    check_journal(path);
    check_reader(path, n);
    unlink(path);
    return 0;
}
