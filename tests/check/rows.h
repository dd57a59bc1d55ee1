/* Matrices for the tests of sequence kernels: n_row rows of width floats, stride apart, that end at a guard
 * page; what lies between the rows holds canaries. */
#ifndef SL_TESTS_CHECK_ROWS_H
#define SL_TESTS_CHECK_ROWS_H

#include "check.h"

typedef struct rows {
    float *at;
    size_t n_row, width, stride;
} rows;

rows rows_make(check *c, size_t n_row, size_t width, size_t stride);
/* The same filled with check_fill_range, and sealed by rows_input. */
rows rows_random(check *c, size_t n_row, size_t width, size_t stride, float low, float high);
rows rows_input(check *c, size_t n_row, size_t width, size_t stride, float low, float high);
rows rows_copy(check *c, rows from);

/* The same bits in every row, and untouched gaps in got. */
bool rows_same(check *c, const char *name, rows got, rows want);
/* Every element within bound (rows without gaps, as want) of want. */
bool rows_near(check *c, const char *name, rows got, const double *want, const double *bound);

/* Double arrays for expectations; released by the caller. */
double *doubles(size_t n);

#endif
