/* States as bytes: one sequence of one model, versioned and checksummed. Layout in docs/format.md:
 * header, tokens i32, logits f32, recurrent state f32, KV elements. As hostile as a weight file: sizes are
 * derived from the model and must match exactly before anything is read. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "os/os.h"
#include "run/session.h"

static const char magic[8] = { 'S', 'L', 'S', 'T', 'A', 'T', 'E', '1' };
enum { STATE_VERSION = 1, FLAG_LOGITS = 1, FLAG_KV_F16 = 2 };

typedef struct state_header {
    char magic[8];
    uint32_t version, flags;
    uint64_t fingerprint;  /* of the model */
    uint64_t total_bytes;  /* of the whole state, header included */
    uint64_t n_token;
    uint64_t state_floats; /* recurrent */
    uint64_t kv_bytes;
    uint32_t n_vocab;
    uint32_t tau_bits;     /* f32 route threshold in force; 0xFFFFFFFF: as stored in the model */
    uint64_t checksum;     /* XXH3-64 of everything else */
} state_header;

_Static_assert(sizeof(state_header) == 72, "the header has no padding");

static uint32_t tau_bits(float tau) {
    uint32_t bits;
    memcpy(&bits, &tau, sizeof bits);
    return isnan(tau) ? UINT32_MAX : tau == 0 ? 0 : bits; /* of both zeros the same */
}

/* The header of a state with n_token tokens; false: its size does not fit. */
static bool make_header(const sl_session *s, uint64_t n_token, bool logits, state_header *h) {
    const sl_graph *g = &s->model->graph;
    memset(h, 0, sizeof *h);
    memcpy(h->magic, magic, sizeof magic);
    h->version = STATE_VERSION;
    h->flags = (logits ? FLAG_LOGITS : 0u) | (s->kv_f16 && g->n_kv ? FLAG_KV_F16 : 0u);
    h->fingerprint = s->model->fingerprint;
    h->n_token = n_token;
    h->state_floats = g->state_floats;
    h->n_vocab = (uint32_t)s->model->n_vocab;
    h->tau_bits = tau_bits(s->tau);
    uint64_t tokens, fixed = sizeof *h + (g->state_floats + (logits ? (uint64_t)h->n_vocab : 0)) * sizeof(float);
    return sl_mul(n_token, sizeof(int32_t), &tokens) && sl_mul(n_token, sl_kv_token_bytes(g, s->kv_f16), &h->kv_bytes) &&
           sl_add(fixed, tokens, &h->total_bytes) && sl_add(h->total_bytes, h->kv_bytes, &h->total_bytes);
}

uint64_t sl_state_checksum(const void *data, uint64_t n_bytes) {
    state_header h;
    memcpy(&h, data, sizeof h);
    h.checksum = 0;
    uint64_t seed = XXH3_64bits(&h, sizeof h);
    return XXH3_64bits_withSeed((const uint8_t *)data + sizeof h, (size_t)(n_bytes - sizeof h), seed);
}

uint64_t sl_state_bytes(const sl_session *s, size_t slot) {
    state_header h;
    if (slot >= s->n_slot) return 0;
    const sl_slot *p = &s->slots[slot];
    return make_header(s, p->n_token, p->has_logits, &h) ? h.total_bytes : 0;
}

/* The parts of a body in their order. */
typedef struct state_body { uint8_t *tokens, *logits, *state, *kv; } state_body;

static state_body body_parts(const state_header *h, uint8_t *data) {
    state_body b;
    b.tokens = data + sizeof *h;
    b.logits = b.tokens + h->n_token * sizeof(int32_t);
    b.state = b.logits + (h->flags & FLAG_LOGITS ? h->n_vocab * sizeof(float) : 0);
    b.kv = b.state + h->state_floats * sizeof(float);
    return b;
}

