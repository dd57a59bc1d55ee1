/* Flags of a command from its table: parsing, help, and the line that names a misuse. */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/devices.h"
#include "kernels/types.h"

/* ---- one flag ----------------------------------------------------------------------------------- */

/* The value that belongs to a table line, and how the user spelled the flag, for messages. */
typedef struct given { const sl_arg *arg; const char *flag, *value; } given;

static int misuse(const given *g, const char *problem, const char *expected) {
    sl_name_buf flag, value;
    return sl_report(SL_EXIT_MISUSE, "%s: '%s' %s (expected %s)", sl_name(g->flag, &flag),
                     sl_name(g->value, &value), problem, expected);
}

/* "0..1", "at least 1": the range of a number, as a message says it. */
static const char *range_text(const sl_arg *arg, char text[96]) {
    const char *what = arg->type == SL_ARG_FLOAT ? "a number" : "an integer";
    if (isinf(arg->min) && isinf(arg->max)) snprintf(text, 96, "%s", what);
    else if (isinf(arg->max)) snprintf(text, 96, "%s from %.10g", what, arg->min);
    else if (isinf(arg->min)) snprintf(text, 96, "%s up to %.10g", what, arg->max);
    else snprintf(text, 96, "%s in %.10g..%.10g", what, arg->min, arg->max);
    return text;
}

/* An integer that takes n bytes and nothing else. 0: good, 1: no integer, 2: too large for 64 bits. */
static int parse_int(const char *text, size_t n, int64_t *out) {
    char digits[32];
    size_t sign = n && (text[0] == '-' || text[0] == '+');
    if (n == sign) return 1;
    for (size_t i = sign; i < n; i++)
        if (!isdigit((unsigned char)text[i])) return 1;
    if (n >= sizeof digits) return 2;
    memcpy(digits, text, n);
    digits[n] = 0;
    errno = 0;
    *out = strtoll(digits, NULL, 10);
    return errno == ERANGE ? 2 : 0;
}

static int set_int(const given *g) {
    char range[96];
    int64_t value = 0;
    int bad = parse_int(g->value, strlen(g->value), &value);
    if (bad == 1) return misuse(g, "is not an integer", range_text(g->arg, range));
    if (bad || (double)value < g->arg->min || (double)value > g->arg->max)
        return misuse(g, "is out of range", range_text(g->arg, range));
    *(int64_t *)g->arg->out = value;
    return -1;
}

/* strtod also takes blanks, hexadecimal, "inf" and "nan"; a flag does not. */
static int set_float(const given *g) {
    char range[96], *end = NULL;
    bool plain = strspn(g->value, "0123456789.eE+-") == strlen(g->value);
    double value = strtod(g->value, &end);
    if (!plain || *end || end == g->value || !isfinite(value))
        return misuse(g, "is not a finite number", range_text(g->arg, range));
    if (value < g->arg->min || value > g->arg->max)
        return misuse(g, "is out of range", range_text(g->arg, range));
    *(double *)g->arg->out = value;
    return -1;
}

static uint64_t random_seed(void) {
    uint64_t seed = (uint64_t)(uintptr_t)&seed; /* without a source of randomness: where the stack is */
    FILE *file = fopen("/dev/urandom", "rb");
    if (file) {
        if (fread(&seed, sizeof seed, 1, file) != 1) seed ^= 0x9E3779B97F4A7C15u;
        fclose(file);
    }
    return seed;
}

static int set_seed(const given *g) {
    static const char expected[] = "0..18446744073709551615, or -1 for a random one";
    if (strcmp(g->value, "-1") == 0) {
        *(uint64_t *)g->arg->out = random_seed();
        return -1;
    }
    size_t n = strlen(g->value), start = g->value[0] == '-' || g->value[0] == '+';
    if (n == start || strspn(g->value + start, "0123456789") != n - start)
        return misuse(g, "is not an integer", expected);
    errno = 0;
    unsigned long long value = strtoull(g->value, NULL, 10);
    if (g->value[0] == '-' || errno == ERANGE) return misuse(g, "is out of range", expected);
    *(uint64_t *)g->arg->out = value;
    return -1;
}

static int set_list(const given *g) {
    char range[96];
    sl_int_list *list = g->arg->out;
    list->n = 0;
    const char *p = g->value;
    for (;;) {
        size_t n = strcspn(p, ",");
        int64_t value = 0;
        int bad = parse_int(p, n, &value);
        if (bad == 1) return misuse(g, "is not a comma list of integers", range_text(g->arg, range));
        if (bad || (double)value < g->arg->min || (double)value > g->arg->max)
            return misuse(g, "has an entry out of range", range_text(g->arg, range));
        if (list->n == sizeof list->v / sizeof *list->v) return misuse(g, "has too many entries", "at most 64");
        list->v[list->n++] = value;
        if (!p[n]) return -1;
        p += n + 1;
    }
}

static int set_texts(const given *g) {
    sl_text_list *list = g->arg->out;
    if (!g->value[0]) return misuse(g, "is empty", "some text");
    if (list->n == sizeof list->v / sizeof *list->v) return misuse(g, "is one too many", "at most 64");
    list->v[list->n++] = g->value;
    return -1;
}

/* "a|b|c" */
static int set_choice(const given *g) {
    size_t n = strlen(g->value);
    for (const char *p = g->arg->value; p && *p; p += strcspn(p, "|"), p += *p == '|') {
        if (strcspn(p, "|") != n || memcmp(p, g->value, n)) continue;
        *(const char **)g->arg->out = g->value;
        return -1;
    }
    return misuse(g, "is not one of the choices", g->arg->value);
}

