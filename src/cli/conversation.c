#include "cli/conversation.h"

#include <stdlib.h>
#include <string.h>

#include "run/model.h"

/* ---- small things ------------------------------------------------------------------------------- */

static sl_status no_memory(sl_error *err, const char *what) {
    return sl_fail(err, SL_E_MEMORY, "out of memory for %s", what);
}

static char *copy_text(const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}

static bool ids_append(sl_ids *ids, const int32_t *v, size_t n) {
    if (!sl_grow((void **)&ids->v, &ids->cap, ids->n + n, sizeof *v)) return false;
    if (n) memcpy(ids->v + ids->n, v, n * sizeof *v);
    ids->n += n;
    return true;
}

static bool turns_append(sl_turns *turns, uint64_t at) {
    if (!sl_grow((void **)&turns->at, &turns->cap, turns->n + 1, sizeof *turns->at)) return false;
    turns->at[turns->n++] = at;
    return true;
}

static sl_status copy_turns(const sl_turns *from, sl_turns *to, sl_error *err) {
    *to = (sl_turns){ 0 };
    for (size_t i = 0; i < from->n; i++)
        if (!turns_append(to, from->at[i])) return no_memory(err, "a conversation"); /* the branch owns what is there */
    return SL_OK;
}

/* Messages in the chat format, into ids anew. */
static sl_status encode(const sl_conversation *c, const sl_message *messages, size_t n, bool first, bool answer,
                        sl_ids *ids, sl_error *err) {
    size_t n_token = 0;
    SL_TRY(sl_chat_tokenize(c->model, messages, n, first, answer, NULL, 0, &n_token, err));
    if (!sl_grow((void **)&ids->v, &ids->cap, n_token, sizeof *ids->v)) return no_memory(err, "a question");
    return sl_chat_tokenize(c->model, messages, n, first, answer, ids->v, n_token, &ids->n, err);
}

/* ---- the format, learnt from what it makes of short messages ------------------------------------ */

/* Tokens of one message of that role. */
static sl_status encode_sample(const sl_conversation *c, const char *role, const char *text, bool first,
                               sl_ids *ids, sl_error *err) {
    const sl_message message = { .role = role, .content = text, .n_content = strlen(text) };
    return encode(c, &message, 1, first, false, ids, err);
}

/* open: what different questions have in common at their start. A common word may join the blank before it,
 * a line end the one before it. */
static sl_status learn_open(sl_conversation *c, sl_error *err) {
    static const char *const samples[] = { "x", "7", "\n", " ", "the", "I", "What" };
    sl_ids ids = { 0 };
    sl_status status = encode_sample(c, "user", samples[0], false, &c->open, err);
    for (size_t i = 1; i < sizeof samples / sizeof *samples && status == SL_OK; i++) {
        status = encode_sample(c, "user", samples[i], false, &ids, err);
        size_t n = 0;
        while (status == SL_OK && n < c->open.n && n < ids.n && c->open.v[n] == ids.v[n]) n++;
        c->open.n = n;
    }
    if (status == SL_OK) status = encode_sample(c, "user", samples[0], true, &ids, err);
    size_t n = c->open.n;
    for (size_t i = 0; status == SL_OK && n && i + n <= ids.n && !c->open_in_first; i++)
        c->open_in_first = memcmp(ids.v + i, c->open.v, n * sizeof *ids.v) == 0;
    free(ids.v);
    return status;
}

/* close: what different answers have in common at their end. */
static sl_status learn_close(sl_conversation *c, sl_error *err) {
    sl_ids ids = { 0 }, *close = &c->close;
    sl_status status = encode_sample(c, "assistant", "x", false, close, err);
    if (status == SL_OK) status = encode_sample(c, "assistant", "7", false, &ids, err);
    size_t n = 0, limit = status == SL_OK ? sl_min(close->n, ids.n) : 0;
    while (n < limit && close->v[close->n - 1 - n] == ids.v[ids.n - 1 - n]) n++;
    if (n) memmove(close->v, close->v + close->n - n, n * sizeof *close->v);
    close->n = n;
    free(ids.v);
    return status;
}

sl_status sl_conversation_init(sl_conversation *c, const sl_common *common, const sl_model *model,
                               sl_session *session, const char *system, sl_error *err) {
    *c = (sl_conversation){ .common = common, .model = model, .session = session, .system = system };
    sl_model_get_info(model, &c->info);
    c->n_stop = sl_common_stops(common, c->stops);
    const char *const *own = sl_chat_stops(model->chat);
    for (size_t i = 0; own && own[i] && c->n_stop < sizeof c->stops / sizeof *c->stops; i++)
        c->stops[c->n_stop++] = (sl_stop){ own[i], strlen(own[i]) };
    c->name = copy_text("main");
    if (!c->name) return no_memory(err, "a conversation");
    SL_TRY(learn_open(c, err));
    return learn_close(c, err);
}

static void branch_release(sl_branch *branch) {
    free(branch->name);
    free(branch->state);
    free(branch->turns.at);
    *branch = (sl_branch){ 0 };
}

