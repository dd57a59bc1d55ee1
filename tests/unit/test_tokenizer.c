/* The tokenizer against ids from other implementations, over all bytes, and on hostile files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tokenizer_fixture.h"

/* ---- what the tests share ----------------------------------------------------------------------- */

static char *read_all(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    sl_buf buf = { 0 };
    uint8_t part[4096];
    while ((*n = fread(part, 1, sizeof part, file)) > 0) assert_true(sl_buf_append(&buf, part, *n));
    fclose(file);
    assert_true(sl_buf_append(&buf, "", 1));
    *n = buf.n - 1;
    return (char *)buf.data;
}

static void assert_decodes(const sl_tokenizer *t, const ids *tokens, const void *text, size_t n_text) {
    sl_buf buf = { 0 };
    for (size_t i = 0; i < tokens->n; i++) {
        size_t n;
        const uint8_t *bytes = sl_tokenizer_bytes(t, tokens->v[i], &n);
        assert_non_null(bytes);
        assert_true(sl_buf_append(&buf, bytes, n));
    }
    assert_int_equal(buf.n, n_text);
    if (n_text) assert_memory_equal(buf.data, text, n_text);
    sl_buf_release(&buf);
}

static uint32_t next_random(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* ---- against other implementations -------------------------------------------------------------- */

static void assert_ids(const ids *got, const json_t *want, const char *name, const char *text) {
    size_t n = json_array_size(want);
    for (size_t i = 0; i < got->n || i < n; i++) {
        int32_t id = i < n ? (int32_t)json_integer_value(json_array_get(want, i)) : -1;
        int32_t has = i < got->n ? got->v[i] : -1;
        if (has != id) fail_msg("%s: \"%s\": token %zu is %d, expected %d", name, text, i, has, id);
    }
}

static void test_kinds(void **state) {
    (void)state;
    static const char *const names[] = { "gpt2",  "prefix", "llama3", "qwen2",  "tekken",    "han",
                                         "added", "falcon", "merged", "llama2", "metaspace", "gemma" };
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        json_t *root = fixture_load(names[k]), *one, *cases = json_object_get(root, "cases");
        sl_tokenizer *t = fixture_open(names[k], NULL);
        ids tokens = { 0 };
        size_t i;
        assert_true(json_array_size(cases) > 20);
        json_array_foreach(cases, i, one) {
            const json_t *text = json_object_get(one, "text"), *plain = json_object_get(one, "plain");
            const char *p = json_string_value(text);
            fixture_encode(t, p, json_string_length(text), true, &tokens);
            assert_ids(&tokens, json_object_get(one, "ids"), names[k], p);
            fixture_encode(t, p, json_string_length(text), false, &tokens);
            assert_ids(&tokens, plain ? plain : json_object_get(one, "ids"), names[k], p);
        }
        free(tokens.v);
        sl_tokenizer_destroy(t);
        json_decref(root);
    }
}

/* One text of the vectors against its line of ids. Returns the start of the next line. */
static const char *check_line(const sl_tokenizer *t, const char *text, size_t n, const char *line,
                              ids *tokens) {
    fixture_encode(t, text, n, true, tokens);
    const char *end = line + strcspn(line, "\n");
    for (size_t i = 0; i < tokens->n; i++) {
        char *next;
        assert_int_equal(tokens->v[i], strtol(line, &next, 10));
        line = next;
    }
    while (*line == ' ') line++;
    assert_ptr_equal(line, end);
    return end + (*end == '\n');
}

static size_t check_vectors(const char *folder, const char *tokenizer, const char *name) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[3][512];
    size_t n_json, n_text, n_ids, n_case = 0;
    snprintf(path[0], sizeof path[0], "%s/%s", folder, tokenizer);
    snprintf(path[1], sizeof path[1], "%s/vectors/%s.inp", folder, name);
    snprintf(path[2], sizeof path[2], "%s/vectors/%s.out", folder, name);
    char *json = read_all(path[0], &n_json), *text = read_all(path[1], &n_text);
    char *lines = read_all(path[2], &n_ids);
    if (json && text && lines) {
        sl_tokenizer *t;
        sl_error err;
        if (sl_tokenizer_create(json, n_json, FIXTURE_N_VOCAB, &t, &err) != SL_OK)
            fail_msg("%s: %s", tokenizer, err.text);
        ids tokens = { 0 };
        const char *p = text, *line = lines;
        for (const char *end; (end = strstr(p, mark)) != NULL; p = end + sizeof mark - 1, n_case++)
            line = check_line(t, p, (size_t)(end - p), line, &tokens);
        free(tokens.v);
        sl_tokenizer_destroy(t);
    }
    free(json);
    free(text);
    free(lines);
    return n_case;
}

