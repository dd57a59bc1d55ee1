/* The weight file: what was written is read, and nothing else is. A small file is damaged in every way,
 * with and without its header's checksum set right again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "file/file.h"

static const char path[] = "test_slu.tmp.slu";

typedef struct image { uint8_t *data; size_t n; size_t dir, data_at; } image; /* places of directory and data */

static void expect(const sl_error *err, const char *text) {
    if (!strstr(err->text, text)) fail_msg("\"%s\" does not hold \"%s\"", err->text, text);
}

static void must(sl_status status, const sl_error *err) {
    if (status != SL_OK) fail_msg("%s", err->text);
}

static const sl_slu_tensor list[] = {
    { .name = "a.weight", .type = SL_F32, .n_dim = 2, .shape = { 3, 5 } },
    { .name = "b", .type = SL_F16, .n_dim = 1, .shape = { 2048 } },
    { .name = "c.weight", .type = SL_Q4, .n_dim = 3, .shape = { 2, 2, 70 } },
};

static sl_meta make_meta(void) {
    sl_error err;
    sl_meta meta = { 0 };
    const int64_t numbers[] = { 1, -2, 3 };
    const double eps = 1e-5;
    const char *texts[] = { "s6", "" };
    must(sl_meta_set_string(&meta, "model_type", "bridge", &err), &err);
    must(sl_meta_add(&meta, "numbers", SL_META_INT, true, numbers, 3, &err), &err);
    must(sl_meta_add(&meta, "tied", SL_META_BOOL, false, numbers, 1, &err), &err);
    must(sl_meta_add(&meta, "eps", SL_META_FLOAT, false, &eps, 1, &err), &err);
    must(sl_meta_add(&meta, "texts", SL_META_STRING, true, texts, 2, &err), &err);
    must(sl_meta_add(&meta, "empty", SL_META_INT, true, NULL, 0, &err), &err);
    return meta;
}

/* Writes the file in uneven pieces. */
static void write_file(void) {
    sl_error err;
    sl_slu_writer *writer;
    uint8_t piece[97];
    sl_meta meta = make_meta();
    uint64_t left = 3 * 5 * 4 + 2048 * 2 + 4 * 2 * 36;
    must(sl_slu_writer_open(&writer, path, &meta, list, 3, &err), &err);
    for (size_t i = 0; left; i++) {
        uint64_t n = left < sizeof piece ? left : sizeof piece;
        memset(piece, (int)(i * 37 + 1), sizeof piece);
        must(sl_slu_writer_data(writer, piece, n, &err), &err);
        left -= n;
    }
    must(sl_slu_writer_finish(writer, &err), &err);
    sl_meta_release(&meta);
}

static int setup(void **state) {
    sl_error err;
    image *im = calloc(1, sizeof *im);
    write_file();
    must(sl_os_read_file(path, 1 << 20, (char **)&im->data, &im->n, &err), &err);
    uint64_t meta_bytes;
    memcpy(&meta_bytes, im->data + 24, 8);
    im->dir = SL_SLU_HEADER + (size_t)meta_bytes;
    im->data_at = (size_t)sl_slu_data_offset(meta_bytes, 3);
    *state = im;
    return 0;
}

static int teardown(void **state) {
    image *im = *state;
    free(im->data);
    free(im);
    remove(path);
    return 0;
}

static void fix_checksum(image *im) {
    uint64_t sum;
    assert_true(sl_slu_header_checksum(im->data, im->data_at, &sum));
    memcpy(im->data + SL_SLU_CHECKSUM_AT, &sum, 8);
}

static sl_status parse_and_verify(const uint8_t *data, size_t n, sl_error *err) {
    sl_slu slu;
    sl_status status = sl_slu_parse(&slu, data, n, err);
    if (status != SL_OK) return status;
    status = sl_slu_verify(&slu, NULL, NULL, err);
    sl_meta_release(&slu.meta);
    free(slu.tensors);
    return status;
}

static void reads_what_was_written(void **state) {
    (void)state;
    sl_error err;
    sl_slu slu;
    must(sl_slu_open(&slu, path, &err), &err);
    must(sl_slu_verify(&slu, NULL, NULL, &err), &err);
    assert_int_equal(slu.n_tensor, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(slu.tensors[i].name, list[i].name);
        assert_int_equal(slu.tensors[i].type, list[i].type);
        assert_memory_equal(slu.tensors[i].shape, list[i].shape, sizeof list[i].shape);
        assert_int_equal(slu.tensors[i].offset % SL_SLU_ALIGN, 0);
    }
    sl_meta meta = make_meta();
    assert_int_equal(slu.meta.n, meta.n);
    for (size_t i = 0; i < meta.n; i++) {
        const sl_meta_entry *a = &meta.entries[i], *b = sl_meta_find(&slu.meta, a->key);
        assert_non_null(b);
        assert_true(a->type == b->type && a->is_list == b->is_list && a->n == b->n);
        for (size_t j = 0; j < a->n; j++)
            if (a->type == SL_META_STRING) assert_string_equal(a->v.s[j], b->v.s[j]);
            else assert_int_equal(a->v.i[j], b->v.i[j]);
    }
    sl_meta_release(&meta);
    sl_slu_close(&slu);
}

