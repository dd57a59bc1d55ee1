/* sluice tokenize: text to token ids and back. Nothing is added to the text and nothing is left out. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "run/model.h"

typedef struct tokenize {
    sl_common common;
    const char *prompt, *file;
    bool decode;
    sl_model *model;
    char *data; /* read from a file or standard input */
    const char *text;
    size_t n_text;
    int32_t *tokens;
    size_t n_token;
    sl_buf out;
} tokenize;

static bool append(tokenize *t, const void *data, size_t n) {
    if (sl_buf_append(&t->out, data, n)) return true;
    sl_report(SL_EXIT_FAILED, "out of memory for %zu bytes of output", t->out.n + n);
    return false;
}

static bool encode(tokenize *t) {
    sl_error err;
    if (sl_text_tokens(t->model, t->text, t->n_text, 0, &t->tokens, &t->n_token, &err) != SL_OK) {
        sl_report_error(&err);
        return false;
    }
    for (size_t i = 0; i < t->n_token; i++) {
        char id[16];
        int n = snprintf(id, sizeof id, i ? " %" PRId32 : "%" PRId32, t->tokens[i]);
        if (!append(t, id, (size_t)n)) return false;
    }
    return append(t, "\n", 1);
}

/* Also undoes the space that tokenizers of the Llama kind put before a text and after each added token. */
static bool decode(tokenize *t) {
    const sl_tokenizer *tokenizer = t->model->tokenizer;
    if (!tokenizer) {
        sl_report(SL_EXIT_FAILED, "the model has no tokenizer to decode with");
        return false;
    }
    if (!sl_parse_tokens(t->text, t->n_text, t->model->n_vocab, &t->tokens, &t->n_token)) return false;
    bool fresh = sl_tokenizer_adds_space(tokenizer);
    for (size_t i = 0; i < t->n_token; i++) {
        size_t n;
        const uint8_t *bytes = sl_tokenizer_bytes(tokenizer, t->tokens[i], &n);
        if (!bytes) {
            sl_report(SL_EXIT_FAILED, "token id %" PRId32 " has no piece in the tokenizer", t->tokens[i]);
            return false;
        }
        bool added = sl_tokenizer_is_added(tokenizer, t->tokens[i]);
        bool drop = fresh && !added && n && *bytes == ' ';
        if (!append(t, bytes + drop, n - drop)) return false;
        fresh = added && sl_tokenizer_adds_space(tokenizer);
    }
    return true;
}

static int tokenize_run(tokenize *t) {
    if (!sl_common_open_model(&t->common, &t->model)) return SL_EXIT_FAILED;
    t->text = t->prompt;
    t->n_text = t->prompt ? strlen(t->prompt) : 0;
    if (!t->prompt && !sl_read_input(t->file, &t->data, &t->n_text)) return SL_EXIT_FAILED;
    if (!t->prompt) t->text = t->data;
    bool good = (t->decode ? decode(t) : encode(t)) && sl_out(t->out.data, t->out.n) && sl_out_flush();
    return good ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int run(int argc, char **argv) {
    tokenize t = { 0 };
    sl_common_init(&t.common);
    const sl_arg args[] = {
        { "-m, --model", "FILE", SL_ARG_TEXT, &t.common.model, 0, 0, "model file (the shipped Bridge)", NULL },
        { "-p, --prompt", "TEXT", SL_ARG_TEXT, &t.prompt, 0, 0, "the text, or the ids to decode", NULL },
        { "-f, --file", "FILE", SL_ARG_TEXT, &t.file, 0, 0, "its bytes from a file; -: standard input", NULL },
        { "--decode", NULL, SL_ARG_FLAG, &t.decode, 0, 0, "from ids to text", NULL },
    };
    int code = sl_args_parse(argc, argv, &sl_cmd_tokenize, args, sizeof args / sizeof *args, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    if (t.prompt && t.file)
        return sl_report(SL_EXIT_MISUSE,
                         "more than one input given (expected one of -p and -f, or none: standard input)");
    code = tokenize_run(&t);
    free(t.data);
    free(t.tokens);
    sl_buf_release(&t.out);
    sl_model_close(t.model);
    return code;
}

const sl_command sl_cmd_tokenize = {
    "tokenize", "sluice tokenize [-m FILE] [-p TEXT | -f FILE] [--decode]", "text to token ids, and back", run
};
