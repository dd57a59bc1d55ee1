#include "cli/bench_report.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "kernels/kernels.h"
#include "os/os.h"

static double gbps(const sl_bench_row *row) { return 1e-9 * row->bytes_per_token * row->median; }
static double tflops(const sl_bench_row *row) { return 1e-12 * row->flops_per_token * row->median; }

/* ---- the table ----------------------------------------------------------------------------------- */

static const char table_head[] =
    "| model                    | type |  params | test                   |  t |             t/s "
    "|   min..max      |   GB/s | % read | TFLOP/s | % mat | MB/token | deep "
    "| state+KV MB | peak MB | ratio |\n"
    "| ------------------------ | ---- | ------: | ---------------------- | -: | --------------: "
    "| --------------- | -----: | -----: | ------: | ----: | -------: | ---: "
    "| ----------: | ------: | ----: |\n";

bool sl_bench_table_head(void) { return sl_out(table_head, sizeof table_head - 1) && sl_out_flush(); }

/* "pp512 @ d4096 b8"; a made-up depth is "~d131072". */
static void test_name(const sl_bench_row *row, char *text, size_t cap) {
    const sl_bench_config *c = &row->config;
    int n = snprintf(text, cap, "%s%zu", c->n_prompt ? "pp" : "tg", c->n_prompt ? c->n_prompt : c->n_gen);
    if (c->depth)
        n += snprintf(text + n, cap - (size_t)n, " @ %sd%" PRIu64, row->depth_synthetic ? "~" : "", c->depth);
    if (c->n_seq > 1) snprintf(text + n, cap - (size_t)n, " b%zu", c->n_seq);
}

bool sl_bench_table_row(const sl_bench_row *row) {
    char line[512], test[80], deep[16] = "-", ratio[16] = "-", params[32], range[48];
    sl_name_buf name;
    double n_param = (double)row->model->info.n_param;
    if (!isnan(row->deep_share)) snprintf(deep, sizeof deep, "%.2f", row->deep_share);
    if (!isnan(row->ratio)) snprintf(ratio, sizeof ratio, "%.2f", row->ratio);
    snprintf(params, sizeof params, n_param < 1e9 ? "%.2f M" : "%.2f B", n_param / (n_param < 1e9 ? 1e6 : 1e9));
    snprintf(range, sizeof range, "%.2f..%.2f", row->min, row->max);
    test_name(row, test, sizeof test);
    int n = snprintf(line, sizeof line,
                     "| %-24s | %-4s | %7s | %-22s | %2zu | %15.2f | %-15s | %6.2f | %6.1f | %7.3f | %5.1f "
                     "| %8.2f | %4s | %11.2f | %7.0f | %5s |\n",
                     sl_name(row->model->label, &name), row->model->info.type, params, test,
                     row->config.n_thread, row->median, range, gbps(row), 100 * gbps(row) / row->read_gbps,
                     tflops(row), 100 * tflops(row) / row->matmul_tflops, 1e-6 * row->bytes_per_token, deep,
                     1e-6 * (double)(row->state_bytes + row->kv_bytes), 1e-6 * (double)row->peak_rss_bytes,
                     ratio);
    return sl_out(line, sl_min((size_t)n, sizeof line - 1)) && sl_out_flush();
}

static const char profile_head[] =
    "| node                                                                     | times |   us each |      % |   GB/s | % read "
    "| TFLOP/s | % mat |\n"
    "| ------------------------------------------------------------------------ | ----: | --------: | -----: | -----: | -----: "
    "| ------: | ----: |\n";

static double part_gbps(const sl_bench_part *p) { return 1e-9 * p->bytes / p->seconds; }
static double part_tflops(const sl_bench_part *p) { return 1e-12 * p->flops / p->seconds; }

/* times: in a pass. What a node does not read, or compute, is left blank. */
static bool profile_part(const sl_bench_row *row, const sl_bench_part *p) {
    char line[256], read[2][16] = { "", "" }, rate[2][16] = { "", "" };
    if (p->bytes > 0 && p->seconds > 0) {
        snprintf(read[0], sizeof read[0], "%.1f", part_gbps(p));
        snprintf(read[1], sizeof read[1], "%.1f", 100 * part_gbps(p) / row->read_gbps);
    }
    if (p->flops > 0 && p->seconds > 0) {
        snprintf(rate[0], sizeof rate[0], "%.3f", part_tflops(p));
        snprintf(rate[1], sizeof rate[1], "%.1f", 100 * part_tflops(p) / row->matmul_tflops);
    }
    int n = snprintf(line, sizeof line, "| %-72s | %5.1f | %9.2f | %6.2f | %6s | %6s | %7s | %5s |\n", p->name,
                     (double)p->n / (double)row->profile.n_pass, 1e6 * p->seconds / (double)p->n,
                     100 * p->seconds / row->profile.seconds, read[0], read[1], rate[0], rate[1]);
    return sl_out(line, sl_min((size_t)n, sizeof line - 1));
}

