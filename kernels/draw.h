/* How a token is drawn on a device. */
#ifndef SL_KERNELS_DRAW_H
#define SL_KERNELS_DRAW_H

#include <stdint.h>

/* How a row's next token is drawn, in the order of src/run/sampler.c: repeat penalty, top-k, top-p, min-p,
 * temperature. */
enum { SL_SAMPLE_MAX_K = 256, SL_SAMPLE_MAX_WINDOW = 256 };
typedef struct sl_draw {
    float temperature;    /* 0: the likeliest, lowest id first */
    uint32_t top_k;       /* 1 .. SL_SAMPLE_MAX_K (not read at temperature 0) */
    float top_p, min_p, repeat_penalty;
    uint32_t n_window;    /* tokens of window that count */
    double random;        /* uniform in [0, 1) */
    int32_t window[SL_SAMPLE_MAX_WINDOW]; /* ids the penalty falls on, each once */
} sl_draw;
#endif