sl_status sl_state_save(const sl_session *s, size_t slot, void *data, uint64_t n_bytes, sl_error *err) {
    if (slot >= s->n_slot) return sl_fail(err, SL_E_ARG, "slot %zu, expected 0 to %zu", slot, s->n_slot - 1);
    const sl_slot *p = &s->slots[slot];
    state_header h;
    if (p->skipped) return sl_fail(err, SL_E_UNSUPPORTED, "a slot of a made-up depth cannot be saved");
    if (!make_header(s, p->n_token, p->has_logits, &h) || n_bytes != h.total_bytes)
        return sl_fail(err, SL_E_ARG, "space of %llu bytes for a state, expected %llu", (unsigned long long)n_bytes,
                       (unsigned long long)h.total_bytes);
    state_body b = body_parts(&h, data);
    if (p->n_token) memcpy(b.tokens, p->tokens, p->n_token * sizeof(int32_t));
    if (p->has_logits) memcpy(b.logits, p->logits, h.n_vocab * sizeof(float));
    SL_TRY(s->backend->read_state(s->device, slot, (float *)(void *)b.state, err));
    SL_TRY(s->backend->read_kv(s->device, slot, p->n_token, b.kv, err));
    memcpy(data, &h, sizeof h);
    h.checksum = sl_state_checksum(data, n_bytes);
    memcpy(data, &h, sizeof h);
    return SL_OK;
}

/* ---- loading ------------------------------------------------------------------------------------ */

static sl_status check_identity(const sl_session *s, const state_header *h, sl_error *err) {
    if (memcmp(h->magic, magic, sizeof magic)) return sl_fail(err, SL_E_STATE, "not a state: no \"SLSTATE1\" at its start");
    if (h->version != STATE_VERSION)
        return sl_fail(err, SL_E_STATE, "state version %u, expected %d", h->version, STATE_VERSION);
    if (h->fingerprint != s->model->fingerprint)
        return sl_fail(err, SL_E_STATE, "the state belongs to another model (fingerprint %016llx, expected %016llx)",
                       (unsigned long long)h->fingerprint, (unsigned long long)s->model->fingerprint);
    if (h->tau_bits != tau_bits(s->tau)) {
        float tau;
        memcpy(&tau, &h->tau_bits, sizeof tau);
        if (isnan(tau)) return sl_fail(err, SL_E_STATE, "the state was made with the model's own route threshold, "
                                       "expected %g as given for this session", (double)s->tau);
        return sl_fail(err, SL_E_STATE, "the state was made with route threshold %g, expected that of this session",
                       (double)tau);
    }
    return SL_OK;
}

/* Everything about a state before any of it is used. */
static sl_status check_state(const sl_session *s, const uint8_t *data, uint64_t n_bytes, state_header *h, sl_error *err) {
    state_header expected;
    if (n_bytes < sizeof *h)
        return sl_fail(err, SL_E_STATE, "the state has %llu bytes, expected at least %zu", (unsigned long long)n_bytes,
                       sizeof *h);
    memcpy(h, data, sizeof *h);
    SL_TRY(check_identity(s, h, err));
    if (!make_header(s, h->n_token, h->flags & FLAG_LOGITS, &expected) || expected.total_bytes != n_bytes)
        return sl_fail(err, SL_E_STATE, "the state has %llu bytes, expected %llu for its %llu tokens",
                       (unsigned long long)n_bytes, (unsigned long long)expected.total_bytes,
                       (unsigned long long)h->n_token);
    expected.checksum = h->checksum;
    if (memcmp(h, &expected, sizeof *h)) return sl_fail(err, SL_E_STATE, "the state's header does not fit the model");
    if (sl_state_checksum(data, n_bytes) != h->checksum)
        return sl_fail(err, SL_E_STATE, "the state is damaged: its checksum does not fit its bytes");
    for (uint64_t i = 0; i < h->n_token; i++) {
        int32_t token;
        memcpy(&token, data + sizeof *h + i * sizeof token, sizeof token);
        if (token < 0 || (uint32_t)token >= h->n_vocab)
            return sl_fail(err, SL_E_STATE, "the state's token %llu is %d, expected 0 to %u", (unsigned long long)i, token,
                           h->n_vocab - 1);
    }
    return SL_OK;
}

