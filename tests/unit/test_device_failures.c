/* A device that fails: every call of the runtime in turn, and memory that is too small for the model, for a
 * sequence or for logits. What failed says so in one line, what was computed before stands, and nothing stays
 * behind. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/devices.h"
#include "made_model.h"
#include "run/session.h"
#include "test_device.h"

enum { N_VOCAB = 101, N_TOKEN = 330, GREATEST = 2 << 20, LONG = 70 /* more than a chunk of the scan */ };
static const size_t AMPLE = (size_t)2 << 30;

static int32_t tokens[N_TOKEN];

static int make_tokens(void **state) {
    uint32_t seed = 1;
    (void)state;
    for (size_t i = 0; i < N_TOKEN; i++) {
        seed = seed * 1664525u + 1013904223u;
        tokens[i] = (int32_t)(seed >> 8) % N_VOCAB;
    }
    return 0;
}

static sl_status open_with(const sl_model *model, const char *device, size_t n_slot, size_t n_batch,
                           sl_activations activations, sl_session **s, sl_error *err) {
    sl_session_params p = sl_session_params_default();
    p.device = device;
    p.n_slot = n_slot;
    p.n_batch = n_batch;
    p.n_thread = 1;
    p.activations = activations;
    return sl_session_create(model, &p, s, err);
}

static sl_status open_session(const sl_model *model, const char *device, size_t n_slot, size_t n_batch,
                              sl_session **s, sl_error *err) {
    return open_with(model, device, n_slot, n_batch, SL_ACTIVATIONS_F32, s, err);
}

static sl_session *opened(const sl_model *model, const char *device, size_t n_slot, size_t n_batch) {
    sl_session *s;
    sl_error err;
    if (open_session(model, device, n_slot, n_batch, &s, &err) != SL_OK) fail_msg("%s", err.text);
    return s;
}

static sl_status eval(sl_session *s, size_t slot, size_t from, size_t n, sl_logits_rows rows, sl_error *err) {
    const sl_run run = { slot, tokens + from, n, rows };
    return sl_session_eval(s, &run, 1, err);
}

