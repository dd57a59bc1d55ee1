/* sluice quantize: a .slu to another element type. */
#include "cli/cli.h"
#include "cli/convert_job.h"

static int run(int argc, char **argv) {
    sl_type type = SL_F32;
    bool type_given = false;
    sl_convert_params params = { 0 };
    const sl_arg args[] = {
        { "--type", "TYPE", SL_ARG_TYPE, &type, 0, 0, "f32, f16, bf16, q8 or q4 for the matrices; required",
          &type_given },
    };
    const char *paths[2];
    size_t n;
    int code = sl_args_parse(argc, argv, &sl_cmd_quantize, args, 1, paths, 2, 2, &n);
    if (code >= 0) return code;
    if (!type_given) return sl_report(SL_EXIT_MISUSE, "--type is missing (expected f32, f16, bf16, q8 or q4)");
    sl_error err;
    sl_convert_job_begin(&params, "quantizing");
    sl_status status = sl_quantize(paths[0], paths[1], type, &params, &err);
    return sl_convert_job_end(status, &err, paths[1]);
}

const sl_command sl_cmd_quantize = {
    "quantize", "sluice quantize IN.slu OUT.slu --type TYPE", "a .slu file to another element type", run
};