static void test_vectors(void **state) {
    (void)state;
    const char *folder = SL_TEST_ROOT "/../shared/data/tokenizers";
    size_t n = check_vectors(folder, "gpt2_tokenizer.json", "gpt-2");
    if (!n) {
        print_message("skipped: no ../shared/data\n");
        skip();
    }
    assert_int_equal(n, 46);
    assert_int_equal(check_vectors(folder, "gpt_neox_20b/tokenizer.json", "mpt"), 46);
}

/* ---- any bytes ---------------------------------------------------------------------------------- */

static void test_all_bytes(void **state) {
    (void)state;
    static const char *const names[] = { "gpt2", "llama3", "tekken", "falcon" };
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        sl_tokenizer *t = fixture_open(names[k], NULL);
        ids tokens = { 0 };
        uint32_t seed = 1;
        uint8_t text[64];
        for (int round = 0; round < 3000; round++) {
            static const uint8_t likely[] = "\xE2\x96\x81\xF0\x9F\xA6\x99\xED\xA0\xC0 a\n'<|9";
            size_t n = next_random(&seed) % sizeof text;
            for (size_t i = 0; i < n; i++) {
                uint32_t r = next_random(&seed);
                text[i] = r & 1 ? (uint8_t)(r >> 8) : likely[(r >> 1) % (sizeof likely - 1)];
            }
            fixture_encode(t, text, n, round & 1, &tokens);
            assert_decodes(t, &tokens, text, n);
        }
        free(tokens.v);
        sl_tokenizer_destroy(t);
    }
}

static void test_invalid_utf8(void **state) {
    (void)state;
    sl_tokenizer *t = fixture_open("gpt2", NULL);
    ids tokens = { 0 }, one = { 0 };
    static const char text[] = "hello\xE2\x96 hello\xFF";
    fixture_encode(t, text, sizeof text - 1, true, &tokens);
    assert_decodes(t, &tokens, text, sizeof text - 1);
    fixture_encode(t, "hello", 5, true, &one); /* what is valid is encoded as if it stood alone */
    assert_memory_equal(tokens.v, one.v, one.n * sizeof *one.v);
    free(one.v);
    free(tokens.v);
    sl_tokenizer_destroy(t);
}

/* Byte fallback: the byte's own token; a byte that has none in a byte-level vocabulary: U+FFFD. */
static void test_bytes_of_other_kinds(void **state) {
    (void)state;
    ids tokens = { 0 };
    sl_tokenizer *t = fixture_open("llama2", NULL);
    size_t n;
    fixture_encode(t, "\xFF", 1, true, &tokens);
    assert_int_equal(tokens.v[tokens.n - 1], 3 + 0xFF);
    assert_int_equal(*sl_tokenizer_bytes(t, 3 + 0xFF, &n), 0xFF);
    assert_true(sl_tokenizer_adds_space(t));
    assert_string_equal(sl_tokenizer_kind(t), "BPE with byte fallback");
    sl_tokenizer_destroy(t);

    json_t *root = fixture_load("gpt2"), *json = json_object_get(root, "tokenizer");
    sl_error err;
    json_object_del(json_object_get(json_object_get(json, "model"), "vocab"), "\xC3\x80"); /* of byte 0xC0 */
    if (fixture_create(json, &t, &err) != SL_OK) fail_msg("%s", err.text);
    fixture_encode(t, "\xC0", 1, true, &tokens);
    assert_decodes(t, &tokens, "\xEF\xBF\xBD", 3);
    assert_string_equal(sl_tokenizer_kind(t), "byte-level BPE");
    sl_tokenizer_destroy(t);
    json_decref(root);
    free(tokens.v);
}

