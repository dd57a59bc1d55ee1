/* From tokens to text, for one generated answer: bytes are handed out only when they cannot become part
 * of a stop text. One object for generate, chat and batch, so that the same tokens give the same text everywhere. */
#ifndef SL_RUN_STREAM_H
#define SL_RUN_STREAM_H

#include "base/mem.h"

typedef struct sl_stop { const char *text; size_t n; } sl_stop;

typedef enum sl_finish { SL_FINISH_NONE, SL_FINISH_STOP, SL_FINISH_LENGTH } sl_finish;

struct sl_stop_scan;

typedef struct sl_stream {
    const sl_model *model;
    const sl_stop *stops; /* [n_stop], each of n >= 1 bytes, the caller's */
    size_t n_stop;
    size_t max_token;     /* SIZE_MAX: no limit */
    bool ignore_eos;
    bool show_special;    /* write special tokens' text too */
    /* result */
    sl_buf text;          /* all text so far, without a stop text */
    size_t n_ready;       /* bytes of text that are final */
    size_t n_token;       /* generated tokens, end token not counted */
    sl_finish finish;
    /* private */
    struct sl_stop_scan *scan; /* [n_stop] */
    bool has_cut;
    size_t cut;                /* where a stop text begins */
} sl_stream;

/* Feeds one sampled token. The text ends before the first occurrence of any stop text, however tokens cut
 * it: if one has occurred while a longer one that began before it may still come, that is waited for. After
 * a call text[0 .. n_ready) may be shown. When finish is set the answer is over and all of text is ready; the
 * token that ended it is not part of the text. Calls after that change nothing. */
sl_status sl_stream_accept(sl_stream *stream, int32_t token, sl_error *err);
/* Ends the answer from outside (interrupt, end of budget): everything held back becomes ready, up to a stop
 * text, which makes it SL_FINISH_STOP. An answer that is over stays as it is. */
void sl_stream_end(sl_stream *stream, sl_finish finish);
void sl_stream_release(sl_stream *stream); /* keeps the settings, frees the text */

#endif
