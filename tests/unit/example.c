/* The public header in 40 lines: continue a text greedily, keep the state, and go on from a fork of it. */
#include <stdio.h>
#include <string.h>

#include "sluice.h"

static int fail(const sl_error *err) {
    fprintf(stderr, "example: %s\n", err->text);
    return 1;
}

int main(int argc, char **argv) {
    sl_error err;
    sl_model *model;
    sl_session *session;
    if (argc != 3) return fprintf(stderr, "usage: example MODEL.slu TEXT\n"), 2;
    if (sl_model_open(argv[1], &model, &err) != SL_OK) return fail(&err);
    sl_session_params params = sl_session_params_default();
    params.n_slot = 2;
    if (sl_session_create(model, &params, &session, &err) != SL_OK) return fail(&err);
    sl_sampler_params greedy = sl_sampler_params_default();
    sl_sampler *sampler;
    sl_model_info info;
    greedy.temperature = 0;
    sl_model_get_info(model, &info);
    if (sl_sampler_create(&greedy, info.n_vocab, &sampler, &err) != SL_OK) return fail(&err);

    int32_t tokens[256];
    size_t n, n_bytes;
    if (sl_tokenize(model, argv[2], strlen(argv[2]), SL_TOKENIZE_SPECIAL, tokens, 256, &n, &err) != SL_OK) return fail(&err);
    sl_run run = { .slot = 0, .tokens = tokens, .n_token = n < 256 ? n : 256, .logits = SL_LOGITS_LAST };
    if (sl_session_eval(session, &run, 1, &err) != SL_OK) return fail(&err);
    for (size_t slot = 0; slot < 2; slot++) { /* slot 1 goes on from a copy of what slot 0 was */
        if (slot == 0 && sl_slot_fork(session, 0, 1, &err) != SL_OK) return fail(&err);
        for (int i = 0; i < 20; i++) {
            int32_t token = sl_sampler_sample(sampler, sl_slot_logits(session, slot));
            const void *text = sl_token_bytes(model, token, &n_bytes);
            fwrite(text, 1, n_bytes, stdout);
            run = (sl_run){ .slot = slot, .tokens = &token, .n_token = 1, .logits = SL_LOGITS_LAST };
            if (sl_session_eval(session, &run, 1, &err) != SL_OK) return fail(&err);
        }
        putchar('\n');
    }
    sl_sampler_destroy(sampler);
    sl_session_destroy(session);
    sl_model_close(model);
    return 0;
}