/* -1: the variable is set; else the exit code of the misuse reported. */
static int set_value(const given *g) {
    switch (g->arg->type) {
    case SL_ARG_FLAG: *(bool *)g->arg->out = true; return -1;
    case SL_ARG_TEXT: *(const char **)g->arg->out = g->value; return -1;
    case SL_ARG_INT: return set_int(g);
    case SL_ARG_FLOAT: return set_float(g);
    case SL_ARG_SEED: return set_seed(g);
    case SL_ARG_TYPE:
        if (sl_type_parse(g->value, g->arg->out)) return -1;
        return misuse(g, "is not a known type", "f32, f16, bf16, q8 or q4");
    case SL_ARG_CHOICE: return set_choice(g);
    case SL_ARG_DEVICE:
        *(const char **)g->arg->out = g->value;
        return sl_device_name_is_known(g->value) ? -1 : misuse(g, "is not a device", "cpu, cuda, cuda:N or auto");
    case SL_ARG_LIST: return set_list(g);
    case SL_ARG_TEXTS: return set_texts(g);
    }
    return -1;
}

/* True if flag (n bytes) is one of the comma-separated spellings. */
static bool spelled(const char *spellings, const char *flag, size_t n) {
    for (const char *p = spellings; *p;) {
        size_t len = strcspn(p, ", ");
        if (len == n && memcmp(p, flag, n) == 0) return true;
        p += len;
        p += strspn(p, ", ");
    }
    return false;
}

static const sl_arg *find(const sl_arg *args, size_t n_arg, const char *flag, size_t n) {
    for (size_t i = 0; i < n_arg; i++)
        if (spelled(args[i].flags, flag, n)) return &args[i];
    return NULL;
}

/* ---- help --------------------------------------------------------------------------------------- */

static int help(const sl_command *command, const sl_arg *args, size_t n_arg) {
    char line[512];
    int n = snprintf(line, sizeof line, "usage: %s\n\n%s\n\nflags:\n", command->usage, command->summary);
    bool good = sl_out(line, sl_min((size_t)n, sizeof line - 1));
    for (size_t i = 0; i <= n_arg; i++) {
        const sl_arg last = { .flags = "-h, --help", .help = "this text" };
        const sl_arg *arg = i < n_arg ? &args[i] : &last;
        char left[128];
        snprintf(left, sizeof left, "%s%s%s", arg->flags, arg->value ? " " : "", arg->value ? arg->value : "");
        bool fits = strlen(left) <= 26;
        n = snprintf(line, sizeof line, fits ? "  %-26s %s\n" : "  %s\n%29s%s\n", left, fits ? arg->help : "",
                     arg->help);
        good = good && sl_out(line, sl_min((size_t)n, sizeof line - 1));
    }
    return good && sl_out_flush() ? SL_EXIT_OK : SL_EXIT_FAILED;
}

/* ---- the whole line ----------------------------------------------------------------------------- */

/* The flag at argv[*i] and its value, which may be the next argument: then *i moves on. */
static int parse_flag(int argc, char **argv, int *i, const sl_command *command, const sl_arg *args,
                      size_t n_arg) {
    const char *flag = argv[*i];
    const char *equals = strncmp(flag, "--", 2) == 0 ? strchr(flag, '=') : NULL;
    size_t n = equals ? (size_t)(equals - flag) : strlen(flag);
    sl_name_buf name;
    const char *shown = sl_name_escape(flag, n, &name);
    const sl_arg *arg = find(args, n_arg, flag, n);
    if (!arg)
        return sl_report(SL_EXIT_MISUSE, "unknown flag '%s' of 'sluice %s' (its --help lists the flags)", shown,
                         command->name);
    given g = { .arg = arg, .flag = shown, .value = equals ? equals + 1 : NULL };
    if (arg->type == SL_ARG_FLAG && equals) return misuse(&g, "is not expected here", "no value");
    if (arg->type != SL_ARG_FLAG && !equals) {
        if (*i + 1 >= argc)
            return sl_report(SL_EXIT_MISUSE, "flag %s needs a value (expected %s %s)", shown, shown,
                             arg->value);
        g.value = argv[++*i];
    }
    if (arg->given) *arg->given = true;
    return set_value(&g);
}

static bool asks_help(const char *text) { return strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0; }

int sl_args_parse(int argc, char **argv, const sl_command *command, const sl_arg *args, size_t n_arg,
                  const char **positional, size_t n_min, size_t n_max, size_t *n_positional) {
    size_t n = 0;
    bool flags = true;
    for (int i = 1; i < argc; i++) {
        if (flags && strcmp(argv[i], "--") == 0) {
            flags = false;
        } else if (flags && asks_help(argv[i])) {
            return help(command, args, n_arg);
        } else if (flags && argv[i][0] == '-' && argv[i][1]) {
            int code = parse_flag(argc, argv, &i, command, args, n_arg);
            if (code >= 0) return code;
        } else if (n < n_max) {
            positional[n++] = argv[i];
        } else {
            sl_name_buf name;
            return sl_report(SL_EXIT_MISUSE, "unexpected argument '%s' (expected: %s)", sl_name(argv[i], &name),
                             command->usage);
        }
    }
    if (n_positional) *n_positional = n;
    if (n >= n_min) return -1;
    return sl_report(SL_EXIT_MISUSE, "%zu argument%s missing (expected: %s)", n_min - n,
                     n_min - n == 1 ? "" : "s", command->usage);
}
