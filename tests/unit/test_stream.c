/* The stream against its definition: the text ends before the first stop text in all of the text, whatever the
 * tokens; nothing that could still become a stop text is shown, and everything else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "run/model.h"
#include "run/stream.h"
#include "text/utf8.h"
#include "tokenizer_fixture.h"

/* Tokens that cut texts of Q, X and Z in many ways: the single letters, and added ones from id 1000 on, of
 * which the first two end an answer. */
static const char *const added[] = { "</s>", "<end>", "QX", "XQ", "QQX", "QXZQX", "XX", NULL };
static const char *const letters[] = { "Q", "X", "Z" };
enum { END = 1000, OTHER_END, N_LETTER = 3, N_PIECE = N_LETTER + 5 };

static sl_model model;
static struct { int32_t id; const char *text; } pieces[N_PIECE];

static int open_model(void **state) {
    (void)state;
    model.tokenizer = fixture_open("gpt2", added);
    model.eos[model.n_eos++] = END;
    model.eos[model.n_eos++] = OTHER_END;
    ids tokens = { 0 };
    for (int i = 0; i < N_PIECE; i++) {
        pieces[i].text = i < N_LETTER ? letters[i] : added[2 + i - N_LETTER];
        fixture_encode(model.tokenizer, pieces[i].text, strlen(pieces[i].text), true, &tokens);
        assert_int_equal(tokens.n, 1);
        pieces[i].id = tokens.v[0];
    }
    free(tokens.v);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    sl_tokenizer_destroy(model.tokenizer);
    return 0;
}

static void feed(sl_stream *s, int32_t token) {
    sl_error err;
    if (sl_stream_accept(s, token, &err) != SL_OK) fail_msg("%s", err.text);
}

/* The bytes of a text, one token each. */
static void feed_text(sl_stream *s, const char *text) {
    ids tokens = { 0 };
    for (; *text && s->finish == SL_FINISH_NONE; text++) {
        fixture_encode(model.tokenizer, text, 1, false, &tokens);
        assert_int_equal(tokens.n, 1);
        feed(s, tokens.v[0]);
    }
    free(tokens.v);
}

static void assert_text(const sl_stream *s, const char *text, size_t n_ready) {
    assert_int_equal(s->text.n, strlen(text));
    if (*text) assert_memory_equal(s->text.data, text, strlen(text));
    assert_int_equal(s->n_ready, n_ready);
}

/* ---- against the definition --------------------------------------------------------------------- */

