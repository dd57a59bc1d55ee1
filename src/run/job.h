/* Many answers at once through one session (continuous batching): every slot holds the sequence of one job,
 * each pass evaluates one ragged batch of prompt pieces and single tokens, and a slot whose job is done can
 * take the next at once. Since a sequence does not depend on its neighbours, neither does any answer. */
#ifndef SL_RUN_JOB_H
#define SL_RUN_JOB_H

#include "run/stream.h"

/* One answer. Set tokens, sampler and the stream's settings, then hand it to sl_jobs_start. */
typedef struct sl_job {
    int32_t *tokens;     /* [n_token] prompt, n_token >= 1; malloc'd, the job's */
    size_t n_token;
    sl_sampler *sampler; /* the job's */
    sl_stream stream;    /* the answer; its finish is set when the job is done */
    size_t n_fed;        /* prompt tokens evaluated so far */
    int32_t next;        /* the sampled token to be fed next, once the prompt is done */
} sl_job;
void sl_job_release(sl_job *job);

typedef struct sl_jobs {
    sl_session *session;
    sl_job **slots; /* [n_slot] the caller's jobs; NULL: free */
    sl_run *runs;   /* [n_slot] of the pass, */
    sl_sampler **samplers; /* [n_slot] those whose next token is drawn */
    int32_t *drawn; /* [n_slot] */
    size_t n_slot, n_batch, max_context;
} sl_jobs;

/* session: of the model, with at least n_slot slots and n_batch tokens per pass. */
sl_status sl_jobs_init(sl_jobs *jobs, const sl_model *model, sl_session *session, size_t n_slot, size_t n_batch,
                       sl_error *err);
void sl_jobs_release(sl_jobs *jobs);
/* Puts a job into a free slot. The job must stay where it is until the slot is freed. */
void sl_jobs_start(sl_jobs *jobs, size_t slot, sl_job *job);
/* One pass over all jobs that are not done. False in *worked: there was none. After an error the jobs cannot
 * go on. */
sl_status sl_jobs_pass(sl_jobs *jobs, bool *worked, sl_error *err);

#endif
