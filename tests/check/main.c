/* sl_check: runs every kernel variant of kernels.def that this machine has against its reference.
 *
 *   sl_check [--seed N] [NAME]      test all variants whose name contains NAME; --jobs N: N CUDA kernels at a time
 *   sl_check --bench [NAME]         time them
 *   sl_check --mutants [NAME]       test the broken kernels of mutants.def: each must be caught
 *   sl_check --list                 name them
 *
 * Exit 0: all good; 1: something failed; 2: misuse. Tests of one member draw the same inputs for every
 * variant, from the seed and the member's name. */
#define _POSIX_C_SOURCE 200809L
#include "runner.h"
#include "kernels/prototypes.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const family families[] = {
#define SL_CHECK(member, test_function, bench_function) { #member, test_function, bench_function },
#include "families.def"
#undef SL_CHECK
};

#define SL_KERNEL(member, isa, function)                                                                     \
    static void set_##function(sl_kernels *table) { table->member = function; }
#include "kernels/kernels.def"
#undef SL_KERNEL
#define SL_MUTANT(member, function)                                                                          \
    static void set_##function(sl_kernels *table) { table->member = function; }
#include "mutants.def"
#undef SL_MUTANT
static const variant variants[] = {
#define SL_KERNEL(member, isa, function) { #member, #function, SL_CPU_##isa, false, set_##function },
#include "kernels/kernels.def"
#undef SL_KERNEL
};
static const variant mutants[] = {
#define SL_MUTANT(member, function) { #member, #function, SL_CPU_REF, false, set_##function },
#include "mutants.def"
#undef SL_MUTANT
};
enum { N_VARIANT = sizeof variants / sizeof *variants, N_MUTANT = sizeof mutants / sizeof *mutants };

#ifndef SL_CUDA
tally check_cuda_all(const char *name, uint64_t seed, size_t n_job) {
    return (void)name, (void)seed, (void)n_job, (tally){ 0, 0 };
}
tally check_cuda_mutants(const char *name, uint64_t seed) { return (void)name, (void)seed, (tally){ 0, 0 }; }
void check_cuda_list(void) {}
#endif

static check current;
static sigjmp_buf after_fault;
static volatile sig_atomic_t armed;

static void on_fault(int number) {
    if (armed) siglongjmp(after_fault, number);
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_faults(void) {
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE };
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_fault;
    action.sa_flags = SA_NODEFER;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &action, NULL);
}

static uint64_t seed_of(uint64_t seed, const char *member) {
    uint64_t h = seed ^ 0xcbf29ce484222325u; /* FNV-1a */
    for (; *member; member++) h = (h ^ (unsigned char)*member) * 0x100000001b3u;
    return h;
}

check *check_current(void) {
    return &current;
}

const family *check_family(const char *member) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(families[i].member, member) == 0) return &families[i];
    }
    return NULL;
}

size_t check_run(const variant *v, void (*body)(check *c), uint64_t seed, bool quiet) {
    static sl_kernels ref, test;
    ref = test = sl_kernels_select(SL_CPU_REF);
    if (v->set) v->set(&test);
    current = (check){ .ref = &ref, .test = &test, .member = v->member, .kernel = v->name, .cuda = v->cuda,
                       .quiet = quiet, .rng = seed_of(seed, v->member), .what = "before the first case" };
    const int fault = sigsetjmp(after_fault, 1);
    armed = fault == 0;
    if (fault == 0) body(&current);
    else check_fail(&current, "fault: signal %d, an access outside the buffers", fault);
    armed = 0;
    check_release(&current, fault == 0);
    return current.failed;
}

static bool has_features(const variant *v, unsigned features) {
    return (features & v->features) == v->features;
}

