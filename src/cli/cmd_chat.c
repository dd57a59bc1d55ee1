/* sluice chat: a conversation, on a terminal or one question per line on a pipe. stdout carries the answers,
 * each followed by one newline; commands report on stderr. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/conversation.h"
#include "cli/terminal.h"

typedef struct chat {
    sl_common common;
    const char *system;
    sl_model *model;
    sl_session *session;
    sl_conversation conversation;
    sl_lines *lines;
    sl_text_out out;
    size_t n_shown;     /* bytes of the running answer given to out */
    bool write_failed;
    bool failed;        /* something was reported: exit code 1 at the end */
    bool leave;
} chat;

/* ---- commands ----------------------------------------------------------------------------------- */

typedef struct chat_command {
    const char *name, *argument, *help; /* argument NULL: takes none */
    sl_status (*run)(chat *c, const char *argument, sl_error *err);
} chat_command;

static sl_status do_save(chat *c, const char *path, sl_error *err) {
    SL_TRY(sl_state_save_file(c->session, 0, path, err));
    sl_name_buf name;
    sl_note("saved %llu tokens to %s", (unsigned long long)sl_slot_position(c->session, 0),
            sl_name(path, &name));
    return SL_OK;
}

static sl_status do_load(chat *c, const char *path, sl_error *err) {
    SL_TRY(sl_conversation_load(&c->conversation, path, err));
    sl_name_buf name;
    sl_note("loaded %llu tokens in %zu turns from %s", (unsigned long long)sl_slot_position(c->session, 0),
            c->conversation.turns.n, sl_name(path, &name));
    return SL_OK;
}

static sl_status do_undo(chat *c, const char *argument, sl_error *err) {
    (void)argument;
    SL_TRY(sl_conversation_undo(&c->conversation, err));
    sl_note("took back the last question and answer; %zu turns left", c->conversation.turns.n);
    return SL_OK;
}

static sl_status do_fork(chat *c, const char *name, sl_error *err) {
    SL_TRY(sl_conversation_fork(&c->conversation, name, err));
    sl_name_buf buf;
    sl_note("kept a copy as %s", sl_name(name, &buf));
    return SL_OK;
}

static sl_status do_switch(chat *c, const char *name, sl_error *err) {
    SL_TRY(sl_conversation_switch(&c->conversation, name, err));
    sl_name_buf buf;
    sl_note("now in %s: %llu tokens in %zu turns", sl_name(c->conversation.name, &buf),
            (unsigned long long)sl_slot_position(c->session, 0), c->conversation.turns.n);
    return SL_OK;
}

static double speed(size_t n, double seconds) { return seconds > 0 ? (double)n / seconds : 0; }

static sl_status do_stats(chat *c, const char *argument, sl_error *err) {
    (void)argument;
    (void)err;
    const sl_conversation *v = &c->conversation;
    sl_name_buf name;
    sl_note("%s: %llu tokens in %zu turns, state %.2f MB", sl_name(v->name, &name),
            (unsigned long long)sl_slot_position(c->session, 0), v->turns.n,
            (double)sl_state_bytes(c->session, 0) / 1e6);
    for (size_t i = 0; i < v->n_branch; i++)
        sl_note("%s: %zu turns, state %.2f MB", sl_name(v->branches[i].name, &name), v->branches[i].turns.n,
                (double)v->branches[i].state_bytes / 1e6);
    sl_note("last answer: prompt %zu tokens, %.1f tokens/s; generated %zu tokens, %.1f tokens/s; on %s", v->n_prompt,
            speed(v->n_prompt, v->prefill_seconds), v->n_answer, speed(v->n_answer, v->decode_seconds),
            sl_session_device(c->session));
    return SL_OK;
}

static sl_status do_reset(chat *c, const char *argument, sl_error *err) {
    (void)argument;
    (void)err;
    sl_conversation_reset(&c->conversation);
    sl_note("the conversation is empty");
    return SL_OK;
}

static sl_status do_exit(chat *c, const char *argument, sl_error *err) {
    (void)argument;
    (void)err;
    c->leave = true;
    return SL_OK;
}

static sl_status do_help(chat *c, const char *argument, sl_error *err);

static const chat_command commands[] = {
    { "/save", "FILE", "write the conversation's state to a file", do_save },
    { "/load", "FILE", "go on from a saved state", do_load },
    { "/undo", NULL, "take back the last question and its answer", do_undo },
    { "/fork", "NAME", "keep a copy of the conversation as it stands, and stay in this one", do_fork },
    { "/switch", "NAME",
      "go to the conversation of that name (this one stays; the first is main)", do_switch },
    { "/stats", NULL, "tokens, speed and size of the state", do_stats },
    { "/reset", NULL, "begin anew", do_reset },
    { "/help", NULL, "this list", do_help },
    { "/exit", NULL, "leave, as Ctrl-D does", do_exit },
    { "/quit", NULL, "leave", do_exit },
};
enum { N_COMMAND = sizeof commands / sizeof *commands };

static sl_status do_help(chat *c, const char *argument, sl_error *err) {
    (void)c;
    (void)argument;
    (void)err;
    for (size_t i = 0; i < N_COMMAND; i++) {
        const char *value = commands[i].argument ? commands[i].argument : "";
        sl_note("  %s %-*s %s", commands[i].name, 13 - (int)strlen(commands[i].name), value, commands[i].help);
    }
    sl_note("A line that does not begin with / is a question. Ctrl-C stops an answer.");
    return SL_OK;
}