void sl_conversation_release(sl_conversation *c) {
    for (size_t i = 0; i < c->n_branch; i++) branch_release(&c->branches[i]);
    free(c->branches);
    free(c->open.v);
    free(c->close.v);
    free(c->answer_ids.v);
    free(c->turns.at);
    free(c->name);
    *c = (sl_conversation){ 0 };
}

/* ---- question and answer ------------------------------------------------------------------------ */

static sl_status rewind_to(sl_conversation *c, uint64_t position, sl_error *err) {
    if (position) return sl_slot_rewind(c->session, 0, position, err);
    sl_slot_reset(c->session, 0);
    return SL_OK;
}

typedef struct step_arg { sl_conversation *c; sl_answer_write write; void *arg; sl_stream *stream; } step_arg;

static bool step(void *arg, int32_t token) {
    step_arg *s = arg;
    if (token >= 0 && !ids_append(&s->c->answer_ids, &token, 1)) return false;
    return (token < 0 || s->write(s->arg, s->stream)) && !sl_interrupted();
}

/* Tokens of the answer that belong to its text: the end token does not, nor do those of a stop text. */
static size_t count_kept(const sl_conversation *c, const sl_stream *stream) {
    size_t n_bytes = 0, n = sl_min(c->answer_ids.n, stream->n_token);
    for (size_t i = 0; i < n; i++) {
        size_t n_token = 0;
        int32_t id = c->answer_ids.v[i];
        sl_token_bytes(c->model, id, &n_token);
        n_bytes += sl_token_is_special(c->model, id) ? 0 : n_token;
        if (n_bytes > stream->text.n) return i;
    }
    return n;
}

/* From what was fed to the complete turn. start: position after the question. */
static sl_status complete_turn(sl_conversation *c, const sl_stream *stream, uint64_t start, sl_error *err) {
    size_t n_kept = count_kept(c, stream), n_fed = (size_t)(sl_slot_position(c->session, 0) - start);
    if (n_kept < n_fed) SL_TRY(rewind_to(c, start + n_kept, err));
    c->answer_ids.n = n_kept;
    if (!ids_append(&c->answer_ids, c->close.v, c->close.n)) return no_memory(err, "an answer");
    size_t from = sl_min(n_kept, n_fed);
    const sl_run run = { 0, c->answer_ids.v + from, c->answer_ids.n - from, SL_LOGITS_LAST };
    return run.n_token ? sl_session_eval(c->session, &run, 1, err) : SL_OK;
}

/* The sampler with all of the sequence in its memory. */
static sl_status make_sampler(const sl_conversation *c, sl_sampler **out, sl_error *err) {
    sl_sampler_params params = sl_common_sampler(c->common);
    SL_TRY(sl_sampler_create(&params, c->info.n_vocab, out, err));
    size_t n = 0;
    const int32_t *tokens = sl_slot_tokens(c->session, 0, &n);
    for (size_t i = 0; i < n; i++) sl_sampler_accept(*out, tokens[i]);
    return SL_OK;
}

static sl_status answer(sl_conversation *c, const sl_ids *prompt, step_arg *s, bool *withdrawn, sl_error *err) {
    sl_answer a = {
        .session = c->session,
        .n_batch = (size_t)c->common->n_batch,
        .max_context = c->info.max_context,
        .n_reserve = c->close.n + 1, /* the end of the turn, and the last token, which is fed late */
        .stream = s->stream,
        .step = step,
        .arg = s,
    };
    uint64_t start = sl_slot_position(c->session, 0) + prompt->n;
    sl_status status = make_sampler(c, &a.sampler, err);
    if (status == SL_OK) status = sl_answer_run(&a, prompt->v, prompt->n, err);
    sl_sampler_destroy(a.sampler);
    SL_TRY(status);
    c->n_prompt = prompt->n;
    c->n_answer = s->stream->n_token;
    c->prefill_seconds = a.prefill_seconds;
    c->decode_seconds = a.decode_seconds;
    *withdrawn = a.n_fed < prompt->n;
    return *withdrawn ? SL_OK : complete_turn(c, s->stream, start, err);
}

/* The question as tokens, with what stands before the first one. */
static sl_status encode_question(const sl_conversation *c, const char *question, size_t n_bytes, sl_ids *ids,
                                 sl_error *err) {
    bool first = sl_slot_position(c->session, 0) == 0;
    sl_message messages[2];
    size_t n = 0;
    if (first && c->system) messages[n++] = (sl_message){ "system", c->system, strlen(c->system) };
    messages[n++] = (sl_message){ "user", question, n_bytes };
    return encode(c, messages, n, first, true, ids, err);
}

