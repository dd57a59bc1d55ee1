/* The CPU backend: memory of a device, and passes. The only file with OpenMP: one parallel region per pass,
 * and a barrier after each node. */
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "backend/count.h"
#include "backend/cpu.h"
#include "base/mem.h"
#include "os/os.h"

static uint64_t position_bytes(const sl_device *device) {
    return sl_kv_token_bytes(device->graph, device->kv_f16);
}

static void cpu_close(sl_device *device) {
    if (!device) return;
    for (size_t i = 0; device->kv && i < device->n_slot; i++)
        sl_os_pages_free(device->kv[i].data, device->kv[i].cap * position_bytes(device));
    for (size_t i = 0; device->domains && i < device->graph->n_domain; i++) {
        free(device->domains[i].index);
        free(device->domains[i].row_of);
        free(device->domains[i].rho);
        free(device->domains[i].run_start);
    }
    free(device->domains);
    free(device->kv);
    free(device->scratch);
    sl_os_pages_free(device->arena, device->arena_bytes);
    sl_os_pages_free(device->states, device->states_bytes);
    free(device);
}

static sl_status open_domain(sl_device *device, size_t i, sl_error *err) {
    sl_domain *d = &device->domains[i];
    if (i == SL_ALL) return SL_OK;
    SL_TRY(sl_alloc((void **)&d->index, device->n_batch, sizeof *d->index, "token lists", err));
    if (i == SL_OUTPUTS) return SL_OK;
    SL_TRY(sl_alloc((void **)&d->row_of, device->n_batch, sizeof *d->row_of, "token lists", err));
    SL_TRY(sl_alloc((void **)&d->rho, device->n_batch, sizeof *d->rho, "router weights", err));
    return sl_alloc((void **)&d->run_start, device->n_slot + 1, sizeof *d->run_start, "token lists", err);
}

static sl_status pages(void **out, uint64_t a, uint64_t b, uint64_t *bytes, const char *what, sl_error *err) {
    *out = NULL;
    if (!sl_mul(a, b, bytes) || !(*out = sl_os_pages(*bytes ? *bytes : 1)))
        return sl_fail(err, SL_E_MEMORY, "out of memory: %llu x %llu bytes for %s", (unsigned long long)a,
                       (unsigned long long)b, what);
    *bytes = *bytes ? *bytes : 1;
    return SL_OK;
}

static sl_status open_memory(sl_device *device, sl_error *err) {
    const sl_graph *g = device->graph;
    SL_TRY(pages((void **)&device->arena, g->arena_bytes, device->n_batch, &device->arena_bytes, "activations",
                 err));
    SL_TRY(pages((void **)&device->states, (uint64_t)g->state_floats * sizeof(float), device->n_slot,
                 &device->states_bytes, "recurrent states", err));
    SL_TRY(sl_alloc((void **)&device->kv, device->n_slot, sizeof *device->kv, "KV stores", err));
    SL_TRY(sl_alloc((void **)&device->domains, g->n_domain, sizeof *device->domains, "token lists", err));
    for (size_t i = 0; i < g->n_domain; i++) SL_TRY(open_domain(device, i, err));
    device->scratch_bytes = sl_cpu_scratch_bytes(g);
    return sl_alloc((void **)&device->scratch, device->n_thread, device->scratch_bytes, "scratch", err);
}

/* OpenMP ends the program where a thread does not start, so it is not asked for more than have started once; for a session
 * like those before it nothing is tried (127 threads take some 7 ms on two processors). n: 0: one per processor, or as many
 * as there can be. */
static sl_status find_threads(sl_device *device, size_t n, sl_error *err) {
    static atomic_size_t most = 1; /* that have been there at once */
    const size_t wanted = n ? n : sl_os_processors();
    device->n_thread = wanted <= atomic_load(&most) ? wanted : 1 + sl_os_start_threads(wanted - 1);
    if (device->n_thread > atomic_load(&most)) atomic_store(&most, device->n_thread);
    if (!n || device->n_thread == wanted) return SL_OK;
    return sl_fail(err, SL_E_MEMORY, "n_thread is %zu, but the system starts only %zu threads", wanted, device->n_thread);
}

static sl_status cpu_open(const sl_graph *graph, const sl_device_params *params, sl_device **out,
                          sl_error *err) {
    *out = NULL;
    const char *bad;
    unsigned features = sl_cpu_features_allowed(&bad);
    sl_name_buf buf;
    if (bad)
        return sl_fail(err, SL_E_ARG, "SLUICE_CPU is \"%s\", expected ref, avx2 or avx512", sl_name(bad, &buf));
    sl_device *device;
    SL_TRY(sl_alloc((void **)&device, 1, sizeof *device, "the device", err));
    device->graph = graph;
    device->kernels = sl_kernels_select(features);
    device->n_slot = params->n_slot;
    device->n_batch = params->n_batch;
    device->few_threads = !params->n_thread;
    device->kv_f16 = params->kv_f16;
    sl_status status = find_threads(device, params->n_thread, err);
    if (status == SL_OK) status = open_memory(device, err);
    if (status == SL_OK) *out = device;
    else cpu_close(device);
    return status;
}

