#include "cli/batch_line.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

enum { MAX_FIELDS = 32 }; /* values kept by the scan; there are fewer known fields */

/* A field under inspection: its parsed value and its exact text. */
typedef struct field { const char *name; const json_t *value; sl_span raw; } field;

static const char *kind_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a text";
    case JSON_INTEGER:
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    default: return "null";
    }
}

/* The value as it may stand in an error: numbers as written, other things by their kind. */
static const char *shown(const field *f, sl_name_buf *buf) {
    return json_is_number(f->value) ? sl_name_escape(f->raw.text, f->raw.n, buf) : kind_name(f->value);
}

static sl_status wrong(const field *f, const char *expected, sl_error *err) {
    sl_name_buf buf;
    return sl_fail(err, SL_E_FORMAT, "%s: found %s, expected %s", f->name, shown(f, &buf), expected);
}

/* ---- numbers ------------------------------------------------------------------------------------- */

/* A JSON integer (no point, no exponent) within min..max. */
static sl_status read_integer(const field *f, uint64_t max, uint64_t *out, sl_error *err) {
    char digits[24], expected[64];
    snprintf(expected, sizeof expected, "an integer from 0 to %" PRIu64, max);
    bool plain = json_is_number(f->value) && f->raw.n < sizeof digits;
    for (size_t i = 0; plain && i < f->raw.n; i++) plain = f->raw.text[i] >= '0' && f->raw.text[i] <= '9';
    if (!plain) return wrong(f, expected, err);
    memcpy(digits, f->raw.text, f->raw.n);
    digits[f->raw.n] = 0;
    errno = 0;
    unsigned long long value = strtoull(digits, NULL, 10);
    if (errno || value > max) return wrong(f, expected, err);
    *out = value;
    return SL_OK;
}

static sl_status read_float(const field *f, double min, double max, float *out, sl_error *err) {
    char expected[64];
    snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
    if (!json_is_number(f->value)) return wrong(f, expected, err);
    double value = json_number_value(f->value);
    if (!isfinite(value) || value < min || value > max) return wrong(f, expected, err);
    *out = (float)value;
    return SL_OK;
}

/* ---- the fields ---------------------------------------------------------------------------------- */

static sl_status set_id(sl_line *line, const field *f, sl_error *err) {
    if (!json_is_string(f->value)) return wrong(f, "a text", err);
    line->id = json_string_value(f->value);
    line->n_id = json_string_length(f->value);
    return SL_OK;
}

static sl_status set_metadata(sl_line *line, const field *f, sl_error *err) {
    if (!json_is_object(f->value)) return wrong(f, "an object", err);
    if (sl_json_compact(&line->metadata, f->raw.text, f->raw.n)) return SL_OK;
    sl_buf_release(&line->metadata);
    return sl_fail(err, SL_E_MEMORY, "out of memory: metadata of %zu bytes", f->raw.n);
}

static sl_status set_prompt(sl_line *line, const field *f, sl_error *err) {
    if (!json_is_string(f->value)) return wrong(f, "a text", err);
    line->prompt = json_string_value(f->value);
    line->n_prompt = json_string_length(f->value);
    return SL_OK;
}

static bool is_role(const char *role, size_t n) {
    static const char *const roles[] = { "system", "user", "assistant" };
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (n == strlen(roles[i]) && !memcmp(role, roles[i], n)) return true;
    return false;
}

static sl_status read_message(size_t number, const json_t *value, sl_message *message, sl_error *err) {
    const char *key;
    json_t *part;
    sl_name_buf buf;
    if (!json_is_object(value))
        return sl_fail(err, SL_E_FORMAT, "messages: found %s as message %zu, expected an object",
                       kind_name(value), number);
    json_object_foreach((json_t *)value, key, part) {
        if (strcmp(key, "role") && strcmp(key, "content"))
            return sl_fail(err, SL_E_FORMAT,
                           "messages: unknown field \"%s\" in message %zu, expected role and content",
                           sl_name(key, &buf), number);
        if (!json_is_string(part))
            return sl_fail(err, SL_E_FORMAT, "messages: found %s as %s of message %zu, expected a text",
                           kind_name(part), key, number);
    }
    const json_t *role = json_object_get(value, "role"), *content = json_object_get(value, "content");
    if (!role || !content)
        return sl_fail(err, SL_E_FORMAT, "messages: message %zu has no %s", number, role ? "content" : "role");
    if (!is_role(json_string_value(role), json_string_length(role)))
        return sl_fail(err, SL_E_FORMAT,
                       "messages: unknown role \"%s\" in message %zu, expected system, user or assistant",
                       sl_name_escape(json_string_value(role), json_string_length(role), &buf), number);
    *message = (sl_message){ json_string_value(role), json_string_value(content), json_string_length(content) };
    return SL_OK;
}