sl_status sl_conversation_ask(sl_conversation *c, const char *question, size_t n_bytes, sl_answer_write write,
                              void *arg, bool *withdrawn, sl_error *err) {
    uint64_t before = sl_slot_position(c->session, 0);
    sl_stream stream = {
        .model = c->model,
        .stops = c->stops,
        .n_stop = c->n_stop,
        .max_token = sl_common_max_token(c->common),
        .ignore_eos = c->common->ignore_eos,
    };
    step_arg s = { .c = c, .write = write, .arg = arg, .stream = &stream };
    sl_ids prompt = { 0 };
    c->answer_ids.n = 0;
    *withdrawn = false;
    sl_status status = encode_question(c, question, n_bytes, &prompt, err);
    if (status == SL_OK && !turns_append(&c->turns, before)) status = no_memory(err, "a turn");
    else if (status == SL_OK) {
        if (before) status = sl_slot_mark(c->session, 0, err);
        if (status == SL_OK) status = answer(c, &prompt, &s, withdrawn, err);
        if (status != SL_OK || *withdrawn) {
            c->turns.n--;
            sl_error second;
            if (rewind_to(c, before, &second) != SL_OK) sl_conversation_reset(c);
        }
    }
    free(prompt.v);
    sl_stream_release(&stream);
    return status;
}

sl_status sl_conversation_undo(sl_conversation *c, sl_error *err) {
    if (!c->turns.n) return sl_fail(err, SL_E_ARG, "nothing to take back: the conversation has no question");
    SL_TRY(rewind_to(c, c->turns.at[c->turns.n - 1], err));
    c->turns.n--;
    return SL_OK;
}

void sl_conversation_reset(sl_conversation *c) {
    sl_slot_reset(c->session, 0);
    c->turns.n = 0;
}

/* ---- saved conversations ------------------------------------------------------------------------ */

/* Finds the questions by the tokens they open with: a state file holds tokens, not turns. A conversation
 * begins with its first question and what stands before it. */
static sl_status find_turns(const sl_conversation *c, sl_turns *turns, sl_error *err) {
    size_t n = 0, n_open = c->open.n, n_seen = 0;
    const int32_t *tokens = sl_slot_tokens(c->session, 0, &n);
    bool good = !n || turns_append(turns, 0);
    for (size_t i = 0; n_open && good && i + n_open <= n; i++) {
        if (memcmp(tokens + i, c->open.v, n_open * sizeof *tokens) != 0) continue;
        bool is_first = c->open_in_first && n_seen == 0;
        n_seen++;
        if (!is_first) good = turns_append(turns, i);
    }
    return good ? SL_OK : no_memory(err, "a conversation");
}

sl_status sl_conversation_load(sl_conversation *c, const char *path, sl_error *err) {
    SL_TRY(sl_state_load_file(c->session, 0, path, err));
    c->turns.n = 0;
    return find_turns(c, &c->turns, err);
}

static sl_branch *find_branch(sl_conversation *c, const char *name) {
    for (size_t i = 0; i < c->n_branch; i++)
        if (strcmp(c->branches[i].name, name) == 0) return &c->branches[i];
    return NULL;
}

/* The conversation in the slot as a branch of that name. */
static sl_status capture(const sl_conversation *c, const char *name, sl_branch *out, sl_error *err) {
    *out = (sl_branch){ .name = copy_text(name), .state_bytes = sl_state_bytes(c->session, 0) };
    sl_status status = out->name ? SL_OK : no_memory(err, "a conversation");
    if (status == SL_OK) status = sl_alloc(&out->state, (size_t)out->state_bytes, 1, "a conversation", err);
    if (status == SL_OK) status = sl_state_save(c->session, 0, out->state, out->state_bytes, err);
    if (status == SL_OK) status = copy_turns(&c->turns, &out->turns, err);
    if (status != SL_OK) branch_release(out);
    return status;
}

sl_status sl_conversation_fork(sl_conversation *c, const char *name, sl_error *err) {
    sl_name_buf buf;
    if (strcmp(name, c->name) == 0 || find_branch(c, name))
        return sl_fail(err, SL_E_ARG, "there is a conversation '%s' already (expected a new name)",
                       sl_name(name, &buf));
    if (!sl_grow((void **)&c->branches, &c->branch_cap, c->n_branch + 1, sizeof *c->branches))
        return no_memory(err, "a conversation");
    SL_TRY(capture(c, name, &c->branches[c->n_branch], err));
    c->n_branch++;
    return SL_OK;
}

sl_status sl_conversation_switch(sl_conversation *c, const char *name, sl_error *err) {
    if (strcmp(name, c->name) == 0) return SL_OK;
    sl_name_buf buf;
    sl_branch *target = find_branch(c, name), current;
    if (!target)
        return sl_fail(err, SL_E_ARG, "there is no conversation '%s' (expected a name given to /fork)",
                       sl_name(name, &buf));
    SL_TRY(capture(c, c->name, &current, err));
    sl_status status = sl_state_load(c->session, 0, target->state, target->state_bytes, err);
    if (status != SL_OK) {
        branch_release(&current);
        return status;
    }
    free(c->name);
    free(c->turns.at);
    c->name = target->name;
    c->turns = target->turns;
    free(target->state);
    *target = current;
    return SL_OK;
}