static int32_t likeliest(const float *logits) {
    int32_t best = 0;
    for (int32_t i = 1; i < N_VOCAB; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static void contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in: %s", part, text);
}

/* ---- every call --------------------------------------------------------------------------------- */

/* What a run says before it ends: all of the text, or the beginning of it. */
typedef struct outcome {
    int32_t text[16];
    size_t n;
    unsigned long n_call; /* before it is closed */
    sl_status status;
    sl_error err;
} outcome;

static void say(outcome *o, const sl_session *s, size_t slot) {
    o->text[o->n++] = likeliest(sl_slot_logits(s, slot));
}

/* Launched, captured, replayed. */
static sl_status decode(sl_session *s, outcome *o) {
    for (size_t step = 0; step < 4; step++) {
        SL_TRY(eval(s, 0, 20 + step, 1, SL_LOGITS_LAST, &o->err));
        say(o, s, 0);
    }
    return SL_OK;
}

/* Draws what a new one of the same settings would. */
static void expect_untouched(sl_sampler *sampler, const sl_sampler_params *p) {
    static const float flat[N_VOCAB];
    sl_error err;
    sl_sampler *other;
    assert_int_equal(sl_sampler_create(p, N_VOCAB, &other, &err), SL_OK);
    for (size_t i = 0; i < 8; i++) assert_int_equal(sl_sampler_sample(sampler, flat), sl_sampler_sample(other, flat));
    sl_sampler_destroy(other);
}

/* One token beside another sequence; where it fails, the sampler has drawn nothing. */
static sl_status draw(sl_session *s, outcome *o) {
    sl_sampler_params p = sl_sampler_params_default();
    sl_sampler *sampler;
    SL_TRY(sl_sampler_create(&p, N_VOCAB, &sampler, &o->err));
    sl_sampler *samplers[] = { sampler, NULL };
    const sl_run runs[] = { { 0, tokens + 24, 1, SL_LOGITS_NONE }, { 1, tokens + 7, 1, SL_LOGITS_LAST } };
    int32_t drawn[2];
    sl_status status = sl_session_eval_draw(s, runs, 2, samplers, drawn, &o->err);
    assert_true((status == SL_OK) == (drawn[0] >= 0));
    if (status != SL_OK) expect_untouched(sampler, &p);
    sl_sampler_destroy(sampler);
    if (status != SL_OK) return status;
    o->text[o->n++] = drawn[0];
    say(o, s, 1);
    return SL_OK;
}

static sl_status move_state(sl_session *s, outcome *o) {
    static uint8_t data[GREATEST];
    uint64_t n = sl_state_bytes(s, 0);
    assert_true(n <= GREATEST);
    SL_TRY(sl_state_save(s, 0, data, n, &o->err));
    SL_TRY(sl_state_load(s, 1, data, n, &o->err));
    SL_TRY(eval(s, 1, 40, 1, SL_LOGITS_LAST, &o->err));
    say(o, s, 1);
    SL_TRY(sl_slot_mark(s, 1, &o->err));
    SL_TRY(eval(s, 1, 41, 1, SL_LOGITS_LAST, &o->err));
    SL_TRY(sl_slot_rewind(s, 1, 26, &o->err));
    SL_TRY(sl_slot_fork(s, 1, 0, &o->err));
    SL_TRY(eval(s, 0, 43, 1, SL_LOGITS_LAST, &o->err));
    say(o, s, 0);
    return SL_OK;
}

/* Counters, a slot that begins again, a KV store that grows, and more rows of logits than before. */
static sl_status grow(sl_session *s, outcome *o) {
    assert_true(sl_session_counters(s)->passes > 0);
    sl_slot_reset(s, 1);
    SL_TRY(eval(s, 1, 0, 1, SL_LOGITS_LAST, &o->err));
    say(o, s, 1);
    SL_TRY(sl_session_fake_depth(s, 1, 300, &o->err));
    SL_TRY(eval(s, 1, 44, 1, SL_LOGITS_LAST, &o->err));
    say(o, s, 1);
    SL_TRY(eval(s, 1, 45, 6, SL_LOGITS_ALL, &o->err));
    say(o, s, 1);
    return SL_OK;
}

/* What does not depend on the kinds of layers is done with a transformer only. */
static sl_status all_parts(sl_session *s, outcome *o) {
    SL_TRY(eval(s, 0, 0, 20, SL_LOGITS_LAST, &o->err));
    say(o, s, 0);
    SL_TRY(decode(s, o));
    if (!s->model->graph.n_kv) return SL_OK;
    SL_TRY(sl_slot_fork(s, 0, 1, &o->err));
    SL_TRY(draw(s, o));
    SL_TRY(move_state(s, o));
    return grow(s, o);
}

/* One pass in f16 with more rows than short runs have, for what only those launch. As launches are run when the
 * last of them is waited for, a life that ends before costs little. */
static sl_status prompt(sl_session *s, outcome *o) {
    SL_TRY(eval(s, 0, 0, LONG, SL_LOGITS_LAST, &o->err));
    say(o, s, 0);
    return SL_OK;
}

/* What a session does, and calls that are to be among those that fail: by name (of a launch: what it gets), and how
 * many at least (2: a head of one row is a launch of the same kind, by another kernel). */
enum { MAX_KINDS = 4 };
typedef struct scenario {
    sl_activations activations;
    size_t n_batch;
    sl_status (*parts)(sl_session *s, outcome *o);
    struct { const char *name; unsigned n; } calls[MAX_KINDS];
} scenario;

static void one_line(const sl_error *err) {
    assert_true(err->text[0] != 0 && strlen(err->text) < 300);
    assert_null(strpbrk(err->text, "\n\r\t"));
    if (!strstr(err->text, "cuda")) fail_msg("no device in: %s", err->text);
}

/* A device that has failed says the same to every further call; one that only had no memory goes on. */
static void fails_again(sl_session *s, const outcome *o) {
    static uint8_t data[GREATEST];
    sl_error err;
    sl_status status = eval(s, 0, 0, 1, SL_LOGITS_LAST, &err);
    if (o->status == SL_E_MEMORY && status == SL_OK) return;
    assert_int_equal(status, o->status);
    assert_string_equal(err.text, o->err.text);
    assert_int_equal(sl_state_save(s, 0, data, sl_state_bytes(s, 0), &err), o->status);
    assert_string_equal(err.text, o->err.text);
    assert_int_equal(sl_slot_fork(s, 0, 1, &err), o->status);
    assert_string_equal(err.text, o->err.text);
}

/* One life of a session, in which the n-th call fails (0: none). */
static void live(const sl_model *model, const scenario *sc, unsigned long n, outcome *o) {
    sl_session *s;
    memset(o, 0, sizeof *o);
    const unsigned long start = sl_device_calls();
    sl_device_fail_at(n);
    o->status = open_with(model, "cuda", 2, sc->n_batch, sc->activations, &s, &o->err);
    if (o->status == SL_OK) {
        o->status = sc->parts(s, o);
        if (o->status != SL_OK) fails_again(s, o);
    } else assert_null(s);
    o->n_call = sl_device_calls() - start;
    sl_session_destroy(s);
    sl_device_fail_at(0);
    if (sl_device_leaks()) fail_msg("call %lu: %zu things left after: %s", n, sl_device_leaks(), o->err.text);
}

/* Counts the failure if it was of one of the scenario's calls. */
static void count_failure(const scenario *sc, unsigned seen[MAX_KINDS]) {
    const char *fault = sl_device_fault();
    for (size_t i = 0; i < MAX_KINDS && sc->calls[i].name; i++) {
        const size_t n = strlen(sc->calls[i].name);
        seen[i] += !strncmp(fault, sc->calls[i].name, n) && fault[n] == ':';
    }
}

static void expect_failures(const scenario *sc, const unsigned seen[MAX_KINDS]) {
    for (size_t i = 0; i < MAX_KINDS && sc->calls[i].name; i++)
        if (seen[i] < sc->calls[i].n)
            fail_msg("%u calls of %s have failed, expected %u", seen[i], sc->calls[i].name, sc->calls[i].n);
}

/* Whether there was no memory for a captured pass: then passes are launched one by one. */
static bool no_graph(void) {
    const char *fault = sl_device_fault();
    return !strncmp(fault, "cudaGraphInstantiate", 20) || !strncmp(fault, "cudaGraphUpload", 15);
}

static void every_call(sl_model *model, const scenario *sc) {
    /* calls whose failure nobody hears of, with one more that is none at all; those that open cuBLAS */
    enum { IN_CLOSE = 3, OF_BLAS = 4 };
    outcome whole, o;
    unsigned long n_memory = 0, n_device = 0, n_borne = 0, n_graph = 0;
    unsigned seen[MAX_KINDS] = { 0 };
    live(model, sc, 0, &whole);
    assert_int_equal(whole.status, SL_OK);
    for (unsigned long n = 1; n <= whole.n_call + IN_CLOSE; n++) {
        live(model, sc, n, &o);
        assert_memory_equal(o.text, whole.text, o.n * sizeof *o.text);
        if (o.status == SL_OK) {
            assert_int_equal(o.n, whole.n); /* without cuBLAS by its own kernels */
            const bool graph = no_graph();
            if (n <= whole.n_call && !graph && !strstr(sl_device_fault(), "cublas"))
                fail_msg("call %lu passed over: %s", n, sl_device_fault());
            n_graph += graph;
            n_borne += !graph;
            continue;
        }
        assert_true(o.status == SL_E_MEMORY || o.status == SL_E_DEVICE);
        assert_int_equal(o.err.code, o.status);
        one_line(&o.err);
        count_failure(sc, seen);
        n_memory += o.status == SL_E_MEMORY;
        n_device += o.status == SL_E_DEVICE;
    }
    print_message("%lu calls: %lu end in SL_E_DEVICE, %lu in SL_E_MEMORY\n", whole.n_call, n_device, n_memory);
    assert_int_equal(n_borne, OF_BLAS + IN_CLOSE);
    if (sc->parts == all_parts) assert_true(n_graph >= 2); /* instantiated, uploaded */
    assert_true(n_memory >= 3 && n_device > n_memory);
    expect_failures(sc, seen);
    sl_model_close(model);
}

static void test_every_call_of_bridge(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F32, 32, all_parts,
                                 { { "a launch of sl_split_args", 1 }, { "a launch of s6_launch", 1 } } };
    (void)state;
    every_call(make_model(MADE_BRIDGE, SL_Q8, 5), &sc);
}
static void test_every_call_of_a_transformer(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F32, 32, all_parts,
                                 { { "a launch of sl_kv_store_args", 1 }, { "a launch of sl_sample_args", 1 } } };
    (void)state;
    every_call(make_model(MADE_LLAMA, SL_F32, 5), &sc);
}

