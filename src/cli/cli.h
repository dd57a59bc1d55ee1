/* The command line: commands, their flags, and what they share. Only this room prints, exits or reads argv.
 *
 * A command declares its flags in a table; sl_args_parse fills the variables and reports misuse. Every
 * error is one line "sluice: ..." on stderr. Exit codes: 0 good, 1 failed, 2 misuse, 130 interrupted. */
#ifndef SL_CLI_CLI_H
#define SL_CLI_CLI_H

#include <stdio.h>

#include "base/mem.h"
#include "run/stream.h"

enum { SL_EXIT_OK = 0, SL_EXIT_FAILED = 1, SL_EXIT_MISUSE = 2, SL_EXIT_INTERRUPTED = 130 };

typedef enum sl_arg_type {
    SL_ARG_FLAG,    /* bool *: no value */
    SL_ARG_TEXT,    /* const char **: any text */
    SL_ARG_INT,     /* int64_t *, within min..max */
    SL_ARG_FLOAT,   /* double *: finite, within min..max */
    SL_ARG_SEED,    /* uint64_t *: 0..2^64-1, or -1 for a random one */
    SL_ARG_TYPE,    /* sl_type *: f32 f16 bf16 q8 q4 */
    SL_ARG_CHOICE,  /* const char **: one of those that value names, "a|b|c" */
    SL_ARG_DEVICE,  /* const char **: cpu, cuda, cuda:N or auto */
    SL_ARG_LIST,    /* sl_int_list *: comma list of integers within min..max */
    SL_ARG_TEXTS    /* sl_text_list *: the flag may be given again */
} sl_arg_type;

typedef struct sl_int_list { int64_t v[64]; size_t n; } sl_int_list;
typedef struct sl_text_list { const char *v[64]; size_t n; } sl_text_list;

typedef struct sl_arg {
    const char *flags;  /* "-n, --n-predict" : one or two spellings */
    const char *value;  /* "N": shown in help; NULL for flags */
    sl_arg_type type;
    void *out;
    double min, max;    /* for INT, FLOAT, LIST */
    const char *help;   /* one line */
    bool *given;        /* set when the flag was there; may be NULL */
} sl_arg;

typedef struct sl_command {
    const char *name;
    const char *usage;   /* "sluice convert FOLDER OUT.slu [flags]" */
    const char *summary; /* one line */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit code */
} sl_command;

/* Parses argv[1..]; positional arguments go to positional[] (exactly n_min to n_max of them). "--" ends the
 * flags; "--flag=value" is "--flag value". Returns -1 to go on, else the exit code to leave with: 0 after
 * --help (printed to stdout), 2 after a misuse (reported). */
int sl_args_parse(int argc, char **argv, const sl_command *command, const sl_arg *args, size_t n_arg,
                  const char **positional, size_t n_min, size_t n_max, size_t *n_positional);

/* One line "sluice: ..." on stderr, cleaned and cut like every error; returns the exit code given. */
int sl_report(int code, const char *fmt, ...) SL_PRINTF(2, 3);
int sl_report_error(const sl_error *err); /* returns SL_EXIT_FAILED */

/* stdout, checked: false after reporting a failed write (a closed pipe ends the program quietly with code 0
 * semantics of the shell: SIGPIPE's default action). */
bool sl_out(const void *data, size_t n_bytes);
bool sl_out_flush(void);
/* Text in pieces of any bytes to stdout, as it is, but to a terminal in whole characters: there U+FFFD stands for a
 * broken sequence, and the beginning of a character is held until the rest comes or the text ends. */
typedef struct sl_text_out { uint8_t held[4]; size_t n_held; } sl_text_out;
bool sl_text_out_write(sl_text_out *out, const void *text, size_t n_bytes);
bool sl_text_out_end(sl_text_out *out);
/* A formatted line of a report on stderr: statistics, what a chat command did. Never used on failure. */
void sl_note(const char *fmt, ...) SL_PRINTF(1, 2);
bool sl_stdin_is_terminal(void);
bool sl_stdout_is_terminal(void);
bool sl_stderr_is_terminal(void);
/* All bytes of a file, of standard input for "-" or NULL; reports errors. *data is malloc'd and
 * NUL-terminated besides. */
bool sl_read_input(const char *path, char **data, size_t *n_bytes);

