#include "rows.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

rows rows_make(check *c, size_t n_row, size_t width, size_t stride) {
    assert(n_row > 0 && width > 0 && stride >= width);
    const size_t n = (n_row - 1) * stride + width;
    return (rows){ check_buffer(c, n * sizeof(float)), n_row, width, stride };
}

rows rows_random(check *c, size_t n_row, size_t width, size_t stride, float low, float high) {
    const rows m = rows_make(c, n_row, width, stride);
    for (size_t r = 0; r < n_row; r++) check_fill_range(c, m.at + r * stride, width, low, high);
    return m;
}

rows rows_input(check *c, size_t n_row, size_t width, size_t stride, float low, float high) {
    const rows m = rows_random(c, n_row, width, stride, low, high);
    check_seal(c, m.at);
    return m;
}

rows rows_copy(check *c, rows from) {
    const rows m = rows_make(c, from.n_row, from.width, from.stride);
    for (size_t r = 0; r < m.n_row; r++)
        memcpy(m.at + r * m.stride, from.at + r * m.stride, m.width * sizeof *m.at);
    return m;
}

bool rows_same(check *c, const char *name, rows got, rows want) {
    assert(got.n_row == want.n_row && got.width == want.width);
    check_gaps(c, name, got.at, got.width * sizeof *got.at, got.stride * sizeof *got.at, got.n_row);
    for (size_t r = 0; r < got.n_row; r++)
        if (!check_same(c, name, got.at + r * got.stride, want.at + r * want.stride, got.width * sizeof(float)))
            return false;
    return true;
}

bool rows_near(check *c, const char *name, rows got, const double *want, const double *bound) {
    check_gaps(c, name, got.at, got.width * sizeof *got.at, got.stride * sizeof *got.at, got.n_row);
    for (size_t i = 0; i < got.n_row * got.width; i++)
        if (!check_near(c, name, i, got.at[i / got.width * got.stride + i % got.width], want[i], bound[i]))
            return false;
    return true;
}

double *doubles(size_t n) {
    double *p = calloc(n ? n : 1, sizeof *p);
    if (!p) abort();
    return p;
}