/* bf16 weights, which become f16, and the kernels of long prompts. */
static void test_every_call_of_a_long_prompt(void **state) {
    static const scenario bridge = { SL_ACTIVATIONS_F16, LONG, prompt,
                                     { { "a launch of sl_expand_args", 1 },
                                       { "a launch of sl_blocks_args", 2 },
                                       { "a launch of chunk_launch", 3 } } };
    static const scenario llama = { SL_ACTIVATIONS_F16, LONG, prompt,
                                    { { "a launch of sl_expand_args", 1 }, { "a launch of matrix_args", 1 } } };
    (void)state;
    every_call(make_model(MADE_BRIDGE, SL_BF16, 5), &bridge);
    every_call(make_model(MADE_LLAMA, SL_BF16, 5), &llama);
}

/* Whatever happens, nobody writes to nodes any more once it has ended. */
static sl_status profiled(sl_session *s, outcome *o) {
    sl_node_time *nodes = calloc(s->model->graph.n_node, sizeof *nodes);
    sl_error end;
    assert_non_null(nodes);
    o->status = sl_session_profile(s, nodes, &o->err);
    if (o->status == SL_OK) o->status = eval(s, 0, 0, 3, SL_LOGITS_LAST, &o->err);
    const sl_status ended = sl_session_profile(s, NULL, &end);
    if (o->status == SL_OK && ended != SL_OK) o->err = end;
    free(nodes);
    if (o->status != SL_OK || ended != SL_OK) return o->status != SL_OK ? o->status : ended;
    SL_TRY(eval(s, 0, 3, 1, SL_LOGITS_LAST, &o->err));
    say(o, s, 0);
    return SL_OK;
}
static void test_every_call_of_a_profile(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F16, 32, profiled,
                                 { { "cudaEventCreateWithFlags", 9 }, { "cudaEventRecord", 9 }, { "cudaEventElapsedTime", 9 } } };
    (void)state;
    every_call(make_model(MADE_BRIDGE, SL_Q8, 5), &sc);
}