static sl_status set_messages(sl_line *line, const field *f, sl_error *err) {
    if (!json_is_array(f->value) || !json_array_size(f->value))
        return wrong(f, "a list of one or more messages", err);
    line->n_message = json_array_size(f->value);
    SL_TRY(sl_alloc((void **)&line->messages, line->n_message, sizeof *line->messages, "messages", err));
    for (size_t i = 0; i < line->n_message; i++)
        SL_TRY(read_message(i + 1, json_array_get(f->value, i), &line->messages[i], err));
    return SL_OK;
}

static sl_status set_stop(sl_line *line, const field *f, sl_error *err) {
    if (!json_is_array(f->value)) return wrong(f, "a list of texts", err);
    line->n_stop = json_array_size(f->value);
    SL_TRY(sl_alloc((void **)&line->stops, line->n_stop, sizeof *line->stops, "stop texts", err));
    for (size_t i = 0; i < line->n_stop; i++) {
        const json_t *text = json_array_get(f->value, i);
        if (!json_is_string(text))
            return sl_fail(err, SL_E_FORMAT, "stop: found %s in the list, expected texts", kind_name(text));
        line->stops[i] = (sl_stop){ json_string_value(text), json_string_length(text) };
        if (!line->stops[i].n)
            return sl_fail(err, SL_E_FORMAT, "stop: found an empty text, expected one or more bytes");
    }
    return SL_OK;
}

static sl_status set_max_tokens(sl_line *line, const field *f, sl_error *err) {
    uint64_t value;
    SL_TRY(read_integer(f, INT32_MAX, &value, err));
    line->max_token = (size_t)value;
    return SL_OK;
}

static sl_status set_top_k(sl_line *line, const field *f, sl_error *err) {
    uint64_t value;
    SL_TRY(read_integer(f, INT32_MAX, &value, err));
    line->sampler.top_k = (int32_t)value;
    return SL_OK;
}

static sl_status set_seed(sl_line *line, const field *f, sl_error *err) {
    return read_integer(f, UINT64_MAX, &line->sampler.seed, err);
}

static sl_status set_temperature(sl_line *line, const field *f, sl_error *err) {
    return read_float(f, 0, 100, &line->sampler.temperature, err);
}

static sl_status set_top_p(sl_line *line, const field *f, sl_error *err) {
    return read_float(f, 0, 1, &line->sampler.top_p, err);
}

static sl_status set_min_p(sl_line *line, const field *f, sl_error *err) {
    return read_float(f, 0, 1, &line->sampler.min_p, err);
}

static sl_status set_repeat_penalty(sl_line *line, const field *f, sl_error *err) {
    return read_float(f, 0.01, 100, &line->sampler.repeat_penalty, err);
}

/* id and metadata come first in the table and are read first, so that an error line has them. */
static const struct {
    const char *name;
    sl_status (*set)(sl_line *line, const field *f, sl_error *err);
} fields[] = {
    { "id", set_id },
    { "metadata", set_metadata },
    { "prompt", set_prompt },
    { "messages", set_messages },
    { "max_tokens", set_max_tokens },
    { "temperature", set_temperature },
    { "top_k", set_top_k },
    { "top_p", set_top_p },
    { "min_p", set_min_p },
    { "repeat_penalty", set_repeat_penalty },
    { "seed", set_seed },
    { "stop", set_stop },
};
enum { N_FIELD = sizeof fields / sizeof *fields };

/* ---- the line ------------------------------------------------------------------------------------ */

/* Text to a tree; *values are the texts of its members in order. */
static sl_status load(sl_line *line, const char *text, size_t n, sl_span *values, sl_error *err) {
    json_error_t why;
    sl_name_buf buf;
    size_t n_value, blank = 0;
    while (blank < n && strchr(" \t\r", text[blank]) && text[blank]) blank++;
    if (blank == n) return sl_fail(err, SL_E_FORMAT, "found an empty line, expected a JSON object");
    size_t broken = sl_utf8_valid((const uint8_t *)text, n);
    if (broken < n) return sl_fail(err, SL_E_FORMAT, "invalid UTF-8 at byte %zu", broken + 1);
    if (!sl_json_scan(text, n, SL_LINE_DEPTH, values, MAX_FIELDS, &n_value))
        return sl_fail(err, SL_E_FORMAT, "JSON nested deeper than %d levels", SL_LINE_DEPTH);
    /* Every number becomes a double here, which refuses what is not finite and takes integers of any length;
     * the integer fields read the text. */
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    line->root = json_loadb(text, n, flags, &why);
    if (!line->root) return sl_fail(err, SL_E_FORMAT, "not valid JSON: %s", sl_name(why.text, &buf));
    if (!json_is_object(line->root))
        return sl_fail(err, SL_E_FORMAT, "found %s, expected a JSON object", kind_name(line->root));
    return SL_OK;
}

