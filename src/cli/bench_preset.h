/* Models of random weights, made in memory: the shapes of the presets in docs/bridge.md. What they compute
 * has no meaning; what they read and how much they compute is that of a trained model of the same shape. */
#ifndef SL_CLI_BENCH_PRESET_H
#define SL_CLI_BENCH_PRESET_H

#include "kernels/types.h"
#include "sluice.h"

typedef struct sl_preset {
    const char *name;
    bool attention; /* a transformer, else a Bridge */
    size_t d, n_layer, n_head, n_group /* of B and C, or key/value heads */, head_dim, f, n_vocab;
} sl_preset;

/* "bridge-1.3b:q4:deep=0.5" */
typedef struct sl_synthetic {
    const sl_preset *preset;
    sl_type type;
    float deep; /* share of deep tokens in routed layers, 0..1 */
    bool on_device; /* matrices are made on the GPU that the model runs on: none in memory */
} sl_synthetic;

/* NAME[:TYPE][:deep=X]; without a type q4, without a share 0.5. The error quotes the part that is wrong. */
sl_status sl_synthetic_parse(const char *text, sl_synthetic *out, sl_error *err);
/* The transformer that a Bridge preset is measured against, in the same type; NULL for other presets. */
const sl_preset *sl_preset_twin(const sl_preset *preset);
/* Routers' biases are set to the deep share. */
sl_status sl_synthetic_make(const sl_synthetic *synthetic, sl_model **out, sl_error *err);
/* Bytes that sl_synthetic_make needs, about. */
uint64_t sl_synthetic_bytes(const sl_synthetic *synthetic);
/* "bridge-1.3b, ..." for messages. */
const char *sl_preset_names(void);

#endif
