/* Stop texts are searched with Knuth, Morris and Pratt's automaton, one per text: each byte is looked at once,
 * and the longest prefix that ends the text so far says how much must be held back. */
#include "run/stream.h"

#include <assert.h>
#include <stdlib.h>

#include "run/model.h"

typedef struct sl_stop_scan {
    uint32_t *fail; /* [n] bytes of the longest proper prefix that ends the first i + 1 bytes */
    size_t n_seen;  /* bytes of the longest prefix that ends the text so far */
} sl_stop_scan;

/* Bytes of the stop text that match after one more byte, given that n_seen (< n) did before. */
static size_t step(const sl_stop *stop, const uint32_t *fail, size_t n_seen, char byte) {
    while (n_seen && stop->text[n_seen] != byte) n_seen = fail[n_seen - 1];
    return n_seen + (stop->text[n_seen] == byte);
}

static sl_status begin_scan(sl_stream *s, sl_error *err) {
    SL_TRY(sl_alloc((void **)&s->scan, s->n_stop, sizeof *s->scan, "stop texts", err));
    for (size_t i = 0; i < s->n_stop; i++) {
        const sl_stop *stop = &s->stops[i];
        if (stop->n > UINT32_MAX) return sl_fail(err, SL_E_ARG, "stop text of %zu bytes is too long", stop->n);
        SL_TRY(sl_alloc((void **)&s->scan[i].fail, stop->n, sizeof *s->scan[i].fail, "stop texts", err));
        uint32_t *fail = s->scan[i].fail;
        for (size_t k = 1; k < stop->n; k++) fail[k] = (uint32_t)step(stop, fail, fail[k - 1], stop->text[k]);
    }
    return SL_OK;
}

/* Moves every automaton over the byte at text[at]. */
static void scan_byte(sl_stream *s, size_t at) {
    for (size_t i = 0; i < s->n_stop; i++) {
        const sl_stop *stop = &s->stops[i];
        sl_stop_scan *scan = &s->scan[i];
        if (!stop->n) continue;
        scan->n_seen = step(stop, scan->fail, scan->n_seen, (char)s->text.data[at]);
        if (scan->n_seen < stop->n) continue;
        size_t start = at + 1 - stop->n;
        if (!s->has_cut || start < s->cut) s->cut = start;
        s->has_cut = true;
        scan->n_seen = scan->fail[stop->n - 1];
    }
}

/* Where the earliest stop text begins that the end of the text may still become; text.n: none. */
static size_t held_from(const sl_stream *s) {
    size_t longest = 0;
    for (size_t i = 0; s->scan && i < s->n_stop; i++) longest = sl_max(longest, s->scan[i].n_seen);
    return s->text.n - longest;
}

static bool is_end(const sl_stream *s, int32_t token) {
    for (size_t i = 0; i < s->model->n_eos; i++)
        if (s->model->eos[i] == token) return !s->ignore_eos;
    return false;
}

sl_status sl_stream_accept(sl_stream *s, int32_t token, sl_error *err) {
    if (s->finish != SL_FINISH_NONE) return SL_OK;
    if (is_end(s, token)) {
        sl_stream_end(s, SL_FINISH_STOP);
        return SL_OK;
    }
    if (!s->scan && s->n_stop) SL_TRY(begin_scan(s, err));
    size_t n = 0, at = s->text.n;
    const void *bytes = sl_token_bytes(s->model, token, &n);
    bool shown = bytes && (s->show_special || !sl_token_is_special(s->model, token));
    if (shown && !sl_buf_append(&s->text, bytes, n))
        return sl_fail(err, SL_E_MEMORY, "out of memory for a text of %zu bytes", s->text.n + n);
    s->n_token++;
    for (; at < s->text.n; at++) scan_byte(s, at);
    size_t held = held_from(s);
    assert(held >= s->n_ready); /* what was ready stays ready */
    if (s->has_cut && held >= s->cut) sl_stream_end(s, SL_FINISH_STOP);
    else if (s->n_token >= s->max_token) sl_stream_end(s, SL_FINISH_LENGTH);
    else s->n_ready = held;
    return SL_OK;
}

void sl_stream_end(sl_stream *s, sl_finish finish) {
    if (s->finish != SL_FINISH_NONE) return;
    s->finish = s->has_cut ? SL_FINISH_STOP : finish;
    if (s->has_cut) s->text.n = s->cut;
    s->n_ready = s->text.n;
}

void sl_stream_release(sl_stream *s) {
    for (size_t i = 0; s->scan && i < s->n_stop; i++) free(s->scan[i].fail);
    free(s->scan);
    sl_buf_release(&s->text);
    s->scan = NULL;
    s->n_ready = s->n_token = s->cut = 0;
    s->has_cut = false;
    s->finish = SL_FINISH_NONE;
}
