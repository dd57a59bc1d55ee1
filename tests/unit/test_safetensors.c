/* Safetensors headers: what is read, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "file/file.h"

static sl_status parse(const char *json, uint64_t data_bytes, sl_safetensors *st, char **own, sl_error *err) {
    size_t n = strlen(json);
    *own = malloc(n + 1);
    memcpy(*own, json, n + 1);
    *st = (sl_safetensors){ 0 };
    *err = (sl_error){ 0 };
    return sl_safetensors_parse(*own, n, 100, data_bytes, 0, st, err);
}

static void reads_tensors(void **state) {
    (void)state;
    sl_safetensors st;
    sl_error err;
    char *own;
    const char json[] = "{ \"__metadata__\": {\"format\": \"pt\"},\n"
                        " \"b\\u0041\\n\": {\"dtype\": \"BF16\", \"shape\": [2, 3], \"data_offsets\": [4, 16]},"
                        "\"a\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"F32\"},"
                        "\"\\ud83d\\udca7\":{\"data_offsets\":[16,16],\"shape\":[0,7],\"dtype\":\"F16\"}}  ";
    assert_int_equal(parse(json, 16, &st, &own, &err), SL_OK);
    assert_int_equal(st.n_tensor, 3);
    const sl_st_tensor *t = &st.tensors[0]; /* by offset after the parse */
    assert_string_equal(t[0].name, "a");
    assert_true(t[0].n_dim == 0 && t[0].offset == 100 && t[0].bytes == 4 && t[0].type == SL_F32);
    assert_string_equal(t[1].name, "bA\n");
    assert_true(t[1].n_dim == 2 && t[1].shape[1] == 3 && t[1].offset == 104 && t[1].type == SL_BF16);
    assert_string_equal(t[2].name, "\xf0\x9f\x92\xa7");
    sl_safetensors_close(&st);
    free(own);
    assert_int_equal(parse("{}", 0, &st, &own, &err), SL_OK);
    assert_int_equal(st.n_tensor, 0);
    free(own);
}

#define T(fields) "{\"t\": {" fields "}}"
#define F32(shape, range) "\"dtype\": \"F32\", \"shape\": " shape ", \"data_offsets\": " range