bool sl_bench_table_profile(const sl_bench_row *row) {
    const sl_bench_profile *p = &row->profile;
    char line[256], test[80];
    sl_name_buf name;
    double sum = 0;
    if (!p->n) return true;
    for (size_t i = 0; i < p->n; i++) sum += p->parts[i].seconds;
    test_name(row, test, sizeof test);
    int n = snprintf(line, sizeof line,
                     "\n%s %s, %s, %zu threads, node by node: %" PRIu64 " passes of %.3f ms, of which %.1f %% in nodes\n\n",
                     sl_name(row->model->label, &name), row->model->info.type, test, row->config.n_thread, p->n_pass,
                     1e3 * p->seconds / (double)p->n_pass, 100 * sum / p->seconds);
    bool good = sl_out(line, sl_min((size_t)n, sizeof line - 1)) && sl_out(profile_head, sizeof profile_head - 1);
    for (size_t i = 0; good && i < p->n; i++) good = profile_part(row, &p->parts[i]);
    return good && sl_out_flush();
}

/* ---- values, by name ----------------------------------------------------------------------------- */

/* All that JSON and CSV say of a row, in order. In JSON the three speeds are one object. */
typedef enum value_kind { TEXT, COUNT, REAL, TRUTH } value_kind;
typedef struct value {
    const char *name;
    value_kind kind;
    const char *text;
    uint64_t count;
    double real;
} value;
enum { MAX_VALUES = 40 };

static size_t row_values(const sl_bench_row *row, value *v) {
    const char *bad;
    const sl_bench_config *c = &row->config;
    const value all[] = {
        { "model", TEXT, row->model->label, 0, 0 },
        { "parameters", COUNT, NULL, row->model->info.n_param, 0 },
        { "type", TEXT, row->model->info.type, 0, 0 },
        { "phase", TEXT, c->n_prompt ? "prefill" : "decode", 0, 0 },
        { "n_prompt", COUNT, NULL, c->n_prompt, 0 },
        { "n_gen", COUNT, NULL, c->n_gen, 0 },
        { "depth", COUNT, NULL, c->depth, 0 },
        { "depth_synthetic", TRUTH, NULL, row->depth_synthetic, 0 },
        { "batch", COUNT, NULL, c->n_seq, 0 },
        { "threads", COUNT, NULL, c->n_thread, 0 },
        { "device", TEXT, c->device, 0, 0 },
        { "activations", TEXT, sl_bench_activations(row->model, c), 0, 0 },
        { "batch_invariant", TRUTH, NULL, c->batch_invariant, 0 },
        { "repetitions", COUNT, NULL, row->n_repeat, 0 },
        { "tokens_per_second_median", REAL, NULL, 0, row->median },
        { "tokens_per_second_min", REAL, NULL, 0, row->min },
        { "tokens_per_second_max", REAL, NULL, 0, row->max },
        { "bytes_per_token", REAL, NULL, 0, row->bytes_per_token },
        { "deep_share", REAL, NULL, 0, row->deep_share },
        { "replayed_share", REAL, NULL, 0, row->replayed_share },
        { "deep_option", REAL, NULL, 0, row->model->deep_option },
        { "gbps", REAL, NULL, 0, gbps(row) },
        { "read_probe_gbps", REAL, NULL, 0, row->read_gbps },
        { "fraction_of_read_probe", REAL, NULL, 0, gbps(row) / row->read_gbps },
        { "tflops", REAL, NULL, 0, tflops(row) },
        { "matmul_probe_tflops", REAL, NULL, 0, row->matmul_tflops },
        { "fraction_of_matmul_probe", REAL, NULL, 0, tflops(row) / row->matmul_tflops },
        { "weight_bytes", COUNT, NULL, row->model->info.weight_bytes, 0 },
        { "state_bytes", COUNT, NULL, row->state_bytes, 0 },
        { "kv_bytes", COUNT, NULL, row->kv_bytes, 0 },
        { "peak_rss_bytes", COUNT, NULL, row->peak_rss_bytes, 0 },
        { "time_to_first_token", REAL, NULL, 0, row->first_seconds },
        { "ratio_to_baseline", REAL, NULL, 0, row->ratio },
        { "route_threshold", REAL, NULL, 0, (double)c->tau },
        { "load_average", REAL, NULL, 0, row->load },
        { "cpu", TEXT, sl_cpu_features_name(sl_cpu_features_allowed(&bad)), 0, 0 },
        { "version", TEXT, sl_version(), 0, 0 },
    };
    _Static_assert(sizeof all / sizeof *all <= MAX_VALUES, "values do not fit");
    memcpy(v, all, sizeof all);
    return sizeof all / sizeof *all;
}

