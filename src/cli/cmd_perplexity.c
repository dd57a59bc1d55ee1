/* sluice perplexity: how well the model predicts a text, exp of the mean negative log-likelihood per token,
 * with its standard error. Every token is scored once.
 *
 * The text is cut into windows that each start from an empty state: begin token (if the model has one, else
 * the token before the window) and as many tokens as the window holds. Models without a context limit take
 * the text as one window, unless --ctx says otherwise. */
#include <math.h>
#include <stdlib.h>

#include "cli/cli.h"

typedef struct perplexity {
    sl_common common;
    const char *file;
    int64_t ctx; /* 0: the model's limit */
    sl_model *model;
    sl_session *session;
    sl_model_info info;
    int32_t *tokens; /* [n_token] of the text, after one for the begin token */
    size_t n_token;
    double sum, sum_squares; /* of -log p over the scored tokens */
    size_t n_scored;
} perplexity;

/* -log softmax(row)[token], in double. */
static double surprise(const float *row, size_t n, int32_t token) {
    float max = row[0];
    for (size_t i = 1; i < n; i++) max = row[i] > max ? row[i] : max;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)expf(row[i] - max);
    return log(sum) + (double)(max - row[token]);
}

/* Feeds tokens[0 .. n) from an empty state and scores tokens[1 .. n]. SL_EXIT_OK, or the code to leave with. */
static int score_window(perplexity *p, const int32_t *tokens, size_t n, sl_progress *progress) {
    sl_error err;
    sl_slot_reset(p->session, 0);
    for (size_t i = 0; i < n;) {
        size_t piece = sl_min((size_t)p->common.n_batch, n - i);
        sl_run run = { 0, tokens + i, piece, SL_LOGITS_ALL };
        if (sl_session_eval(p->session, &run, 1, &err) != SL_OK) {
            sl_progress_end(progress);
            return sl_report_error(&err);
        }
        for (size_t t = 0; t < piece; t++) {
            double x = surprise(sl_run_logits(p->session, 0, t), p->info.n_vocab, tokens[i + t + 1]);
            p->sum += x;
            p->sum_squares += x * x;
            p->n_scored++;
        }
        i += piece;
        sl_progress_update(progress, p->n_scored, p->n_token);
        if (sl_interrupted()) return SL_EXIT_INTERRUPTED;
    }
    return SL_EXIT_OK;
}

/* tokens[0] is the begin token or, without one, the first token of the text, which nothing predicts. The place
 * before a window's first token holds what the window starts from; what stood there has been scored already. */
static int score_text(perplexity *p, int32_t *tokens, size_t n) {
    size_t window = p->ctx ? (size_t)p->ctx : p->info.max_context ? p->info.max_context : n;
    sl_progress progress;
    sl_progress_begin(&progress, "perplexity", "tokens");
    int code = SL_EXIT_OK;
    for (size_t i = 0; i + 1 < n && code == SL_EXIT_OK; i += sl_min(window, n - 1 - i)) {
        if (p->info.bos >= 0) tokens[i] = p->info.bos;
        code = score_window(p, tokens + i, sl_min(window, n - 1 - i), &progress);
    }
    sl_progress_end(&progress);
    return code;
}

static int tokenize(perplexity *p) {
    sl_error err;
    char *text;
    size_t n;
    if (!sl_read_input(p->file, &text, &n)) return SL_EXIT_FAILED;
    sl_status status = sl_text_tokens(p->model, text, n, 1, &p->tokens, &p->n_token, &err);
    free(text);
    return status == SL_OK ? SL_EXIT_OK : sl_report_error(&err);
}

/* Standard error of the mean of -log p, carried through exp. */
static int write_result(const perplexity *p) {
    double n = (double)p->n_scored, mean = p->sum / n;
    double variance = n > 1 ? fmax(0, p->sum_squares / n - mean * mean) / (n - 1) : 0;
    char line[128];
    int len = snprintf(line, sizeof line, "perplexity: %.4f +/- %.5f (%zu tokens)\n", exp(mean),
                       exp(mean) * sqrt(variance), p->n_scored);
    return sl_out(line, (size_t)len) && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int perplexity_run(perplexity *p) {
    if (!sl_common_open_model(&p->common, &p->model)) return SL_EXIT_FAILED;
    sl_model_get_info(p->model, &p->info);
    size_t limit = p->info.max_context;
    if (limit && (uint64_t)p->ctx > limit)
        return sl_report(SL_EXIT_FAILED, "--ctx is %lld (expected at most the model's context of %zu)",
                         (long long)p->ctx, limit);
    int code = tokenize(p);
    if (code != SL_EXIT_OK) return code;
    size_t skip = p->info.bos < 0; /* no begin token: the text itself begins */
    if (p->n_token < 1 + skip)
        return sl_report(SL_EXIT_FAILED, "the text has %zu tokens (expected at least %zu)", p->n_token,
                         1 + skip);
    size_t rows = sl_max((256u << 20) / sizeof(float) / p->info.n_vocab, 1); /* of logits, at most 256 MiB */
    p->common.n_batch = (int64_t)sl_min((size_t)p->common.n_batch, rows);
    if (!sl_common_session(&p->common, 1, p->model, &p->session)) return SL_EXIT_FAILED;
    sl_interrupt_install();
    code = score_text(p, p->tokens + skip, p->n_token + 1 - skip);
    return code == SL_EXIT_OK ? write_result(p) : code;
}

static int run(int argc, char **argv) {
    perplexity p = { 0 };
    sl_common_init(&p.common);
    sl_arg args[32] = {
        { "-f, --file", "FILE", SL_ARG_TEXT, &p.file, 0, 0, "the text; -: standard input", NULL },
        { "-c, --ctx", "N", SL_ARG_INT, &p.ctx, 1, INT32_MAX,
          "tokens per window (the model's limit; without one the whole text)", NULL },
    };
    size_t n = sl_common_args(&p.common, false, args, 2);
    int code = sl_args_parse(argc, argv, &sl_cmd_perplexity, args, n, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    if (!p.file) return sl_report(SL_EXIT_MISUSE, "no text given (expected -f FILE)");
    code = perplexity_run(&p);
    free(p.tokens);
    sl_session_destroy(p.session);
    sl_model_close(p.model);
    return code;
}

const sl_command sl_cmd_perplexity = {
    "perplexity", "sluice perplexity [-m FILE] -f FILE [--ctx N] [flags]", "how well the model predicts a text",
    run
};
