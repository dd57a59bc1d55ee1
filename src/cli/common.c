/* Flags that several commands share; finding and opening the model; prompts and ids as tokens. */
#define _POSIX_C_SOURCE 200809L

#include <ctype.h>
#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "os/os.h"

/* ---- flags -------------------------------------------------------------------------------------- */

void sl_common_init(sl_common *common) {
    sl_sampler_params sampler = sl_sampler_params_default();
    sl_session_params session = sl_session_params_default();
    *common = (sl_common){
        .n_thread = 0,
        .device = "auto",
        .n_batch = (int64_t)session.n_batch,
        .route_threshold = NAN,
        .temperature = (double)sampler.temperature,
        .top_k = sampler.top_k,
        .top_p = (double)sampler.top_p,
        .min_p = (double)sampler.min_p,
        .repeat_penalty = (double)sampler.repeat_penalty,
        .repeat_last_n = sampler.repeat_last_n,
        .n_predict = 256,
        .seed = sampler.seed,
    };
}

size_t sl_common_args(sl_common *common, bool sampling, sl_arg *args, size_t n) {
    sl_common *c = common;
    const sl_arg session[] = {
        { "-m, --model", "FILE", SL_ARG_TEXT, &c->model, 0, 0, "model file (the shipped Bridge)", NULL },
        { "-t, --threads", "N", SL_ARG_INT, &c->n_thread, 1, 1024, "threads (one per processor)", NULL },
        { "-b, --batch-size", "N", SL_ARG_INT, &c->n_batch, 1, 65536, "tokens per pass (512)", NULL },
        { "--route-threshold", "X", SL_ARG_FLOAT, &c->route_threshold, 0, 1,
          "tau of every routed layer, 0..1; 0: all deep, 1: all light (the model's)", NULL },
        { "--device", "NAME", SL_ARG_DEVICE, &c->device, 0, 0,
          "cpu, cuda, cuda:N, or auto: a GPU if the model fits it (auto)", NULL },
        { "--activations", "f32|f16", SL_ARG_CHOICE, &c->activations, 0, 0,
          "between the layers, on a GPU (f16; f32 for f32 weights)", NULL },
        { "--batch-invariant", NULL, SL_ARG_FLAG, &c->batch_invariant, 0, 0,
          "on a GPU: the same bits whatever is computed beside a sequence; slower (the CPU always)", NULL },
    };
    const sl_arg sample[] = {
        { "-n, --n-predict", "N", SL_ARG_INT, &c->n_predict, -1, INT32_MAX,
          "tokens to generate; -1: until the model ends (256)", NULL },
        { "-s, --seed", "N", SL_ARG_SEED, &c->seed, 0, 0, "seed of the sampling; -1: a random one (0)", NULL },
        { "--temp", "X", SL_ARG_FLOAT, &c->temperature, 0, 100,
          "temperature; 0: always the likeliest token (0.8)", NULL },
        { "--top-k", "N", SL_ARG_INT, &c->top_k, 0, INT32_MAX,
          "only the N likeliest tokens; 0: off (40)", NULL },
        { "--top-p", "X", SL_ARG_FLOAT, &c->top_p, 0, 1,
          "only the likeliest tokens that together reach X; 1: off (0.95)", NULL },
        { "--min-p", "X", SL_ARG_FLOAT, &c->min_p, 0, 1,
          "only tokens at least X times as likely as the likeliest; 0: off (0.05)", NULL },
        { "--repeat-penalty", "X", SL_ARG_FLOAT, &c->repeat_penalty, 0.01, 100,
          "makes recent tokens less likely; 1: off (1.1)", NULL },
        { "--repeat-last-n", "N", SL_ARG_INT, &c->repeat_last_n, -1, INT32_MAX,
          "tokens the penalty looks back; 0: off, -1: all (64)", NULL },
        { "--stop", "TEXT", SL_ARG_TEXTS, &c->stop, 0, 0, "end before this text; may be given again", NULL },
        { "--ignore-eos", NULL, SL_ARG_FLAG, &c->ignore_eos, 0, 0, "go on after the model's end token", NULL },
    };
    memcpy(args + n, session, sizeof session);
    n += sizeof session / sizeof *session;
    if (!sampling) return n;
    memcpy(args + n, sample, sizeof sample);
    return n + sizeof sample / sizeof *sample;
}

sl_sampler_params sl_common_sampler(const sl_common *common) {
    return (sl_sampler_params){
        .temperature = (float)common->temperature,
        .top_k = (int32_t)common->top_k,
        .top_p = (float)common->top_p,
        .min_p = (float)common->min_p,
        .repeat_penalty = (float)common->repeat_penalty,
        .repeat_last_n = (int32_t)common->repeat_last_n,
        .seed = common->seed,
    };
}

