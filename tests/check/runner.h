/* What the parts of the harness share among themselves. */
#ifndef SL_TESTS_CHECK_RUNNER_H
#define SL_TESTS_CHECK_RUNNER_H

#include "check.h"

typedef struct family { const char *member; void (*test)(check *c); void (*bench)(check *c); } family;
const family *check_family(const char *member); /* NULL: not in families.def */

/* A kernel and how to put it into the table (NULL: it has no place there). */
typedef struct variant {
    const char *member, *name;
    unsigned features;
    bool cuda;
    void (*set)(sl_kernels *table);
} variant;

/* Runs body (a test or bench of the family) on one variant; faults are failures. Returns the failures. */
size_t check_run(const variant *v, void (*body)(check *c), uint64_t seed, bool quiet);
/* The variant that is running, for code that the signature of a kernel keeps from it. */
check *check_current(void);
/* Releases every buffer; verify: canaries are checked first. For the end of a variant, also after a fault. */
void check_release(check *c, bool verify);

/* The CUDA kernels (cuda_run.c, where the build has them): as run_all and run_mutants of main.c. */
typedef struct tally { size_t n_run, n_failed; } tally;
tally check_cuda_all(const char *name, uint64_t seed, size_t n_job); /* n_job variants at a time */
tally check_cuda_mutants(const char *name, uint64_t seed);
void check_cuda_list(void);

#endif