static sl_status check_known(const json_t *root, sl_error *err) {
    const char *key;
    json_t *value;
    sl_name_buf buf;
    json_object_foreach((json_t *)root, key, value) {
        size_t i = 0;
        while (i < N_FIELD && strcmp(key, fields[i].name)) i++;
        if (i == N_FIELD) return sl_fail(err, SL_E_FORMAT, "unknown field \"%s\"", sl_name(key, &buf));
    }
    return SL_OK;
}

/* Reads all fields that are there; the first error counts. The members of root come in the order of the text,
 * which ties them to values. */
static sl_status read_fields(sl_line *line, const sl_span *values, sl_error *err) {
    sl_status first = check_known(line->root, err);
    sl_status id = SL_OK;
    for (size_t i = 0; i < N_FIELD; i++) {
        const char *key;
        json_t *value;
        size_t at = 0;
        json_object_foreach(line->root, key, value) {
            if (!strcmp(key, fields[i].name) && (at < MAX_FIELDS || !i)) { /* an id is known wherever it stands */
                field f = { key, value, at < MAX_FIELDS ? values[at] : (sl_span){ 0 } };
                sl_status status = fields[i].set(line, &f, first == SL_OK ? err : NULL);
                if (first == SL_OK) first = status;
                if (i == 0) id = status;
            }
            at++;
        }
    }
    json_object_del(line->root, "metadata"); /* kept as text; the tree of a long one is many times its size */
    line->has_id = id == SL_OK;
    return first;
}

void sl_line_begin(sl_line *line, uint64_t index) {
    *line = (sl_line){ .index = index };
    line->n_id = (size_t)snprintf(line->number, sizeof line->number, "%" PRIu64, index + 1);
    line->id = line->number;
}

sl_status sl_line_parse(sl_line *line, uint64_t index, const char *text, size_t n,
                        const sl_line_defaults *defaults, sl_error *err) {
    sl_span values[MAX_FIELDS];
    memset(values, 0, sizeof values);
    sl_line_begin(line, index);
    line->sampler = defaults->sampler;
    line->max_token = defaults->max_token;
    SL_TRY(load(line, text, n, values, err));
    SL_TRY(read_fields(line, values, err));
    if (line->prompt && line->messages)
        return sl_fail(err, SL_E_FORMAT, "found prompt and messages, expected one of them");
    if (!line->prompt && !line->messages) return sl_fail(err, SL_E_FORMAT, "found neither prompt nor messages");
    return SL_OK;
}

void sl_line_release(sl_line *line) {
    sl_buf_release(&line->metadata);
    free(line->messages);
    free(line->stops);
    json_decref(line->root);
    *line = (sl_line){ 0 };
}

/* ---- the result ---------------------------------------------------------------------------------- */

static bool append(sl_buf *out, const char *text) { return sl_buf_append(out, text, strlen(text)); }

bool sl_result_format(sl_buf *out, const sl_line *line, const void *text, size_t n_text,
                      const char *finish_reason, uint64_t n_prompt_token, uint64_t n_completion_token,
                      const char *error) {
    char middle[192];
    bool good = append(out, "{\"id\": ") && sl_json_string(out, line->id, line->n_id);
    snprintf(middle, sizeof middle, ", \"index\": %" PRIu64 ", \"text\": ", line->index);
    good = good && append(out, middle) && sl_json_string(out, text, n_text);
    snprintf(middle, sizeof middle,
             ", \"finish_reason\": \"%s\", \"usage\": {\"prompt_tokens\": %" PRIu64
             ", \"completion_tokens\": %" PRIu64 "}",
             finish_reason, n_prompt_token, n_completion_token);
    good = good && append(out, middle) && append(out, ", \"metadata\": ");
    if (line->metadata.n) good = good && sl_buf_append(out, line->metadata.data, line->metadata.n);
    else good = good && append(out, "null");
    if (error) good = good && append(out, ", \"error\": ") && sl_json_string(out, error, strlen(error));
    return good && append(out, "}\n");
}
