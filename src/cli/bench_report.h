/* Rows of the bench as a table, JSON and CSV. */
#ifndef SL_CLI_BENCH_REPORT_H
#define SL_CLI_BENCH_REPORT_H

#include "cli/bench_measure.h"

/* One line of the table on stdout; false: it could not be written (reported). */
bool sl_bench_table_head(void);
bool sl_bench_table_row(const sl_bench_row *row);
/* Where its time went, if that was asked for: a table of its own. */
bool sl_bench_table_profile(const sl_bench_row *row);
/* Whole files, written beside and renamed: a list of objects, and one line per row under a head line. */
sl_status sl_bench_write_json(const char *path, const sl_bench_row *rows, size_t n_row, sl_error *err);
sl_status sl_bench_write_csv(const char *path, const sl_bench_row *rows, size_t n_row, sl_error *err);

#endif
