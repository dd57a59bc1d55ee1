/* One answer of one sequence: the prompt is fed in pieces, then tokens are sampled and fed until the stream
 * says that the answer is over. The same steps in the same order as a job of run/job.h, which holds many
 * sequences: the same prompt, sampler and stream settings give the same text. */
#ifndef SL_RUN_GENERATE_H
#define SL_RUN_GENERATE_H

#include "run/stream.h"

typedef struct sl_answer {
    sl_session *session;
    size_t slot;          /* the prompt continues whatever is in it */
    size_t n_batch;       /* prompt tokens per piece */
    size_t max_context;   /* tokens the slot may hold; 0: any number */
    size_t n_reserve;     /* of these, left free for what the caller feeds after the answer */
    sl_sampler *sampler;  /* has accepted what is in the slot, if anything; accepts prompt and answer here */
    sl_stream *stream;    /* finish is set at the end */
    /* Called after each piece of the prompt (token -1) and after each sampled token, which the stream has
     * accepted; false ends the answer there. */
    bool (*step)(void *arg, int32_t token);
    void *arg;
    /* result */
    size_t n_fed;         /* tokens fed, prompt included; the last sampled one is not */
    double prefill_seconds, decode_seconds;
    bool stopped;         /* by step */
} sl_answer;

/* On error the slot holds what was fed so far. A prompt that does not fit max_context is SL_E_ARG. */
sl_status sl_answer_run(sl_answer *answer, const int32_t *prompt, size_t n_prompt, sl_error *err);

#endif
