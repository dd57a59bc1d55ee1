/* The program: finds the command and leaves with its exit code. */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "kernels/kernels.h"
#include "os/os.h"

static const sl_command *const commands[] = {
    &sl_cmd_generate, &sl_cmd_chat, &sl_cmd_batch, &sl_cmd_bench, &sl_cmd_tokenize, &sl_cmd_logits,
    &sl_cmd_perplexity, &sl_cmd_convert, &sl_cmd_quantize, &sl_cmd_info, &sl_cmd_verify, NULL
};

static int print_help(void) {
    char line[256];
    static const char head[] =
        "usage: sluice COMMAND [flags]\n\n"
        "Inference for language models without attention, or with little of it.\n\ncommands:\n";
    static const char tail[] =
        "\n'sluice COMMAND --help' lists the flags of a command, 'sluice --version' tells the\n"
        "version. Without -m the shipped Bridge model is used.\n";
    bool good = sl_out(head, sizeof head - 1);
    for (size_t i = 0; commands[i]; i++) {
        int n = snprintf(line, sizeof line, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
        good = good && sl_out(line, sl_min((size_t)n, sizeof line - 1));
    }
    return good && sl_out(tail, sizeof tail - 1) && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int print_version(void) {
    char line[128];
    const char *bad;
    int n = snprintf(line, sizeof line, "sluice %s (%s, %zu processors)\n", sl_version(),
                     sl_cpu_features_name(sl_cpu_features_allowed(&bad)), sl_os_processors());
    return sl_out(line, (size_t)n) && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

static int unknown_command(const char *name) {
    char known[256] = "";
    for (size_t i = 0; commands[i]; i++) {
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, commands[i]->name, sizeof known - strlen(known) - 1);
    }
    sl_name_buf buf;
    return sl_report(SL_EXIT_MISUSE, "unknown %s '%s' (expected %s)", name[0] == '-' ? "flag" : "command",
                     sl_name(name, &buf), known);
}

static int run(int argc, char **argv) {
    if (argc < 2) return sl_report(SL_EXIT_MISUSE, "no command given ('sluice --help' lists them)");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_help();
    const char *bad = NULL;
    sl_cpu_features_allowed(&bad);
    sl_name_buf name;
    if (bad)
        return sl_report(SL_EXIT_MISUSE, "SLUICE_CPU: '%s' (expected ref, avx2 or avx512)",
                         sl_name(bad, &name));
    if (strcmp(argv[1], "--version") == 0) return print_version();
    for (size_t i = 0; commands[i]; i++)
        if (strcmp(argv[1], commands[i]->name) == 0) return commands[i]->run(argc - 1, argv + 1);
    return unknown_command(argv[1]);
}

/* A program started with a closed standard stream would get its number for the next file it opens, and
 * write text into it. Writing to a stream opened for reading fails, as it should for a closed one. */
static void fill_standard_streams(void) {
    for (int fd = 0; fd < 3; fd++)
        while (fcntl(fd, F_GETFD) < 0)
            if (open("/dev/null", O_RDONLY) < 0) return;
}

/* Until a command has something to finish, Ctrl-C ends the program at once. */
static void leave(int number) {
    (void)number;
    _exit(SL_EXIT_INTERRUPTED);
}

int main(int argc, char **argv) {
    fill_standard_streams();
    signal(SIGINT, leave);
    signal(SIGPIPE, SIG_DFL); /* a closed pipe ends the program quietly, whatever the parent ignored */
    signal(SIGXFSZ, SIG_IGN); /* a size limit is an error of write(2), not the end of the program */
    int code = run(argc, argv);
    if (!sl_out_flush() && code == SL_EXIT_OK) code = SL_EXIT_FAILED;
    return code;
}
