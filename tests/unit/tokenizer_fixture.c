#include "tokenizer_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

json_t *fixture_load(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/tests/unit/tokenizers/%s.json", SL_TEST_ROOT, name);
    json_t *root = json_load_file(path, 0, NULL);
    if (!root) fail_msg("cannot read %s", path);
    return root;
}

sl_status fixture_create(const json_t *tokenizer, sl_tokenizer **out, sl_error *err) {
    char *text = json_dumps(tokenizer, JSON_COMPACT);
    *out = NULL;
    sl_status status = sl_tokenizer_create(text, strlen(text), FIXTURE_N_VOCAB, out, err);
    free(text);
    return status;
}

sl_tokenizer *fixture_open(const char *name, const char *const *special) {
    json_t *root = fixture_load(name), *json = json_object_get(root, "tokenizer");
    json_t *added = json_object_get(json, "added_tokens");
    sl_tokenizer *t;
    sl_error err;
    for (int i = 0; special && special[i]; i++) {
        json_t *token = json_pack("{s:i,s:s,s:b}", "id", 1000 + i, "content", special[i], "special", 1);
        assert_int_equal(json_array_append_new(added, token), 0);
    }
    if (fixture_create(json, &t, &err) != SL_OK) fail_msg("%s: %s", name, err.text);
    json_decref(root);
    return t;
}

void fixture_encode(const sl_tokenizer *t, const void *text, size_t n, bool special, ids *out) {
    sl_error err;
    out->n = 0;
    if (sl_tokenizer_encode(t, text, n, special, &out->v, &out->n, &out->cap, &err) != SL_OK)
        fail_msg("%s", err.text);
}