/* A model for measurements, whose matrices are made on the device. Its heads are so wide that attention needs
 * more shared memory than a kernel has without asking. */
static float random_row(void *arg, const sl_tensor_spec *spec, sl_type type, uint64_t row, void *stored) {
    (void)arg, (void)row;
    if (spec->class_ != SL_TENSOR_KEEP && spec->class_ != SL_TENSOR_SMALL) return 0.1f;
    float ones[512];
    const size_t n = (size_t)sl_spec_width(spec);
    assert_true(n <= 512);
    for (size_t i = 0; i < n; i++) ones[i] = 1;
    sl_pack_row(type, ones, n, stored);
    return 0;
}

static sl_model *synthetic_model(int64_t width, int64_t mlp_width, sl_type type) {
    const struct { const char *key; int64_t value; } shape[] = {
        { "vocab_size", N_VOCAB },  { "hidden_size", width }, { "intermediate_size", mlp_width },
        { "num_hidden_layers", 1 }, { "head_dim", 128 },      { "num_attention_heads", 1 },
        { "num_key_value_heads", 1 },
    };
    sl_meta meta = { 0 };
    sl_model *model = NULL;
    sl_error err;
    sl_status status = sl_meta_set_string(&meta, "model_type", "qwen3", &err);
    for (size_t i = 0; i < sizeof shape / sizeof *shape && status == SL_OK; i++)
        status = sl_meta_add(&meta, shape[i].key, SL_META_INT, false, &shape[i].value, 1, &err);
    if (status == SL_OK) status = sl_model_make(&meta, type, random_row, NULL, &model, &err);
    if (status != SL_OK) fail_msg("%s", err.text);
    sl_meta_release(&meta);
    return model;
}

static void test_every_call_of_a_synthetic_model(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F16, LONG, prompt,
                                 { { "a launch of sl_random_args", 1 },
                                   { "a launch of matrix_args", 1 },
                                   { "cudaFuncSetAttribute", 1 } } };
    (void)state;
    every_call(synthetic_model(40, 56, SL_Q4), &sc);
}