size_t sl_common_stops(const sl_common *common, sl_stop *stops) {
    for (size_t i = 0; i < common->stop.n; i++)
        stops[i] = (sl_stop){ common->stop.v[i], strlen(common->stop.v[i]) };
    return common->stop.n;
}

size_t sl_common_max_token(const sl_common *common) {
    return common->n_predict < 0 ? SIZE_MAX : (size_t)common->n_predict;
}

/* ---- the model ---------------------------------------------------------------------------------- */

/* Appends text to a pattern of size bytes as it is, whatever characters it has. */
static bool put_literally(char *pattern, size_t size, const char *text) {
    size_t n = strlen(pattern);
    for (; *text && n + 3 <= size; text++) {
        if (strchr("*?[\\", *text)) pattern[n++] = '\\';
        pattern[n++] = *text;
    }
    pattern[n] = 0;
    return !*text;
}

/* The demo model of a folder: bridge.slu, else the first bridge*.slu by name; malloc'd, NULL: none there. */
static char *find_demo(const char *folder, const char *below) {
    char pattern[4096] = "";
    if (!put_literally(pattern, sizeof pattern - sizeof "/bridge*.slu", folder) ||
        !put_literally(pattern, sizeof pattern - sizeof "/bridge*.slu", below))
        return NULL;
    strcat(pattern, "/bridge*.slu");
    glob_t found;
    char *path = NULL;
    if (glob(pattern, GLOB_NOSORT, NULL, &found) == 0) {
        const char *best = found.gl_pathv[0];
        for (size_t i = 1; i < found.gl_pathc; i++) {
            const char *p = found.gl_pathv[i];
            size_t n = strlen(p), best_n = strlen(best); /* bridge.slu is the shortest of all */
            if (n < best_n || (n == best_n && strcmp(p, best) < 0)) best = p;
        }
        path = strdup(best);
    }
    globfree(&found);
    return path;
}

/* Beside the program, then the folders above it (a build folder lies in the source tree), then where
 * cmake --install puts the models, then the source tree that this program was built from. */
static char *default_model(void) {
    static const char *const below[] = { "models/demo", "../models/demo", "../../models/demo",
                                         "../../../models/demo", "../share/sluice/demo" };
    char *folder = sl_os_program_folder(), *path = NULL;
    for (size_t i = 0; folder && !path && i < sizeof below / sizeof *below; i++)
        path = find_demo(folder, below[i]);
    free(folder);
    if (!path) path = find_demo(SL_INSTALLED_MODELS, "");
    if (!path) path = find_demo(SL_SOURCE_MODELS, "");
    return path;
}

const char *sl_common_model_name(const sl_common *common) {
    const char *usual = getenv("SLUICE_MODEL");
    return common->model ? common->model : usual && *usual ? usual : NULL;
}

/* The file that was asked for, else the default one, malloc'd; NULL: there is none. */
static char *model_path(const sl_common *common) {
    const char *name = sl_common_model_name(common);
    return name ? strdup(name) : default_model();
}

bool sl_common_has_model(const sl_common *common) {
    char *path = model_path(common);
    free(path);
    return path != NULL;
}

bool sl_common_open_model(const sl_common *common, sl_model **model) {
    char *path = model_path(common);
    if (!path) {
        sl_report(SL_EXIT_FAILED, "no models/demo/bridge*.slu found near the program (expected -m FILE)");
        return false;
    }
    sl_error err;
    sl_status status = sl_model_open(path, model, &err);
    free(path);
    if (status != SL_OK) sl_report_error(&err);
    return status == SL_OK;
}

/* The first call starts the clock: a session without a device never draws the line. */
static void show_upload(void *arg, uint64_t done, uint64_t all) {
    sl_progress *progress = arg;
    if (!progress->what) sl_progress_begin(progress, "copying weights to the device", "B");
    sl_progress_update(progress, done, all);
}

/* Once: bench opens many sessions. */
static void show_note(const sl_session *session) {
    static bool shown;
    const char *note = sl_session_note(session);
    if (note && !shown) sl_note("%s", note);
    shown |= note != NULL;
}

sl_activations sl_activations_named(const char *name) {
    if (!name) return SL_ACTIVATIONS_AUTO;
    return strcmp(name, "f32") ? SL_ACTIVATIONS_F16 : SL_ACTIVATIONS_F32;
}

