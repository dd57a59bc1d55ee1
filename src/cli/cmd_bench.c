/* sluice bench: how fast a model is, what it reads and computes for that, and how that compares with what the
 * machine can do and with a transformer of the same size.
 *
 * A row is one combination of the lists; each model's row is followed by the baseline's, so that both see the
 * machine in the same mood. Both models stay in memory throughout; the peak of a row leaves the other one
 * out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/devices.h"
#include "cli/bench_measure.h"
#include "cli/bench_preset.h"
#include "cli/bench_probe.h"
#include "cli/bench_report.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "os/os.h"
#include "os/process.h"

enum { MAX_MODELS = 16 };

typedef struct probes { size_t n_thread; sl_probe read, matmul[SL_N_TYPE]; bool has_matmul[SL_N_TYPE]; } probes;

typedef struct bench {
    /* flags */
    sl_text_list files, synthetic;
    const char *against, *json, *csv, *device, *activations;
    sl_int_list prompts, gens, depths, batches, threads, repeats;
    bool given_prompts, given_gens, given_repeats, profile, batch_invariant;
    int64_t n_batch;
    double route_threshold;
    char device_id[16];               /* "cpu", "cuda:0" */
    /* work */
    sl_synthetic made[MAX_MODELS];    /* of the models that are made; preset NULL: a file */
    const char *names[MAX_MODELS];
    sl_bench_model models[MAX_MODELS];
    size_t n_model;                   /* the baseline is the last of them */
    bool has_baseline;
    double load;                      /* of the machine, before the first row */
    probes probes[64];                /* [threads.n] */
    sl_bench_row *rows;
    size_t n_row, cap_row;
} bench;

/* ---- models -------------------------------------------------------------------------------------- */

static bool is_file(const char *name) { return strchr(name, '/') || strstr(name, ".slu"); }

static int add_synthetic(bench *b, const char *flag, const char *text) {
    sl_error err;
    sl_synthetic *made = &b->made[b->n_model];
    if (sl_synthetic_parse(text, made, &err) != SL_OK)
        return sl_report(SL_EXIT_MISUSE, "%s: %s", flag, err.text);
    b->names[b->n_model++] = made->preset->name;
    return -1;
}

static void add_file(bench *b, const char *path) { b->names[b->n_model++] = path; }

/* The baseline: named, or the twin of the first preset. */
static int add_baseline(bench *b) {
    const sl_preset *twin = b->made[0].preset ? sl_preset_twin(b->made[0].preset) : NULL;
    if (b->against && !strcmp(b->against, "none")) return -1;
    if (!b->against && !twin) return -1;
    b->has_baseline = true;
    if (b->against && is_file(b->against)) return add_file(b, b->against), -1;
    if (b->against) return add_synthetic(b, "--against", b->against);
    b->made[b->n_model] = (sl_synthetic){ .preset = twin, .type = b->made[0].type };
    b->names[b->n_model++] = twin->name;
    return -1;
}

static bool all_zero(const sl_int_list *list) {
    for (size_t i = 0; i < list->n; i++)
        if (list->v[i]) return false;
    return list->n > 0;
}

static int check_work(const bench *b) {
    if (!all_zero(&b->prompts) || !all_zero(&b->gens)) return -1;
    return sl_report(SL_EXIT_MISUSE, "bench: -p and -n are both 0, which leaves nothing to measure "
                                     "(expected a number of tokens above 0 in one of them)");
}

static int list_models(bench *b) {
    int code = check_work(b);
    if (code >= 0) return code;
    if (b->files.n + b->synthetic.n + 1 > MAX_MODELS)
        return sl_report(SL_EXIT_MISUSE, "bench: %zu models given (expected at most %d)",
                         b->files.n + b->synthetic.n, MAX_MODELS - 1);
    for (size_t i = 0; i < b->synthetic.n && code < 0; i++)
        code = add_synthetic(b, "--synthetic", b->synthetic.v[i]);
    for (size_t i = 0; i < b->files.n; i++) add_file(b, b->files.v[i]);
    if (!b->n_model) add_file(b, sl_common_model_name(&(sl_common){ 0 }));
    return code < 0 ? add_baseline(b) : code;
}

