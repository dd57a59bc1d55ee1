/* Tiny models made in memory for the tests: shapes with tails, every kind of layer. */
#ifndef SL_TESTS_MADE_MODEL_H
#define SL_TESTS_MADE_MODEL_H

#include "run/model.h"

/* Beside the kinds that all tests meet: a Bridge whose inner width is a fraction of its width. */
typedef enum made_kind { MADE_BRIDGE, MADE_BRIDGE_PLAIN, MADE_LLAMA, MADE_KINDS, MADE_BRIDGE_NARROW } made_kind;

/* A model of this kind and type; the same seed gives the same weights. Fails the test on error. */
sl_model *make_model(made_kind kind, sl_type type, uint64_t seed);
/* With n_vocab tokens instead of 101. */
sl_model *make_model_of(made_kind kind, size_t n_vocab, sl_type type, uint64_t seed);
/* The same weights as f32, rounded as the model's type has rounded them; keys and values as the model keeps them. */
sl_model *make_f32_twin(made_kind kind, sl_model *model);

#endif
