#include "run/generate.h"

#include "os/os.h"

/* next: where the token that follows goes; NULL: there is more of the prompt. */
static sl_status feed(sl_answer *a, const int32_t *tokens, size_t n, int32_t *next, sl_error *err) {
    const sl_run run = { a->slot, tokens, n, SL_LOGITS_NONE };
    SL_TRY(sl_session_eval_draw(a->session, &run, 1, next ? &a->sampler : NULL, next, err));
    a->n_fed += n;
    return SL_OK;
}

/* The end from outside: what the stream holds back becomes ready. */
static sl_status stop(sl_answer *a) {
    a->stopped = true;
    sl_stream_end(a->stream, SL_FINISH_LENGTH);
    return SL_OK;
}

static sl_status prefill(sl_answer *a, const int32_t *prompt, size_t n_prompt, int32_t *next, sl_error *err) {
    for (size_t i = 0; i < n_prompt; i++) sl_sampler_accept(a->sampler, prompt[i]);
    for (size_t i = 0; i < n_prompt;) {
        size_t n = sl_min(a->n_batch, n_prompt - i);
        SL_TRY(feed(a, prompt + i, n, i + n == n_prompt ? next : NULL, err));
        i += n;
        if (!a->step(a->arg, -1)) return stop(a);
    }
    return SL_OK;
}

/* A token that fills the context is still part of the answer: it needs no room of its own. */
static sl_status decode(sl_answer *a, int32_t token, sl_error *err) {
    while (a->stream->finish == SL_FINISH_NONE) {
        sl_sampler_accept(a->sampler, token);
        SL_TRY(sl_stream_accept(a->stream, token, err));
        bool full = a->max_context && sl_slot_position(a->session, a->slot) + a->n_reserve >= a->max_context;
        if (full && a->stream->finish == SL_FINISH_NONE) sl_stream_end(a->stream, SL_FINISH_LENGTH);
        if (!a->step(a->arg, token)) return stop(a);
        if (a->stream->finish == SL_FINISH_NONE) {
            const int32_t fed = token;
            SL_TRY(feed(a, &fed, 1, &token, err));
        }
    }
    return SL_OK;
}

static sl_status check_room(const sl_answer *a, size_t n_prompt, sl_error *err) {
    size_t used = (size_t)sl_slot_position(a->session, a->slot) + a->n_reserve;
    size_t room = a->max_context > used ? a->max_context - used : 0;
    if (!a->max_context || n_prompt <= room) return SL_OK;
    return sl_fail(err, SL_E_ARG, "the prompt has %zu tokens (expected at most %zu, the room in its context)",
                   n_prompt, room);
}

sl_status sl_answer_run(sl_answer *answer, const int32_t *prompt, size_t n_prompt, sl_error *err) {
    SL_TRY(check_room(answer, n_prompt, err));
    double start = sl_os_seconds();
    int32_t first = 0;
    if (answer->stream->max_token == 0) sl_stream_end(answer->stream, SL_FINISH_LENGTH);
    else SL_TRY(prefill(answer, prompt, n_prompt, &first, err));
    answer->prefill_seconds = sl_os_seconds() - start;
    SL_TRY(decode(answer, first, err));
    answer->decode_seconds = sl_os_seconds() - start - answer->prefill_seconds;
    return SL_OK;
}