/* A driver that cannot capture a pass: every pass is launched, with the same results. */
static void test_no_capture(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F16, 32, all_parts, { { NULL, 0 } } };
    static const int errors[] = { 900, 801, 1, 400, 401, 800, 908 };
    outcome whole, o;
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_Q8, 5);
    live(model, &sc, 0, &whole);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        sl_device_refuse_capture(errors[i]);
        live(model, &sc, 0, &o);
        assert_string_equal(sl_device_fault(), "work that cannot be captured");
        assert_int_equal(o.status, SL_OK);
        assert_int_equal(o.n, whole.n);
        assert_memory_equal(o.text, whole.text, o.n * sizeof *o.text);
    }
    sl_device_refuse_capture(719); /* as a launch that fails */
    live(model, &sc, 0, &o);
    sl_device_refuse_capture(0);
    assert_int_equal(o.status, SL_E_DEVICE);
    contains(o.err.text, "cuda:0: capturing a pass: ");
    sl_model_close(model);
}

/* A device whose blocks have less shared memory than a kernel takes. */
static void test_too_little_shared_memory(void **state) {
    static const scenario sc = { SL_ACTIVATIONS_F16, LONG, prompt, { { NULL, 0 } } };
    outcome o;
    (void)state;
    sl_model *model = synthetic_model(40, 56, SL_Q4);
    sl_device_shared_limit(49 * 1024);
    live(model, &sc, 0, &o);
    sl_device_shared_limit(163 * 1024);
    assert_int_equal(o.status, SL_E_DEVICE);
    one_line(&o.err);
    assert_non_null(strstr(o.err.text, "attention of layer 0: too many resources requested for launch"));
    sl_model_close(model);
}

/* What `sluice bench` measures of a device itself. */
static void test_every_call_of_the_probe(void **state) {
    sl_cuda_probe probe;
    sl_error err;
    (void)state;
    const unsigned long start = sl_device_calls();
    assert_int_equal(sl_cuda_probe_run(0, &probe, &err), SL_OK);
    assert_true(probe.copy_gbps > 0 && probe.tflops_f32 > 0 && probe.tflops_f16 > 0);
    const unsigned long n_call = sl_device_calls() - start;
    unsigned long n_borne = 0;
    for (unsigned long n = 1; n <= n_call; n++) {
        sl_device_fail_at(n);
        const sl_status status = sl_cuda_probe_run(0, &probe, &err);
        sl_device_fail_at(0);
        assert_int_equal(sl_device_leaks(), 0);
        if (status == SL_OK) { /* only copies are measured then, and why is said */
            if (strncmp(sl_device_fault(), "cublas", 6) || !strncmp(sl_device_fault(), "cublasGemmEx", 12))
                fail_msg("call %lu passed over: %s", n, sl_device_fault());
            assert_true(probe.copy_gbps > 0 && probe.tflops_f32 == 0 && !strncmp(probe.blas, "cuBLAS ", 7));
            n_borne++;
            continue;
        }
        assert_int_equal(status, SL_E_DEVICE);
        assert_int_equal(err.code, status);
        one_line(&err);
    }
    assert_true(n_call > 60 && n_borne == 3); /* a handle, its stream, its math mode */
}

/* The calls that ask why there is no device. */
static void test_every_call_without_a_device(void **state) {
    enum { SYSTEM_CALLS = 3 }; /* cudaGetDeviceCount, both versions */
    (void)state;
    sl_model *model = make_model(MADE_BRIDGE, SL_F32, 5);
    setenv("SLUICE_DEVICE_ABSENT", "1", 1);
    for (unsigned long n = 0; n <= SYSTEM_CALLS; n++) {
        sl_session *s;
        sl_error err;
        sl_device_fail_at(n);
        assert_int_equal(open_session(model, "cuda", 1, 1, &s, &err), SL_E_DEVICE);
        one_line(&err);
        if (!strstr(err.text, n ? "the driver says: " : "no CUDA device")) fail_msg("call %lu: %s", n, err.text);
    }
    sl_device_fail_at(0);
    unsetenv("SLUICE_DEVICE_ABSENT");
    sl_model_close(model);
}

/* ---- sizes -------------------------------------------------------------------------------------- */

