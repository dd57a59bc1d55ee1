/* Sluice: inference for language models without attention, or with little of it.
 *
 *     sl_error err;
 *     sl_model *model;
 *     sl_session *session;
 *     if (sl_model_open("bridge.slu", &model, &err) != SL_OK) { puts(err.text); return 1; }
 *     sl_session_params params = sl_session_params_default();
 *     if (sl_session_create(model, &params, &session, &err) != SL_OK) { puts(err.text); return 1; }
 *
 *     int32_t tokens[64];
 *     size_t n;
 *     sl_tokenize(model, "Once upon a time", 16, SL_TOKENIZE_SPECIAL, tokens, 64, &n, &err);
 *     sl_run run = { .slot = 0, .tokens = tokens, .n_token = n, .logits = SL_LOGITS_LAST };
 *     sl_session_eval(session, &run, 1, &err);
 *     const float *logits = sl_slot_logits(session, 0);      // [n_vocab], after the last token
 *
 * The whole program is tests/unit/example.c.
 *
 * Conventions. Every function that can fail returns sl_status and fills *err (which may be NULL): one
 * line, no control characters. Objects are created by *_open or *_create and released by *_close or
 * *_destroy, which accept NULL. A model is immutable and may serve any number of sessions from any
 * threads; one session is used by one thread at a time. Strings are bytes with a length unless said
 * otherwise. All sizes are in elements unless the name ends in _bytes.
 */
#ifndef SLUICE_H
#define SLUICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLUICE_VERSION "0.1.0"

#if defined(_WIN32)
#define SL_API
#else
#define SL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ------------------------------------------------------------------------------------- */

typedef enum sl_status {
    SL_OK = 0,
    SL_E_ARG = -1,         /* a caller's argument is out of its documented range */
    SL_E_MEMORY = -2,      /* out of memory, of the machine or of a device; large needs are told in the text */
    SL_E_IO = -3,          /* a file could not be read or written */
    SL_E_FORMAT = -4,      /* a file's content is not what its format allows */
    SL_E_UNSUPPORTED = -5, /* valid, but not supported by this build or model */
    SL_E_STATE = -6,       /* a state does not belong to this model, or is damaged */
    SL_E_DEVICE = -7       /* a device is missing, cannot be used, or failed */
} sl_status;

typedef struct sl_error {
    sl_status code;
    char text[600]; /* one line, NUL-terminated, without a program name or newline */
} sl_error;

/* "0.1.0". */
SL_API const char *sl_version(void);
/* A short name of a status code, never NULL. */
SL_API const char *sl_status_text(sl_status status);

/* ---- model -------------------------------------------------------------------------------------- */

typedef struct sl_model sl_model;
typedef struct sl_session sl_session;

typedef struct sl_model_info {
    const char *architecture; /* "bridge", "llama", ...; owned by the model, like every pointer here */
    const char *type;         /* element type of the matrices: "f32", "f16", "bf16", "q8", "q4" */
    size_t n_vocab, n_layer, width;
    uint64_t n_param;         /* elements of all stored tensors */
    uint64_t weight_bytes;
    uint64_t state_bytes;     /* fixed recurrent state of one sequence */
    uint64_t kv_token_bytes;  /* growth per token of one sequence; 0 for models without attention */
    size_t max_context;       /* what the model was made for, not enforced by a session; 0: no limit */
    bool has_tokenizer, has_router;
    int32_t bos;              /* -1: none */
    const int32_t *eos;       /* [n_eos] */
    size_t n_eos;
} sl_model_info;

/* Maps and validates the weight file at path. Checksums of tensor data are not read (sluice verify does). */
SL_API sl_status sl_model_open(const char *path, sl_model **out, sl_error *err);
SL_API void sl_model_close(sl_model *model);
SL_API void sl_model_get_info(const sl_model *model, sl_model_info *info);

/* ---- text --------------------------------------------------------------------------------------- */

enum { SL_TOKENIZE_SPECIAL = 1 }; /* special tokens written out in the text become their ids */

/* Any bytes, also invalid UTF-8, to token ids; nothing is added. Writes at most cap ids and sets
 * *n_token to the number there are (call with cap 0 to ask). SL_E_UNSUPPORTED: no tokenizer. */
SL_API sl_status sl_tokenize(const sl_model *model, const void *text, size_t n_bytes, unsigned flags,
                             int32_t *tokens, size_t cap, size_t *n_token, sl_error *err);
/* The bytes of one token, owned by the model; NULL for an id that the tokenizer does not have, or without one. */
SL_API const void *sl_token_bytes(const sl_model *model, int32_t token, size_t *n_bytes);
/* True for control tokens such as <|endoftext|>, which generated text does not show. */
SL_API bool sl_token_is_special(const sl_model *model, int32_t token);

typedef struct sl_message {
    const char *role;    /* "system", "user" or "assistant" */
    const char *content; /* [n_content] bytes; special tokens in it stay plain text */
    size_t n_content;
} sl_message;

