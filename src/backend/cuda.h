/* Inside of the CUDA backend: the device, its plan of the graph's values, and the nodes' launches.
 *
 * All work of a device goes to one stream. A pass puts its tokens, slots and positions into pinned memory,
 * copies them to the device in one piece and launches the nodes; nothing waits inside. What a launch's shape
 * depends on is known to the host (numbers of rows and runs); what depends on the data (deep rows, positions,
 * pointers of growing KV stores) is read from device memory, so that a decode pass can be captured once and
 * replayed. */
#ifndef SL_BACKEND_CUDA_H
#define SL_BACKEND_CUDA_H

#include <cuda_runtime_api.h>

#include "backend/backend.h"
#include "backend/cuda_blas.h"
#include "kernels/cuda_kernels.h"

/* ---- plan: which type each value has and where it lies -------------------------------------------- */

/* The graph's nodes as they are launched: steps that a later kernel does itself are skipped, quantised forms of
 * activations are the activations. */
enum { SL_HIDDEN_LIFT = 6, SL_CUDA_EXPAND_BYTES = 64 << 20 /* weights expanded at a time; more go in pieces of their rows */ };
typedef struct sl_cuda_plan {
    sl_act act;
    sl_value *values;    /* [n_value] row_bytes and places of this device */
    int32_t *alias;      /* [n_value] the value that stands for it */
    bool *is_hidden;     /* [n_value] the hidden layer of an MLP, in f16: kept as 2^-SL_HIDDEN_LIFT of itself */
    bool *is_f32;        /* [n_value] f32 also where activations are f16 */
    int32_t *origin;     /* [n_value] whose rows a gather takes, if what reads them can take them there by index:
                          * norms, and products of up to SL_GEMV_ROWS f16 rows; SL_NO_VALUE: none, or not so */
    bool *is_copied;     /* [n_value] copied all the same in passes of more tokens, as a product reads them */
    size_t arena_bytes;  /* per batch token */
    uint64_t expand_bytes,
        sum_floats; /* scratch of products through cuBLAS: expanded weights; f32 sums per batch token */
    uint64_t attention_floats;         /* scratch of a decode pass with n_slot runs */
    uint64_t scan_floats;              /* scratch of the chunked scan of n_batch tokens */
} sl_cuda_plan;

sl_status sl_cuda_plan_make(const sl_graph *graph, const sl_device_params *params, sl_cuda_plan *plan,
                            sl_error *err);
void sl_cuda_plan_release(sl_cuda_plan *plan);
/* The type that a matrix has on the device: that of the file, but bf16 becomes f16 beside f16 activations. */
sl_type sl_cuda_weight_type(sl_act act, const sl_tensor *w);
/* Whether cuBLAS can take the weights as they are, and otherwise how many rows of them are expanded at a time.
 */
bool sl_cuda_is_plain(const sl_cuda_plan *plan, const sl_tensor *w);
uint64_t sl_cuda_piece(const sl_cuda_plan *plan, const sl_tensor *w);
/* Are a product's rows known to the device only, and f16? cuBLAS would compute all rows of the batch, with
 * those beyond the deep ones in vain; our own kernel on the matrix units does not. (In f32 ours is the
 * slower one.) */
bool sl_cuda_is_counted(const sl_cuda_plan *plan, const sl_node *node);
/* Calls f for everything in host memory that the nodes read: matrices with their tensor, floats without. */
typedef void (*sl_cuda_constant_fn)(void *arg, const void *data, uint64_t n_bytes, const sl_tensor *tensor);
void sl_cuda_constants(const sl_graph *graph, sl_cuda_constant_fn f, void *arg);

/* ---- weights: one copy per graph, device and kind of activations, shared by its sessions ------------ */