/* More tokens or runs than a launch can have blocks; with as many there is only too little memory. */
static void test_sizes(void **state) {
    static const struct { size_t n_slot, n_batch; const char *line; } sizes[] = {
        { 1, 65536, "cuda:0: n_batch is 65536, expected 1 to 65535 on a CUDA device" },
        { 65536, 1, "cuda:0: n_slot is 65536, expected 1 to 65535 on a CUDA device" },
    };
    sl_session *s;
    sl_error err;
    (void)state;
    sl_model *model = make_model(MADE_LLAMA, SL_F32, 5);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(open_session(model, "cuda", sizes[i].n_slot, sizes[i].n_batch, &s, &err), SL_E_ARG);
        assert_string_equal(err.text, sizes[i].line);
        assert_null(s);
        if (open_session(model, "cpu", sizes[i].n_slot, sizes[i].n_batch, &s, &err) != SL_OK) fail_msg("%s", err.text);
        sl_session_destroy(s);
    }
    sl_device_memory(0);
    assert_int_equal(open_session(model, "cuda", 65535, 65535, &s, &err), SL_E_MEMORY);
    sl_device_memory(AMPLE);
    assert_int_equal(sl_device_leaks(), 0);
    sl_model_close(model);
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* The smallest memory in which the model opens, in steps of 256 bytes; below, the line says what it needs. */
static size_t least_memory(const sl_model *model, sl_activations activations) {
    size_t low = 0, high = AMPLE / 256;
    sl_error err;
    while (low + 1 < high) {
        sl_session *s;
        size_t middle = (low + high) / 2;
        sl_device_memory(middle * 256);
        sl_status status = open_with(model, "cuda", 4, 16, activations, &s, &err);
        sl_session_destroy(s);
        if (status == SL_OK) high = middle;
        else {
            assert_int_equal(status, SL_E_MEMORY);
            contains(err.text, "cuda:0: out of memory: the model needs ");
            contains(err.text, "iB are free");
            low = middle;
        }
        assert_int_equal(sl_device_leaks(), 0);
    }
    sl_device_memory(AMPLE);
    return high * 256;
}

static void does_not_fit(const sl_model *model, sl_activations activations, size_t n_bytes, const char *hint) {
    sl_session *s;
    sl_error err;
    sl_device_memory(n_bytes);
    assert_int_equal(open_with(model, "cuda", 4, 16, activations, &s, &err), SL_E_MEMORY);
    sl_device_memory(AMPLE);
    one_line(&err);
    contains(err.text, hint);
}

static void test_model_that_does_not_fit(void **state) {
    (void)state;
    sl_model *f32 = make_model(MADE_BRIDGE, SL_F32, 5), *q8 = make_model(MADE_BRIDGE, SL_Q8, 5);
    size_t needs = least_memory(f32, SL_ACTIVATIONS_F32), needs_q8 = least_memory(q8, SL_ACTIVATIONS_F32);
    assert_true(needs_q8 < needs);
    does_not_fit(f32, SL_ACTIVATIONS_F32, needs - 256, "; as bf16 it would need ");
    does_not_fit(q8, SL_ACTIVATIONS_F32, needs_q8 - 256, "; as q4 it would need ");
    does_not_fit(q8, SL_ACTIVATIONS_F32, 1 << 20, "; no type of it would fit");
    does_not_fit(f32, SL_ACTIVATIONS_F32, 0, ", 0 bytes are free");
    sl_session *s; /* so many sequences that one of any type would fit and they in none */
    sl_error err;
    sl_device_memory(48 << 20);
    assert_int_equal(open_session(f32, "cuda", 60000, 16, &s, &err), SL_E_MEMORY);
    sl_device_memory(AMPLE);
    one_line(&err);
    contains(err.text, "; for one sequence, 16 tokens a pass, it would need ");
    s = opened(f32, "cuda", 4, 16); /* and none of it leaves anything behind */
    assert_int_equal(eval(s, 0, 0, 5, SL_LOGITS_LAST, &err), SL_OK);
    sl_session_destroy(s);
    sl_model_close(f32);
    sl_model_close(q8);
}

/* The line names the largest type that fits, from the very byte on with which a model of it opens and runs. (Wide enough
 * that q8 takes less than bf16 although it needs a place to be expanded.) */