/* Token ids of a conversation in the model's chat format. first: the conversation begins here (a begin
 * token is added where the format has one; Llama 2's stands before every question). answer: append the opening of the
 * assistant's turn. tokens, cap, n_token as in sl_tokenize. SL_E_ARG: an unknown role. */
SL_API sl_status sl_chat_tokenize(const sl_model *model, const sl_message *messages, size_t n_message,
                                  bool first, bool answer, int32_t *tokens, size_t cap, size_t *n_token,
                                  sl_error *err);

/* ---- devices ------------------------------------------------------------------------------------ */

typedef struct sl_device_info {
    char id[16];           /* "cpu", "cuda:0": what sl_session_params.device takes */
    char name[128];        /* of the processor */
    uint64_t memory_bytes, free_bytes; /* 0: not known */
    int driver, runtime;   /* CUDA versions as 1000 * major + 10 * minor; 0: none */
    int capability;        /* compute capability, 10 * major + minor */
    bool usable;
    char reason[200];      /* why not, or what is missing although it is; one line */
    char blas[32];         /* library that computes products of many rows, "libcublas.so.13"; "": none */
} sl_device_info;

/* Writes at most cap devices and returns how many there are. The CPU is the first. Where there is no CUDA device, or none
 * can be asked about, "cuda" stands for them, with the reason. */
SL_API size_t sl_devices(sl_device_info *devices, size_t cap);

/* ---- session ------------------------------------------------------------------------------------ */

typedef enum sl_activations {
    SL_ACTIVATIONS_AUTO, /* f32 on the CPU and for f32 weights, else f16 */
    SL_ACTIVATIONS_F32,
    SL_ACTIVATIONS_F16   /* on the CPU: f32 */
} sl_activations;

typedef struct sl_session_params {
    size_t n_slot;         /* sequences held at once, 1 to 65536 (CUDA: 65535) */
    size_t n_batch;        /* tokens per pass, 1 to 65536 (CUDA: 65535); longer runs are split, with the same result */
    size_t n_thread;       /* 1 to 1024; 0: one per processor. SL_E_MEMORY: so many cannot be started now. A limit that
                              is lowered later ends the process when they are (OpenMP) */
    float route_threshold; /* 0..1 replaces tau in all routed layers; NAN: as stored in the model */
    const char *device;    /* "cpu" (also NULL), "cuda", "cuda:N", or "auto": a CUDA device if one is usable and the
                              model fits, else the CPU. A device asked for by name is never replaced by another. */
    sl_activations activations;
    bool batch_invariant;  /* on a GPU: a sequence's results have the same bits whatever and however many are computed
                              beside it, for runs that are alike; slower. On the CPU they always have */
    void (*progress)(void *arg, uint64_t done, uint64_t all); /* bytes of weights copied to a device; may be NULL. Must
                              not create or destroy sessions; those of other threads wait for it */
    void *progress_arg;
} sl_session_params;

SL_API sl_session_params sl_session_params_default(void); /* 1 slot, 512 tokens, all processors, NAN, the CPU */
/* The model is borrowed and must outlive its sessions; params is not kept, but for progress_arg until this returns. */
SL_API sl_status sl_session_create(const sl_model *model, const sl_session_params *params,
                                   sl_session **out, sl_error *err);
SL_API void sl_session_destroy(sl_session *session);

typedef enum sl_logits_rows { SL_LOGITS_NONE, SL_LOGITS_LAST, SL_LOGITS_ALL } sl_logits_rows;

typedef struct sl_run {
    size_t slot;           /* < n_slot; each slot at most once per call */
    const int32_t *tokens; /* [n_token], each in 0..n_vocab-1 */
    size_t n_token;        /* >= 1 */
    sl_logits_rows logits;
} sl_run;

/* Advances each run's sequence by its tokens: a ragged batch, prefill and decode alike. The result for a
 * sequence does not depend on the other runs, on the threads or on how its tokens are cut into calls: bit for bit on
 * the CPU, to rounding on a CUDA device, which computes passes of many rows by other kernels (docs/cuda.md).
 * On error no slot has advanced, except where a device fails between the passes of a long call: then its slots stand
 * after the last whole pass (sl_slot_position). After SL_E_DEVICE all that goes to the device fails, what slots hold is
 * not defined, and the session is only to be destroyed. tokens may lie in what sl_slot_tokens gave. Runs with
 * SL_LOGITS_ALL may have n_batch tokens together. */
SL_API sl_status sl_session_eval(sl_session *session, const sl_run *runs, size_t n_run, sl_error *err);

typedef struct sl_sampler sl_sampler;
/* The same, and tokens[i] becomes the token that samplers[i] draws after run i, as sl_sampler_sample of its last logits
 * would; samplers[i] NULL: none is drawn, and tokens[i] is left alone, whatever happens. A device that can draw by itself
 * copies the token only, and sl_slot_logits is NULL then, unless the run asks for logits too. On error tokens[i] of a run
 * with a sampler is -1 and samplers[i] as it was before, except for a run without logits that a device had finished when a
 * later pass of a long call failed: then it is the token drawn. A sampler is used by one thread at a time; one of several
 * runs draws for them in an order that depends on the device. SL_E_ARG: a sampler for another n_vocab. */
