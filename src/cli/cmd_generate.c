/* sluice generate: continues a prompt. stdout carries the text and one newline, stderr the statistics. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "run/generate.h"

typedef struct generate {
    sl_common common;
    const char *prompt, *file, *ids; /* at most one of them */
    bool echo, quiet;
    sl_model *model;
    sl_session *session;
    sl_sampler *sampler;
    sl_model_info info;
    sl_stop stops[64];
    sl_stream stream;
    char *text; /* the prompt's bytes, [n_text] */
    size_t n_text;
    int32_t *tokens;
    size_t n_token;
    sl_text_out out;
    size_t n_shown;  /* bytes of the stream's text given to out */
    bool wrote_id, write_failed;
} generate;

/* ---- output ------------------------------------------------------------------------------------- */

/* A model without a tokenizer: the ids, separated by spaces. */
static bool write_id(generate *g, int32_t id) {
    char text[16];
    int n = snprintf(text, sizeof text, g->wrote_id ? " %d" : "%d", (int)id);
    g->wrote_id = true;
    return sl_out(text, (size_t)n);
}

static bool write_echo(generate *g) {
    if (!g->echo) return true;
    if (!g->ids && g->info.has_tokenizer) return sl_text_out_write(&g->out, g->text, g->n_text) && sl_out_flush();
    for (size_t i = 0; i < g->n_token; i++) {
        size_t n = 0;
        const void *bytes = sl_token_bytes(g->model, g->tokens[i], &n);
        if (!(g->info.has_tokenizer ? sl_text_out_write(&g->out, bytes, n) : write_id(g, g->tokens[i]))) return false;
    }
    return sl_out_flush();
}

/* What has become final; the end token's id is not shown, like its text. */
static bool write_ready(generate *g, int32_t token) {
    if (!g->info.has_tokenizer) {
        bool end = token < 0 || g->stream.finish == SL_FINISH_STOP;
        return end || (write_id(g, token) && sl_out_flush());
    }
    size_t from = g->n_shown;
    if (g->stream.n_ready <= from) return true;
    g->n_shown = g->stream.n_ready;
    return sl_text_out_write(&g->out, g->stream.text.data + from, g->n_shown - from) && sl_out_flush();
}

static bool step(void *arg, int32_t token) {
    generate *g = arg;
    g->write_failed = !write_ready(g, token);
    return !g->write_failed && !sl_interrupted();
}

static void write_statistics(const generate *g, const sl_answer *answer) {
    const char *end = answer->stopped ? "interrupted" : g->stream.finish == SL_FINISH_STOP ? "stop" : "length";
    double prefill = answer->prefill_seconds, decode = answer->decode_seconds;
    size_t n = g->stream.n_token, n_prompt = sl_min(g->n_token, answer->n_fed);
    sl_note("prompt %zu tokens, %.1f tokens/s; generated %zu tokens, %.1f tokens/s; end: %s; state %.2f MB; on %s",
            n_prompt, prefill > 0 ? (double)n_prompt / prefill : 0.0, n,
            decode > 0 ? (double)n / decode : 0.0, end, (double)sl_state_bytes(g->session, 0) / 1e6,
            sl_session_device(g->session));
}

/* ---- the command -------------------------------------------------------------------------------- */

static bool read_prompt(generate *g) {
    if (g->file) return sl_read_input(g->file, &g->text, &g->n_text);
    const char *text = g->ids ? g->ids : g->prompt ? g->prompt : "";
    g->n_text = strlen(text);
    g->text = malloc(g->n_text + 1);
    if (g->text) memcpy(g->text, text, g->n_text + 1);
    return g->text || sl_report(SL_EXIT_FAILED, "out of memory for the prompt") == SL_EXIT_OK;
}