static void what_would_fit(sl_activations activations) {
    static const sl_type types[] = { SL_BF16, SL_Q8, SL_Q4 };
    sl_model *model = synthetic_model(256, 512, SL_F32);
    size_t least[4] = { least_memory(model, activations) };
    char hint[64];
    sl_error err;
    for (size_t i = 0; i < 3; i++) {
        sl_model *smaller = synthetic_model(256, 512, types[i]);
        sl_session *s;
        least[i + 1] = least_memory(smaller, activations);
        assert_true(least[i + 1] < least[i]);
        snprintf(hint, sizeof hint, "; as %s it would need ", sl_type_name(types[i]));
        does_not_fit(model, activations, least[i] - 256, hint);
        does_not_fit(model, activations, least[i + 1], hint);
        sl_device_memory(least[i + 1]);
        assert_int_equal(open_with(smaller, "cuda", 4, 16, activations, &s, &err), SL_OK);
        assert_int_equal(eval(s, 0, 0, 1, SL_LOGITS_LAST, &err), SL_OK);
        sl_session_destroy(s);
        sl_model_close(smaller);
    }
    does_not_fit(model, activations, least[3] - 256, "; as q8, for one sequence, 16 tokens a pass, it would need ");
    sl_device_memory(AMPLE);
    sl_model_close(model);
}
static void test_what_would_fit(void **state) {
    (void)state;
    what_would_fit(SL_ACTIVATIONS_F32);
    what_would_fit(SL_ACTIVATIONS_AUTO); /* f32 ones come of f32 weights only */
}

/* From here on so much more can be had; or nothing. */
static void leave_memory(uint64_t bytes) {
    sl_device_info found[2];
    sl_devices(found, 2);
    sl_device_memory((size_t)(found[1].memory_bytes - found[1].free_bytes + bytes));
}
static void use_up_memory(void) { leave_memory(0); }

static void near_logits(const sl_session *got, const sl_session *expected, size_t slot) {
    const float *x = sl_slot_logits(got, slot), *y = sl_slot_logits(expected, slot);
    assert_non_null(x);
    for (size_t i = 0; i < N_VOCAB; i++) assert_true(fabsf(x[i] - y[i]) < 1e-3f);
}

static void both(sl_session *a, sl_session *b, size_t slot, size_t from, size_t n) {
    sl_error err;
    assert_int_equal(eval(a, slot, from, n, SL_LOGITS_LAST, &err), SL_OK);
    assert_int_equal(eval(b, slot, from, n, SL_LOGITS_LAST, &err), SL_OK);
    near_logits(a, b, slot);
}

static void test_store_that_cannot_grow(void **state) {
    (void)state;
    sl_error err;
    sl_model *model = make_model(MADE_LLAMA, SL_F32, 5);
    sl_session *s = opened(model, "cuda", 3, 512), *cpu = opened(model, "cpu", 3, 512);
    both(s, cpu, 0, 0, 255);
    both(s, cpu, 1, 0, 9);
    for (size_t t = 9; t < 12; t++) both(s, cpu, 1, t, 1); /* captured */
    use_up_memory();
    both(s, cpu, 0, 255, 1);
    const sl_run runs[] = { { 1, tokens + 12, 1, SL_LOGITS_LAST }, { 0, tokens + 256, 1, SL_LOGITS_LAST } };
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(sl_session_eval(s, runs, 2, &err), SL_E_MEMORY);
        one_line(&err);
        contains(err.text, "KV store of 512 positions");
    }
    assert_int_equal(sl_slot_fork(s, 0, 2, &err), SL_E_MEMORY); /* a new store */
    contains(err.text, "KV store of 256 positions");
    assert_int_equal(sl_slot_position(s, 0), 256);
    assert_int_equal(sl_slot_position(s, 1), 12);
    assert_int_equal(sl_slot_position(s, 2), 0);
    near_logits(s, cpu, 0);
    both(s, cpu, 1, 12, 1);
    both(s, cpu, 1, 13, 60);
    sl_device_memory(AMPLE);
    both(s, cpu, 0, 256, 1);
    both(s, cpu, 0, 257, 40);
    sl_session_destroy(s);
    sl_session_destroy(cpu);
    sl_model_close(model);
    assert_int_equal(sl_device_leaks(), 0);
}

