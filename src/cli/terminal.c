/* Lines from a terminal through libedit, from anything else through read(2), so that a line is answered as
 * soon as it is there. Both wait in poll, which a signal ends. */
#define _POSIX_C_SOURCE 200809L

#include "cli/terminal.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "cli/cli.h"

enum { CTRL_D = 4 };

struct sl_lines {
    const char *const *words;
    /* terminal */
    EditLine *edit; /* NULL: a pipe */
    History *history;
    char *history_path;
    mbstate_t decoder;
    /* pipe */
    sl_buf buf;      /* bytes read and not yet given out start at n_used */
    size_t n_used;
    bool end;
};

/* False when a signal came before there was anything to read. The timeout catches one that arrives between
 * the check and the waiting. */
static bool wait_for_input(void) {
    struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
    for (;;) {
        if (sl_interrupted()) return false;
        int n = poll(&input, 1, 500);
        if (n > 0 || (n < 0 && errno != EINTR)) return true;
    }
}

/* ---- terminal ----------------------------------------------------------------------------------- */

static char *prompt(EditLine *edit) {
    (void)edit;
    static char text[] = "> ";
    return text;
}

/* libedit's source of characters: 1, 0 at the end of input, -1 on a signal. A byte that is no UTF-8 becomes
 * the replacement character, since a line is edited as characters. */
static int read_character(EditLine *edit, wchar_t *out) {
    sl_lines *lines = NULL;
    el_get(edit, EL_CLIENTDATA, &lines);
    for (;;) {
        char byte;
        if (!wait_for_input()) return -1;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n <= 0) return (int)n;
        /* A Ctrl-D typed during an answer, when the terminal was not being edited, arrives as NUL. */
        if (byte == 0) byte = CTRL_D;
        size_t used = mbrtowc(out, &byte, 1, &lines->decoder);
        if (used == (size_t)-2) continue; /* more bytes of this character to come */
        if (used == (size_t)-1) {
            memset(&lines->decoder, 0, sizeof lines->decoder);
            *out = 0xFFFD;
        }
        return 1;
    }
}

/* Tab: completes a command that is the only one to begin so. */
static unsigned char complete(EditLine *edit, int key) {
    (void)key;
    sl_lines *lines = NULL;
    el_get(edit, EL_CLIENTDATA, &lines);
    const LineInfo *line = el_line(edit);
    size_t n = (size_t)(line->cursor - line->buffer);
    const char *found = NULL;
    for (size_t i = 0; n && lines->words[i]; i++) {
        if (strncmp(lines->words[i], line->buffer, n) != 0) continue;
        if (found) return CC_ERROR;
        found = lines->words[i];
    }
    if (!found || el_insertstr(edit, found + n) != 0 || el_insertstr(edit, " ") != 0) return CC_ERROR;
    return CC_REFRESH;
}

/* Characters are UTF-8 also where the environment names no locale. Numbers keep their "C" form. */
static void use_utf8(void) {
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
}

static void open_history(sl_lines *lines) {
    HistEvent event;
    lines->history = history_init();
    if (!lines->history) return;
    history(lines->history, &event, H_SETSIZE, 1000);
    history(lines->history, &event, H_SETUNIQUE, 1);
    el_set(lines->edit, EL_HIST, history, lines->history);
    const char *home = getenv("HOME"), name[] = "/.sluice_history";
    if (!home || !*home) return;
    size_t n = strlen(home);
    lines->history_path = malloc(n + sizeof name);
    if (!lines->history_path) return;
    memcpy(lines->history_path, home, n);
    memcpy(lines->history_path + n, name, sizeof name);
    history(lines->history, &event, H_LOAD, lines->history_path);
}

