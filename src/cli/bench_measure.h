/* One row of the bench: a model, a way of using it, and what that took. */
#ifndef SL_CLI_BENCH_MEASURE_H
#define SL_CLI_BENCH_MEASURE_H

#include "base/mem.h"
#include "cli/bench_profile.h"

typedef struct sl_bench_model {
    const char *label;      /* file or preset */
    sl_model *model;
    sl_model_info info;
    int32_t *tokens;        /* [n_token] what is fed, over and over; malloc'd */
    size_t n_token;
    bool resident;          /* its weights are in memory already */
    double deep_option;     /* share of deep tokens asked of a preset; NAN: not asked */
    sl_session *holder;     /* keeps the weights on a device between rows; NULL on the CPU */
} sl_bench_model;

/* info, and tokens: a text for a model with a tokenizer, so that its routers decide as they do on text, else
 * random ids. model and label are set; label stays the caller's. */
sl_status sl_bench_model_init(sl_bench_model *model, sl_error *err);
void sl_bench_model_release(sl_bench_model *model); /* closes the model too */

typedef struct sl_bench_config {
    size_t n_prompt, n_gen; /* one of them is 0: a decode or a prefill row */
    uint64_t depth;         /* tokens each sequence has seen before */
    size_t n_seq, n_thread, n_repeat;
    size_t n_batch;         /* tokens per pass */
    float tau;              /* NAN: as stored */
    const char *device;     /* "cpu", "cuda:N" */
    sl_activations activations;
    bool batch_invariant;
    bool profile;           /* one repetition more, each node by itself */
    double max_seconds;     /* no repetition is begun after this time; 0: all are made */
} sl_bench_config;

typedef struct sl_bench_row {
    const sl_bench_model *model;
    sl_bench_config config;
    size_t n_repeat;        /* repetitions made */
    bool depth_synthetic;   /* the depth was made up, not computed */
    double median, min, max;  /* tokens per second of all sequences together */
    double bytes_per_token; /* matrices, norms, poles, states and KV stores read or written, counted (small vectors are not) */
    double flops_per_token;
    double first_seconds;   /* prefill: prompt to its logits; decode: the first step */
    double deep_share;      /* of the tokens in routed layers; NAN: none */
    double replayed_share;  /* of the passes, from a graph; NAN: on a CPU, which has none */
    uint64_t state_bytes, kv_bytes; /* of all sequences, at the end of a repetition */
    uint64_t peak_rss_bytes;
    sl_bench_profile profile; /* the caller releases it; empty if it was not asked for */
    /* the caller's */
    double read_gbps, matmul_tflops; /* probes */
    double load;            /* of the machine before the first row */
    double ratio;           /* to the same row of the baseline; NAN: none */
} sl_bench_row;

/* "f32" or "f16": what lies between the layers. */
const char *sl_bench_activations(const sl_bench_model *model, const sl_bench_config *config);
/* Bytes the row needs beside the weights. */
uint64_t sl_bench_bytes(const sl_bench_model *model, const sl_bench_config *config);
/* other_bytes: memory of models that are loaded but not measured, taken off the peak. An interrupt ends it
 * early with fewer repetitions, maybe none. */
sl_status sl_bench_measure(sl_bench_model *model, const sl_bench_config *config, uint64_t other_bytes,
                           sl_bench_row *row, sl_error *err);

#endif