/* A store that cannot become twice as large becomes as large as it must. */
static void test_store_that_grows_by_a_few(void **state) {
    (void)state;
    sl_error err;
    sl_model_info info;
    sl_model *model = make_model(MADE_LLAMA, SL_F32, 5);
    sl_session *s = opened(model, "cuda", 1, 512), *cpu = opened(model, "cpu", 1, 512);
    sl_model_get_info(model, &info);
    both(s, cpu, 0, 0, 255);
    assert_int_equal(s->backend->reserve(s->device, 0, 512, &err), SL_OK);
    leave_memory(800 * info.kv_token_bytes);
    assert_int_equal(s->backend->reserve(s->device, 0, 513, &err), SL_OK);
    both(s, cpu, 0, 255, 20);
    assert_int_equal(s->backend->reserve(s->device, 0, 1600, &err), SL_E_MEMORY);
    contains(err.text, "KV store of 1600 positions");
    both(s, cpu, 0, 275, 20);
    sl_device_memory(AMPLE);
    sl_session_destroy(s);
    sl_session_destroy(cpu);
    sl_model_close(model);
}

/* A call whose logits cannot be had in one of its passes begins none. */
static void test_logits_that_cannot_be_had(void **state) {
    (void)state;
    sl_error err;
    for (int kind = 0; kind < MADE_KINDS; kind++) {
        sl_model *model = make_model((made_kind)kind, SL_F32, 5);
        sl_session *s = opened(model, "cuda", 2, 32), *cpu = opened(model, "cpu", 2, 32);
        both(s, cpu, 0, 0, 20);
        both(s, cpu, 1, 0, 20);
        for (size_t t = 20; t < 23; t++) both(s, cpu, 1, t, 1);
        use_up_memory();
        assert_int_equal(eval(s, 0, 20, 12, SL_LOGITS_ALL, &err), SL_E_MEMORY);
        one_line(&err);
        contains(err.text, "logits of 12 tokens");
        assert_int_equal(sl_slot_position(s, 0), 20);
        assert_null(sl_run_logits(s, 0, 0));
        near_logits(s, cpu, 0); /* those of token 20 */
        const sl_run runs[] = { { 1, tokens + 23, 32, SL_LOGITS_NONE }, { 0, tokens + 20, 12, SL_LOGITS_ALL } };
        assert_int_equal(sl_session_eval(s, runs, 2, &err), SL_E_MEMORY);
        assert_int_equal(sl_slot_position(s, 0), 20);
        assert_int_equal(sl_slot_position(s, 1), 23); /* nothing has begun */
        near_logits(s, cpu, 1);
        both(s, cpu, 0, 20, 1);
        both(s, cpu, 1, 60, 1);
        sl_device_memory(AMPLE);
        assert_int_equal(eval(s, 0, 21, 12, SL_LOGITS_ALL, &err), SL_OK);
        assert_int_equal(eval(cpu, 0, 21, 12, SL_LOGITS_ALL, &err), SL_OK);
        near_logits(s, cpu, 0);
        both(s, cpu, 1, 61, 1); /* whose captured pass had the old place */
        sl_session_destroy(s);
        sl_session_destroy(cpu);
        sl_model_close(model);
    }
    assert_int_equal(sl_device_leaks(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_model_that_does_not_fit),
        cmocka_unit_test(test_what_would_fit),
        cmocka_unit_test(test_store_that_cannot_grow), cmocka_unit_test(test_store_that_grows_by_a_few),
        cmocka_unit_test(test_logits_that_cannot_be_had),
        cmocka_unit_test(test_every_call_without_a_device),
        cmocka_unit_test(test_every_call_of_the_probe),
        cmocka_unit_test(test_no_capture),
        cmocka_unit_test(test_too_little_shared_memory),
        cmocka_unit_test(test_every_call_of_a_synthetic_model),
        cmocka_unit_test(test_every_call_of_a_long_prompt),
        cmocka_unit_test(test_every_call_of_a_profile),
        cmocka_unit_test(test_every_call_of_bridge),
        cmocka_unit_test(test_every_call_of_a_transformer),
    };
    return cmocka_run_group_tests(tests, make_tokens, NULL);
}