static uint32_t next_random(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* Where the first of the stop texts begins; n: nowhere. */
static size_t first_stop(const char *text, size_t n, const sl_stop *stops, size_t n_stop) {
    for (size_t at = 0; at < n; at++)
        for (size_t i = 0; i < n_stop; i++)
            if (stops[i].n <= n - at && memcmp(text + at, stops[i].text, stops[i].n) == 0) return at;
    return n;
}

/* Where the first text begins that may become a stop text; n: nowhere. */
static size_t first_start(const char *text, size_t n, const sl_stop *stops, size_t n_stop) {
    for (size_t at = 0; at < n; at++)
        for (size_t i = 0; i < n_stop; i++)
            if (memcmp(text + at, stops[i].text, sl_min(n - at, stops[i].n)) == 0) return at;
    return n;
}

static void random_stops(uint32_t *seed, char text[3][8], sl_stop *stops, size_t n_stop) {
    for (size_t i = 0; i < n_stop; i++) {
        stops[i] = (sl_stop){ text[i], 1 + next_random(seed) % 7 };
        for (size_t k = 0; k < stops[i].n; k++) text[i][k] = "QXZ"[next_random(seed) % (k < 2 ? 3 : 2)];
    }
}

static void test_any_cut(void **state) {
    (void)state;
    uint32_t seed = 3;
    for (int round = 0; round < 20000; round++) {
        sl_stop stops[3];
        char stop_text[3][8], all[256];
        size_t n_stop = next_random(&seed) % 4, n = 0;
        random_stops(&seed, stop_text, stops, n_stop);
        sl_stream s = { .model = &model, .stops = stops, .n_stop = n_stop, .show_special = true };
        s.max_token = 1 + next_random(&seed) % 30;
        while (s.finish == SL_FINISH_NONE) {
            size_t piece = next_random(&seed) % N_PIECE, before = s.n_ready;
            const char *text = pieces[piece].text;
            memcpy(all + n, text, strlen(text));
            n += strlen(text);
            feed(&s, pieces[piece].id);
            size_t ready = first_start(all, n, stops, n_stop);
            assert_true(s.n_ready >= before);
            if (s.finish == SL_FINISH_NONE) assert_int_equal(s.n_ready, ready);
        }
        size_t cut = first_stop(all, n, stops, n_stop);
        assert_int_equal(s.finish, cut < n ? SL_FINISH_STOP : SL_FINISH_LENGTH);
        assert_int_equal(s.text.n, cut);
        assert_int_equal(s.n_ready, cut);
        if (cut) assert_memory_equal(s.text.data, all, cut);
        sl_stream_release(&s);
    }
}

/* ---- ends --------------------------------------------------------------------------------------- */

static void test_stop_text(void **state) {
    (void)state;
    const sl_stop stops[] = { { "\nUser:", 6 }, { "end", 3 } };
    sl_stream s = { .model = &model, .stops = stops, .n_stop = 2, .max_token = SIZE_MAX };
    feed_text(&s, "Hi\nUs");
    assert_text(&s, "Hi\nUs", 2);
    feed_text(&s, "e\n");
    assert_text(&s, "Hi\nUse\n", 6);
    feed_text(&s, "User: x");
    assert_text(&s, "Hi\nUse", 6);
    assert_int_equal(s.finish, SL_FINISH_STOP);
    assert_int_equal(s.n_token, 12);
    feed(&s, pieces[0].id); /* over is over */
    sl_stream_end(&s, SL_FINISH_LENGTH);
    assert_text(&s, "Hi\nUse", 6);
    assert_int_equal(s.finish, SL_FINISH_STOP);
    sl_stream_release(&s);
    feed_text(&s, "again"); /* released is new */
    assert_text(&s, "again", 5);
    sl_stream_release(&s);
}

/* A longer stop text that began earlier may still come: it is waited for, and the shorter one counts if not. */
static void test_stop_in_stop(void **state) {
    (void)state;
    const sl_stop stops[] = { { "<end>", 5 }, { "end", 3 } };
    static const struct { const char *text, *kept; size_t max_token; } cases[] = {
        { "a<end>", "a", SIZE_MAX }, { "a<endx", "a<", SIZE_MAX }, { "a<end", "a<", 5 }, { "aend", "a", 4 },
        { "a<en", "a<en", 4 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sl_stream s = { .model = &model, .stops = stops, .n_stop = 2, .max_token = cases[i].max_token };
        feed_text(&s, cases[i].text);
        assert_text(&s, cases[i].kept, strlen(cases[i].kept));
        assert_int_equal(s.finish, i == 4 ? SL_FINISH_LENGTH : SL_FINISH_STOP);
        sl_stream_release(&s);
    }
    sl_stream s = { .model = &model, .stops = stops, .n_stop = 2, .max_token = SIZE_MAX };
    feed_text(&s, "a<end");
    assert_int_equal(s.finish, SL_FINISH_NONE);
    assert_int_equal(s.n_ready, 1);
    sl_stream_end(&s, SL_FINISH_LENGTH);
    assert_text(&s, "a<", 2);
    assert_int_equal(s.finish, SL_FINISH_STOP);
    sl_stream_release(&s);
}

static void test_end_tokens(void **state) {
    (void)state;
    const sl_stop stop = { "abc", 3 };
    sl_stream s = { .model = &model, .stops = &stop, .n_stop = 1, .max_token = SIZE_MAX };
    feed_text(&s, "xab");
    assert_int_equal(s.n_ready, 1);
    feed(&s, OTHER_END);
    assert_text(&s, "xab", 3);
    assert_int_equal(s.finish, SL_FINISH_STOP);
    assert_int_equal(s.n_token, 3);
    sl_stream_release(&s);

    s.ignore_eos = true; /* goes on, and the end token is counted but not shown */
    s.max_token = 3;
    feed_text(&s, "x");
    feed(&s, END);
    assert_int_equal(s.finish, SL_FINISH_NONE);
    feed_text(&s, "y");
    assert_text(&s, "xy", 2);
    assert_int_equal(s.finish, SL_FINISH_LENGTH);
    sl_stream_release(&s);

    s.show_special = true;
    feed(&s, END);
    assert_text(&s, "</s>", 4);
    sl_stream_release(&s);
}

static void test_no_tokenizer(void **state) {
    (void)state;
    sl_model bare = { .eos = { 3 }, .n_eos = 1 };
    sl_stream s = { .model = &bare, .max_token = SIZE_MAX };
    feed(&s, 1);
    assert_int_equal(s.n_token, 1);
    feed(&s, 3);
    assert_int_equal(s.finish, SL_FINISH_STOP);
    assert_int_equal(s.n_ready, 0);
    sl_stream_release(&s);
}

/* ---- whole characters --------------------------------------------------------------------------- */

static void test_utf8(void **state) {
    (void)state;
    static const struct { const char *text; size_t n; } cases[] = {
        { "", 0 },          { "a", 1 },         { "\xC3\xA9", 2 },     { "a\xC3", 1 },   { "\xE2\x96", 0 },
        { "\xE2\x96\x81", 3 }, { "\xF0\x9F\xA6", 0 }, { "\xF0\x9F\xA6\x99", 4 }, { "\xFF", 1 }, { "\x80", 1 },
        { "\xE2x", 2 },     { "\xC3\xA9\xA9", 3 }, { "\xE0\x80", 2 },  { "\xED\xA0", 2 }, { "\xF4\x90", 2 },
        { "\xC0", 1 },      { "\xF0", 0 },      { "\xF0\x9F\x9F\x9F\x9F", 5 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(sl_utf8_whole((const uint8_t *)cases[i].text, strlen(cases[i].text)), cases[i].n);
}

/* Bytes of the first part of each text; not valid: one U+FFFD stands for them. */
static void test_utf8_parts(void **state) {
    (void)state;
    static const struct { const char *text; size_t n; bool valid; } cases[] = {
        { "a\xC3", 1, true },          { "\xC3\xA9z", 2, true },    { "\xF0\x9F\xA6\x99", 4, true },
        { "\xC3z", 1, false },         { "\xC3\xC3\xA9", 1, false }, { "\xC3", 1, false },
        { "\xE2\x96z", 2, false },     { "\xE2z", 1, false },       { "\xE0\x80\x80", 1, false },
        { "\xED\xA0\x80", 1, false },  { "\xF0\x9F\xA6z", 3, false }, { "\xF0\x9Fz", 2, false },
        { "\xF4\x90\x80\x80", 1, false }, { "\xC0\x80", 1, false }, { "\xFFz", 1, false },
        { "\x80\x80", 1, false },      { "\xF0\x9Fz\x99", 2, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool valid;
        size_t n = sl_utf8_part((const uint8_t *)cases[i].text, strlen(cases[i].text), &valid);
        assert_int_equal(n, cases[i].n);
        assert_int_equal(valid, cases[i].valid);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_cut),      cmocka_unit_test(test_stop_text),
        cmocka_unit_test(test_stop_in_stop), cmocka_unit_test(test_end_tokens),
        cmocka_unit_test(test_no_tokenizer), cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_utf8_parts),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