/* "models/demo/bridge.slu" is "bridge.slu" in the table. */
static const char *short_name(const char *path) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash ? slash + 1 : path ? path : "bridge (shipped)";
}

static bool on_cpu(const bench *b) { return !strcmp(b->device_id, "cpu"); }

/* For a GPU the matrices are made there, and nothing of them lies in memory. */
static bool make_model(const bench *b, sl_synthetic *made, sl_model **model) {
    sl_error err;
    made->on_device = !on_cpu(b);
    if (made->on_device) return sl_synthetic_make(made, model, &err) == SL_OK || (sl_report_error(&err), false);
    uint64_t need = sl_synthetic_bytes(made), have = sl_os_memory_free();
    if (need > have) {
        sl_size_buf needed, left;
        sl_report(SL_EXIT_FAILED, "%s in %s needs %s of memory, %s are free", made->preset->name,
                  sl_type_name(made->type), sl_size(need, &needed), sl_size(have, &left));
        return false;
    }
    if (sl_synthetic_make(made, model, &err) == SL_OK) return true;
    sl_report_error(&err);
    return false;
}

/* A small session that keeps a model's weights on the device while rows come and go. */
static bool hold_weights(const bench *b, sl_bench_model *m) {
    sl_common common;
    sl_common_init(&common);
    common.n_batch = 1;
    common.device = b->device_id;
    common.activations = b->activations;
    common.batch_invariant = b->batch_invariant;
    return sl_common_session(&common, 1, m->model, &m->holder);
}

static bool open_models(bench *b) {
    sl_error err;
    sl_common common;
    sl_common_init(&common);
    for (size_t i = 0; i < b->n_model; i++) {
        sl_bench_model *m = &b->models[i];
        bool is_made = b->made[i].preset != NULL;
        common.model = b->names[i];
        m->label = is_made ? b->names[i] : short_name(b->names[i]);
        m->resident = is_made;
        m->deep_option = is_made && !b->made[i].preset->attention ? (double)b->made[i].deep : (double)NAN;
        bool opened = is_made ? make_model(b, &b->made[i], &m->model) : sl_common_open_model(&common, &m->model);
        if (!opened) return false;
        if (sl_bench_model_init(m, &err) != SL_OK) return sl_report_error(&err), false;
        if (!on_cpu(b) && !hold_weights(b, m)) return false;
    }
    return true;
}

/* ---- probes -------------------------------------------------------------------------------------- */

static sl_type type_of(const sl_bench_model *m) {
    sl_type type = SL_F32;
    sl_type_parse(m->info.type, &type);
    return type;
}

static bool print_probe(const char *name, const char *unit, size_t n_thread, const sl_probe *p) {
    char line[160];
    int n = snprintf(line, sizeof line, "%s, %zu threads: %.4g %s (best %.4g)\n", name, n_thread, p->median,
                     unit, p->best);
    return sl_out(line, (size_t)n) && sl_out_flush();
}

/* What the rows have in common. */
static sl_bench_config base_config(const bench *b) {
    return (sl_bench_config){ .n_batch = (size_t)b->n_batch, .tau = (float)b->route_threshold, .device = b->device_id,
                              .profile = b->profile, .batch_invariant = b->batch_invariant,
                              .activations = sl_activations_named(b->activations) };
}

/* A GPU's probes stand in for the CPU's: copying for reading, cuBLAS for the matrix product. Without cuBLAS nothing is
 * held against it. */
