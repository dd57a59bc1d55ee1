/* JSON text below the level of a library: what jansson does not tell (nesting before parsing, the exact text
 * of a value) and texts that may hold bytes that are no UTF-8. */
#ifndef SL_CLI_BATCH_JSON_H
#define SL_CLI_BATCH_JSON_H

#include "base/mem.h"

/* A part of a text. */
typedef struct sl_span { const char *text; size_t n; } sl_span;

/* Walks over JSON without recursion. False: brackets nest deeper than max_depth. values[i] becomes the text
 * of member i of the outermost object, *n_value their number (those past cap are not kept). Meaningful only
 * for text that a parser then accepts. */
bool sl_json_scan(const char *text, size_t n, size_t max_depth, sl_span *values, size_t cap, size_t *n_value);

/* Appends bytes as a JSON string, broken UTF-8 as U+FFFD. Line ends of any kind (also U+0085, U+2028 and
 * U+2029) are escaped, so that a line of JSON is one line to every reader. False: out of memory. */
bool sl_json_string(sl_buf *out, const void *text, size_t n);
/* Appends valid JSON without the white space around its tokens, on one line, otherwise character by
 * character: numbers keep their digits. False: out of memory. */
bool sl_json_compact(sl_buf *out, const char *text, size_t n);

#endif
