/* Chat formats: which one a model's chat_template asks for, and conversations as token ids. */
#ifndef SL_TEXT_CHAT_H
#define SL_TEXT_CHAT_H

#include "sluice.h"
#include "text/tokenizer.h"

typedef enum sl_chat_kind {
    SL_CHAT_PLAIN, /* no template: "User: ...\n\nAssistant:" */
    SL_CHAT_CHATML, SL_CHAT_LLAMA2, SL_CHAT_LLAMA3, SL_CHAT_MISTRAL
} sl_chat_kind;

/* By the markers of the Jinja text; template_ may be NULL (plain). *known is false if it was not recognised. */
sl_chat_kind sl_chat_detect(const char *template_, bool *known);
/* Appends the ids of messages (as sl_chat_tokenize in sluice.h), the same as those of the whole text in one
 * piece. bos -1: the model has none. Text of messages never becomes special tokens. An unknown role is
 * SL_E_ARG and names it. */
sl_status sl_chat_encode(sl_chat_kind kind, const sl_tokenizer *tokenizer, int32_t bos,
                         const sl_message *messages, size_t n_message, bool first, bool answer,
                         int32_t **tokens, size_t *n, size_t *cap, sl_error *err);
/* The token that ends an assistant's turn in this format, -1: none (the plain kind stops before "User:" on a new line). */
int32_t sl_chat_end(sl_chat_kind kind, const sl_tokenizer *tokenizer);
/* Texts that end an answer in this format besides tokens: NULL-terminated list. */
const char *const *sl_chat_stops(sl_chat_kind kind);

#endif
