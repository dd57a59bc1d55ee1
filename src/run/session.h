/* Inside of a session: slots over one device. */
#ifndef SL_RUN_SESSION_H
#define SL_RUN_SESSION_H

#include "backend/devices.h"
#include "run/model.h"

enum { SL_MAX_MARK = 64 };

/* A checkpoint: what a slot's recurrent state and logits were at a position. */
typedef struct sl_mark {
    uint64_t position;
    float *state;  /* [state_floats], then [n_vocab] logits */
    bool has_logits;
} sl_mark;

typedef struct sl_slot {
    int32_t *tokens; /* [n_token] all it has seen */
    size_t n_token, cap_token;
    int32_t *replaced; /* where tokens were before this call: its runs may point there */
    float *logits;   /* [n_vocab], borrowed from the session's block */
    bool has_logits;
    sl_mark marks[SL_MAX_MARK]; /* by increasing position */
    size_t n_mark;
    uint64_t skipped; /* positions without tokens: a depth that was made up (bench only) */
} sl_slot;

struct sl_session {
    const sl_model *model;
    const sl_backend *backend;
    sl_device *device;
    sl_device_choice choice;
    size_t n_slot, n_batch;
    bool invariant;   /* a run that fits one pass is not cut for the sake of others */
    float tau;        /* NAN: as stored */
    bool kv_f16;
    sl_slot *slots;
    float *slot_logits;  /* [n_slot][n_vocab] */
    float *run_logits;   /* [n_batch][n_vocab]: rows of SL_LOGITS_ALL; NULL before the first */
    uint64_t run_logits_bytes;
    size_t *run_first;   /* [n_slot] first such row of each run, SIZE_MAX: none */
    size_t n_run;
    /* one pass being put together */
    int32_t *tokens;     /* [n_batch] */
    uint32_t *out_rows;  /* [n_batch] */
    float **out;         /* [n_batch] */
    sl_draw *draws;      /* [n_slot] tokens drawn on the device, */
    int32_t *drawn;      /* [n_slot] */
    size_t *draw_run;    /* [n_slot] and the runs they belong to */
    sl_batch_run *runs;  /* [n_slot] */
};

/* What passes have read since the counters were last zeroed; the caller may zero them. */
sl_counters *sl_session_counters(sl_session *session);
/* See sl_backend.profile. */
sl_status sl_session_profile(sl_session *session, sl_node_time *nodes, sl_error *err);
size_t sl_session_threads(const sl_session *session);
/* Until a device that works on its own has done everything asked of it: for clocks. */
sl_status sl_session_wait(sl_session *session, sl_error *err);
/* Makes the slot one that has seen n tokens without computing them: states from a fixed pattern of small
 * numbers, KV stores filled the same way. For the bench; such a slot cannot be saved or rewound. */
sl_status sl_session_fake_depth(sl_session *session, size_t slot, uint64_t n, sl_error *err);

/* The checksum that belongs into the header of a state of n_bytes (>= the header's 72). */
uint64_t sl_state_checksum(const void *data, uint64_t n_bytes);

#endif
