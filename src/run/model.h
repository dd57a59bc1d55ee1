/* A model in memory: weights (mapped from a file or made), hyperparameters, graph, tokenizer. */
#ifndef SL_RUN_MODEL_H
#define SL_RUN_MODEL_H

#include "file/slu.h"
#include "graph/graph.h"
#include "text/chat.h"

struct sl_model {
    sl_slu slu;              /* the file, if any */
    void *owned;             /* data of a made model, from sl_os_pages_unreserved */
    uint64_t owned_bytes;
    const sl_arch *arch;
    void *hyper;
    sl_weights weights;
    sl_graph graph;
    sl_tokenizer *tokenizer; /* NULL: none */
    sl_chat_kind chat;
    const char *chat_template; /* or NULL */
    sl_type type;
    int32_t chat_bos;        /* begin token of conversations, -1: none */
    int32_t bos, eos[SL_MAX_EOS];
    size_t n_eos, n_vocab, n_layer, width, max_context;
    uint64_t n_param, fingerprint;
};

/* A model made in memory from metadata (as a config.json would give): init writes one stored row of a tensor
 * (sl_row_bytes of its width in that type) at a time and returns 0, or returns the size of random values that a device
 * is to make in its place. For bench. */
typedef float (*sl_tensor_init)(void *arg, const sl_tensor_spec *spec, sl_type type, uint64_t row, void *stored);
sl_status sl_model_make(const sl_meta *meta, sl_type type, sl_tensor_init init, void *arg, sl_model **out,
                        sl_error *err);

#endif
