/* What the parts of the harness share among themselves. */
#ifndef SL_TESTS_CHECK_RUNNER_H
#define SL_TESTS_CHECK_RUNNER_H

#include "check.h"

/* Releases every buffer; verify: canaries are checked first. For the end of a variant, also after a fault. */
void check_release(check *c, bool verify);

#endif
