/* Metadata: adding, replacing, typed access with ranges, and config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "file/file.h"

static void expect(const sl_error *err, const char *text) {
    if (!strstr(err->text, text)) fail_msg("\"%s\" does not hold \"%s\"", err->text, text);
}

static sl_status parse(const char *json, sl_meta *meta, sl_error *err) {
    *err = (sl_error){ 0 };
    return sl_config_parse(json, strlen(json), meta, err);
}

static void values_and_ranges(void **state) {
    (void)state;
    sl_error err;
    sl_meta meta = { 0 };
    int64_t i = 7, out = 99;
    double f = 0.5, number = 9;
    const char *texts[] = { "a", "" }, *text = NULL;
    bool flag = true;
    assert_int_equal(sl_meta_add(&meta, "i", SL_META_INT, false, &i, 1, &err), SL_OK);
    assert_int_equal(sl_meta_add(&meta, "f", SL_META_FLOAT, false, &f, 1, &err), SL_OK);
    assert_int_equal(sl_meta_add(&meta, "list", SL_META_STRING, true, texts, 2, &err), SL_OK);
    assert_int_equal(sl_meta_add(&meta, "i", SL_META_INT, false, &i, 1, &err), SL_E_FORMAT);
    expect(&err, "\"i\" is there twice");

    assert_int_equal(sl_meta_int(&meta, "i", true, 0, 7, &out, &err), SL_OK);
    assert_int_equal(out, 7);
    assert_int_equal(sl_meta_int(&meta, "i", true, 8, 9, &out, &err), SL_E_FORMAT);
    expect(&err, "i is 7, expected 8 to 9");
    assert_int_equal(sl_meta_int(&meta, "f", true, 0, 7, &out, &err), SL_E_FORMAT);
    expect(&err, "f is a fraction, expected an integer");
    assert_int_equal(sl_meta_float(&meta, "i", true, 0, 7, &number, &err), SL_OK);
    assert_true(number == 7.0);
    assert_int_equal(sl_meta_float(&meta, "f", true, 1, 7, &number, &err), SL_E_FORMAT);
    expect(&err, "f is 0.5, expected 1 to 7");
    assert_int_equal(sl_meta_text(&meta, "list", true, &text, &err), SL_E_FORMAT);
    expect(&err, "list is a list, expected text");
    assert_int_equal(sl_meta_bool(&meta, "none", true, &flag, &err), SL_E_FORMAT);
    expect(&err, "none is missing");
    assert_int_equal(sl_meta_bool(&meta, "none", false, &flag, &err), SL_OK);
    assert_true(flag);
    sl_meta_release(&meta);
    assert_null(sl_meta_find(&meta, "i"));
}

static void refuses_what_is_not_finite(void **state) {
    (void)state;
    sl_error err;
    sl_meta meta = { 0 };
    double values[] = { 1, 1e308 * 10 };
    assert_int_equal(sl_meta_add(&meta, "x", SL_META_FLOAT, true, values, 2, &err), SL_E_FORMAT);
    expect(&err, "x is not a finite number");
    assert_int_equal(meta.n, 0);
    sl_meta_release(&meta);
}

static void replaces_text(void **state) {
    (void)state;
    sl_error err;
    sl_meta meta = { 0 };
    const char *text = NULL;
    int64_t i = 1;
    assert_int_equal(sl_meta_add(&meta, "k", SL_META_INT, false, &i, 1, &err), SL_OK);
    assert_int_equal(sl_meta_set_string(&meta, "k", "one", &err), SL_OK);
    assert_int_equal(sl_meta_set_string(&meta, "k", "two", &err), SL_OK);
    assert_int_equal(sl_meta_text(&meta, "k", true, &text, &err), SL_OK);
    assert_string_equal(text, "two");
    assert_int_equal(meta.n, 1);
    sl_meta_release(&meta);
}

static void has_a_limit(void **state) {
    (void)state;
    sl_error err;
    sl_meta meta = { 0 };
    char key[16];
    int64_t i = 0;
    for (; i < SL_META_MAX; i++) {
        snprintf(key, sizeof key, "k%d", (int)i);
        assert_int_equal(sl_meta_add(&meta, key, SL_META_INT, false, &i, 1, &err), SL_OK);
    }
    assert_int_equal(sl_meta_add(&meta, "more", SL_META_INT, false, &i, 1, &err), SL_E_FORMAT);
    sl_meta_release(&meta);
}

static void config_keeps_types(void **state) {
    (void)state;
    sl_error err;
    sl_meta meta;
    double theta = 0;
    const sl_meta_entry *entry;
    assert_int_equal(parse("{\"a\": true, \"b\": -3, \"c\": 1e-5, \"d\": \"x\", \"none\": null,"
                           "\"list\": [1, 2.5, 3], \"ints\": [4, 5], \"names\": [\"s6\", \"s4d\"],"
                           "\"empty\": [],"
                           "\"mixed\": [1, \"x\"], \"rope\": {\"theta\": 5, \"deep\": {\"er\": 1.5}},"
                           "\"tokenizer\": \"not ours\", \"sluice.type\": \"f64\"}", &meta, &err), SL_OK);
    assert_int_equal(sl_meta_find(&meta, "a")->type, SL_META_BOOL);
    assert_int_equal(sl_meta_find(&meta, "b")->v.i[0], -3);
    assert_int_equal(sl_meta_find(&meta, "c")->type, SL_META_FLOAT);
    assert_string_equal(sl_meta_find(&meta, "d")->v.s[0], "x");
    assert_null(sl_meta_find(&meta, "none"));
    assert_null(sl_meta_find(&meta, "tokenizer"));
    assert_null(sl_meta_find(&meta, "sluice.type"));
    entry = sl_meta_find(&meta, "list");
    assert_true(entry->type == SL_META_FLOAT && entry->is_list && entry->n == 3 && entry->v.f[2] == 3.0);
    assert_int_equal(sl_meta_find(&meta, "ints")->v.i[1], 5);
    assert_string_equal(sl_meta_find(&meta, "names")->v.s[1], "s4d");
    assert_int_equal(sl_meta_find(&meta, "empty")->n, 0);
    assert_int_equal(sl_meta_find(&meta, "mixed")->type, SL_META_JSON);
    assert_string_equal(sl_meta_find(&meta, "rope")->v.s[0], "{\"theta\":5,\"deep\":{\"er\":1.5}}");
    assert_true(sl_meta_find(&meta, "rope.deep.er")->v.f[0] == 1.5);
    assert_int_equal(sl_meta_float(&meta, "rope.theta", true, 0, 10, &theta, &err), SL_OK);
    assert_int_equal(sl_meta_float(&meta, "rope", true, 0, 10, &theta, &err), SL_E_FORMAT);
    expect(&err, "rope is a composed value");
    sl_meta_release(&meta);
}

static void config_refuses(void **state) {
    (void)state;
    static const struct { const char *json, *text; } cases[] = {
        { "", "line" }, { "[]", "not an object" }, { "3", "not an object" }, { "{", "line" },
        { "{\"a\": NaN}", "NaN" }, { "{\"a\": 1e999}", "finite" }, { "{\"a\": -Infinity}", "line" },
        { "{\"a\": 99999999999999999999}", "64 bits" }, { "{\"a\": 1, \"a\": 2}", "duplicate" },
        { "{\"a\": {\"b\": 1}, \"a.b\": 2}", "\"a.b\" is there twice" }, { "{\"a\": \"\\u0000\"}", "line" },
        { "{\"a\": \"\xff\"}", "\\xff" }, { "{} x", "nothing after the value" },
        { "{\"a\": \"b\\\"\", \"eps\": [1, 1e999]}", "after the key eps: " },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sl_error err;
        sl_meta meta;
        assert_int_equal(parse(cases[i].json, &meta, &err), SL_E_FORMAT);
        expect(&err, cases[i].text);
        assert_int_equal(meta.n, 0);
    }
}

static void config_refuses_depth(void **state) {
    (void)state;
    char json[1024]; /* 100 levels of 6 + 1 bytes */
    sl_error err;
    sl_meta meta;
    for (int depth = 1; depth < 100; depth++) {
        int n = 0;
        for (int i = 0; i < depth; i++) n += sprintf(json + n, "{\"a\":");
        n += sprintf(json + n, "1");
        for (int i = 0; i < depth; i++) n += sprintf(json + n, "}");
        sl_status status = parse(json, &meta, &err);
        assert_int_equal(status, depth <= SL_JSON_DEPTH ? SL_OK : SL_E_FORMAT);
        sl_meta_release(&meta);
    }
    expect(&err, "nest deeper than 64");
}

static void utf8(void **state) {
    (void)state;
    static const char *const good[] = { "", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x92\xa7",
                                        "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf" };
    static const char *const bad[] = { "\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                                       "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
                                       "\xe2\x82", "\xf0\x9f\x92", "a\xff" };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(sl_file_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(sl_file_utf8(bad[i], strlen(bad[i])));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_ranges), cmocka_unit_test(refuses_what_is_not_finite),
        cmocka_unit_test(replaces_text),     cmocka_unit_test(has_a_limit),
        cmocka_unit_test(config_keeps_types), cmocka_unit_test(config_refuses),
        cmocka_unit_test(config_refuses_depth), cmocka_unit_test(utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
