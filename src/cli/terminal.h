/* Lines that a person types or a pipe brings. On a terminal: editing, history kept in ~/.sluice_history,
 * completion of the commands. */
#ifndef SL_CLI_TERMINAL_H
#define SL_CLI_TERMINAL_H

#include "base/mem.h"

typedef struct sl_lines sl_lines;

typedef enum sl_line_result {
    SL_LINE_READ,
    SL_LINE_END,         /* no more input, or Ctrl-D on an empty line */
    SL_LINE_INTERRUPTED, /* a signal came while waiting (sl_interrupted tells) */
    SL_LINE_FAILED       /* reported */
} sl_line_result;

/* words: commands to complete at the start of a line, NULL-terminated, the caller's. NULL: out of memory. */
sl_lines *sl_lines_open(const char *const *words);
void sl_lines_close(sl_lines *lines);
bool sl_lines_interactive(const sl_lines *lines);
/* The next line without its end ("\n" or "\r\n"), valid until the next call. */
sl_line_result sl_lines_read(sl_lines *lines, const char **line, size_t *n_bytes);

#endif
