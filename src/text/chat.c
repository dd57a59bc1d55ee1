/* Chat formats. A conversation is written as text with marks between; each stretch of text is encoded in one
 * piece, as when the whole was one string, with special tokens off, and the marks are put in as ids. */
#include "text/chat.h"

#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

/* ---- which format ------------------------------------------------------------------------------- */

sl_chat_kind sl_chat_detect(const char *template_, bool *known) {
    *known = true;
    if (!template_) return SL_CHAT_PLAIN;
    if (strstr(template_, "<|im_start|>")) return SL_CHAT_CHATML;
    if (strstr(template_, "<|start_header_id|>")) return SL_CHAT_LLAMA3;
    if (strstr(template_, "[INST]")) return strstr(template_, "<<SYS>>") ? SL_CHAT_LLAMA2 : SL_CHAT_MISTRAL;
    *known = strstr(template_, "User: ") && strstr(template_, "Assistant:");
    return SL_CHAT_PLAIN;
}

static const char *end_mark(sl_chat_kind kind) {
    switch (kind) {
    case SL_CHAT_CHATML: return "<|im_end|>";
    case SL_CHAT_LLAMA3: return "<|eot_id|>";
    case SL_CHAT_LLAMA2:
    case SL_CHAT_MISTRAL: return "</s>";
    case SL_CHAT_PLAIN: break;
    }
    return NULL;
}

int32_t sl_chat_end(sl_chat_kind kind, const sl_tokenizer *tokenizer) {
    const char *mark = end_mark(kind);
    return mark ? sl_tokenizer_special(tokenizer, mark) : -1;
}

const char *const *sl_chat_stops(sl_chat_kind kind) {
    static const char *const plain[] = { "\n\nUser:", "\nUser:", NULL }, *const none[] = { NULL };
    return kind == SL_CHAT_PLAIN ? plain : none;
}

/* ---- writing ------------------------------------------------------------------------------------ */

typedef struct writer {
    const sl_tokenizer *tokenizer;
    int32_t bos;
    sl_buf text; /* not encoded yet */
    int32_t **tokens;
    size_t *n, *cap;
    sl_error *err;
} writer;

static sl_status put_bytes(writer *w, const char *text, size_t n) {
    if (sl_buf_append(&w->text, text, n)) return SL_OK;
    return sl_fail(w->err, SL_E_MEMORY, "out of memory for a message of %zu bytes", n);
}

static sl_status put(writer *w, const char *text) { return put_bytes(w, text, strlen(text)); }

static sl_status flush(writer *w) {
    size_t n = w->text.n;
    w->text.n = 0;
    return sl_tokenizer_encode(w->tokenizer, w->text.data, n, false, w->tokens, w->n, w->cap, w->err);
}

static sl_status put_id(writer *w, int32_t id) {
    SL_TRY(flush(w));
    if (!sl_grow((void **)w->tokens, w->cap, *w->n + 1, sizeof **w->tokens))
        return sl_fail(w->err, SL_E_MEMORY, "out of memory for %zu tokens", *w->n + 1);
    (*w->tokens)[(*w->n)++] = id;
    return SL_OK;
}

/* A mark of the format: its token, or its text where the tokenizer has none. */
static sl_status put_mark(writer *w, const char *mark) {
    int32_t id = sl_tokenizer_special(w->tokenizer, mark);
    return id >= 0 ? put_id(w, id) : put(w, mark);
}

static sl_status put_bos(writer *w) { return w->bos >= 0 ? put_id(w, w->bos) : SL_OK; }

/* Content without white space at its ends. */
static sl_status put_trimmed(writer *w, const sl_message *m) {
    const uint8_t *p = (const uint8_t *)m->content;
    size_t n = m->n_content, n_char = 0;
    while (n && sl_utf8_is_space(sl_utf8_last(p, n, &n_char))) n -= n_char;
    while (n && sl_utf8_char(p, n) && sl_utf8_is_space(sl_utf8_code(p, &n_char))) {
        p += n_char;
        n -= n_char;
    }
    return put_bytes(w, (const char *)p, n);
}

static sl_status put_content(writer *w, const sl_message *m) { return put_bytes(w, m->content, m->n_content); }

/* ---- the formats: one message each -------------------------------------------------------------- */

enum { SYSTEM, USER, ASSISTANT, N_ROLE };
static const char *const ROLES[N_ROLE] = { "system", "user", "assistant" };

static int role_of(const sl_message *m) {
    int role = 0;
    while (role < N_ROLE && (!m->role || strcmp(m->role, ROLES[role]) != 0)) role++;
    return role;
}

static sl_status close_turn(writer *w, sl_chat_kind kind) {
    if (kind == SL_CHAT_PLAIN) return put(w, "\n\n");
    if (kind == SL_CHAT_LLAMA2) SL_TRY(put(w, " "));
    SL_TRY(put_mark(w, end_mark(kind)));
    return kind == SL_CHAT_CHATML ? put(w, "\n") : SL_OK;
}