static void refuses(void **state) {
    (void)state;
    static const struct { const char *json; uint64_t data; const char *text; } cases[] = {
        { "", 0, "expected '{'" },
        { " {}", 0, "expected '{'" },
        { "{", 0, "expected a text" },
        { "{}x", 0, "nothing after" },
        { "{,}", 0, "expected a text" },
        { "{\"t\"}", 0, "':'" },
        { "{\"t\": 3}", 0, "expected a tensor" },
        { "{\"t\": {}}", 0, "expected a text" },
        { "{}", 4, "expected 0: the tensors end before" },
        { T(F32("[1]", "[0, 4]") ","), 4, "expected a text" },
        { T(F32("[1]", "[0, 4]")) "}", 4, "nothing after" },
        { T("\"dtype\": \"F32\", \"shape\": [1]"), 4, "expected dtype, shape and two data_offsets" },
        { T(F32("[1]", "[0]")), 4, "expected dtype, shape and two data_offsets" },
        { T(F32("[1]", "[0, 4, 4]")), 4, "too long" },
        { T(F32("[1,1,1,1,1,1,1,1,1]", "[0, 4]")), 4, "too long" },
        { T("\"dtype\": \"F64\", \"shape\": [1], \"data_offsets\": [0, 8]"), 8,
          "dtype is F64, expected F32, F16 or BF16" },
        { T("\"dtype\": 1, \"shape\": [1], \"data_offsets\": [0, 8]"), 8, "a text in quotes" },
        { T(F32("[1]", "[0, 4]") ", \"x\": 1"), 4, "field x is unknown" },
        { T(F32("[1]", "[0, 4]") ", \"shape\": [1]"), 4, "field shape is there twice" },
        { T(F32("[2]", "[0, 4]")), 4, "give 4 bytes, expected 8" },
        { T(F32("[1]", "[0, 8]")), 4, "within 4 bytes" },
        { T(F32("[1]", "[4, 0]")), 4, "within 4 bytes" },
        { T(F32("[-1]", "[0, 4]")), 4, "an integer" },
        { T(F32("[1.0]", "[0, 4]")), 4, "an integer" },
        { T(F32("[01]", "[0, 4]")), 4, "an integer" },
        { T(F32("[1e0]", "[0, 4]")), 4, "an integer" },
        { T(F32("[99999999999999999999]", "[0, 4]")), 4, "an integer" },
        { T(F32("[4611686018427387904, 4611686018427387904]", "[0, 4]")), 4, "and more" },
        { T(F32("[1]", "[4, 8]")), 8, "there is a hole" },
        { T(F32("[1]", "[0, 4]")), 8, "the tensors end before" },
        { "{\"a\": {" F32("[1]", "[0, 4]") "}, \"b\": {" F32("[1]", "[0, 4]") "}}", 4, "ranges overlap" },
        { "{\"a\": {" F32("[2]", "[0, 8]") "}, \"b\": {" F32("[1]", "[4, 8]") "}}", 8, "ranges overlap" },
        { "{\"a\": {" F32("[1]", "[0, 4]") "}, \"\\u0061\": {" F32("[1]", "[4, 8]") "}}", 8,
          "tensor a is there twice" },
        { "{\"__metadata__\": {}, \"__metadata__\": {}}", 0, "__metadata__ is there twice" },
        { "{\"__metadata__\": {\"a\": \"\", \"a\": \"\"}}", 0, "key a twice" },
        { "{\"__metadata__\": {\"a\": 1}}", 0, "a text in quotes" },
        { "{\"__metadata__\": []}", 0, "an object of texts" },
        { "{\"\\u0000\": {}}", 0, "a legal escape" },
        { "{\"\\ud800\": {}}", 0, "a legal escape" },
        { "{\"\\udc00\": {}}", 0, "a legal escape" },
        { "{\"\\x\": {}}", 0, "a legal escape" },
        { "{\"\\", 0, "a legal escape" },
        { "{\"\\u12", 0, "a legal escape" },
        { "{\"a\n\": {}}", 0, "control characters" },
        { "{\"\xff\": {}}", 0, "UTF-8" },
        { "{\"abc", 0, "the end of a text" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sl_safetensors st;
        sl_error err;
        char *own;
        if (parse(cases[i].json, cases[i].data, &st, &own, &err) == SL_OK)
            fail_msg("accepted: %s", cases[i].json);
        if (!strstr(err.text, cases[i].text))
            fail_msg("%s: \"%s\" does not hold \"%s\"", cases[i].json, err.text, cases[i].text);
        sl_safetensors_close(&st);
        free(own);
    }
}

/* 200,000 tensors, twice: sorted checks, not quadratic ones. */
static void many_tensors(void **state) {
    (void)state;
    enum { N = 200000 };
    char *json = malloc(N * 96), *own;
    size_t n = 1;
    sl_safetensors st;
    sl_error err;
    json[0] = '{';
    for (int i = 0; i < N; i++)
        n += (size_t)sprintf(json + n, "%s\"t%d\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                             i ? "," : "", i,
                             2 * i, 2 * i + 2);
    strcpy(json + n, "}");
    double start = sl_os_seconds();
    assert_int_equal(parse(json, 2 * N, &st, &own, &err), SL_OK);
    assert_true(sl_os_seconds() - start < 20); /* quadratic ones take minutes; an emulated processor a second */
    assert_int_equal(st.n_tensor, N);
    sl_safetensors_close(&st);
    free(own);
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tensors), cmocka_unit_test(refuses), cmocka_unit_test(many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
