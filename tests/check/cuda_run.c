/* Runs the checks of the CUDA kernels, each in a process of its own: a kernel's fault leaves a device unusable,
 * and what runs after it is to be heard all the same. */
#define _POSIX_C_SOURCE 200809L
#include "cuda_check.h"
#include "runner.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* An adapter in the table, held to its family's test, or a test of the kernel's own. */
typedef struct cuda_check { const char *kernel; variant v; void (*test)(check *c); } cuda_check;
/* A broken kernel and how to put it in the place of the good one. */
typedef struct cuda_mutant { const char *kernel, *name; void (*plant)(void); } cuda_mutant;

#define SL_CUDA_VARIANT(member, kernel, function)                                                             \
    static void set_##function(sl_kernels *table) { table->member = function; }
#define SL_CUDA_TEST(kernel, function)
#ifdef SL_CUDA_MUTANTS
#define SL_CUDA_MUTANT(kernel, function)                                                                      \
    static void plant_##function(void) { cuda.kernel = function; }
#else
#define SL_CUDA_MUTANT(kernel, function)
#endif
#include "cuda_variants.def"
#undef SL_CUDA_VARIANT
#undef SL_CUDA_TEST
#undef SL_CUDA_MUTANT

static const cuda_check checks[] = {
#define SL_CUDA_VARIANT(member, kernel, function)                                                             \
    { #kernel, { #member, #function, SL_CPU_REF, true, set_##function }, NULL },
#define SL_CUDA_TEST(kernel, function) { #kernel, { #kernel, #function, SL_CPU_REF, true, NULL }, function },
#define SL_CUDA_MUTANT(kernel, function)
#include "cuda_variants.def"
#undef SL_CUDA_VARIANT
#undef SL_CUDA_TEST
#undef SL_CUDA_MUTANT
};
static const cuda_mutant mutants[] = { /* ends with one that has no name; in builds without them it is the only one */
#define SL_CUDA_VARIANT(member, kernel, function)
#define SL_CUDA_TEST(kernel, function)
#ifdef SL_CUDA_MUTANTS
#define SL_CUDA_MUTANT(kernel, function) { #kernel, #function, plant_##function },
#else
#define SL_CUDA_MUTANT(kernel, function)
#endif
#include "cuda_variants.def"
#undef SL_CUDA_VARIANT
#undef SL_CUDA_TEST
#undef SL_CUDA_MUTANT
    { NULL, NULL, NULL }
};
static const char *const kernels[] = {
#define SL_KERNEL(member, isa, function)
#define SL_CUDA_KERNEL(name, function) #name,
#include "kernels/kernels.def"
#undef SL_KERNEL
};
enum { N_CHECK = sizeof checks / sizeof *checks, N_KERNEL = sizeof kernels / sizeof *kernels };

static void (*test_of(const cuda_check *k))(check *c) {
    const family *f = k->test ? NULL : check_family(k->v.member);
    return f ? f->test : k->test;
}

/* 0 in the child. */
static pid_t fork_flushed(void) {
    fflush(stdout);
    fflush(stderr);
    return fork();
}

static void end_child(bool good) {
    fflush(stdout);
    fflush(stderr);
    _exit(!good);
}

/* True: it ended well. */
static bool wait_child(pid_t child, const char *name) {
    int status = -1;
    const bool ended = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status);
    if (!ended) fprintf(stderr, "FAILED: the process of %s did not end by itself (status %d)\n", name, status);
    return ended && WEXITSTATUS(status) == 0;
}

/* A process that has asked for devices cannot be forked any more. */
static bool has_device(void) {
    const pid_t child = fork_flushed();
    const char *why;
    if (child == 0) {
        const bool present = cuda_present(&why);
        if (!present) printf("skipped: the CUDA kernels (%s)\n", why);
        end_child(present);
    }
    return wait_child(child, "the search for devices");
}

/* A check under way in a process of its own; out: what it writes, until it has ended (NULL: at once). */
typedef struct job { pid_t child; const char *name; FILE *out; } job;

static job start_child(const cuda_check *k, void (*plant)(void), uint64_t seed, FILE *out) {
    const job j = { fork_flushed(), k->v.name, out };
    if (j.child != 0) return j;
    if (out && (dup2(fileno(out), STDOUT_FILENO) < 0 || dup2(fileno(out), STDERR_FILENO) < 0)) _exit(1);
    if (plant) plant();
    end_child(check_run(&k->v, test_of(k), seed, plant != NULL) == 0);
    return j;
}

/* True: it passed. */
static bool end_job(const job *j) {
    const bool good = wait_child(j->child, j->name);
    if (!j->out) return good;
    rewind(j->out);
    for (int c; (c = getc(j->out)) != EOF;) putc(c, stderr);
    fclose(j->out);
    return good;
}

static bool run_child(const cuda_check *k, void (*plant)(void), uint64_t seed) {
    const job j = start_child(k, plant, seed, NULL);
    return end_job(&j);
}

/* Every kernel of kernels.def has a check. */
static size_t check_covered(void) {
    size_t n_failed = 0;
    for (size_t i = 0; i < N_KERNEL; i++) {
        bool covered = false;
        for (size_t j = 0; j < N_CHECK; j++) covered |= strcmp(checks[j].kernel, kernels[i]) == 0;
        if (!covered) fprintf(stderr, "FAILED: CUDA kernel %s has no line in cuda_variants.def\n", kernels[i]);
        n_failed += !covered;
    }
    return n_failed;
}

enum { MAX_JOB = 64 };

tally check_cuda_all(const char *name, uint64_t seed, size_t n_job) {
    tally all = { 0, *name ? 0 : check_covered() };
    job jobs[MAX_JOB] = { { 0 } };
    n_job = n_job < 1 ? 1 : n_job > MAX_JOB ? MAX_JOB : n_job;
    if (!has_device()) return all;
    for (size_t i = 0; i < N_CHECK; i++) {
        if (!strstr(checks[i].v.name, name)) continue;
        job *j = &jobs[all.n_run++ % n_job];
        if (j->child) all.n_failed += !end_job(j);
        *j = start_child(&checks[i], NULL, seed, n_job > 1 ? tmpfile() : NULL);
    }
    for (size_t i = 0; i < n_job; i++) {
        if (jobs[i].child) all.n_failed += !end_job(&jobs[i]);
    }
    return all;
}

/* Tests of the kernel's own stand behind those that it shares with the CPU, and know more of it: they come first. */
static bool is_caught(const cuda_mutant *m, uint64_t seed) {
    for (size_t i = N_CHECK; i-- > 0;) {
        if (strcmp(checks[i].kernel, m->kernel) == 0 && !run_child(&checks[i], m->plant, seed)) return true;
    }
    return false;
}

tally check_cuda_mutants(const char *name, uint64_t seed) {
    tally all = { 0, 0 };
    if (!has_device()) return all;
    for (const cuda_mutant *m = mutants; m->name; m++) {
        if (!strstr(m->name, name)) continue;
        all.n_run++;
        if (is_caught(m, seed)) continue;
        fprintf(stderr, "FAILED: no check of CUDA kernel %s caught %s\n", m->kernel, m->name);
        all.n_failed++;
    }
    return all;
}

void check_cuda_list(void) {
    for (size_t i = 0; i < N_CHECK; i++) printf("%-14s %s (CUDA)\n", checks[i].v.member, checks[i].v.name);
    for (const cuda_mutant *m = mutants; m->name; m++) printf("%-14s %s (CUDA mutant)\n", m->kernel, m->name);
}