/* Long words and runs, and marks that all have to change places: the test's time limit is the check. */
static void test_long_texts(void **state) {
    (void)state;
    static const char *const parts[] = { "a", " ",  "A",    "\n",               "9",
                                         "'", "<|", "\xFF", "\xCC\x81\xCC\xA3", " \n" };
    static const char *const names[] = { "gpt2", "llama3", "tekken", "qwen2", "llama2" };
    enum { N = 1 << 18 };
    char *text = malloc(N);
    assert_non_null(text);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        sl_tokenizer *t = fixture_open(names[k], NULL);
        ids tokens = { 0 };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            for (size_t i = 0; i < N; i++) text[i] = parts[p][i % strlen(parts[p])];
            fixture_encode(t, text, N, true, &tokens);
            assert_true(tokens.n > 0);
            if (k < 3) assert_decodes(t, &tokens, text, N);
        }
        free(tokens.v);
        sl_tokenizer_destroy(t);
    }
    free(text);
}

/* ---- special tokens ----------------------------------------------------------------------------- */

static void test_special(void **state) {
    (void)state;
    sl_tokenizer *t = fixture_open("gpt2", NULL);
    ids tokens = { 0 };
    static const char text[] = "a<|im_start|>b";
    int32_t start = sl_tokenizer_special(t, "<|im_start|>");
    assert_int_equal(start, 1);
    assert_true(sl_tokenizer_is_special(t, start));
    assert_true(sl_tokenizer_is_added(t, start));
    assert_false(sl_tokenizer_is_special(t, 50));
    assert_false(sl_tokenizer_is_special(t, -1));
    assert_false(sl_tokenizer_is_special(t, FIXTURE_N_VOCAB));
    assert_int_equal(sl_tokenizer_special(t, "a"), -1);
    assert_int_equal(sl_tokenizer_special(t, "<|im_start|"), -1);
    fixture_encode(t, text, sizeof text - 1, true, &tokens);
    assert_int_equal(tokens.n, 3);
    assert_int_equal(tokens.v[1], start);
    assert_decodes(t, &tokens, text, sizeof text - 1);
    fixture_encode(t, text, sizeof text - 1, false, &tokens);
    for (size_t i = 0; i < tokens.n; i++) assert_false(sl_tokenizer_is_special(t, tokens.v[i]));
    assert_decodes(t, &tokens, text, sizeof text - 1);
    size_t n;
    assert_null(sl_tokenizer_bytes(t, -1, &n));
    assert_null(sl_tokenizer_bytes(t, (int32_t)sl_tokenizer_n_vocab(t), &n));
    free(tokens.v);
    sl_tokenizer_destroy(t);
}

/* Neither merges nor whole words may give a special token, whatever the file says. */
static void test_special_from_merges(void **state) {
    (void)state;
    json_t *root = fixture_load("llama3"), *json = json_object_get(root, "tokenizer");
    json_t *model = json_object_get(json, "model"), *vocab = json_object_get(model, "vocab");
    const char *key;
    json_t *value, *added = json_array();
    json_object_foreach(vocab, key, value) /* every piece of two or more characters is special */
        if (strlen(key) > 2)
            json_array_append_new(added, json_pack("{s:O,s:s,s:b}", "id", value, "content", key, "special", 1));
    json_object_set_new(json, "added_tokens", added);
    sl_tokenizer *t;
    sl_error err;
    ids tokens = { 0 };
    static const char text[] = "hello world and the words <|im_end|>";
    if (fixture_create(json, &t, &err) != SL_OK) fail_msg("%s", err.text);
    fixture_encode(t, text, sizeof text - 1, false, &tokens);
    for (size_t i = 0; i < tokens.n; i++) assert_false(sl_tokenizer_is_special(t, tokens.v[i]));
    assert_decodes(t, &tokens, text, sizeof text - 1);
    free(tokens.v);
    sl_tokenizer_destroy(t);
    json_decref(root);
}

/* ---- hostile files ------------------------------------------------------------------------------ */

typedef struct change {
    const char *section, *key, *value; /* of JSON; key NULL: the whole section; value NULL: it is removed */
    const char *text;                  /* in the error */
} change;

#define SPLIT(pattern) "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"" pattern "\"}}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"}"
#define ADDED(id, content) "{\"id\":" id ",\"content\":\"" content "\",\"special\":true}"

