/* Where the time of a row goes: the nodes of a graph that do the same in each layer, put together. */
#ifndef SL_CLI_BENCH_PROFILE_H
#define SL_CLI_BENCH_PROFILE_H

#include "run/session.h"

typedef struct sl_bench_part {
    char name[112];    /* "linear mlp.gate_proj 11008 x 4096 + mlp.up_proj + silu_mul, deep" */
    uint64_t n;        /* how often such a node ran */
    double seconds;    /* all together, as are bytes and operations */
    double bytes, flops;
} sl_bench_part;

typedef struct sl_bench_profile {
    sl_bench_part *parts; /* [n] by seconds, the longest first; malloc'd */
    size_t n;
    double seconds;    /* what the passes took, all in all */
    uint64_t n_pass;
} sl_bench_profile;

/* nodes: those of the session's graph, after seconds of n_pass passes. */
sl_status sl_bench_profile_make(const sl_session *session, const sl_node_time *nodes, double seconds, uint64_t n_pass,
                                sl_bench_profile *out, sl_error *err);
void sl_bench_profile_release(sl_bench_profile *profile);

#endif