/* Every mask this processor can be narrowed to fills the whole table. */
static size_t check_tables(unsigned features) {
    size_t n_failed = 0;
    for (unsigned mask = features;; mask = (mask - 1) & features) {
        const sl_kernels table = sl_kernels_select(mask);
#define SL_CHECK(member, test_function, bench_function)                                                      \
    if (!table.member) fprintf(stderr, "FAILED: mask %u leaves %s empty\n", mask, #member), n_failed++;
#include "families.def"
#undef SL_CHECK
        if (mask == 0) return n_failed;
    }
}

static size_t run_all(const char *name, bool bench, uint64_t seed, size_t n_job, unsigned features) {
    size_t n_failed = bench ? 0 : check_tables(features), n_run = 0, n_absent = 0;
    for (size_t i = 0; i < N_VARIANT; i++) {
        const variant *v = &variants[i];
        const family *f = check_family(v->member);
        if (!strstr(v->name, name)) continue;
        if (!f) {
            fprintf(stderr, "FAILED: %s has no test in families.def\n", v->member);
            n_failed++;
        } else if (!has_features(v, features)) {
            n_absent++;
        } else {
            n_failed += check_run(v, bench ? f->bench : f->test, seed, false) > 0;
            n_run++;
        }
    }
    const tally device = bench ? (tally){ 0, 0 } : check_cuda_all(name, seed, n_job);
    n_run += device.n_run, n_failed += device.n_failed;
    printf("%zu variants, %zu failed, %zu not on this processor\n", n_run, n_failed, n_absent);
    return n_failed + (n_run == 0);
}

/* A mutant must fail its test; the reference, run beside it, must not. */
static size_t run_mutants(const char *name, uint64_t seed) {
    size_t n_survived = 0, n_run = 0;
    for (size_t i = 0; i < N_MUTANT; i++) {
        const variant *m = &mutants[i];
        const family *f = check_family(m->member);
        if (!strstr(m->name, name)) continue;
        n_run++;
        if (f && check_run(m, f->test, seed, true) > 0) continue;
        fprintf(stderr, "FAILED: the test of %s did not catch %s\n", m->member, m->name);
        n_survived++;
    }
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool covered = !strstr(families[i].member, name);
        for (size_t j = 0; j < N_MUTANT; j++) covered |= strcmp(mutants[j].member, families[i].member) == 0;
        if (!covered) fprintf(stderr, "FAILED: %s has no mutant\n", families[i].member), n_survived++;
    }
    const tally device = check_cuda_mutants(name, seed);
    n_run += device.n_run, n_survived += device.n_failed;
    printf("%zu mutants, %zu not caught\n", n_run, n_survived);
    return n_survived + (n_run == 0);
}

static int list_all(unsigned features) {
    for (size_t i = 0; i < N_VARIANT; i++) {
        printf("%-14s %s%s\n", variants[i].member, variants[i].name,
               has_features(&variants[i], features) ? "" : " (not on this processor)");
    }
    for (size_t i = 0; i < N_MUTANT; i++) printf("%-14s %s (mutant)\n", mutants[i].member, mutants[i].name);
    check_cuda_list();
    return 0;
}

int main(int argc, char **argv) {
    const unsigned features = sl_cpu_features();
    const char *name = "", *mode = "";
    uint64_t seed = 1;
    size_t n_job = 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--jobs") == 0 && i + 1 < argc) n_job = strtoul(argv[++i], NULL, 0);
        else if (strncmp(argv[i], "--", 2) == 0) mode = argv[i];
        else name = argv[i];
    }
    if (strcmp(mode, "--list") == 0) return list_all(features);
    const bool bench = strcmp(mode, "--bench") == 0, broken = strcmp(mode, "--mutants") == 0;
    if (*mode && !bench && !broken) {
        fprintf(stderr, "usage: sl_check [--bench | --mutants | --list] [--seed N] [--jobs N] [NAME]\n");
        return 2;
    }
    printf("seed %llu, processor %s\n", (unsigned long long)seed, sl_cpu_features_name(features));
    fflush(stdout);
    catch_faults();
    return (broken ? run_mutants(name, seed) : run_all(name, bench, seed, n_job, features)) > 0;
}