static void every_changed_bit_is_found(void **state) {
    image *im = *state;
    for (size_t i = 0; i < im->n; i++) {
        sl_error err = { 0 };
        im->data[i] ^= (uint8_t)(1u << i % 8);
        if (parse_and_verify(im->data, im->n, &err) == SL_OK) fail_msg("a changed byte %zu passes", i);
        assert_true(err.text[0]);
        im->data[i] ^= (uint8_t)(1u << i % 8);
    }
    sl_error err;
    must(parse_and_verify(im->data, im->n, &err), &err);
}

/* Header bytes changed by someone who sets the checksum right: no crash, and where it passes the shape of
 * the file is the same. Under a sanitizer this is the test of the reader's bounds. */
static void changed_headers_are_read_safely(void **state) {
    image *im = *state;
    for (size_t i = 0; i < im->data_at; i++)
        for (int v = 0; v < 3; v++) {
            uint8_t old = im->data[i];
            im->data[i] = (uint8_t)(v == 0 ? 0xFF : v == 1 ? 0 : old + 1);
            fix_checksum(im);
            sl_error err = { 0 };
            sl_status status = parse_and_verify(im->data, im->n, &err);
            assert_true(status == SL_OK || err.text[0]);
            im->data[i] = old;
        }
    fix_checksum(im);
}

static void cut_and_longer_files(void **state) {
    image *im = *state;
    sl_error err;
    uint8_t *copy = calloc(1, im->n + 4096);
    memcpy(copy, im->data, im->n);
    for (size_t n = 0; n < im->n; n += n < 5000 ? 1 : 61)
        assert_int_not_equal(parse_and_verify(copy, n, &err), SL_OK);
    assert_int_not_equal(parse_and_verify(copy, im->n + 1, &err), SL_OK);
    assert_int_not_equal(parse_and_verify(copy, im->n + 4096, &err), SL_OK);
    expect(&err, "its header says");
    free(copy);
}

typedef struct change { size_t at; uint64_t value; int bytes; const char *text; } change;

static void apply(image *im, const change *c) {
    uint8_t old[8], sum[8];
    sl_error err = { 0 };
    memcpy(old, im->data + c->at, 8);
    memcpy(sum, im->data + SL_SLU_CHECKSUM_AT, 8);
    memcpy(im->data + c->at, &c->value, (size_t)c->bytes);
    if (c->at + 8 <= SL_SLU_CHECKSUM_AT || c->at >= SL_SLU_CHECKSUM_AT + 8) fix_checksum(im);
    if (parse_and_verify(im->data, im->n, &err) == SL_OK) fail_msg("%s: passes", c->text);
    expect(&err, c->text);
    memcpy(im->data + c->at, old, 8);
    memcpy(im->data + SL_SLU_CHECKSUM_AT, sum, 8);
}

static void wrong_fields_are_named(void **state) {
    image *im = *state;
    const size_t a = im->dir, b = a + SL_SLU_DIR_ENTRY, c = b + SL_SLU_DIR_ENTRY, f = SL_MAX_NAME;
    const double infinite = 1e308 * 10;
    uint64_t infinite_bits, eps_bits;
    memcpy(&infinite_bits, &infinite, 8);
    memcpy(&eps_bits, &(double){ 1e-5 }, 8);
    size_t eps = SL_SLU_HEADER;
    while (memcmp(im->data + eps, &eps_bits, 8)) eps += 8;
    const change changes[] = {
        { 0, 0x21, 1, "not a .slu file" },
        { 8, 2, 4, "version 2" },
        { 12, 5, 4, "left over after 5 entries" },
        { 12, 7, 4, "the metadata ends in entry 6" },
        { 12, 0xFFFFFFFF, 4, "counts 4294967295 metadata" },
        { 16, 0, 4, "counts 0 tensors" },
        { 16, 2, 4, "expected" },
        { 16, 1u << 17, 4, "expected at least" },
        { 16, 0xFFFFFFFF, 4, "counts 4294967295 tensors" },
        { 20, 1, 4, "reserved" },
        { 24, 1, 8, "multiple of 8" },
        { 24, UINT64_MAX - 7, 8, "bytes of metadata" },
        { 24, 1 << 25, 8, "expected at least" },
        { 32, 1, 8, "its header says 1" },
        { 40, 1, 8, "the header is damaged" },
        { 48, 0xFFFFFFF0, 4, "key of 4294967280 bytes" },
        { 48, 0, 4, "key of 0 bytes" },
        { 52, 9, 1, "is of kind 9" },
        { 53, 2, 1, "is of kind 3.2" },
        { 54, 1, 1, "is of kind 3.0.1" },
        { 56, 2, 8, "has 2 values, expected 1" },
        { 80, UINT64_MAX - 3, 8, "text 0 is cut" },
        { eps, infinite_bits, 8, "eps is not a finite number" },
        { a, 0, 1, "the name of tensor 0" },
        { a + 20, 'x', 1, "the name of tensor 0" },
        { a, 0x0A, 1, "the name of tensor 0" },
        { a + f, 5, 4, "is of type 5" },
        { a + f + 4, 0, 4, "has 0 dimensions" },
        { a + f + 4, 5, 4, "has 5 dimensions" },
        { a + f + 8, 0, 8, "has a dimension outside" },
        { a + f + 8, 1ull << 31, 8, "has a dimension outside" },
        { a + f + 8, 4, 8, "has 60 bytes, expected 80" },
        { a + f + 24, 1, 8, "unused dimension 2" },
        { a + f + 40, 0, 8, "is at offset 0" },
        { b + f + 40, im->data_at, 8, "tensor b is at offset" },
        { b + f + 48, 4095, 8, "has 4095 bytes, expected 4096" },
        { c + f + 40, UINT64_MAX - 4095, 8, "c.weight is at offset" },
        { c + f + 56, 1, 8, "the data of tensor c.weight is damaged" },
        { im->data_at + 100, 1, 1, "the padding after tensor a.weight" },
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) apply(im, &changes[i]);
}