static sl_status run_cuda_probes(const bench *b, probes *p, sl_error *err) {
    char line[200];
    sl_cuda_probe c;
    SL_TRY(sl_cuda_probe_run((int)strtol(b->device_id + strlen("cuda:"), NULL, 10), &c, err));
    p->n_thread = 1;
    p->read = (sl_probe){ c.copy_gbps, c.copy_gbps };
    const sl_bench_config config = base_config(b);
    for (size_t i = 0; i < b->n_model; i++) {
        const bool is_f32 = !strcmp(sl_bench_activations(&b->models[i], &config), "f32");
        double rate = is_f32 ? c.tflops_f32 : c.tflops_f16;
        p->matmul[type_of(&b->models[i])] = (sl_probe){ rate > 0 ? rate : (double)NAN, rate };
    }
    int n = snprintf(line, sizeof line, "%s: copies %.4g GB/s (read and written); %s: f32 %.4g, f16 %.4g TFLOP/s\n",
                     b->device_id, c.copy_gbps, c.blas, c.tflops_f32, c.tflops_f16);
    sl_out(line, sl_min((size_t)n, sizeof line - 1));
    sl_out_flush();
    return SL_OK;
}

static sl_status run_probes(const bench *b, probes *p, size_t n_thread, sl_error *err) {
    char name[64];
    if (!on_cpu(b)) return run_cuda_probes(b, p, err);
    p->n_thread = n_thread;
    SL_TRY(sl_probe_read(n_thread, &p->read, err));
    print_probe("read probe", "GB/s", n_thread, &p->read);
    for (size_t i = 0; i < b->n_model; i++) {
        sl_type type = type_of(&b->models[i]);
        if (p->has_matmul[type]) continue;
        p->has_matmul[type] = true;
        SL_TRY(sl_probe_matmul(n_thread, type, &p->matmul[type], err));
        snprintf(name, sizeof name, "matrix probe (%s)", sl_type_name(type));
        print_probe(name, "TFLOP/s", n_thread, &p->matmul[type]);
    }
    return SL_OK;
}

/* ---- rows ---------------------------------------------------------------------------------------- */

static uint64_t other_bytes(const bench *b, size_t model) {
    uint64_t sum = 0;
    for (size_t i = 0; i < b->n_model; i++)
        if (i != model && b->models[i].resident) sum += b->models[i].info.weight_bytes;
    return sum;
}

/* A row that does not fit into memory is left out, with a line that says so. */
static void left_out(const sl_bench_model *m, const sl_bench_config *c, const char *why) {
    char line[800];
    sl_name_buf name;
    int n = snprintf(line, sizeof line, "(%s: %s%zu at depth %llu, %zu sequences left out: %s)\n", sl_name(m->label, &name),
                     c->n_prompt ? "pp" : "tg", c->n_prompt + c->n_gen, (unsigned long long)c->depth, c->n_seq, why);
    sl_out(line, sl_min((size_t)n, sizeof line - 1));
}

static bool fits(const sl_bench_model *m, const sl_bench_config *c) {
    char why[128];
    uint64_t need = sl_bench_bytes(m, c), have = sl_os_memory_free();
    if (need <= have || m->holder) return true; /* a GPU says so itself */
    sl_size_buf needed, left;
    snprintf(why, sizeof why, "it needs %s for states, %s are free", sl_size(need, &needed), sl_size(have, &left));
    left_out(m, c, why);
    return false;
}

static sl_status measure(bench *b, size_t model, const sl_bench_config *c, const probes *p,
                         const sl_bench_row *baseline, sl_bench_row *row, bool *measured, sl_error *err) {
    sl_bench_model *m = &b->models[model];
    *measured = false;
    if (!fits(m, c)) return SL_OK;
    sl_status status = sl_bench_measure(m, c, other_bytes(b, model), row, err);
    if (status == SL_E_MEMORY && m->holder) return left_out(m, c, err->text), SL_OK;
    SL_TRY(status);
    row->read_gbps = p->read.median;
    row->load = b->load;
    row->matmul_tflops = p->matmul[type_of(m)].median;
    if (baseline) row->ratio = row->median / baseline->median;
    *measured = row->n_repeat > 0 && !sl_interrupted();
    if (!*measured) sl_bench_profile_release(&row->profile);
    return SL_OK;
}

