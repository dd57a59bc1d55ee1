/* State files: any bytes are a state of one of two tiny models, or are refused and change nothing. Each input is
 * tried as it is and with its checksum set right, so that the search gets behind the checksum. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "made_model.h"
#include "run/session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 72, CHECKSUM = 64 };

static sl_session *sessions[2];

static void open_sessions(void) {
    sl_session_params params = sl_session_params_default();
    params.n_batch = 16;
    params.n_thread = 1;
    for (int i = 0; i < 2; i++) {
        sl_model *model = make_model(i ? MADE_LLAMA : MADE_BRIDGE, SL_F32, 1);
        model->fingerprint = 1;
        if (sl_session_create(model, &params, &sessions[i], NULL) != SL_OK) abort();
    }
}

/* What was loaded must go on; what was refused must leave the slot empty. */
static void try_state(sl_session *s, const uint8_t *data, size_t size) {
    sl_error err;
    const int32_t token = 3;
    const sl_run run = { 0, &token, 1, SL_LOGITS_LAST };
    sl_slot_reset(s, 0);
    if (sl_state_load(s, 0, data, size, &err) == SL_OK) {
        if (sl_session_eval(s, &run, 1, &err) != SL_OK) abort();
    } else if (sl_slot_position(s, 0) || !err.text[0] || strlen(err.text) > 599) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!sessions[0]) open_sessions();
    for (int i = 0; i < 2; i++) try_state(sessions[i], data, size);
    if (size < HEADER) return 0;
    uint8_t *sealed = malloc(size);
    if (!sealed) return 0;
    memcpy(sealed, data, size);
    uint64_t checksum = sl_state_checksum(sealed, size);
    memcpy(sealed + CHECKSUM, &checksum, sizeof checksum);
    for (int i = 0; i < 2; i++) try_state(sessions[i], sealed, size);
    free(sealed);
    return 0;
}