typedef struct sl_cuda_item {
    const void *host;
    const sl_tensor *tensor;
    uint64_t n_bytes, offset;
} sl_cuda_item;
typedef struct sl_cuda_weights {
    const sl_graph *graph;
    int ordinal;
    sl_act act;
    size_t users;
    uint8_t *data;       /* device */
    uint64_t n_bytes;
    sl_cuda_item *items; /* [n_item] by host address */
    size_t n_item;
    struct sl_cuda_weights *next;
} sl_cuda_weights;

/* From a row of a matrix to the next on the device, in bytes: products read 16 at once. row_bytes: as it is stored. */
static inline uint64_t sl_cuda_row_bytes(uint64_t row_bytes) { return (row_bytes + 15) / 16 * 16; }
/* What an item takes up. */
static inline uint64_t sl_cuda_laid_out(uint64_t n_bytes) { return (n_bytes + 255) / 256 * 256; }
/* The layout only: items, offsets, n_bytes. */
sl_status sl_cuda_weights_lay_out(const sl_graph *graph, sl_cuda_weights *weights, sl_error *err);
/* Finds or uploads; the device is current. */
sl_status sl_cuda_weights_open(const sl_graph *graph, const sl_device_params *params, sl_act act,
                               sl_cuda_weights **out, sl_error *err);
void sl_cuda_weights_close(sl_cuda_weights *weights);
void sl_cuda_weights_release_layout(sl_cuda_weights *weights); /* of one that was only laid out */
bool sl_cuda_weights_resident(const sl_graph *graph, int ordinal, sl_act act); /* uploaded already */
/* Where something that sl_cuda_constants has named lies on the device. */
const void *sl_cuda_weights_find(const sl_cuda_weights *weights, const void *host);

/* ---- the device ----------------------------------------------------------------------------------- */

/* What a pass sends to the device, in one copy; capacities from n_batch and n_slot. */
typedef struct sl_cuda_input {
    int32_t *tokens;     /* [n_batch] */
    uint32_t *out_rows;  /* [n_batch] */
    uint64_t *run_pos;   /* [n_slot] */
    uint32_t *run_slot;  /* [n_slot] */
    uint32_t *run_start; /* [n_slot + 1] */
} sl_cuda_input;

/* A router's decisions, on the device. */
typedef struct sl_cuda_domain {
    uint32_t *n, *index, *deep_start;
    int32_t *row_of;
    float *rho;
    unsigned long long *tally; /* deep rows, passes with any */
} sl_cuda_domain;

enum {
    SL_CUDA_MAX_GRAPHS = 256,
    SL_CUDA_MAX_GRID = 65535, /* blocks of a launch in y and z, where many kernels have tokens or runs */
    SL_CUDA_FIRST_KV = 256,   /* positions of a KV store to begin with */
};

/* Events between the launches of a pass that is profiled. */
typedef struct sl_cuda_profile {
    sl_node_time *nodes;   /* [n_node] of who asked; NULL: nobody */
    cudaEvent_t *events;   /* [n_node + 1]; the first is in front of all launches */
    uint32_t *launched;    /* [n_node] the node of each launch */
    size_t n_event, n_launch;
} sl_cuda_profile;

struct sl_device {
    const sl_graph *graph;
    sl_cuda_plan plan;
    sl_cuda_weights *weights;
    size_t n_slot, n_batch;
    int ordinal;
    bool kv_f16;
    bool invariant;          /* products are ours, and those of many rows, whatever their number */
    sl_status failed;        /* SL_OK, or what every further call returns */
    char failure[320];
    char note[160];          /* why there is no cuBLAS; empty: there is */
    cudaStream_t stream;
    cudaEvent_t input_free;  /* the last copy from the pinned input is done */
    sl_blas blas;            /* product NULL: own kernels */
    uint8_t *block;          /* one allocation for everything below that lies on the device */
    uint8_t *arena;          /* values */
    float *states;           /* [n_slot][state_floats] */
    sl_kv_slot *kv_slots;    /* device's copy of kv */
    sl_cuda_input input;     /* device addresses */
    uint8_t *input_block;
    sl_cuda_domain *domains; /* [n_domain] host array of device addresses */
    float *sums, *attention, *scan; /* scratch */
    void *expanded;
    void *workspace;
    unsigned long long *tallies;
    sl_draw *draws;          /* [n_slot] */
    int32_t *drawn;          /* [n_slot] */
    float *logits;           /* [n_logits][n_vocab]: an allocation of its own that grows */
    size_t n_logits;
    sl_kv_slot *kv;          /* [n_slot] host */
    uint8_t *pinned;         /* input, what is to be drawn, drawn tokens */
    sl_cuda_input pinned_input;
    sl_draw *pinned_draws;
    int32_t *pinned_drawn;
    uint64_t input_bytes;
    cudaGraphExec_t graphs[SL_CUDA_MAX_GRAPHS + 1]; /* decode passes by number of runs */
    uint8_t seen[SL_CUDA_MAX_GRAPHS + 1];           /* passes of that shape so far, up to one more than are captured */
    sl_counters counters;
    sl_cuda_profile profile;
};