static sl_status open_turn(writer *w, sl_chat_kind kind, int role) {
    if (kind == SL_CHAT_CHATML) {
        SL_TRY(put_mark(w, "<|im_start|>"));
        SL_TRY(put(w, ROLES[role]));
        return put(w, "\n");
    }
    SL_TRY(put_mark(w, "<|start_header_id|>"));
    SL_TRY(put(w, ROLES[role]));
    SL_TRY(put_mark(w, "<|end_header_id|>"));
    return put(w, "\n\n");
}

static sl_status write_turn(writer *w, sl_chat_kind kind, const sl_message *m) {
    SL_TRY(open_turn(w, kind, role_of(m)));
    SL_TRY(kind == SL_CHAT_LLAMA3 ? put_trimmed(w, m) : put_content(w, m));
    return close_turn(w, kind);
}

static sl_status write_plain(writer *w, const sl_message *m) {
    static const char *const openings[N_ROLE] = { "", "User:", "Assistant:" };
    int role = role_of(m);
    SL_TRY(put(w, openings[role]));
    if (role != SYSTEM && m->n_content) SL_TRY(put(w, " "));
    SL_TRY(put_content(w, m));
    return close_turn(w, SL_CHAT_PLAIN);
}

/* [INST] formats: a system message goes into the next question. */
static sl_status write_question(writer *w, sl_chat_kind kind, const sl_message *system, const sl_message *m) {
    if (kind == SL_CHAT_LLAMA2) SL_TRY(put_bos(w)); /* before every question, as it was trained */
    SL_TRY(put_mark(w, "[INST]"));
    SL_TRY(put(w, " "));
    if (system) {
        SL_TRY(put(w, kind == SL_CHAT_LLAMA2 ? "<<SYS>>\n" : ""));
        SL_TRY(put_content(w, system));
        SL_TRY(put(w, kind == SL_CHAT_LLAMA2 ? "\n<</SYS>>\n\n" : "\n\n"));
    }
    if (m) SL_TRY(kind == SL_CHAT_LLAMA2 ? put_trimmed(w, m) : put_content(w, m));
    SL_TRY(put(w, " "));
    return put_mark(w, "[/INST]");
}

static sl_status write_answer(writer *w, sl_chat_kind kind, const sl_message *m) {
    if (m->n_content) SL_TRY(put(w, " "));
    SL_TRY(put_trimmed(w, m));
    return close_turn(w, kind);
}

static sl_status write_inst(writer *w, sl_chat_kind kind, const sl_message *messages, size_t n) {
    const sl_message *system = NULL;
    for (size_t i = 0; i < n; i++) {
        int role = role_of(&messages[i]);
        if (role == ASSISTANT) SL_TRY(write_answer(w, kind, &messages[i]));
        if (role == USER) SL_TRY(write_question(w, kind, system, &messages[i]));
        if (role == SYSTEM && system) SL_TRY(write_question(w, kind, system, NULL));
        system = role == SYSTEM ? &messages[i] : role == USER ? NULL : system;
    }
    return system ? write_question(w, kind, system, NULL) : SL_OK;
}

static sl_status write_all(writer *w, sl_chat_kind kind, const sl_message *messages, size_t n, bool first,
                           bool answer) {
    if (first && kind != SL_CHAT_LLAMA2) SL_TRY(put_bos(w));
    if (kind == SL_CHAT_LLAMA2 || kind == SL_CHAT_MISTRAL) {
        SL_TRY(write_inst(w, kind, messages, n));
    } else {
        for (size_t i = 0; i < n; i++)
            SL_TRY(kind == SL_CHAT_PLAIN ? write_plain(w, &messages[i]) : write_turn(w, kind, &messages[i]));
    }
    if (answer && kind == SL_CHAT_PLAIN) SL_TRY(put(w, "Assistant:"));
    if (answer && (kind == SL_CHAT_CHATML || kind == SL_CHAT_LLAMA3)) SL_TRY(open_turn(w, kind, ASSISTANT));
    return flush(w);
}

sl_status sl_chat_encode(sl_chat_kind kind, const sl_tokenizer *tokenizer, int32_t bos,
                         const sl_message *messages, size_t n_message, bool first, bool answer,
                         int32_t **tokens, size_t *n, size_t *cap, sl_error *err) {
    sl_name_buf name;
    for (size_t i = 0; i < n_message; i++)
        if (role_of(&messages[i]) == N_ROLE)
            return sl_fail(err, SL_E_ARG, "unknown role \"%s\"; expected system, user or assistant",
                           sl_name(messages[i].role ? messages[i].role : "", &name));
    size_t before = *n;
    writer w = { .tokenizer = tokenizer, .bos = bos, .tokens = tokens, .n = n, .cap = cap, .err = err };
    sl_status status = write_all(&w, kind, messages, n_message, first, answer);
    sl_buf_release(&w.text);
    if (status != SL_OK) *n = before;
    return status;
}
