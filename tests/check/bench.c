/* Timing of the kernel harness: the shortest of several rounds, each long enough for the clock. The clock is
 * the calling thread's processor time: on a busy machine the wall clock would time the neighbours. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <string.h>
#include <time.h>

static struct {
    double start, best; /* seconds; best: per call */
    size_t n_call, i_call, n_round;
} run;

/* Reference times by kernel and label, for the ratio. */
enum { MAX_NAME = 96, MAX_RESULT = 512, N_ROUND = 12 };
static struct result { char name[MAX_NAME]; double seconds; } results[MAX_RESULT];
static size_t n_result;

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void check_bench_begin(check *c) {
    (void)c;
    memset(&run, 0, sizeof run);
    run.best = 1e30;
    run.n_call = 1;
    run.start = thread_seconds();
}

bool check_bench_again(check *c) {
    (void)c;
    if (run.i_call++ < run.n_call) return true;
    const double seconds = thread_seconds() - run.start;
    const bool long_enough = seconds > 0.5e-3;
    if (long_enough && seconds / (double)run.n_call < run.best) run.best = seconds / (double)run.n_call;
    if (!long_enough) run.n_call *= 4;
    else if (++run.n_round == N_ROUND || (double)run.n_round * seconds > 0.4) return false;
    run.i_call = 1;
    run.start = thread_seconds();
    return true;
}

static double reference_seconds(const char *name, double seconds) {
    for (size_t i = 0; i < n_result; i++) {
        if (strcmp(results[i].name, name) == 0) return results[i].seconds;
    }
    if (n_result < MAX_RESULT) {
        struct result *r = &results[n_result++];
        snprintf(r->name, sizeof r->name, "%s", name);
        r->seconds = seconds;
    }
    return seconds;
}

void check_bench_end(check *c, const char *label, double bytes, double flops) {
    char name[MAX_NAME];
    snprintf(name, sizeof name, "%s %s", c->member, label);
    const double ns = run.best * 1e9;
    printf("%-26s %-28s %12.0f ns", c->kernel, label, ns);
    if (bytes > 0) printf(" %8.2f GB/s", bytes / ns);
    if (flops > 0) printf(" %8.2f GFLOP/s", flops / ns);
    printf("  x %.2f\n", reference_seconds(name, run.best) / run.best);
    fflush(stdout);
}