static const change changes[] = {
    { "model", "type", "\"Unigram\"", "model type \"Unigram\" is not supported; expected BPE" },
    { "model", "type", "7", "model type \"\"" },
    { "model", NULL, NULL, "there is no model" },
    { "model", "vocab", NULL, "model has no vocab" },
    { "model", "vocab", "{}", "merge 0 needs the piece" },
    { "model", "vocab", "{\"a\":1,\"b\":1}", "id 1 is given to both \"a\" and \"b\"" },
    { "model", "vocab", "{\"a\":-1}", "piece \"a\" has id -1; expected 0 to 59999" },
    { "model", "vocab", "{\"a\":60000}", "piece \"a\" has id 60000" },
    { "model", "vocab", "{\"a\\n\":9999999999}", "piece \"a\\n\" has id 9999999999" },
    { "model", "vocab", "{\"a\":1.5}", "not an integer" },
    { "model", "vocab", "{\"a\":500}", "merge 0 needs the piece" },
    { "model", "merges", NULL, "model has no merges" },
    { "model", "merges", "[\"a\"]", "merge 0 is \"a\"" },
    { "model", "merges", "[\"a b c\"]", "merge 0 is \"a b c\"" },
    { "model", "merges", "[[\"a\"]]", "merge 0 is neither" },
    { "model", "merges", "[\"a zzzz\"]", "merge 0 needs the piece \"zzzz\"" },
    { "model", "merges", "[\"a q\"]", "merge 0 needs the piece \"aq\"" },
    { "model", "dropout", "0.5", "dropout" },
    { "model", "end_of_word_suffix", "\"</w>\"", "end_of_word_suffix \"</w>\" is not supported" },
    { "model", "unk_token", "\"<none>\"", "unk_token \"<none>\" is not in the vocabulary" },
    { "model", "ignore_merges", "3", "ignore_merges is neither true nor false" },
    { "normalizer", NULL, "{\"type\":\"Lowercase\"}", "normalizer \"Lowercase\" is not supported" },
    { "normalizer", NULL, "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}", "Regex" },
    { "normalizer", NULL, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"b\"}", "Replace" },
    { "normalizer", NULL, "{\"type\":\"Sequence\"}", "Sequence of normalizers" },
    { "pre_tokenizer", NULL, "{\"type\":\"Whitespace\"}", "pre-tokenizer \"Whitespace\" is not supported" },
    { "pre_tokenizer", NULL, "null", "neither ByteLevel, nor byte_fallback" },
    { "pre_tokenizer", NULL, SPLIT("(a"), "does not compile at byte 2" },
    { "pre_tokenizer", NULL, SPLIT("\\\\w+"), "an escape \"\\x5cw\"" },
    { "pre_tokenizer", NULL, SPLIT("[a[b]]"), "a nested class" },
    { "pre_tokenizer", NULL, SPLIT("(*UTF)a"), "a verb" },
    { "pre_tokenizer", NULL, SPLIT("(a{9999}){9999}"), "does not compile" },
    { "pre_tokenizer", NULL, SPLIT("\\\\p{Nonsense}"), "does not compile" },
    { "pre_tokenizer", NULL, SPLIT(""), "a pattern has 0 bytes" },
    { "pre_tokenizer", NULL, "{\"type\":\"Split\",\"behavior\":\"Odd\",\"pattern\":{\"String\":\"a\"}}",
      "behavior \"Odd\" is not supported" },
    { "added_tokens", NULL, "{}", "added_tokens is no list" },
    { "added_tokens", NULL, "[3]", "an id that is not an integer" },
    { "added_tokens", NULL, "[" ADDED("60000", "x") "]", "has id 60000" },
    { "added_tokens", NULL, "[" ADDED("5", "new") "]", "id 5 is given to both" },
    { "added_tokens", NULL, "[" ADDED("999", "a") "]", "piece \"a\" has both id" },
    { "added_tokens", NULL, "[" ADDED("999", "new") "," ADDED("998", "new") "]", "piece \"new\" has both id" },
    { "added_tokens", NULL, "[" ADDED("999", "new") "," ADDED("999", "new") "]", "id 999 is given to both" },
    { "added_tokens", NULL, "[" ADDED("999", "") "]", "the content of an added token" },
};

