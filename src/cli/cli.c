/* What every command needs of the terminal and the system: error lines, checked output, whole inputs, a
 * progress line, Ctrl-C. POSIX is asked for here because signals and terminals belong to the program, not to
 * the library. */
#define _POSIX_C_SOURCE 200809L

#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os/os.h"
#include "text/utf8.h"

/* ---- lines on stderr ---------------------------------------------------------------------------- */

enum { LINE_BYTES = 590 }; /* with "sluice: " an error line stays below 600 characters */

/* Whole characters only, no control characters (C0, DEL, and C1 as UTF-8). */
static void clean(char *text, size_t cap) {
    size_t n = strlen(text);
    if (n > cap) {
        n = cap;
        while (n && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
        text[n] = 0;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) text[i] = '?';
        if (c == 0xC2 && (unsigned char)text[i + 1] >= 0x80 && (unsigned char)text[i + 1] < 0xA0)
            text[i] = text[i + 1] = '?';
    }
}

int sl_report(int code, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    clean(text, LINE_BYTES);
    fprintf(stderr, "sluice: %s\n", text);
    return code;
}

int sl_report_error(const sl_error *err) { return sl_report(SL_EXIT_FAILED, "%s", err->text); }

void sl_note(const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    clean(text, sizeof text - 1);
    fprintf(stderr, "%s\n", text);
}

/* ---- input and output --------------------------------------------------------------------------- */

bool sl_stdin_is_terminal(void) { return isatty(STDIN_FILENO); }
bool sl_stdout_is_terminal(void) { return isatty(STDOUT_FILENO); }
bool sl_stderr_is_terminal(void) { return isatty(STDERR_FILENO); }

/* One line for the first failure; later writes fail silently. */
static bool out_failed(int cause) {
    static bool reported;
    if (!reported && cause != EPIPE)
        sl_report(SL_EXIT_FAILED, "cannot write to standard output: %s", strerror(cause));
    reported = true;
    return false;
}

bool sl_out(const void *data, size_t n_bytes) {
    if (ferror(stdout)) return out_failed(EIO);
    return fwrite(data, 1, n_bytes, stdout) == n_bytes || out_failed(errno);
}

bool sl_out_flush(void) {
    if (ferror(stdout)) return out_failed(EIO);
    return fflush(stdout) == 0 || out_failed(errno);
}

static bool out_repaired(const uint8_t *text, size_t n) {
    for (size_t at = 0; at < n;) {
        bool valid;
        size_t length = sl_utf8_part(text + at, n - at, &valid);
        if (!(valid ? sl_out(text + at, length) : sl_out(SL_UTF8_REPLACEMENT, 3))) return false;
        at += length;
    }
    return true;
}

bool sl_text_out_write(sl_text_out *out, const void *text, size_t n_bytes) {
    if (!sl_stdout_is_terminal()) return sl_out(text, n_bytes);
    const uint8_t *bytes = text;
    for (size_t i = 0; i < n_bytes; i++) {
        out->held[out->n_held++] = bytes[i];
        size_t whole = sl_utf8_whole(out->held, out->n_held);
        if (!out_repaired(out->held, whole)) return false;
        out->n_held -= whole; /* at most 3, since the fourth byte of a character completes it */
        memmove(out->held, out->held + whole, out->n_held);
    }
    return true;
}

bool sl_text_out_end(sl_text_out *out) {
    size_t n = out->n_held;
    out->n_held = 0;
    return out_repaired(out->held, n);
}

static bool read_stdin(char **data, size_t *n_bytes) {
    sl_buf buf = { 0 };
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0)
        if (!sl_buf_append(&buf, piece, n)) {
            sl_report(SL_EXIT_FAILED, "out of memory reading standard input after %zu bytes", buf.n);
            sl_buf_release(&buf);
            return false;
        }
    if (ferror(stdin) || !sl_buf_append(&buf, "", 1)) {
        sl_report(SL_EXIT_FAILED, "cannot read standard input: %s", strerror(errno));
        sl_buf_release(&buf);
        return false;
    }
    *data = (char *)buf.data;
    *n_bytes = buf.n - 1;
    return true;
}

bool sl_read_input(const char *path, char **data, size_t *n_bytes) {
    if (!path || strcmp(path, "-") == 0) return read_stdin(data, n_bytes);
    sl_error err;
    if (sl_os_read_file(path, UINT64_C(1) << 30, data, n_bytes, &err) == SL_OK) return true;
    sl_report_error(&err);
    return false;
}

/* ---- progress ----------------------------------------------------------------------------------- */

void sl_progress_begin(sl_progress *progress, const char *what, const char *unit) {
    *progress = (sl_progress){ .what = what, .unit = unit, .start = sl_os_seconds() };
    progress->last = progress->start;
}

/* "1.23 M" and the like: done and speed are read at a glance, not to the last digit. */
static const char *human(double value, char text[32]) {
    static const char *const prefix[] = { "", "k", "M", "G", "T" };
    size_t i = 0;
    for (; value >= 1000 && i < 4; i++) value /= 1000;
    snprintf(text, 32, i ? "%.1f %s" : "%.0f %s", value, prefix[i]);
    return text;
}

bool sl_progress_due(const sl_progress *progress) {
    return sl_os_seconds() - progress->last >= 0.1 && sl_stderr_is_terminal();
}

/* " 12 s left", as long as it was from the start to here for each share; empty: nothing is done yet. */
static const char *time_left(const sl_progress *progress, double share, char text[32]) {
    double done = share - progress->first, seconds = progress->last - progress->start;
    text[0] = 0;
    if (done > 0) snprintf(text, 32, "  %.0f s left", seconds * (1 - share) / done);
    return text;
}

void sl_progress_draw(sl_progress *progress, double share, const char *speed) {
    char bar[21], left[32];
    progress->last = sl_os_seconds();
    progress->shown = true;
    share = share > 1 ? 1 : share;
    for (size_t i = 0; i < 20; i++) bar[i] = (double)i < share * 20 ? '#' : '.';
    bar[20] = 0;
    if (share < 0) fprintf(stderr, "\r%s%s \033[K", progress->what, speed);
    else /* rounded down: 100 % is all of it */
        fprintf(stderr, "\r%s [%s] %3d %%%s%s \033[K", progress->what, bar, (int)(100 * share), speed,
                time_left(progress, share, left));
    fflush(stderr);
}

void sl_progress_update(sl_progress *progress, uint64_t done, uint64_t all) {
    if (!sl_progress_due(progress)) return;
    char number[32], speed[64];
    human((double)done / (sl_os_seconds() - progress->start), number);
    snprintf(speed, sizeof speed, "  %s%s/s", number, progress->unit);
    sl_progress_draw(progress, all ? (double)done / (double)all : 0, speed);
}

void sl_progress_end(sl_progress *progress) {
    if (progress->shown) fprintf(stderr, "\r\033[K");
    progress->shown = false;
}

/* ---- Ctrl-C ------------------------------------------------------------------------------------- */

static volatile sig_atomic_t signal_seen;

static void on_signal(int number) {
    if (signal_seen) { /* not obeyed in time: end by the signal itself */
        signal(number, SIG_DFL);
        raise(number);
    }
    signal_seen = number;
}

void sl_interrupt_install(void) {
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool sl_interrupted(void) { return signal_seen != 0; }
bool sl_terminated(void) { return signal_seen == SIGTERM; }
void sl_interrupt_clear(void) { signal_seen = 0; }