SL_API sl_status sl_session_eval_draw(sl_session *session, const sl_run *runs, size_t n_run,
                                      sl_sampler *const *samplers, int32_t *tokens, sl_error *err);
/* The id of the device that the session runs on ("cuda:0"), owned by the session. */
SL_API const char *sl_session_device(const sl_session *session);
/* What the session has to do without and what it does instead (a GPU without cuBLAS; the CPU where "auto" found a GPU
 * that cannot be used or is too small), one line for the user, owned by the session; NULL: nothing. */
SL_API const char *sl_session_note(const sl_session *session);

/* [n_vocab] logits after the slot's last token; NULL if they were not asked for. Valid until the next
 * call that changes the slot. */
SL_API const float *sl_slot_logits(const sl_session *session, size_t slot);
/* [n_vocab] logits of token t (below its n_token) of a run of the last sl_session_eval; NULL if it did not ask for
 * SL_LOGITS_ALL. Valid until the next evaluation or rewind of the session. */
SL_API const float *sl_run_logits(const sl_session *session, size_t run, size_t t);

/* ---- state: what a sequence has become ---------------------------------------------------------- */

/* Tokens seen so far; sl_slot_tokens gives them (owned by the session, valid until the end of the next call that may change
 * the slot). A slot that is not there has none: position 0, NULL with 0 tokens, sl_state_bytes 0; its reset does nothing. */
SL_API uint64_t sl_slot_position(const sl_session *session, size_t slot);
SL_API const int32_t *sl_slot_tokens(const sl_session *session, size_t slot, size_t *n_token);
/* Back to the empty sequence. Its memory stays with the slot. */
SL_API void sl_slot_reset(sl_session *session, size_t slot);
/* dst becomes a copy of src, without its checkpoints; src stays as it is. */
SL_API sl_status sl_slot_fork(sl_session *session, size_t src, size_t dst, sl_error *err);
/* Keeps a checkpoint of the slot as it stands, for sl_slot_rewind; at most 64 per slot, the oldest goes. */
SL_API sl_status sl_slot_mark(sl_session *session, size_t slot, sl_error *err);
/* Back to the state after the first n_token tokens: from the nearest checkpoint, the rest computed again;
 * what it was, bit for bit on the CPU. Logits are those after token n_token; later checkpoints go. SL_E_ARG, and nothing
 * has changed: n_token is more than the slot has. On other errors the slot stands at the checkpoint or where the computation
 * broke off (sl_slot_position). */
SL_API sl_status sl_slot_rewind(sl_session *session, size_t slot, uint64_t n_token, sl_error *err);

/* A state as bytes: versioned, checksummed, bound to the model and to the session's route_threshold; layout in
 * docs/format.md. It carries the tokens and the last logits, so that a loaded session goes on bit for bit. */
SL_API uint64_t sl_state_bytes(const sl_session *session, size_t slot);
/* n_bytes: exactly sl_state_bytes. */
SL_API sl_status sl_state_save(const sl_session *session, size_t slot, void *data, uint64_t n_bytes,
                               sl_error *err);
/* A damaged, cut, longer or foreign state is refused (SL_E_STATE) and the slot stays as it was. */
SL_API sl_status sl_state_load(sl_session *session, size_t slot, const void *data, uint64_t n_bytes,
                               sl_error *err);
/* The same with a file, named in every error about it; saving writes beside it, syncs, and replaces it in one step, with
 * the permissions of the file that was there. (A process that has a limit for files should ignore SIGXFSZ.) */
SL_API sl_status sl_state_save_file(const sl_session *session, size_t slot, const char *path, sl_error *err);
SL_API sl_status sl_state_load_file(sl_session *session, size_t slot, const char *path, sl_error *err);

/* ---- sampling ----------------------------------------------------------------------------------- */

typedef struct sl_sampler_params {
    float temperature;    /* >= 0; 0: greedy */
    int32_t top_k;        /* >= 0; 0: off */
    float top_p, min_p;   /* 0 to 1; 1 and 0: off */
    float repeat_penalty; /* 0.001 to 1000; 1: off; divides positive and multiplies negative logits */
    int32_t repeat_last_n; /* tokens it looks back; 0: off, -1: all */
    uint64_t seed;
} sl_sampler_params;

SL_API sl_sampler_params sl_sampler_params_default(void); /* 0.8, 40, 0.95, 0.05, 1.1, 64, seed 0 */
SL_API sl_status sl_sampler_create(const sl_sampler_params *params, size_t n_vocab, sl_sampler **out,
                                   sl_error *err);
SL_API void sl_sampler_destroy(sl_sampler *sampler);
/* Tells the sampler of a token that is now in the text (prompt or generated), for the repeat penalty. */
SL_API void sl_sampler_accept(sl_sampler *sampler, int32_t token);
/* Draws a token from logits [n_vocab]; the same seed and history give the same token. Does not accept it. */
SL_API int32_t sl_sampler_sample(sl_sampler *sampler, const float *logits);

#ifdef __cplusplus
}
#endif
#endif
