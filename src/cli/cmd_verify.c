/* sluice verify: everything a model needs to run, and every checksum. */
#include "cli/cli.h"
#include "run/model.h"

static void on_progress(void *arg, uint64_t done, uint64_t all) { sl_progress_update(arg, done, all); }

static int verify(const sl_model *model) {
    sl_error err;
    sl_progress bar;
    char line[160];
    sl_progress_begin(&bar, "verifying", "bytes");
    sl_status status = sl_slu_verify(&model->slu, on_progress, &bar, &err);
    sl_progress_end(&bar);
    if (status != SL_OK) return sl_report_error(&err);
    int n = snprintf(line, sizeof line, "OK: %zu tensors, %llu bytes, fingerprint %016llx\n",
                     model->slu.n_tensor,
                     (unsigned long long)model->slu.size, (unsigned long long)model->slu.fingerprint);
    return sl_out(line, (size_t)n) && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int run(int argc, char **argv) {
    sl_common common;
    sl_common_init(&common);
    const sl_arg args[] = {
        { "-m, --model", "FILE", SL_ARG_TEXT, &common.model, 0, 0, "model file (the shipped Bridge)", NULL },
    };
    const char *path;
    size_t n = 0;
    int code = sl_args_parse(argc, argv, &sl_cmd_verify, args, 1, &path, 0, 1, &n);
    if (code >= 0) return code;
    if (n && common.model) return sl_report(SL_EXIT_MISUSE, "a file and -m are given, expected one of them");
    if (n) common.model = path;
    sl_model *model;
    if (!sl_common_open_model(&common, &model)) return SL_EXIT_FAILED;
    code = verify(model);
    sl_model_close(model);
    return code;
}

const sl_command sl_cmd_verify = {
    "verify", "sluice verify [-m FILE | FILE]", "checks a .slu file, every byte of it", run
};