/* ---- KV stores ---------------------------------------------------------------------------------- */

/* Rows of n_pos positions, one per store, k or v, and head: their number and bytes. */
static uint64_t kv_rows(const sl_device *device, uint64_t n_pos, size_t *bytes) {
    const sl_graph *g = device->graph;
    *bytes = (size_t)n_pos * g->kv_head_dim * (device->kv_f16 ? 2 : 4);
    return g->n_kv ? 2 * (uint64_t)g->n_kv * (g->kv_width / g->kv_head_dim) : 0;
}

/* Copies n_pos positions of every row between stores of different capacity. */
static void copy_kv(const sl_device *device, uint8_t *to, uint64_t to_cap, const uint8_t *from,
                    uint64_t from_cap, uint64_t n_pos) {
    size_t bytes, to_bytes, from_bytes;
    uint64_t rows = kv_rows(device, n_pos, &bytes);
    kv_rows(device, to_cap, &to_bytes);
    kv_rows(device, from_cap, &from_bytes);
    for (uint64_t i = 0; i < rows && bytes; i++) memcpy(to + i * to_bytes, from + i * from_bytes, bytes);
}

/* Doubles, so that a growing sequence is copied O(1) times per token. */
static sl_status cpu_reserve(sl_device *device, size_t slot, uint64_t n_pos, sl_error *err) {
    sl_kv *kv = &device->kv[slot];
    uint64_t cap = kv->cap ? 2 * kv->cap : 256, bytes;
    if (!device->graph->n_kv || n_pos <= kv->cap) return SL_OK;
    if (n_pos > cap) cap = n_pos;
    uint8_t *data = sl_mul(cap, position_bytes(device), &bytes) ? sl_os_pages(bytes) : NULL;
    if (!data)
        return sl_fail(err, SL_E_MEMORY, "out of memory: %llu x %llu bytes for the KV store of %llu positions",
                       (unsigned long long)cap, (unsigned long long)position_bytes(device),
                       (unsigned long long)n_pos);
    copy_kv(device, data, cap, kv->data, kv->cap, kv->cap);
    sl_os_pages_free(kv->data, kv->cap * position_bytes(device));
    *kv = (sl_kv){ data, cap };
    return SL_OK;
}

static sl_status cpu_read_kv(sl_device *device, size_t slot, uint64_t n_pos, void *out, sl_error *err) {
    (void)err;
    copy_kv(device, out, n_pos, device->kv[slot].data, device->kv[slot].cap, n_pos);
    return SL_OK;
}

static sl_status cpu_write_kv(sl_device *device, size_t slot, uint64_t n_pos, const void *in, sl_error *err) {
    (void)err;
    copy_kv(device, device->kv[slot].data, device->kv[slot].cap, in, n_pos, n_pos);
    return SL_OK;
}

/* f16 bits 0x1C00 + x and f32 of the same size: about 0.004 to 0.008, so that no exponent is unusual. */
static sl_status cpu_fill_kv(sl_device *device, size_t slot, uint64_t n_pos, sl_error *err) {
    (void)err;
    sl_kv *kv = &device->kv[slot];
    size_t bytes, cap_bytes;
    uint64_t rows = kv_rows(device, n_pos, &bytes);
    kv_rows(device, kv->cap, &cap_bytes);
    for (uint64_t i = 0; i < rows; i++)
        for (size_t j = 0; j < bytes; j += 2) {
            uint8_t *at = kv->data + i * cap_bytes + j;
            bool low = !device->kv_f16 && j % 4 == 0; /* the low half of an f32 */
            at[0] = (uint8_t)(i + j * 7);
            at[1] = device->kv_f16 ? 0x1C : low ? 0 : 0x3B;
        }
    return SL_OK;
}

static sl_status cpu_reserve_rows(sl_device *device, size_t n, sl_error *err) {
    (void)device, (void)n, (void)err;
    return SL_OK; /* logits go where the session keeps them */
}

static size_t cpu_threads(const sl_device *device) { return device->n_thread; }

static const char *cpu_note(const sl_device *device) {
    (void)device;
    return NULL;
}

/* ---- states ------------------------------------------------------------------------------------- */

static float *slot_floats(const sl_device *device, size_t slot) {
    return device->states + slot * device->graph->state_floats;
}

static sl_status cpu_reset(sl_device *device, size_t slot, sl_error *err) {
    (void)err;
    memset(slot_floats(device, slot), 0, device->graph->state_floats * sizeof(float));
    return SL_OK;
}

static sl_status cpu_read_state(sl_device *device, size_t slot, float *out, sl_error *err) {
    (void)err;
    memcpy(out, slot_floats(device, slot), device->graph->state_floats * sizeof(float));
    return SL_OK;
}

static sl_status cpu_write_state(sl_device *device, size_t slot, const float *in, sl_error *err) {
    (void)err;
    memcpy(slot_floats(device, slot), in, device->graph->state_floats * sizeof(float));
    return SL_OK;
}