bool sl_common_session(const sl_common *common, size_t n_slot, const sl_model *model, sl_session **session) {
    sl_session_params params = sl_session_params_default();
    params.n_slot = n_slot;
    params.n_batch = (size_t)common->n_batch;
    params.n_thread = (size_t)common->n_thread;
    params.route_threshold = (float)common->route_threshold;
    params.device = common->device;
    params.activations = sl_activations_named(common->activations);
    params.batch_invariant = common->batch_invariant;
    sl_progress progress = { 0 };
    params.progress = show_upload;
    params.progress_arg = &progress;
    sl_error err;
    sl_status status = sl_session_create(model, &params, session, &err);
    sl_progress_end(&progress);
    if (status == SL_OK) {
        show_note(*session);
        return true;
    }
    sl_report_error(&err);
    return false;
}

bool sl_common_open(const sl_common *common, size_t n_slot, sl_model **model, sl_session **session) {
    if (!sl_common_open_model(common, model)) return false;
    if (sl_common_session(common, n_slot, *model, session)) return true;
    sl_model_close(*model);
    *model = NULL;
    return false;
}

/* ---- tokens ------------------------------------------------------------------------------------- */

static bool is_separator(char c) { return c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* One id of n digits. Ids have at most ten digits, leading zeros aside. */
static bool parse_id(const char *text, size_t n, size_t n_vocab, int32_t *id) {
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isdigit((unsigned char)text[i])) return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
        if (value >= n_vocab || value > INT32_MAX) return false;
    }
    *id = (int32_t)value;
    return n > 0;
}

bool sl_parse_tokens(const char *text, size_t n_bytes, size_t n_vocab, int32_t **tokens, size_t *n) {
    size_t cap = 0, i = 0;
    *tokens = NULL;
    *n = 0;
    for (;;) {
        while (i < n_bytes && is_separator(text[i])) i++;
        if (i == n_bytes) return true;
        size_t start = i;
        while (i < n_bytes && !is_separator(text[i])) i++;
        int32_t id;
        sl_name_buf name;
        if (!parse_id(text + start, i - start, n_vocab, &id)) {
            sl_report(SL_EXIT_FAILED, "token id '%s' is not in the vocabulary (expected an integer in 0..%zu)",
                      sl_name_escape(text + start, i - start, &name), n_vocab - 1);
            break;
        }
        if (!sl_grow((void **)tokens, &cap, *n + 1, sizeof **tokens)) {
            sl_report(SL_EXIT_FAILED, "out of memory for %zu token ids", *n + 1);
            break;
        }
        (*tokens)[(*n)++] = id;
    }
    free(*tokens);
    *tokens = NULL;
    return false;
}

sl_status sl_text_tokens(const sl_model *model, const void *text, size_t n_bytes, size_t n_front,
                         int32_t **tokens, size_t *n, sl_error *err) {
    *tokens = NULL;
    *n = 0;
    SL_TRY(sl_tokenize(model, text, n_bytes, SL_TOKENIZE_SPECIAL, NULL, 0, n, err));
    SL_TRY(sl_alloc((void **)tokens, n_front + *n, sizeof **tokens, "tokens", err));
    sl_status status = sl_tokenize(model, text, n_bytes, SL_TOKENIZE_SPECIAL, *tokens + n_front, *n, n, err);
    if (status == SL_OK) return SL_OK;
    free(*tokens);
    *tokens = NULL;
    return status;
}

sl_status sl_prompt_tokens(const sl_model *model, const void *text, size_t n_bytes, int32_t **tokens, size_t *n,
                           sl_error *err) {
    sl_model_info info;
    sl_model_get_info(model, &info);
    *tokens = NULL;
    *n = 0;
    /* An empty prompt is no work for a tokenizer, which the model may lack. */
    if (n_bytes) SL_TRY(sl_text_tokens(model, text, n_bytes, 1, tokens, n, err));
    if (!*tokens) SL_TRY(sl_alloc((void **)tokens, 1, sizeof **tokens, "tokens", err));
    int32_t *ids = *tokens;
    if (*n && (info.bos < 0 || ids[1] == info.bos)) {
        memmove(ids, ids + 1, *n * sizeof *ids);
        return SL_OK;
    }
    ids[0] = info.bos >= 0 ? info.bos : info.n_eos ? info.eos[0] : -1;
    *n += 1;
    if (ids[0] >= 0) return SL_OK;
    free(*tokens);
    *tokens = NULL;
    return sl_fail(err, SL_E_ARG, "the prompt is empty and the model has neither a begin nor an end token");
}