/* Whole files after every row: a bench that is stopped, or killed, keeps the rows that it has. */
static sl_status write_files(const bench *b, sl_error *err) {
    if (b->json) SL_TRY(sl_bench_write_json(b->json, b->rows, b->n_row, err));
    if (b->csv) SL_TRY(sl_bench_write_csv(b->csv, b->rows, b->n_row, err));
    return SL_OK;
}

/* The rows own their profiles, this one's too, whatever comes of it. */
static sl_status keep_row(bench *b, sl_bench_row *row, sl_error *err) {
    if (!sl_grow((void **)&b->rows, &b->cap_row, b->n_row + 1, sizeof *b->rows)) {
        sl_bench_profile_release(&row->profile);
        return sl_fail(err, SL_E_MEMORY, "out of memory: %zu rows", b->n_row);
    }
    b->rows[b->n_row++] = *row;
    sl_bench_table_row(row);
    return write_files(b, err);
}

/* The baseline first, as the others' ratio needs it; shown last. */
static sl_status run_config(bench *b, const sl_bench_config *c, const probes *p, sl_error *err) {
    size_t n_own = b->n_model - b->has_baseline;
    sl_bench_row base, row;
    bool has_base = false, measured;
    sl_status status = SL_OK;
    if (b->has_baseline) SL_TRY(measure(b, n_own, c, p, NULL, &base, &has_base, err));
    for (size_t i = 0; i < n_own && !sl_interrupted() && status == SL_OK; i++) {
        status = measure(b, i, c, p, has_base ? &base : NULL, &row, &measured, err);
        if (status == SL_OK && measured) status = keep_row(b, &row, err);
    }
    if (!has_base) return status;
    if (status != SL_OK) return sl_bench_profile_release(&base.profile), status;
    base.ratio = 1;
    return keep_row(b, &base, err);
}

/* Rows of one number of threads, of sequences and of repetitions, by depth. */
static sl_status run_depths(bench *b, sl_bench_config c, const probes *p, sl_error *err) {
    for (size_t d = 0; d < b->depths.n; d++) {
        c.depth = (uint64_t)b->depths.v[d];
        c.n_gen = 0;
        for (size_t i = 0; i < b->prompts.n && !sl_interrupted(); i++) {
            c.n_prompt = (size_t)b->prompts.v[i];
            if (c.n_prompt) SL_TRY(run_config(b, &c, p, err));
        }
        c.n_prompt = 0;
        for (size_t i = 0; i < b->gens.n && !sl_interrupted(); i++) {
            c.n_gen = (size_t)b->gens.v[i];
            if (c.n_gen) SL_TRY(run_config(b, &c, p, err));
        }
    }
    return SL_OK;
}

/* Numbers of a busy machine say little; who reads them later should know. */
static void print_load(bench *b) {
    char line[160];
    b->load = sl_os_load();
    if (b->load < 0.5) return;
    int n = snprintf(line, sizeof line,
                     "load %.1f on %zu processors: other programs are running, speeds will vary\n", b->load,
                     sl_os_processors());
    sl_out(line, (size_t)n);
}

static sl_status run_rows(bench *b, sl_error *err) {
    sl_bench_config c = base_config(b);
    c.max_seconds = b->given_repeats ? 0 : 8;
    print_load(b);
    for (size_t t = 0; t < b->threads.n; t++)
        SL_TRY(run_probes(b, &b->probes[t], (size_t)b->threads.v[t], err));
    sl_bench_table_head();
    for (size_t t = 0; t < b->threads.n; t++)
        for (size_t i = 0; i < b->batches.n; i++)
            for (size_t r = 0; r < b->repeats.n && !sl_interrupted(); r++) {
                c.n_thread = (size_t)b->threads.v[t];
                c.n_seq = (size_t)b->batches.v[i];
                c.n_repeat = (size_t)b->repeats.v[r];
                SL_TRY(run_depths(b, c, &b->probes[t], err));
            }
    return SL_OK;
}

