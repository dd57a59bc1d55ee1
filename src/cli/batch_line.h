/* One line of a batch job's input: JSON to a checked request. Everything outside the documented fields,
 * types and ranges is an error of the line, named in words. */
#ifndef SL_CLI_BATCH_LINE_H
#define SL_CLI_BATCH_LINE_H

#include "cli/batch_json.h"
#include "run/stream.h"

struct json_t;

enum { SL_LINE_BYTES = 16 << 20, SL_LINE_DEPTH = 128 /* the most brackets inside one another */ };

/* What a line that does not say otherwise gets: the flags of the command. */
typedef struct sl_line_defaults {
    sl_sampler_params sampler;
    size_t max_token;
    const sl_stop *stops; /* [n_stop] */
    size_t n_stop;
} sl_line_defaults;

typedef struct sl_line {
    uint64_t index;        /* line of the input, from 0 */
    char number[24];       /* the default id: the line number, from 1 */
    const char *id;        /* [n_id] bytes; points to number or into root */
    size_t n_id;
    bool has_id;           /* id is what the line says or means; false: the line could not be read that far */
    sl_buf metadata;       /* compact JSON; empty: none */
    const char *prompt;    /* [n_prompt] bytes; NULL: messages */
    size_t n_prompt;
    sl_message *messages;  /* [n_message] */
    size_t n_message;
    sl_stop *stops;        /* [n_stop]; NULL: the defaults' */
    size_t n_stop;
    sl_sampler_params sampler;
    size_t max_token;
    struct json_t *root;   /* owns the texts above */
} sl_line;

/* Parses text [n] of line `index`. On failure id and metadata are set as far as they could be read, and the
 * error does not name the line. The line must be released in either case; it keeps nothing of text. */
sl_status sl_line_parse(sl_line *line, uint64_t index, const char *text, size_t n,
                        const sl_line_defaults *defaults, sl_error *err);
/* Only index and default id, for a line that is not there to be parsed. */
void sl_line_begin(sl_line *line, uint64_t index);
void sl_line_release(sl_line *line);

/* Appends the line of the result, newline included. text [n_text] may hold any bytes. error NULL: a good
 * line. */
bool sl_result_format(sl_buf *out, const sl_line *line, const void *text, size_t n_text,
                      const char *finish_reason, uint64_t n_prompt_token, uint64_t n_completion_token,
                      const char *error);

#endif
