/* A conversation with a model: questions and answers in the sequence of one slot, which can be taken back,
 * saved and loaded, and copies of it under names.
 *
 * At rest the sequence ends with a complete turn in the model's chat format, also when an answer was cut:
 * what follows an answer's text there is fed after each answer, and text that belongs to a stop is taken out
 * of the sequence. Sampling starts anew with the seed at every answer, and what the repeat penalty looks back
 * on are the tokens of the sequence: so an answer depends on the conversation and nothing else, however it was
 * reached. */
#ifndef SL_CLI_CONVERSATION_H
#define SL_CLI_CONVERSATION_H

#include "cli/cli.h"
#include "run/generate.h"

typedef struct sl_ids { int32_t *v; size_t n, cap; } sl_ids;

/* Where each question begins in the tokens of the sequence. */
typedef struct sl_turns { uint64_t *at; size_t n, cap; } sl_turns;

/* A conversation that waits under a name. */
typedef struct sl_branch {
    char *name;
    void *state; /* sl_state_save */
    uint64_t state_bytes;
    sl_turns turns;
} sl_branch;

typedef struct sl_conversation {
    const sl_common *common;
    const sl_model *model;
    sl_session *session;
    sl_model_info info;
    const char *system;   /* text before the first question; NULL: none */
    sl_stop stops[72];    /* --stop and the format's own */
    size_t n_stop;
    sl_ids open, close;   /* tokens a question opens with; tokens that end an answer's turn */
    bool open_in_first;   /* the first question of a conversation opens so too */
    char *name;           /* of the conversation in the slot */
    sl_turns turns;
    sl_branch *branches;  /* the others */
    size_t n_branch, branch_cap;
    sl_ids answer_ids;    /* tokens of the running answer */
    /* of the last answer */
    size_t n_prompt, n_answer;
    double prefill_seconds, decode_seconds;
} sl_conversation;

/* common, model and session are borrowed; the session's slot 0 is used and must be empty. */
sl_status sl_conversation_init(sl_conversation *c, const sl_common *common, const sl_model *model,
                               sl_session *session, const char *system, sl_error *err);
void sl_conversation_release(sl_conversation *c);

/* Called with the answer's stream when there may be new text; false ends the answer. */
typedef bool (*sl_answer_write)(void *arg, const sl_stream *stream);
/* Asks, hands out the answer as it comes, and completes the turn. *withdrawn: it was ended before the answer
 * began. Then, and on error, the conversation is as it was. */
sl_status sl_conversation_ask(sl_conversation *c, const char *question, size_t n_bytes, sl_answer_write write,
                              void *arg, bool *withdrawn, sl_error *err);
/* Takes back the last question and its answer; SL_E_ARG if there is none. */
sl_status sl_conversation_undo(sl_conversation *c, sl_error *err);
void sl_conversation_reset(sl_conversation *c);
sl_status sl_conversation_load(sl_conversation *c, const char *path, sl_error *err);
/* Keeps a copy under a new name / goes to the conversation of that name. */
sl_status sl_conversation_fork(sl_conversation *c, const char *name, sl_error *err);
sl_status sl_conversation_switch(sl_conversation *c, const char *name, sl_error *err);

#endif
