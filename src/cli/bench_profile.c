#include "cli/bench_profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ---- names --------------------------------------------------------------------------------------- */

/* "mlp.gate_proj" of "model.layers.7.mlp.gate_proj.weight". */
static void short_tensor(const char *name, char *out, size_t cap) {
    static const char model[] = "model.", layers[] = "layers.";
    if (!strncmp(name, model, strlen(model))) name += strlen(model);
    if (!strncmp(name, layers, strlen(layers))) {
        name += strlen(layers);
        name += strspn(name, "0123456789");
        name += *name == '.';
    }
    const char *end = strrchr(name, '.');
    const size_t n = end && !strcmp(end, ".weight") ? (size_t)(end - name) : strlen(name);
    snprintf(out, cap, "%.*s", (int)sl_min(n, cap - 1), name);
}

static bool has_matrix(const sl_node *node) { return node->op == SL_OP_LINEAR || node->op == SL_OP_BLOCK_LINEAR; }

static void append(char *out, size_t cap, const char *text) {
    const size_t n = strlen(out);
    snprintf(out + n, cap - n, "%s", text);
}

static void append_size(char *out, size_t cap, const sl_tensor_spec *spec) {
    char text[48];
    snprintf(text, sizeof text, " %llu x %llu", (unsigned long long)sl_spec_rows(spec),
             (unsigned long long)sl_spec_width(spec));
    append(out, cap, text);
}

/* Of a launch: its first node, those that go with it, whether it is of deep tokens only. What is too long is cut. */
static void name_part(const sl_graph *g, const sl_node_time *nodes, uint32_t first, char *out, size_t cap) {
    const sl_node *head = &g->nodes[first];
    char tensor[SL_MAX_NAME];
    snprintf(out, cap, "%s", sl_op_name(head->op));
    for (uint32_t i = first; i < g->n_node && (i == first || (nodes[i].with == first && !nodes[i].n)); i++) {
        const sl_node *node = &g->nodes[i];
        if (has_matrix(node)) short_tensor(node->u.linear.w->spec.name, tensor, sizeof tensor);
        if (i > first) append(out, cap, " + ");
        else if (has_matrix(node)) append(out, cap, " ");
        if (has_matrix(node)) append(out, cap, tensor);
        else if (i > first) append(out, cap, sl_op_name(node->op));
        if (i == first && has_matrix(node)) append_size(out, cap, &node->u.linear.w->spec);
    }
    if (head->domain > SL_OUTPUTS) append(out, cap, ", deep");
}

/* ---- parts --------------------------------------------------------------------------------------- */

static sl_bench_part *find(sl_bench_profile *p, const char *name) {
    for (size_t i = 0; i < p->n; i++)
        if (!strcmp(p->parts[i].name, name)) return &p->parts[i];
    sl_bench_part *part = &p->parts[p->n++];
    *part = (sl_bench_part){ .n = 0 };
    memcpy(part->name, name, strlen(name) + 1);
    return part;
}

static int by_seconds(const void *a, const void *b) {
    const sl_bench_part *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

sl_status sl_bench_profile_make(const sl_session *session, const sl_node_time *nodes, double seconds, uint64_t n_pass,
                                sl_bench_profile *out, sl_error *err) {
    const sl_graph *g = &session->model->graph;
    *out = (sl_bench_profile){ .seconds = seconds, .n_pass = n_pass };
    SL_TRY(sl_alloc((void **)&out->parts, g->n_node, sizeof *out->parts, "a profile", err));
    for (uint32_t i = 0; i < g->n_node; i++) {
        char name[sizeof out->parts->name];
        const uint32_t first = nodes[i].n ? i : nodes[i].with; /* one that is not always with another is itself */
        if (!nodes[first].n) continue; /* it had no rows, or this device does not need it */
        name_part(g, nodes, first, name, sizeof name);
        sl_bench_part *part = find(out, name);
        part->n += nodes[i].n;
        part->seconds += nodes[i].seconds;
        part->bytes += (double)(nodes[i].work.weight_bytes + nodes[i].work.state_bytes + nodes[i].work.kv_bytes);
        part->flops += (double)nodes[i].work.flops;
    }
    qsort(out->parts, out->n, sizeof *out->parts, by_seconds);
    return SL_OK;
}

void sl_bench_profile_release(sl_bench_profile *profile) {
    free(profile->parts);
    *profile = (sl_bench_profile){ 0 };
}
