/* sluice convert: a folder of safetensors to a .slu. */
#include "cli/cli.h"
#include "cli/convert_job.h"

static int run(int argc, char **argv) {
    sl_type type = SL_F32;
    bool type_given = false;
    sl_convert_params params = { 0 };
    const sl_arg args[] = {
        { "--type", "TYPE", SL_ARG_TYPE, &type, 0, 0,
          "f32, f16, bf16, q8 or q4 for the matrices (as the checkpoint stores them)", &type_given },
        { "--no-tokenizer", NULL, SL_ARG_FLAG, &params.no_tokenizer, 0, 0,
          "leave out tokenizer and chat template; such a model takes --tokens only", NULL },
    };
    const char *paths[2];
    size_t n;
    int code = sl_args_parse(argc, argv, &sl_cmd_convert, args, 2, paths, 2, 2, &n);
    if (code >= 0) return code;
    if (type_given) params.type = &type;
    sl_error err;
    sl_convert_job_begin(&params, "converting");
    sl_status status = sl_convert(paths[0], paths[1], &params, &err);
    return sl_convert_job_end(status, &err, paths[1]);
}

const sl_command sl_cmd_convert = {
    "convert", "sluice convert FOLDER OUT.slu [--type TYPE] [--no-tokenizer]",
    "a folder of safetensors, config.json and tokenizer.json to one .slu file", run
};