static void test_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const change *c = &changes[i];
        json_t *root = fixture_load("gpt2"), *json = json_object_get(root, "tokenizer");
        json_t *parent = c->key ? json_object_get(json, c->section) : json;
        const char *key = c->key ? c->key : c->section;
        json_t *value = c->value ? json_loads(c->value, JSON_DECODE_ANY, NULL) : NULL;
        assert_true(!c->value == !value);
        if (value) json_object_set_new(parent, key, value);
        else json_object_del(parent, key);
        sl_tokenizer *t;
        sl_error err;
        if (fixture_create(json, &t, &err) == SL_OK) fail_msg("not refused: %s", c->text);
        if (!strstr(err.text, c->text)) fail_msg("\"%s\" is not in \"%s\"", c->text, err.text);
        assert_true(strncmp(err.text, "tokenizer.json: ", 16) == 0);
        json_decref(root);
    }
}

static void test_broken_json(void **state) {
    (void)state;
    static const char *const texts[] = { "", "{", "[]", "7", "{\"model\":{},\"model\":{}}", "{\"a\":1e999}",
                                         "{\"a\":NaN}", "{\"a\":\"\xFF\"}", "{} x", "{\"a\":\"\\u0000\"}" };
    sl_tokenizer *t = NULL;
    sl_error err;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        sl_status status = sl_tokenizer_create(texts[i], strlen(texts[i]), FIXTURE_N_VOCAB, &t, &err);
        assert_int_equal(status, SL_E_FORMAT);
        assert_true(strncmp(err.text, "tokenizer.json: ", 16) == 0);
    }
    enum { DEPTH = 100000 };
    char *deep = malloc(DEPTH);
    assert_non_null(deep);
    memset(deep, '[', DEPTH);
    assert_int_equal(sl_tokenizer_create(deep, DEPTH, FIXTURE_N_VOCAB, &t, &err), SL_E_FORMAT);
    free(deep);
}

/* A file cut at any place is refused, without a leak or a read past its end. */
static void test_cut_file(void **state) {
    (void)state;
    json_t *root = fixture_load("added");
    char *text = json_dumps(json_object_get(root, "tokenizer"), JSON_COMPACT);
    size_t n = strlen(text);
    for (size_t cut = 0; cut < n; cut += cut < 400 ? 1 : 37) {
        char *copy = malloc(cut + 1);
        sl_tokenizer *t = NULL;
        sl_error err;
        assert_non_null(copy);
        memcpy(copy, text, cut);
        assert_int_equal(sl_tokenizer_create(copy, cut, FIXTURE_N_VOCAB, &t, &err), SL_E_FORMAT);
        free(copy);
    }
    free(text);
    json_decref(root);
}

static sl_status encode_with(const char *section, const char *value, const char *text, sl_error *err) {
    json_t *root = fixture_load("gpt2"), *json = json_object_get(root, "tokenizer");
    json_object_set_new(json, section, json_loads(value, 0, NULL));
    sl_tokenizer *t;
    ids tokens = { 0 };
    if (fixture_create(json, &t, err) != SL_OK) fail_msg("%s", err->text);
    sl_status status = sl_tokenizer_encode(t, text, strlen(text), true, &tokens.v, &tokens.n, &tokens.cap, err);
    assert_true(status == SL_OK || tokens.n == 0);
    free(tokens.v);
    sl_tokenizer_destroy(t);
    json_decref(root);
    return status;
}

static void test_hostile_rules(void **state) {
    (void)state;
    sl_error err;
    const char *many = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";
    const char *slow = "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("(a+)+$")
                       ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}";
    assert_int_equal(encode_with("pre_tokenizer", slow, many, &err), SL_E_FORMAT);
    assert_non_null(strstr(err.text, "match limit"));
    const char *empty = "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("x*")
                        ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}";
    assert_int_equal(encode_with("pre_tokenizer", empty, many, &err), SL_OK);
    const char *grows = "{\"type\":\"Sequence\",\"normalizers\":[" REPLACE "," REPLACE "," REPLACE "]}";
    assert_int_equal(encode_with("normalizer", grows, many, &err), SL_E_FORMAT);
    assert_non_null(strstr(err.text, "normalizer"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),         cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_all_bytes),     cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_bytes_of_other_kinds), cmocka_unit_test(test_long_texts),
        cmocka_unit_test(test_special),       cmocka_unit_test(test_special_from_merges),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_broken_json),
        cmocka_unit_test(test_cut_file),      cmocka_unit_test(test_hostile_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
