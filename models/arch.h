/* What an architecture is: hyperparameters read from metadata, the tensors they ask for, and the graph.
 * One file per architecture, one line in models.def. */
#ifndef SL_MODELS_ARCH_H
#define SL_MODELS_ARCH_H

#include "base/meta.h"
#include "kernels/types.h"

struct sl_graph;
struct sl_weights;

/* How a tensor is stored when a model is written with --type T. */
typedef enum sl_tensor_class {
    SL_TENSOR_MATRIX, /* T */
    SL_TENSOR_EMBED,  /* T, but q8 for q4: embedding and head keep more bits */
    SL_TENSOR_SMALL,  /* T, but f16 for q8 and q4: small matrices (gates) */
    SL_TENSOR_KEEP    /* always f32 */
} sl_tensor_class;

enum { SL_MAX_DIM = 4, SL_MAX_NAME = 96, SL_MAX_LAYER = 1024, SL_MAX_EOS = 16, SL_MAX_WIDTH = 1 << 20, SL_MAX_VOCAB = 1 << 24 };

/* A tensor's name and shape, outermost first as in PyTorch; rows (of the last dimension) are what types.h
 * lays out. */
typedef struct sl_tensor_spec {
    char name[SL_MAX_NAME];
    uint32_t n_dim;
    uint64_t shape[SL_MAX_DIM]; /* each in 1..2^31-1 */
    sl_tensor_class class_;
} sl_tensor_spec;

typedef struct sl_schema { sl_tensor_spec *specs; size_t n, cap; } sl_schema;

/* A tensor that a layer (or the model) has if there is set. */
typedef struct sl_tensor_rule {
    bool there;
    sl_tensor_class class_;
    const char *name; /* printf-formatted with the layer's number */
    uint32_t n_dim;
    uint64_t shape[3];
} sl_tensor_rule;

/* Appends those of the n rules that are there. False: out of memory. */
bool sl_schema_add(sl_schema *schema, const sl_tensor_rule *rules, size_t n, size_t layer);
void sl_schema_release(sl_schema *schema);

/* The element type a tensor of this class is stored in for a model of this type. */
sl_type sl_class_type(sl_tensor_class class_, sl_type model_type);
/* Whether a file may store a tensor of this class in this type: KEEP is f32, SMALL is not quantised. */
bool sl_class_allows(sl_tensor_class class_, sl_type type);
uint64_t sl_spec_rows(const sl_tensor_spec *spec);  /* product of all but the last dimension */
uint64_t sl_spec_width(const sl_tensor_spec *spec); /* the last dimension */
/* Bytes of the whole tensor in that type; false: does not fit in 63 bits. */
bool sl_spec_bytes(const sl_tensor_spec *spec, sl_type type, uint64_t *bytes);

typedef struct sl_arch {
    const char *model_type; /* as in config.json */
    size_t hyper_bytes;     /* of the architecture's own struct */
    /* Reads and checks every hyperparameter; fills *hyper. Errors name the key. */
    sl_status (*hyper)(const sl_meta *meta, void *hyper, sl_error *err);
    /* All tensors of a checkpoint with these hyperparameters; nothing else may be in it. */
    sl_status (*schema)(const void *hyper, sl_schema *schema, sl_error *err);
    /* Emits the graph over the weights. */
    sl_status (*build)(const void *hyper, const struct sl_weights *weights, struct sl_graph *graph, sl_error *err);
} sl_arch;

/* An integer of 1 to max; *out is the default of a key that is not required. */
sl_status sl_arch_size(const sl_meta *meta, const char *key, bool required, int64_t max, size_t *out, sl_error *err);
/* A key that is one token id or a list of at most max: each must be below n_vocab. Absent: *n is 0. */
sl_status sl_arch_token_ids(const sl_meta *meta, const char *key, size_t n_vocab, int32_t *ids, size_t max, size_t *n,
                            sl_error *err);
/* bos_token_id and eos_token_id, for the hyper functions. */
sl_status sl_arch_check_tokens(const sl_meta *meta, size_t n_vocab, sl_error *err);

/* NULL: unknown. */
const sl_arch *sl_arch_find(const char *model_type);
/* "bridge, llama, mistral, ..." for messages. */
const char *sl_arch_names(void);
/* Reads "model_type" from meta; an absent or unknown one is an error that lists the known. */
sl_status sl_arch_of(const sl_meta *meta, const sl_arch **arch, sl_error *err);

#endif