/* Fills tokens; SL_EXIT_OK or the code of what was reported. */
static int make_tokens(generate *g) {
    sl_error err;
    if (g->ids) {
        if (!sl_parse_tokens(g->text, g->n_text, g->info.n_vocab, &g->tokens, &g->n_token))
            return SL_EXIT_MISUSE;
        if (g->n_token) return SL_EXIT_OK;
        g->n_text = 0; /* no ids: as an empty prompt */
    }
    if (sl_prompt_tokens(g->model, g->text, g->n_text, &g->tokens, &g->n_token, &err) == SL_OK)
        return SL_EXIT_OK;
    return sl_report_error(&err);
}

static int answer(generate *g) {
    sl_error err;
    sl_sampler_params sampling = sl_common_sampler(&g->common);
    if (sl_sampler_create(&sampling, g->info.n_vocab, &g->sampler, &err) != SL_OK) return sl_report_error(&err);
    g->stream = (sl_stream){
        .model = g->model,
        .stops = g->stops,
        .n_stop = sl_common_stops(&g->common, g->stops),
        .max_token = sl_common_max_token(&g->common),
        .ignore_eos = g->common.ignore_eos,
    };
    sl_answer a = {
        .session = g->session,
        .n_batch = (size_t)g->common.n_batch,
        .max_context = g->info.max_context,
        .sampler = g->sampler,
        .stream = &g->stream,
        .step = step,
        .arg = g,
    };
    sl_interrupt_install();
    if (!write_echo(g)) return SL_EXIT_FAILED;
    sl_status status = sl_answer_run(&a, g->tokens, g->n_token, &err);
    bool begun = g->echo || status == SL_OK || g->n_shown || g->wrote_id;
    bool written = !g->write_failed && (status != SL_OK || write_ready(g, -1)) && sl_text_out_end(&g->out) &&
                   (!begun || sl_out("\n", 1)) && sl_out_flush();
    if (status != SL_OK) return sl_report_error(&err);
    if (!written) return SL_EXIT_FAILED;
    if (!g->quiet) write_statistics(g, &a);
    return a.stopped ? SL_EXIT_INTERRUPTED : SL_EXIT_OK;
}

static int generate_run(generate *g) {
    if (!read_prompt(g) || !sl_common_open(&g->common, 1, &g->model, &g->session)) return SL_EXIT_FAILED;
    sl_model_get_info(g->model, &g->info);
    int code = make_tokens(g);
    return code == SL_EXIT_OK ? answer(g) : code;
}

static int run(int argc, char **argv) {
    generate g = { 0 };
    sl_common_init(&g.common);
    sl_arg args[32] = {
        { "-p, --prompt", "TEXT", SL_ARG_TEXT, &g.prompt, 0, 0,
          "the prompt; empty: from the model's begin token", NULL },
        { "-f, --file", "FILE", SL_ARG_TEXT, &g.file, 0, 0,
          "the prompt's bytes from a file; -: standard input", NULL },
        { "--tokens", "IDS", SL_ARG_TEXT, &g.ids, 0, 0,
          "the prompt as token ids, 1,2,3; nothing is added", NULL },
        { "--echo", NULL, SL_ARG_FLAG, &g.echo, 0, 0, "write the prompt too", NULL },
        { "-q, --quiet", NULL, SL_ARG_FLAG, &g.quiet, 0, 0, "no statistics on stderr", NULL },
    };
    size_t n = sl_common_args(&g.common, true, args, 5);
    int code = sl_args_parse(argc, argv, &sl_cmd_generate, args, n, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    if (!!g.prompt + !!g.file + !!g.ids > 1)
        return sl_report(SL_EXIT_MISUSE, "more than one prompt given (expected one of -p, -f and --tokens)");
    code = generate_run(&g);
    free(g.text);
    free(g.tokens);
    sl_stream_release(&g.stream);
    sl_sampler_destroy(g.sampler);
    sl_session_destroy(g.session);
    sl_model_close(g.model);
    return code;
}

const sl_command sl_cmd_generate = {
    "generate", "sluice generate [-m FILE] [-p TEXT | -f FILE | --tokens IDS] [flags]", "continue a prompt", run
};