/* ---- the command --------------------------------------------------------------------------------- */

/* Lists that were not given: what takes a minute or two. */
static void set_defaults(bench *b) {
    uint64_t n_param = 0;
    int64_t depth = 0;
    for (size_t i = 0; i < b->n_model; i++)
        if (b->models[i].info.n_param > n_param) n_param = b->models[i].info.n_param;
    for (size_t i = 0; i < b->depths.n; i++)
        if (b->depths.v[i] > depth) depth = b->depths.v[i];
    if (!b->given_prompts) b->prompts.v[b->prompts.n++] = depth >= 32768 ? 32 : n_param > 100000000 ? 128 : 512;
    if (!b->given_gens) b->gens.v[b->gens.n++] = depth >= 32768 ? 16 : 32;
    if (!b->repeats.n) b->repeats.v[b->repeats.n++] = 3;
    if (!b->depths.n) b->depths.v[b->depths.n++] = 0;
    if (!b->batches.n) b->batches.v[b->batches.n++] = 1;
    if (!on_cpu(b)) b->threads = (sl_int_list){ .v = { 1 }, .n = 1 };
    if (!b->threads.n) b->threads.v[b->threads.n++] = (int64_t)sl_os_processors();
}

/* Better to hear of a wrong path now than after minutes of work. */
static sl_status check_path(const char *path, sl_error *err) {
    sl_os_out out;
    if (!path) return SL_OK;
    SL_TRY(sl_os_out_open(&out, path, err));
    sl_os_out_abort(&out);
    return SL_OK;
}

/* At least, for all of them at once; the shipped model is small, and what cannot be opened is told when it is. */
static uint64_t weights_to_come(const bench *b) {
    sl_error err;
    uint64_t sum = 0;
    for (size_t i = 0; i < b->n_model; i++) {
        sl_os_in file = { 0 };
        if (b->made[i].preset) sum += sl_synthetic_bytes(&b->made[i]);
        else if (b->names[i] && sl_os_in_open(&file, b->names[i], &err) == SL_OK) sum += file.size;
        sl_os_in_close(&file);
    }
    return sum;
}

/* Below the table, which they would cut in pieces. */
static void print_profiles(const bench *b) {
    for (size_t i = 0; i < b->n_row; i++) sl_bench_table_profile(&b->rows[i]);
}

static int run_bench(bench *b) {
    sl_error err;
    if (check_path(b->json, &err) != SL_OK || check_path(b->csv, &err) != SL_OK) return sl_report_error(&err);
    sl_interrupt_install();
    sl_device_params params = { .weights_to_come = weights_to_come(b) };
    sl_device_choice choice;
    if (sl_device_choose(b->device, NULL, &params, &choice, &err) != SL_OK) return sl_report_error(&err);
    memcpy(b->device_id, choice.id, sizeof choice.id);
    if (choice.note[0]) sl_note("%s", choice.note);
    if (!open_models(b)) return SL_EXIT_FAILED;
    set_defaults(b);
    const sl_status status = run_rows(b, &err);
    print_profiles(b);
    if (status != SL_OK) return sl_report_error(&err);
    if (sl_interrupted()) return SL_EXIT_INTERRUPTED;
    if (!b->n_row)
        return sl_report(SL_EXIT_FAILED, "no row was measured (expected -p or -n above 0, and enough memory)");
    return SL_EXIT_OK;
}

