/* The flat tree of JSON: what it holds, what it refuses, and that it accepts what jansson accepts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "text/json.h"

enum { PLENTY = 1000 };

static void expect(const sl_error *err, const char *text) {
    if (!strstr(err->text, text)) fail_msg("\"%s\" does not hold \"%s\"", err->text, text);
}

static void holds_what_is_there(void **state) {
    (void)state;
    static const char text[] = " {\"a\\u00e9\\ud83d\\ude00\\n\": [1, -2.5e1, true, null, [], {}, \"\"], \"b\": {\"c\": \"x\\\"y\"} } ";
    sl_json_doc doc;
    sl_error err;
    assert_int_equal(sl_json_read(&doc, text, strlen(text), 14, &err), SL_OK);
    const sl_json *list = sl_json_get(doc.values, "a\xC3\xA9\xF0\x9F\x98\x80\n");
    assert_int_equal(sl_json_size(doc.values), 2);
    assert_int_equal(sl_json_size(list), 7);
    const sl_json *v = sl_json_first(list);
    assert_true(v->kind == SL_JSON_INT && v->v.i == 1);
    v = sl_json_next(v);
    assert_true(v->kind == SL_JSON_REAL && v->v.real == -25);
    assert_true(sl_json_is(v = sl_json_next(v), SL_JSON_TRUE));
    assert_true(sl_json_is(v = sl_json_next(v), SL_JSON_NULL));
    assert_true(sl_json_is(v = sl_json_next(v), SL_JSON_LIST) && !v->n);
    assert_true(sl_json_is(v = sl_json_next(v), SL_JSON_OBJECT) && !v->n);
    v = sl_json_next(v);
    assert_true(v->n == 0 && sl_json_text(v));
    assert_string_equal(sl_json_text(sl_json_get(sl_json_get(doc.values, "b"), "c")), "x\"y");
    assert_null(sl_json_get(doc.values, "none"));
    assert_null(sl_json_get(list, "a"));
    sl_json_release(&doc);
    assert_int_equal(sl_json_read(&doc, text, strlen(text), 13, &err), SL_E_FORMAT);
    expect(&err, "more than 13 values");
}

/* Both readers on one text. */
static void compare(const char *text, size_t n) {
    sl_json_doc doc;
    sl_error err = { 0 };
    json_error_t why;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    sl_status status = sl_json_read(&doc, text, n, PLENTY, &err);
    if ((status == SL_OK) != (root != NULL)) fail_msg("%.*s: %s against %s", (int)n, text, err.text, why.text);
    assert_true(status == SL_OK || err.text[0]);
    if (status == SL_OK) assert_int_equal(doc.values->span, doc.n);
    sl_json_release(&doc);
    json_decref(root);
}

static void agrees_with_jansson(void **state) {
    (void)state;
    static const char *const texts[] = {
        "", " ", "1", "-", "-0", "01", "1.", ".5", "1.5", "1e", "1e+", "1e5", "1E-5", "1e999", "-1e999", "0e999", "1e-999",
        "9223372036854775807", "9223372036854775808", "-9223372036854775807", "1.7976931348623157e308", "+1", "0x1", "1 2",
        "nul", "null", "nulll", "true", "false", "truefalse", "NaN", "Infinity", "[", "]", "[]", "[,]", "[1,]", "[1 2]", "[1,2]",
        "[[[]]]", "{", "}", "{}", "{,}", "{1:2}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1}", "{\"a\":1 \"b\":2}", "{\"a\":1]",
        "[1}", "{\"a\":{},\"b\":[]}", "{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "{\"a\":{\"a\":1}}", "\"", "\"a", "\"a\"",
        "\"\\\"", "\"\\x\"", "\"\\u\"", "\"\\u12\"", "\"\\u0000\"", "\"\\ud800\"", "\"\\ud800x\"", "\"\\ud800\\u0041\"", "\"\\udc00\"",
        "\"\\ud83d\\ude00\"", "\"\\uFFFF\"", "\"\x01\"", "\"\n\"", "\"\x7F\"", "\"\xFF\"", "\"\xC3\xA9\"", "\"\xED\xA0\x80\"", "\xEF\xBB\xBF{}",
        "{\"1\":1,\"2\":1,\"3\":1,\"4\":1,\"5\":1,\"6\":1,\"7\":1,\"8\":1,\"9\":1,\"10\":1,\"5\":1}",
        "{\"1\":1,\"2\":1,\"3\":1,\"4\":1,\"5\":1,\"6\":1,\"7\":1,\"8\":1,\"9\":1,\"10\":1,\"\":1}", "[1]x", "[1]\t\r\n ", "/**/1", "'a'",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char *exact = malloc(strlen(texts[i]) + 1); /* without a zero after it, for a sanitizer */
        memcpy(exact, texts[i], strlen(texts[i]));
        compare(exact, strlen(texts[i]));
        free(exact);
    }
    sl_json_doc doc;
    sl_error err; /* jansson takes a zero byte after a number for white space */
    assert_int_equal(sl_json_read(&doc, "[1\0]", 4, PLENTY, &err), SL_E_FORMAT);
    assert_int_equal(sl_json_read(&doc, "\"a\0b\"", 5, PLENTY, &err), SL_E_FORMAT);
}

/* A sound text changed at one or two places by a fixed sequence of numbers. */
static void agrees_on_damaged_text(void **state) {
    (void)state;
    static const char sound[] = "{\"a\": [1, -2.5e1, true, {\"b\": null}], \"c\\u00e9\": \"x\\n\xC3\xA9\", \"d\": {}}";
    static const char bytes[] = "{}[]\",:\\u0019eE.-+atnf \n\x01\xC3\xFF";
    uint32_t seed = 7;
    for (int i = 0; i < 20000; i++) {
        char text[sizeof sound];
        memcpy(text, sound, sizeof sound);
        for (int k = 0; k < 1 + i % 2; k++) {
            seed = seed * 1664525u + 1013904223u;
            text[(seed >> 8) % (sizeof sound - 1)] = bytes[(seed >> 20) % (sizeof bytes - 1)];
        }
        compare(text, sizeof sound - 1);
    }
}

static void says_where(void **state) {
    (void)state;
    sl_json_doc doc;
    sl_error err;
    static const char text[] = "{\"a\\n\\n\": 1,\n  \"b\": oops, \"c\": 2}";
    assert_int_equal(sl_json_read(&doc, text, strlen(text), PLENTY, &err), SL_E_FORMAT);
    expect(&err, "line 2, column 8: found \"oops\", expected a value");
    assert_int_equal(doc.at, strstr(text, "oops") - text);
    char deep[2 * SL_JSON_DEPTH + 2];
    memset(deep, '[', SL_JSON_DEPTH + 1);
    memset(deep + SL_JSON_DEPTH + 1, ']', SL_JSON_DEPTH + 1);
    assert_int_equal(sl_json_read(&doc, deep, sizeof deep, PLENTY, &err), SL_E_FORMAT);
    expect(&err, "deeper than 64");
    assert_int_equal(sl_json_read(&doc, deep + 1, sizeof deep - 2, PLENTY, &err), SL_OK);
    sl_json_release(&doc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_what_is_there),
        cmocka_unit_test(agrees_with_jansson),
        cmocka_unit_test(agrees_on_damaged_text),
        cmocka_unit_test(says_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