/* line: "/name argument", blanks around the argument do not count; changed in place. */
static sl_status run_command(chat *c, char *line, sl_error *err) {
    size_t n = strcspn(line, " \t");
    char *argument = line + n + strspn(line + n, " \t");
    size_t len = strlen(argument);
    while (len && isspace((unsigned char)argument[len - 1])) argument[--len] = 0;
    sl_name_buf name;
    for (size_t i = 0; i < N_COMMAND; i++) {
        const chat_command *command = &commands[i];
        if (strlen(command->name) != n || memcmp(command->name, line, n) != 0) continue;
        if (command->argument && !len)
            return sl_fail(err, SL_E_ARG, "%s needs a value (expected %s %s)", command->name, command->name,
                           command->argument);
        if (!command->argument && len)
            return sl_fail(err, SL_E_ARG, "%s: '%s' is not expected here (expected no value)", command->name,
                           sl_name(argument, &name));
        return command->run(c, argument, err);
    }
    return sl_fail(err, SL_E_ARG, "unknown command '%s' (/help lists the commands)",
                   sl_name_escape(line, n, &name));
}

/* ---- questions ---------------------------------------------------------------------------------- */

static bool write_answer(void *arg, const sl_stream *stream) {
    chat *c = arg;
    size_t from = c->n_shown;
    if (stream->n_ready <= from) return true;
    c->n_shown = stream->n_ready;
    c->write_failed =
        !sl_text_out_write(&c->out, stream->text.data + from, c->n_shown - from) || !sl_out_flush();
    return !c->write_failed;
}

static sl_status ask(chat *c, const char *question, size_t n_bytes, sl_error *err) {
    bool withdrawn;
    c->n_shown = 0;
    sl_status status =
        sl_conversation_ask(&c->conversation, question, n_bytes, write_answer, c, &withdrawn, err);
    bool begun = status == SL_OK || c->n_shown;
    if (begun && !c->write_failed)
        c->write_failed = !sl_text_out_end(&c->out) || !sl_out("\n", 1) || !sl_out_flush();
    if (sl_terminated() || c->write_failed) c->leave = true;
    else sl_interrupt_clear();
    return status;
}

/* One line of input; an empty one is passed over. */
static void take_line(chat *c, const char *line, size_t n_bytes) {
    sl_error err;
    sl_status status = SL_OK;
    if (n_bytes && line[0] == '/') {
        sl_buf copy = { 0 };
        if (sl_buf_append(&copy, line, n_bytes) && sl_buf_append(&copy, "", 1))
            status = run_command(c, (char *)copy.data, &err);
        else
            status = sl_fail(&err, SL_E_MEMORY, "out of memory for a command of %zu bytes", n_bytes);
        sl_buf_release(&copy);
    } else if (n_bytes) {
        status = ask(c, line, n_bytes, &err);
    }
    if (status == SL_OK) return;
    sl_report_error(&err);
    c->failed = true;
}

/* ---- the command -------------------------------------------------------------------------------- */

static void greet(const chat *c) {
    const sl_model_info *info = &c->conversation.info;
    sl_note("sluice %s: %s, %.1f M parameters, %s", sl_version(), info->architecture,
            (double)info->n_param / 1e6, info->type);
    sl_note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.");
}

/* Ends the line that the prompt stands on, where the editor shows it. It is no part of the answers: stdout gets it
 * only as the terminal. */
static bool leave_line(void) {
    if (sl_stdout_is_terminal()) return sl_out("\n", 1);
    sl_note("%s", "");
    return true;
}

/* The exit code. A signal at the prompt clears the line on a terminal and ends the program on a pipe. */
static int talk(chat *c) {
    bool interactive = sl_lines_interactive(c->lines);
    if (interactive) greet(c);
    while (!c->leave) {
        const char *line = NULL;
        size_t n = 0;
        sl_line_result result = sl_lines_read(c->lines, &line, &n);
        if (result == SL_LINE_READ) { /* a signal may have come while a command was at work */
            if (sl_terminated() || (sl_interrupted() && !interactive)) break;
            if (sl_interrupted()) sl_interrupt_clear();
            take_line(c, line, n);
            continue;
        }
        if (interactive && !leave_line()) c->write_failed = true;
        if (result == SL_LINE_FAILED) c->failed = true;
        if (result != SL_LINE_INTERRUPTED || !interactive || sl_terminated()) break;
        sl_interrupt_clear();
    }
    if (!sl_out_flush() || c->failed || c->write_failed) return SL_EXIT_FAILED;
    return sl_interrupted() ? SL_EXIT_INTERRUPTED : SL_EXIT_OK;
}

static int chat_run(chat *c) {
    static const char *words[N_COMMAND + 1];
    for (size_t i = 0; i < N_COMMAND; i++) words[i] = commands[i].name;
    if (!sl_common_open(&c->common, 1, &c->model, &c->session)) return SL_EXIT_FAILED;
    sl_error err;
    if (sl_conversation_init(&c->conversation, &c->common, c->model, c->session, c->system, &err) != SL_OK)
        return sl_report_error(&err);
    c->lines = sl_lines_open(words);
    if (!c->lines) return sl_report(SL_EXIT_FAILED, "out of memory for the input");
    sl_interrupt_install();
    return talk(c);
}

static int run(int argc, char **argv) {
    chat c = { 0 };
    sl_common_init(&c.common);
    sl_arg args[32] = {
        { "--system", "TEXT", SL_ARG_TEXT, &c.system, 0, 0,
          "what the model is told before the first question", NULL },
    };
    size_t n = sl_common_args(&c.common, true, args, 1);
    int code = sl_args_parse(argc, argv, &sl_cmd_chat, args, n, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    code = chat_run(&c);
    sl_lines_close(c.lines);
    sl_conversation_release(&c.conversation);
    sl_session_destroy(c.session);
    sl_model_close(c.model);
    return code;
}

const sl_command sl_cmd_chat = {
    "chat", "sluice chat [-m FILE] [flags]", "a conversation with the model", run
};