static sl_status cpu_copy(sl_device *device, size_t src, size_t dst, uint64_t n_pos, sl_error *err) {
    copy_kv(device, device->kv[dst].data, device->kv[dst].cap, device->kv[src].data, device->kv[src].cap,
            n_pos);
    return cpu_read_state(device, src, slot_floats(device, dst), err);
}

static sl_status cpu_wait(sl_device *device, sl_error *err) {
    (void)device;
    (void)err;
    return SL_OK; /* a pass is done when it returns */
}

/* ---- passes ------------------------------------------------------------------------------------- */

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

/* OpenMP's own barrier spins for milliseconds when a thread has lost its processor to another program, which
 * made decoding a hundred times slower on a busy machine. This one spins for as long as a barrier takes on a
 * quiet one (some ten microseconds) and then lets others run. */
struct sl_barrier { atomic_size_t arrived, round; };
static void meet(struct sl_barrier *b, size_t n_thread) {
    enum { SPINS = 1000 };
    size_t round = atomic_load_explicit(&b->round, memory_order_acquire);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == n_thread) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->round, round + 1, memory_order_release);
        return;
    }
    for (size_t i = 0; atomic_load_explicit(&b->round, memory_order_acquire) == round; i++)
        if (i < SPINS) PAUSE();
        else thrd_yield();
}

/* Runs that have rows in the node's domain. */
static size_t active_runs(const sl_pass *pass, const sl_node *node) {
    size_t n = 0, from, to;
    for (size_t r = 0; r < pass->batch->n_run; r++) {
        sl_run_rows(pass, sl_domain_of(pass, node->domain), r, &from, &to);
        n += from < to;
    }
    return n;
}

static void count(const sl_pass *pass, const sl_node *node) {
    const sl_counted work = { pass->batch, pass->device->kv_f16, 1, sl_domain_of(pass, node->domain)->n,
                              active_runs(pass, node) };
    sl_count_node(pass->graph, node, &work, &pass->device->counters);
    if (pass->device->profile)
        sl_count_node(pass->graph, node, &work, &pass->device->profile[node - pass->graph->nodes].work);
}

/* Every thread walks all nodes; the row count of a router's domain is settled before any thread passes the
 * barrier behind the node that splits it. */
static void run_nodes(const sl_pass *pass, size_t thread) {
    for (size_t i = 0; i < pass->graph->n_node; i++) {
        const sl_node *node = &pass->graph->nodes[i];
        if (!pass->device->domains[node->domain].n) continue;
        if (!thread) count(pass, node);
        sl_node_time *time = thread ? NULL : pass->device->profile;
        const double start = time ? sl_os_seconds() : 0;
        sl_cpu_nodes[node->op](pass, node, thread);
        meet(pass->barrier, pass->n_thread);
        if (time) time[i].seconds += sl_os_seconds() - start, time[i].n++;
    }
}

/* A barrier costs about a microsecond, and much more where another program holds a processor: a thread must
 * bring a million multiply-adds to a pass to be worth it, unless the caller asked for it by number. */
static size_t threads_for(const sl_device *device, size_t n_tok) {
    uint64_t useful = 1 + device->graph->products * n_tok / 1000000;
    return device->few_threads && useful < device->n_thread ? (size_t)useful : device->n_thread;
}

static sl_status cpu_execute(sl_device *device, const sl_batch *batch, sl_error *err) {
    (void)err;
    struct sl_barrier barrier = { 0, 0 };
    device->domains[SL_ALL].n = batch->n_tok;
    device->domains[SL_OUTPUTS].n = batch->n_out;
    memcpy(device->domains[SL_OUTPUTS].index, batch->out_rows, batch->n_out * sizeof *batch->out_rows);
    device->counters.passes++;
#pragma omp parallel num_threads((int)threads_for(device, batch->n_tok))
    {
        /* The system may give fewer threads than asked for. */
        const sl_pass pass = { device,  device->graph, &device->kernels, batch, (size_t)omp_get_num_threads(),
                               &barrier };
        run_nodes(&pass, (size_t)omp_get_thread_num());
    }
    return SL_OK;
}

static sl_counters *cpu_counters(sl_device *device) { return &device->counters; }

static sl_status cpu_profile(sl_device *device, sl_node_time *nodes, sl_error *err) {
    (void)err;
    device->profile = nodes;
    for (uint32_t i = 0; nodes && i < device->graph->n_node; i++) nodes[i] = (sl_node_time){ .with = i };
    return SL_OK;
}

const sl_backend sl_backend_cpu = {
    .name = "cpu", .open = cpu_open, .close = cpu_close, .reserve = cpu_reserve,
    .reserve_rows = cpu_reserve_rows, .execute = cpu_execute,
    .reset = cpu_reset, .copy = cpu_copy, .read_state = cpu_read_state, .write_state = cpu_write_state,
    .read_kv = cpu_read_kv, .write_kv = cpu_write_kv,
    .fill_kv = cpu_fill_kv, .wait = cpu_wait, .threads = cpu_threads, .note = cpu_note, .counters = cpu_counters,
    .profile = cpu_profile,
};
