#include "run/job.h"

#include <stdlib.h>

#include "run/session.h"

void sl_job_release(sl_job *job) {
    free(job->tokens);
    sl_sampler_destroy(job->sampler);
    sl_stream_release(&job->stream);
    *job = (sl_job){ 0 };
}

sl_status sl_jobs_init(sl_jobs *jobs, const sl_model *model, sl_session *session, size_t n_slot, size_t n_batch,
                       sl_error *err) {
    sl_model_info info;
    sl_model_get_info(model, &info);
    *jobs = (sl_jobs){
        .session = session, .n_slot = n_slot, .n_batch = n_batch, .max_context = info.max_context,
    };
    sl_status status = sl_alloc((void **)&jobs->slots, n_slot, sizeof *jobs->slots, "jobs", err);
    if (status == SL_OK) status = sl_alloc((void **)&jobs->runs, n_slot, sizeof *jobs->runs, "runs", err);
    if (status == SL_OK) status = sl_alloc((void **)&jobs->samplers, n_slot, sizeof *jobs->samplers, "runs", err);
    if (status == SL_OK) status = sl_alloc((void **)&jobs->drawn, n_slot, sizeof *jobs->drawn, "runs", err);
    if (status != SL_OK) sl_jobs_release(jobs);
    return status;
}

void sl_jobs_release(sl_jobs *jobs) {
    free(jobs->slots);
    free(jobs->runs);
    free(jobs->samplers);
    free(jobs->drawn);
    *jobs = (sl_jobs){ 0 };
}

void sl_jobs_start(sl_jobs *jobs, size_t slot, sl_job *job) {
    sl_slot_reset(jobs->session, slot);
    jobs->slots[slot] = job;
    for (size_t i = 0; i < job->n_token; i++) sl_sampler_accept(job->sampler, job->tokens[i]);
    if (job->stream.max_token == 0) sl_stream_end(&job->stream, SL_FINISH_LENGTH);
}

static bool is_running(const sl_job *job) { return job && job->stream.finish == SL_FINISH_NONE; }
static bool in_prompt(const sl_job *job) { return job->n_fed < job->n_token; }

/* Single tokens first: they are what everybody waits for. Prompts share the rest of the pass, and a quarter
 * of it at least, so that they come forward also when there are more sequences than tokens in a pass. Where others must
 * not matter they come in such quarters, whole. */
static size_t plan_runs(sl_jobs *jobs) {
    size_t n = 0;
    for (size_t slot = 0; slot < jobs->n_slot; slot++) {
        sl_job *job = jobs->slots[slot];
        if (!is_running(job) || in_prompt(job)) continue;
        jobs->samplers[n] = job->sampler;
        jobs->runs[n++] = (sl_run){ slot, &job->next, 1, SL_LOGITS_NONE };
    }
    size_t least = jobs->n_batch / 4 + 1;
    size_t left = jobs->n_batch > n + least ? jobs->n_batch - n : least;
    for (size_t slot = 0; slot < jobs->n_slot && left; slot++) {
        sl_job *job = jobs->slots[slot];
        if (!is_running(job) || !in_prompt(job)) continue;
        size_t piece = sl_min(job->n_token - job->n_fed, jobs->session->invariant ? sl_max(jobs->n_batch / 4, 1) : left);
        if (piece > left) break;
        jobs->samplers[n] = job->n_fed + piece == job->n_token ? job->sampler : NULL;
        jobs->runs[n++] = (sl_run){ slot, job->tokens + job->n_fed, piece, SL_LOGITS_NONE };
        left -= piece;
    }
    return n;
}

/* Tells the stream of a drawn token, which may end the answer. */
static sl_status take_token(sl_jobs *jobs, size_t slot, int32_t token, sl_error *err) {
    sl_job *job = jobs->slots[slot];
    job->next = token;
    sl_sampler_accept(job->sampler, job->next);
    SL_TRY(sl_stream_accept(&job->stream, job->next, err));
    bool full = jobs->max_context && sl_slot_position(jobs->session, slot) >= jobs->max_context;
    if (full && job->stream.finish == SL_FINISH_NONE) sl_stream_end(&job->stream, SL_FINISH_LENGTH);
    return SL_OK;
}

sl_status sl_jobs_pass(sl_jobs *jobs, bool *worked, sl_error *err) {
    size_t n = plan_runs(jobs);
    *worked = n > 0;
    if (!n) return SL_OK;
    SL_TRY(sl_session_eval_draw(jobs->session, jobs->runs, n, jobs->samplers, jobs->drawn, err));
    for (size_t i = 0; i < n; i++) {
        sl_job *job = jobs->slots[jobs->runs[i].slot];
        if (in_prompt(job)) job->n_fed += jobs->runs[i].n_token;
        if (jobs->samplers[i]) SL_TRY(take_token(jobs, jobs->runs[i].slot, jobs->drawn[i], err));
    }
    return SL_OK;
}
