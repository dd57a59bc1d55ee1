/* sluice logits: the logits at every position of given tokens, as a NumPy array or as a short summary. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "os/os.h"

typedef struct logits {
    sl_common common;
    const char *ids, *prompt, *file, *out_path; /* exactly one of the first three */
    int64_t chunk;                               /* 0: as -b */
    sl_model *model;
    sl_session *session;
    sl_model_info info;
    int32_t *tokens;
    size_t n_token;
} logits;

/* NumPy's format 1.0: magic, version, header length, then a Python literal padded so that data is aligned. */
static sl_status write_npy_header(sl_os_out *out, size_t n_row, size_t n_column, sl_error *err) {
    char head[128], text[128];
    int n = snprintf(text, sizeof text, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }",
                     n_row, n_column);
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = (char)(sizeof head - 10);
    head[9] = 0;
    memcpy(head + 10, text, sl_min((size_t)n, sizeof head - 11));
    head[sizeof head - 1] = '\n';
    return sl_os_out_write(out, head, sizeof head, err);
}

/* Evaluates piece by piece; each row of logits goes to out, or only the last one is kept for the summary. */
static sl_status evaluate(logits *l, sl_os_out *out, sl_error *err) {
    sl_progress progress;
    sl_progress_begin(&progress, "logits", "tokens");
    sl_status status = SL_OK;
    size_t chunk = (size_t)l->chunk, row_bytes = l->info.n_vocab * sizeof(float);
    for (size_t i = 0; i < l->n_token && status == SL_OK;) {
        size_t n = sl_min(chunk, l->n_token - i);
        sl_run run = { 0, l->tokens + i, n, out ? SL_LOGITS_ALL : SL_LOGITS_LAST };
        status = sl_session_eval(l->session, &run, 1, err);
        for (size_t t = 0; t < n && out && status == SL_OK; t++)
            status = sl_os_out_write(out, sl_run_logits(l->session, 0, t), row_bytes, err);
        i += n;
        sl_progress_update(&progress, i, l->n_token);
        if (status == SL_OK && sl_interrupted()) status = sl_fail(err, SL_E_IO, "interrupted");
    }
    sl_progress_end(&progress);
    return status;
}

static int report_failure(const sl_error *err) {
    return sl_interrupted() ? SL_EXIT_INTERRUPTED : sl_report_error(err);
}

static int write_array(logits *l) {
    sl_error err;
    sl_os_out out;
    if (sl_os_out_open(&out, l->out_path, &err) != SL_OK) return sl_report_error(&err);
    sl_status status = write_npy_header(&out, l->n_token, l->info.n_vocab, &err);
    if (status == SL_OK) status = evaluate(l, &out, &err);
    if (status == SL_OK) status = sl_os_out_commit(&out, &err);
    if (status == SL_OK) return SL_EXIT_OK;
    sl_os_out_abort(&out);
    return report_failure(&err);
}

/* The ten likeliest tokens after the last one: id, logit, text. */
static int write_summary(logits *l) {
    enum { TOP = 10 };
    sl_error err;
    if (evaluate(l, NULL, &err) != SL_OK) return report_failure(&err);
    const float *row = sl_slot_logits(l->session, 0);
    size_t top[TOP], n_top = 0;
    for (size_t i = 0; i < l->info.n_vocab; i++) {
        if (n_top == TOP && row[i] <= row[top[TOP - 1]]) continue;
        size_t at = n_top < TOP ? n_top++ : TOP - 1;
        for (; at > 0 && row[i] > row[top[at - 1]]; at--) top[at] = top[at - 1];
        top[at] = i;
    }
    for (size_t i = 0; i < n_top; i++) {
        size_t n = 0;
        const void *bytes = sl_token_bytes(l->model, (int32_t)top[i], &n);
        sl_name_buf name;
        char line[192];
        int len = snprintf(line, sizeof line, "%7zu %12.6f  %s\n", top[i], (double)row[top[i]],
                           bytes ? sl_name_escape(bytes, n, &name) : "");
        if (!sl_out(line, (size_t)len)) return SL_EXIT_FAILED;
    }
    return sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

/* Adds no token of its own: what is given is what the model sees. */
static int make_tokens(logits *l) {
    if (l->ids) {
        bool good = sl_parse_tokens(l->ids, strlen(l->ids), l->info.n_vocab, &l->tokens, &l->n_token);
        return good ? SL_EXIT_OK : SL_EXIT_MISUSE;
    }
    sl_error err;
    char *data = NULL;
    const char *text = l->prompt;
    size_t n = text ? strlen(text) : 0;
    if (l->file && !sl_read_input(l->file, &data, &n)) return SL_EXIT_FAILED;
    if (data) text = data;
    sl_status status = sl_text_tokens(l->model, text, n, 0, &l->tokens, &l->n_token, &err);
    free(data);
    return status == SL_OK ? SL_EXIT_OK : sl_report_error(&err);
}

static int logits_run(logits *l) {
    if (!sl_common_open_model(&l->common, &l->model)) return SL_EXIT_FAILED;
    sl_model_get_info(l->model, &l->info);
    int code = make_tokens(l);
    if (code != SL_EXIT_OK) return code;
    if (!l->n_token) return sl_report(SL_EXIT_FAILED, "no tokens given (expected at least one)");
    if (l->info.max_context && l->n_token > l->info.max_context)
        return sl_report(SL_EXIT_FAILED, "%zu tokens given (expected at most the model's context of %zu)",
                         l->n_token, l->info.max_context);
    if (!l->chunk) l->chunk = l->common.n_batch;
    l->chunk = (int64_t)sl_min((size_t)l->chunk, l->n_token);
    l->common.n_batch = l->chunk; /* a session gives all logits of at most a batch */
    if (!sl_common_session(&l->common, 1, l->model, &l->session)) return SL_EXIT_FAILED;
    sl_interrupt_install();
    return l->out_path ? write_array(l) : write_summary(l);
}

static int run(int argc, char **argv) {
    logits l = { 0 };
    sl_common_init(&l.common);
    sl_arg args[32] = {
        { "--tokens", "IDS", SL_ARG_TEXT, &l.ids, 0, 0, "token ids, as in 1,2,3", NULL },
        { "-p, --prompt", "TEXT", SL_ARG_TEXT, &l.prompt, 0, 0, "a text; no token is added to its own", NULL },
        { "-f, --file", "FILE", SL_ARG_TEXT, &l.file, 0, 0,
          "the text's bytes from a file; -: standard input", NULL },
        { "--chunk", "N", SL_ARG_INT, &l.chunk, 1, 65536, "evaluate N tokens at a time (as -b)", NULL },
        { "-o, --output", "FILE", SL_ARG_TEXT, &l.out_path, 0, 0,
          "write float32 [tokens, vocabulary] as .npy (the ten likeliest next tokens to stdout)", NULL },
    };
    size_t n = sl_common_args(&l.common, false, args, 5);
    int code = sl_args_parse(argc, argv, &sl_cmd_logits, args, n, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    int n_input = !!l.ids + !!l.prompt + !!l.file;
    if (n_input != 1)
        return sl_report(SL_EXIT_MISUSE, "%s input given (expected one of --tokens, -p and -f)",
                         n_input ? "more than one" : "no");
    code = logits_run(&l);
    free(l.tokens);
    sl_session_destroy(l.session);
    sl_model_close(l.model);
    return code;
}

const sl_command sl_cmd_logits = {
    "logits", "sluice logits [-m FILE] (--tokens IDS | -p TEXT | -f FILE) [--chunk N] [-o FILE.npy] [flags]",
    "logits at every position, as .npy", run
};