static sl_status write_file(const char *path, const void *data, size_t n, sl_error *err) {
    sl_os_out out;
    SL_TRY(sl_os_out_open(&out, path, err));
    sl_status status = sl_os_out_write(&out, data, n, err);
    if (status == SL_OK) status = sl_os_out_commit(&out, err);
    if (status != SL_OK) sl_os_out_abort(&out);
    return status;
}

/* ---- JSON ---------------------------------------------------------------------------------------- */

static json_t *json_of(const value *v) {
    sl_name_buf buf;
    switch (v->kind) {
    case TEXT: return json_string(sl_name(v->text, &buf)); /* a file's name need not be UTF-8 */
    case COUNT: return json_integer((json_int_t)v->count);
    case TRUTH: return json_boolean(v->count != 0);
    default: return isfinite(v->real) ? json_real(v->real) : json_null();
    }
}

static json_t *profile_json(const sl_bench_profile *p) {
    json_t *parts = json_array();
    for (size_t i = 0; i < p->n; i++) {
        const sl_bench_part *part = &p->parts[i];
        json_array_append_new(parts, json_pack("{s:s, s:I, s:f, s:f, s:f}", "node", part->name, "times",
                                               (json_int_t)part->n, "seconds", part->seconds, "bytes", part->bytes,
                                               "operations", part->flops));
    }
    return json_pack("{s:I, s:f, s:o}", "passes", (json_int_t)p->n_pass, "seconds", p->seconds, "nodes", parts);
}

static json_t *row_json(const sl_bench_row *row) {
    static const char speed[] = "tokens_per_second_";
    value values[MAX_VALUES];
    json_t *object = json_object(), *speeds = json_object();
    size_t n = row_values(row, values);
    for (size_t i = 0; i < n; i++) {
        bool is_speed = !strncmp(values[i].name, speed, sizeof speed - 1);
        if (is_speed) json_object_set_new(speeds, values[i].name + sizeof speed - 1, json_of(&values[i]));
        else json_object_set_new(object, values[i].name, json_of(&values[i]));
    }
    json_object_set_new(object, "tokens_per_second", speeds);
    if (row->profile.n) json_object_set_new(object, "profile", profile_json(&row->profile));
    return object;
}

sl_status sl_bench_write_json(const char *path, const sl_bench_row *rows, size_t n_row, sl_error *err) {
    json_t *list = json_array();
    for (size_t i = 0; i < n_row; i++) json_array_append_new(list, row_json(&rows[i]));
    char *text = json_dumps(list, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(list);
    if (!text) return sl_fail(err, SL_E_MEMORY, "out of memory: JSON of %zu rows", n_row);
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the NUL: the length counts */
    sl_status status = write_file(path, text, n + 1, err);
    free(text);
    return status;
}

/* ---- CSV ----------------------------------------------------------------------------------------- */

/* Texts are quoted, as RFC 4180 has it. */
static bool append_text(sl_buf *out, const char *text) {
    bool good = sl_buf_append(out, "\"", 1);
    for (const char *p = text; good && *p; p++)
        good = sl_buf_append(out, p, 1) && (*p != '"' || sl_buf_append(out, p, 1));
    return good && sl_buf_append(out, "\"", 1);
}

static bool append_value(sl_buf *out, const value *v) {
    char text[64] = "";
    if (v->kind == TEXT) return append_text(out, v->text);
    if (v->kind == COUNT || v->kind == TRUTH) snprintf(text, sizeof text, "%" PRIu64, v->count);
    else if (isfinite(v->real)) snprintf(text, sizeof text, "%.9g", v->real);
    return sl_buf_append(out, text, strlen(text));
}

static bool append_line(sl_buf *out, const sl_bench_row *row, bool head) {
    value values[MAX_VALUES];
    bool good = true;
    size_t n = row_values(row, values);
    for (size_t i = 0; good && i < n; i++) {
        if (i) good = sl_buf_append(out, ",", 1);
        if (head) good = good && sl_buf_append(out, values[i].name, strlen(values[i].name));
        else good = good && append_value(out, &values[i]);
    }
    return good && sl_buf_append(out, "\n", 1);
}

sl_status sl_bench_write_csv(const char *path, const sl_bench_row *rows, size_t n_row, sl_error *err) {
    sl_buf out = { 0 };
    bool good = !n_row || append_line(&out, &rows[0], true);
    for (size_t i = 0; good && i < n_row; i++) good = append_line(&out, &rows[i], false);
    sl_status status = good ? write_file(path, out.data, out.n, err)
                            : sl_fail(err, SL_E_MEMORY, "out of memory: CSV of %zu rows", n_row);
    sl_buf_release(&out);
    return status;
}
