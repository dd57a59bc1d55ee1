/* What convert and quantize share: progress, lists of tensors, interruption. */
#ifndef SL_CLI_CONVERT_JOB_H
#define SL_CLI_CONVERT_JOB_H

#include "file/file.h"

/* Fills the callbacks of params and takes over Ctrl-C. One job at a time. */
void sl_convert_job_begin(sl_convert_params *params, const char *what);
/* Reports how it went; returns the exit code. */
int sl_convert_job_end(sl_status status, const sl_error *err, const char *path);

#endif