static void open_editor(sl_lines *lines) {
    use_utf8();
    lines->edit = el_init("sluice", stdin, sl_stdout_is_terminal() ? stdout : stderr, stderr);
    if (!lines->edit) return;
    el_set(lines->edit, EL_CLIENTDATA, lines);
    el_set(lines->edit, EL_PROMPT, prompt);
    el_set(lines->edit, EL_EDITOR, "emacs");
    el_set(lines->edit, EL_GETCFN, read_character);
    /* Wide, since el_set makes copies of the two names that nobody frees. */
    el_wset(lines->edit, EL_ADDFN, L"sluice-complete", L"complete a command", complete);
    el_set(lines->edit, EL_BIND, "^I", "sluice-complete", NULL);
    el_set(lines->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    open_history(lines);
}

static sl_line_result edit_line(sl_lines *lines, const char **line, size_t *n_bytes) {
    int n = 0;
    memset(&lines->decoder, 0, sizeof lines->decoder);
    el_resize(lines->edit);
    *line = el_gets(lines->edit, &n);
    if (!*line && sl_interrupted()) return SL_LINE_INTERRUPTED;
    if (!*line || n <= 0) return SL_LINE_END;
    *n_bytes = (size_t)n;
    HistEvent event;
    if (lines->history && n > 1) history(lines->history, &event, H_ENTER, *line);
    return SL_LINE_READ;
}

/* ---- pipe --------------------------------------------------------------------------------------- */

/* Appends what there is to read. */
static sl_line_result read_more(sl_lines *lines) {
    char piece[65536];
    if (!wait_for_input()) return SL_LINE_INTERRUPTED;
    ssize_t n = read(STDIN_FILENO, piece, sizeof piece);
    if (n < 0) sl_report(SL_EXIT_FAILED, "cannot read standard input: %s", strerror(errno));
    if (n < 0) return SL_LINE_FAILED;
    lines->end = n == 0;
    if (sl_buf_append(&lines->buf, piece, (size_t)n)) return SL_LINE_READ;
    sl_report(SL_EXIT_FAILED, "out of memory for a line of more than %zu bytes", lines->buf.n);
    return SL_LINE_FAILED;
}

/* The last line may lack its end. The line keeps its "\n". */
static sl_line_result pipe_line(sl_lines *lines, const char **line, size_t *n_bytes) {
    sl_buf *buf = &lines->buf;
    memmove(buf->data, buf->data + lines->n_used, buf->n -= lines->n_used);
    lines->n_used = 0;
    size_t n = 0;
    for (;;) {
        const uint8_t *end = buf->n > n ? memchr(buf->data + n, '\n', buf->n - n) : NULL;
        n = end ? (size_t)(end - buf->data) + 1 : buf->n;
        if (end || (lines->end && n)) break;
        if (lines->end) return SL_LINE_END;
        sl_line_result result = read_more(lines);
        if (result != SL_LINE_READ) return result;
    }
    *line = (const char *)buf->data;
    *n_bytes = lines->n_used = n;
    return SL_LINE_READ;
}

/* ---- both --------------------------------------------------------------------------------------- */

sl_lines *sl_lines_open(const char *const *words) {
    sl_lines *lines = calloc(1, sizeof *lines);
    if (!lines) return NULL;
    lines->words = words;
    if (sl_stdin_is_terminal() && (sl_stdout_is_terminal() || sl_stderr_is_terminal())) open_editor(lines);
    if (lines->edit || sl_buf_append(&lines->buf, "", 1)) {
        lines->buf.n = 0; /* data is there from now on */
        return lines;
    }
    sl_lines_close(lines);
    return NULL;
}

void sl_lines_close(sl_lines *lines) {
    if (!lines) return;
    HistEvent event;
    if (lines->history_path) history(lines->history, &event, H_SAVE, lines->history_path);
    if (lines->history) history_end(lines->history);
    if (lines->edit) el_end(lines->edit);
    free(lines->history_path);
    sl_buf_release(&lines->buf);
    free(lines);
}

bool sl_lines_interactive(const sl_lines *lines) { return lines->edit != NULL; }

sl_line_result sl_lines_read(sl_lines *lines, const char **line, size_t *n_bytes) {
    sl_line_result result = lines->edit ? edit_line(lines, line, n_bytes) : pipe_line(lines, line, n_bytes);
    if (result != SL_LINE_READ) return result;
    const char *text = *line;
    if (*n_bytes && text[*n_bytes - 1] == '\n') --*n_bytes;
    if (*n_bytes && text[*n_bytes - 1] == '\r') --*n_bytes;
    return SL_LINE_READ;
}
