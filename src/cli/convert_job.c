#include "cli/convert_job.h"

#include "cli/cli.h"

static sl_progress bar;

static bool on_progress(void *arg, uint64_t done, uint64_t all) {
    sl_progress_update(arg, done, all);
    return !sl_interrupted();
}

static void on_line(void *arg, const char *line) {
    (void)arg;
    sl_report(SL_EXIT_FAILED, "%s", line);
}

void sl_convert_job_begin(sl_convert_params *params, const char *what) {
    params->line = on_line;
    params->progress = on_progress;
    params->arg = &bar;
    sl_interrupt_install();
    sl_progress_begin(&bar, what, "bytes");
}

int sl_convert_job_end(sl_status status, const sl_error *err, const char *path) {
    sl_name_buf buf;
    sl_progress_end(&bar);
    if (status != SL_OK) {
        sl_report_error(err);
        return sl_interrupted() ? SL_EXIT_INTERRUPTED : SL_EXIT_FAILED;
    }
    sl_note("wrote %s", sl_name(path, &buf));
    return SL_EXIT_OK;
}
