/* Which devices there are, and the choice of one by name. */
#ifndef SL_BACKEND_DEVICES_H
#define SL_BACKEND_DEVICES_H

#include "backend/backend.h"

/* Whether name is one that sl_device_choose knows; such a device need not be there. */
bool sl_device_name_is_known(const char *name);
/* What was chosen. note: why "auto" passed a GPU over, one line; empty: it did not. */
typedef struct sl_device_choice { const sl_backend *backend; char id[16], note[280]; } sl_device_choice;
/* name: "cpu" (also NULL), "cuda" (the first usable), "cuda:N" or "auto" (sluice.h). graph NULL: there is no model yet,
 * and "auto" takes the first usable GPU with room for params->weights_to_come. Sets *choice and params->ordinal.
 * SL_E_ARG: no such name; SL_E_DEVICE: the device cannot be used, with the reason. */
sl_status sl_device_choose(const char *name, const sl_graph *graph, sl_device_params *params,
                           sl_device_choice *choice, sl_error *err);

/* What "auto" asks, of the test device too: the first usable CUDA device with room for the graph's weights and states,
 * without a graph for params->weights_to_come. False: none, and if there was any, choice->note says why. */
bool sl_device_that_fits(const sl_graph *graph, sl_device_params *params, sl_device_choice *choice);

/* Probes of a device: bytes read and written when it copies its memory; cuBLAS's rate for f32 and f16, 0
 * without it. */
typedef struct sl_cuda_probe { double copy_gbps, tflops_f32, tflops_f16; char blas[64]; } sl_cuda_probe;
/* SL_E_UNSUPPORTED in a build without the CUDA backend. */
sl_status sl_cuda_probe_run(int ordinal, sl_cuda_probe *out, sl_error *err);

#ifdef SL_CUDA
/* How many CUDA devices there are; *reason [200] says why none. *trouble: there may be one, but the driver does not work. */
size_t sl_cuda_count(char *reason, bool *trouble);
/* One of them; creates the driver's context on it, to ask for free memory. */
void sl_cuda_describe(int ordinal, sl_device_info *device);
/* True for the device that tests run on where there is no GPU: never chosen by "auto". */
bool sl_cuda_is_test_device(void);
/* SL_E_ARG: more sequences or tokens in a pass than a launch can have. */
sl_status sl_cuda_check_sizes(const sl_device_params *params, sl_error *err);
/* What a device with params would allocate, in bytes, in all and beside weights that it has from another session. */
typedef struct sl_cuda_need { uint64_t weights, states, activations, all, missing; } sl_cuda_need;
sl_status sl_cuda_needs(const sl_graph *graph, const sl_device_params *params, sl_cuda_need *need,
                        sl_error *err);
#endif

#endif