/* Rows of one slot's KV store (one per store, k or v, and head); bytes of n_pos positions of all of them. */
static inline size_t sl_cuda_kv_rows(const sl_graph *g) {
    return g->n_kv ? 2 * g->n_kv * (g->kv_width / g->kv_head_dim) : 0;
}
static inline uint64_t sl_cuda_kv_bytes(const sl_graph *g, bool f16, uint64_t n_pos) {
    return sl_cuda_kv_rows(g) * n_pos * g->kv_head_dim * (f16 ? 2 : 4);
}
/* SL_E_MEMORY: so much is needed, so much is free; of n units, bytes each. */
sl_status sl_cuda_no_memory(int ordinal, const char *what, uint64_t n, const char *unit, uint64_t bytes, sl_error *err);
/* Bytes of the device's block, from graph, plan, n_slot and n_batch. */
sl_status sl_cuda_lay_out(sl_device *device, uint64_t *n_bytes, sl_error *err);
/* SL_E_MEMORY, with what is needed and what would fit, if the current device has too little free memory. */
sl_status sl_cuda_check_fit(const sl_graph *graph, const sl_device_params *params, sl_error *err);

/* One pass being launched. */
typedef struct sl_cuda_pass {
    sl_device *device;
    const sl_graph *graph;
    const sl_batch *batch;
    uint32_t max_tok; /* of a run */
} sl_cuda_pass;

/* cuda_profile.c. Memory for a profile, its begin, its end (also of none). */
sl_status sl_cuda_profile_allocate(sl_device *device, sl_error *err);
cudaError_t sl_cuda_profile_begin(sl_device *device, sl_node_time *nodes);
void sl_cuda_profile_end(sl_device *device);
/* In front of the launches of a pass, and behind the one of n_node nodes from node on; nothing without a profile. */
cudaError_t sl_cuda_profile_pass(sl_device *device);
cudaError_t sl_cuda_profile_launch(sl_device *device, const sl_node *node, size_t n_node);
/* Once a pass is done. */
cudaError_t sl_cuda_profile_collect(sl_device *device);

/* Launches the nodes in order; *node is the one that failed. Returns a cudaError_t. */
int sl_cuda_launch_nodes(const sl_cuda_pass *pass, const sl_node **node);

static inline int32_t sl_cuda_alias(const sl_device *device, int32_t value) {
    return device->plan.alias[value];
}
static inline void *sl_cuda_value(const sl_device *device, int32_t value) {
    return device->arena + device->plan.values[sl_cuda_alias(device, value)].offset_rows * device->n_batch;
}
static inline size_t sl_cuda_value_size(const sl_device *device, int32_t value) { /* of an element */
    return device->plan.is_f32[sl_cuda_alias(device, value)] ? 4 : sl_act_size(device->plan.act);
}
static inline size_t sl_cuda_stride(const sl_device *device, int32_t value) {
    return device->plan.values[sl_cuda_alias(device, value)].row_bytes / sl_cuda_value_size(device, value);
}

#endif