static void names_given_twice(void **state) {
    image *im = *state;
    sl_error err;
    const size_t a = im->dir, c = a + 2 * SL_SLU_DIR_ENTRY;
    uint8_t old[SL_MAX_NAME];
    memcpy(old, im->data + c, sizeof old);
    memcpy(im->data + c, im->data + a, sizeof old);
    fix_checksum(im);
    assert_int_equal(parse_and_verify(im->data, im->n, &err), SL_E_FORMAT);
    expect(&err, "tensor a.weight is there twice");
    memcpy(im->data + c, old, sizeof old);
    fix_checksum(im);
}

static void a_writer_wants_all_data(void **state) {
    (void)state;
    sl_error err;
    sl_slu_writer *writer;
    sl_meta meta = { 0 };
    static const uint8_t zeros[60];
    must(sl_slu_writer_open(&writer, "test_slu.other.slu", &meta, list, 3, &err), &err);
    must(sl_slu_writer_data(writer, zeros, 60, &err), &err);
    assert_int_equal(sl_slu_writer_finish(writer, &err), SL_E_ARG);
    assert_int_equal(sl_os_kind_of("test_slu.other.slu"), SL_OS_NOTHING);
    assert_int_equal(sl_slu_writer_open(&writer, "no/such/folder/x.slu", &meta, list, 3, &err), SL_E_IO);
    assert_null(writer);
    sl_slu_writer_abort(NULL);
}

typedef struct lines { size_t n; char last[600]; } lines;

static void on_line(void *arg, const char *line) {
    lines *l = arg;
    l->n++;
    snprintf(l->last, sizeof l->last, "%s", line);
}

static void lists_all_mismatches(void **state) {
    (void)state;
    sl_error err = { 0 };
    sl_schema schema = { 0 };
    lines l = { 0 };
    size_t index[2];
    const uint64_t shape[] = { 2, 3 }, other[] = { 3, 2 };
    const sl_tensor_rule rules[] = { { true, SL_TENSOR_KEEP, "a.%zu", 2, { 2, 3 } },
                                     { false, SL_TENSOR_KEEP, "absent.%zu", 2, { 2, 3 } } };
    const sl_tensor_rule later = { true, SL_TENSOR_KEEP, "b.%zu", 2, { 2, 3 } };
    assert_true(sl_schema_add(&schema, rules, 2, 0));
    assert_true(sl_schema_add(&schema, &later, 1, 1));
    const sl_found good[] = { { "b.1", 2, shape }, { "a.0", 2, shape } };
    must(sl_schema_match(&schema, good, 2, index, NULL, on_line, &l, &err), &err);
    assert_true(index[0] == 1 && index[1] == 0 && !l.n);
    const sl_found bad[] = { { "b.1", 2, other }, { "c", 1, shape } };
    assert_int_equal(sl_schema_match(&schema, bad, 2, index, NULL, on_line, &l, &err), SL_E_FORMAT);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.last, "tensor b.1 has shape [3, 2], expected [2, 3]");
    expect(&err, "tensor c of shape [2] is surplus");
    assert_int_equal(sl_schema_match(&schema, bad, 2, index, NULL, NULL, NULL, &err), SL_E_FORMAT);
    expect(&err, "tensor a.0 is missing, expected shape [2, 3]");
    sl_schema_release(&schema);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_what_was_written, setup, teardown),
        cmocka_unit_test_setup_teardown(every_changed_bit_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(changed_headers_are_read_safely, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_and_longer_files, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_fields_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(names_given_twice, setup, teardown),
        cmocka_unit_test(a_writer_wants_all_data),
        cmocka_unit_test(lists_all_mismatches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