/* A progress line on stderr, drawn only when stderr is a terminal, erased by sl_progress_end. */
typedef struct sl_progress {
    const char *what, *unit;
    double start, last;
    double first; /* the share that was done before the start, 0 unless set after sl_progress_begin */
    bool shown;
} sl_progress;
void sl_progress_begin(sl_progress *progress, const char *what, const char *unit);
void sl_progress_update(sl_progress *progress, uint64_t done, uint64_t all);
/* The two halves of an update, for what has no one number: whether the line is to be drawn again, and drawing it with
 * the share that is done, 0 to 1 (below 0: not known; what alone is shown) and a text about the speed. */
bool sl_progress_due(const sl_progress *progress);
void sl_progress_draw(sl_progress *progress, double share, const char *speed);
void sl_progress_end(sl_progress *progress);

/* Ctrl-C: sl_interrupt_install makes SIGINT (and SIGTERM) set a flag; a second signal kills. System calls
 * are restarted, except waiting (poll). */
void sl_interrupt_install(void);
bool sl_interrupted(void);
bool sl_terminated(void); /* interrupted by SIGTERM: not only the answer but the program is to end */
void sl_interrupt_clear(void);

/* Flags that several commands share, as values with the same defaults everywhere. */
typedef struct sl_common {
    const char *model;      /* -m; NULL: the shipped Bridge */
    int64_t n_thread, n_batch;
    const char *device;     /* "auto" */
    bool batch_invariant;   /* on a GPU */
    const char *activations; /* on a GPU: "f32", "f16"; NULL: as the weights have it */
    double route_threshold; /* NAN: as stored */
    double temperature, top_p, min_p, repeat_penalty;
    int64_t top_k, repeat_last_n, n_predict;
    uint64_t seed;
    sl_text_list stop;
    bool ignore_eos;
} sl_common;
void sl_common_init(sl_common *common);
/* Appends the shared flags to args (space for 22): model and session flags; sampling and generation flags too
 * if sampling. Returns the new count. */
size_t sl_common_args(sl_common *common, bool sampling, sl_arg *args, size_t n);
sl_sampler_params sl_common_sampler(const sl_common *common);
/* The --stop texts for an sl_stream; stops has space for 64. Returns how many. */
size_t sl_common_stops(const sl_common *common, sl_stop *stops);
/* -n as sl_stream's max_token. */
size_t sl_common_max_token(const sl_common *common);
/* Opens the model (-m, or the shipped one: SLUICE_MODEL, then models/demo/bridge*.slu beside or above the
 * program, then the installed share folder) and creates a session of n_slot; what it has to do without
 * (sl_session_note) is said once. Reports errors; false: failed. */
bool sl_common_open_model(const sl_common *common, sl_model **model);
/* The model that was asked for: -m, else SLUICE_MODEL; NULL: the shipped one. Borrowed. */
const char *sl_common_model_name(const sl_common *common);
/* Whether a model was named, or the default one is there. */
bool sl_common_has_model(const sl_common *common);
/* The value of --activations; NULL: automatic. */
sl_activations sl_activations_named(const char *name);
bool sl_common_session(const sl_common *common, size_t n_slot, const sl_model *model, sl_session **session);
bool sl_common_open(const sl_common *common, size_t n_slot, sl_model **model, sl_session **session);
/* Comma or space separated token ids, as in "1,2,3"; reports errors. *tokens is malloc'd. */
bool sl_parse_tokens(const char *text, size_t n_bytes, size_t n_vocab, int32_t **tokens, size_t *n);
/* Text of any bytes as tokens, special tokens written out in it as their ids, after n_front places that are
 * left free; *n counts those of the text. *tokens is malloc'd, NULL on failure. */
sl_status sl_text_tokens(const sl_model *model, const void *text, size_t n_bytes, size_t n_front,
                         int32_t **tokens, size_t *n, sl_error *err);
/* What generate and batch feed for a prompt of any bytes: the begin token if the model has one (and the text
 * does not begin with it), then the text with special tokens written out in it as their ids. Never empty: an
 * empty prompt is the begin token, else the end token, which separates documents. *tokens is malloc'd. */
sl_status sl_prompt_tokens(const sl_model *model, const void *text, size_t n_bytes, int32_t **tokens, size_t *n,
                           sl_error *err);

/* The commands, each in cmd_<name>.c; main.c lists them. */
extern const sl_command sl_cmd_generate, sl_cmd_chat, sl_cmd_batch, sl_cmd_bench, sl_cmd_tokenize,
    sl_cmd_logits, sl_cmd_perplexity, sl_cmd_convert, sl_cmd_quantize, sl_cmd_info, sl_cmd_verify;

#endif