static void release(bench *b) {
    for (size_t i = 0; i < b->n_row; i++) sl_bench_profile_release(&b->rows[i].profile);
    for (size_t i = 0; i < b->n_model; i++) sl_bench_model_release(&b->models[i]);
    free(b->rows);
}

static int run(int argc, char **argv) {
    static bench b; /* large; a program runs one command */
    b = (bench){ .n_batch = 512, .route_threshold = (double)NAN, .device = "auto" };
    const sl_arg args[] = {
        { "-m, --model", "FILE", SL_ARG_TEXTS, &b.files, 0, 0,
          "model file; may be given again (the shipped Bridge)", NULL },
        { "--synthetic", "NAME[:TYPE][:deep=X]", SL_ARG_TEXTS, &b.synthetic, 0, 0,
          "random weights: bridge-1.3b, -7b, -13b, transformer-1.3b, ...; types f32 f16 bf16 q8 q4", NULL },
        { "--against", "NAME|FILE", SL_ARG_TEXT, &b.against, 0, 0,
          "baseline: preset, .slu file or none (for a Bridge preset the transformer of its size)", NULL },
        { "-p, --n-prompt", "N,...", SL_ARG_LIST, &b.prompts, 0, 1 << 24,
          "tokens of prefill rows; 0: none (512; 128 or 32 where that takes long)", &b.given_prompts },
        { "-n, --n-gen", "N,...", SL_ARG_LIST, &b.gens, 0, 1 << 24,
          "tokens of decode rows; 0: none (32; at great depth 16)", &b.given_gens },
        { "-d, --n-depth", "N,...", SL_ARG_LIST, &b.depths, 0, 1 << 30, "tokens seen before (0)", NULL },
        { "-b, --batch", "N,...", SL_ARG_LIST, &b.batches, 1, 4096, "sequences at once (1)", NULL },
        { "-t, --threads", "N,...", SL_ARG_LIST, &b.threads, 1, 1024, "threads (one per processor)", NULL },
        { "-r, --repetitions", "N,...", SL_ARG_LIST, &b.repeats, 1, 1000,
          "repetitions (3, fewer where one takes long)", &b.given_repeats },
        { "--n-batch", "N", SL_ARG_INT, &b.n_batch, 1, 65536, "tokens per pass (512)", NULL },
        { "--route-threshold", "X", SL_ARG_FLOAT, &b.route_threshold, 0, 1,
          "0..1 replaces tau in every routed layer (as stored in the model)", NULL },
        { "--device", "NAME", SL_ARG_DEVICE, &b.device, 0, 0,
          "cpu, cuda, cuda:N, or auto: a GPU if the models fit (auto)", NULL },
        { "--activations", "f32|f16", SL_ARG_CHOICE, &b.activations, 0, 0,
          "between the layers, on a GPU (f16; f32 for f32 weights)", NULL },
        { "--batch-invariant", NULL, SL_ARG_FLAG, &b.batch_invariant, 0, 0,
          "on a GPU: the same bits whatever is computed beside a sequence", NULL },
        { "--profile", NULL, SL_ARG_FLAG, &b.profile, 0, 0,
          "where the time goes, node by node, of one repetition more", NULL },
        { "--json", "FILE", SL_ARG_TEXT, &b.json, 0, 0, "write the rows as JSON, anew after each row", NULL },
        { "--csv", "FILE", SL_ARG_TEXT, &b.csv, 0, 0, "write the rows as CSV, anew after each row", NULL },
    };
    int code = sl_args_parse(argc, argv, &sl_cmd_bench, args, sizeof args / sizeof *args, NULL, 0, 0, NULL);
    if (code < 0) code = list_models(&b);
    if (code >= 0) return code;
    code = run_bench(&b);
    release(&b);
    return code;
}

const sl_command sl_cmd_bench = {
    "bench",
    "sluice bench [-m FILE | --synthetic PRESET:TYPE] [flags]",
    "measure speed, memory and bytes moved, against a transformer",
    run,
};