/* The body need not be aligned; the backend wants floats. */
static sl_status load_floats(sl_session *s, size_t slot, const state_header *h, const uint8_t *from, sl_error *err) {
    float *copy;
    SL_TRY(sl_alloc((void **)&copy, h->state_floats, sizeof *copy, "a state", err));
    memcpy(copy, from, h->state_floats * sizeof *copy);
    sl_status status = s->backend->write_state(s->device, slot, copy, err);
    free(copy);
    return status;
}

sl_status sl_state_load(sl_session *s, size_t slot, const void *data, uint64_t n_bytes, sl_error *err) {
    if (slot >= s->n_slot) return sl_fail(err, SL_E_ARG, "slot %zu, expected 0 to %zu", slot, s->n_slot - 1);
    sl_slot *p = &s->slots[slot];
    state_header h;
    SL_TRY(check_state(s, data, n_bytes, &h, err));
    if (!sl_grow((void **)&p->tokens, &p->cap_token, (size_t)h.n_token, sizeof *p->tokens))
        return sl_fail(err, SL_E_MEMORY, "out of memory for %llu tokens", (unsigned long long)h.n_token);
    SL_TRY(s->backend->reserve(s->device, slot, h.n_token, err));
    state_body b = body_parts(&h, (uint8_t *)(uintptr_t)data);
    SL_TRY(load_floats(s, slot, &h, b.state, err));
    uint64_t n_mark = p->n_mark;
    while (n_mark) free(p->marks[--n_mark].state);
    p->n_mark = 0;
    if (h.n_token) memcpy(p->tokens, b.tokens, h.n_token * sizeof(int32_t));
    p->n_token = (size_t)h.n_token;
    p->skipped = 0;
    p->has_logits = h.flags & FLAG_LOGITS;
    if (p->has_logits) memcpy(p->logits, b.logits, h.n_vocab * sizeof(float));
    return s->backend->write_kv(s->device, slot, h.n_token, b.kv, err);
}

/* ---- files -------------------------------------------------------------------------------------- */

sl_status sl_state_save_file(const sl_session *s, size_t slot, const char *path, sl_error *err) {
    if (slot >= s->n_slot) return sl_fail(err, SL_E_ARG, "slot %zu, expected 0 to %zu", slot, s->n_slot - 1);
    uint64_t n_bytes = sl_state_bytes(s, slot);
    void *data;
    sl_os_out out = { 0 };
    SL_TRY(sl_alloc(&data, (size_t)n_bytes, 1, "a state", err));
    sl_status status = sl_state_save(s, slot, data, n_bytes, err);
    if (status == SL_OK) status = sl_os_out_open(&out, path, err);
    if (status == SL_OK) {
        status = sl_os_out_write(&out, data, n_bytes, err);
        if (status == SL_OK) status = sl_os_out_commit(&out, err);
        if (status != SL_OK) sl_os_out_abort(&out);
    }
    free(data);
    return status;
}

sl_status sl_state_load_file(sl_session *s, size_t slot, const char *path, sl_error *err) {
    sl_os_map map;
    sl_error why;
    sl_name_buf name;
    sl_status status = sl_os_map_file(&map, path, &why);
    if (status != SL_OK) return sl_fail(err, status == SL_E_FORMAT ? SL_E_STATE : status, "%s", why.text); /* empty */
    status = sl_state_load(s, slot, map.data, map.size, &why);
    sl_os_unmap(&map);
    return status == SL_OK ? SL_OK : sl_fail(err, status, "%s: %s", sl_os_path_name(path, &name), why.text);
}
