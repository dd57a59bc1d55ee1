/* sl_check_recorded: kernels against what other implementations recorded, so that a misreading shared by our
 * reference and our tests would show: operators of the official Mamba kernels (selective scan, causal
 * convolution, RMSNorm, SwiGLU; JSON) and a structured state space duality fixture (.npy). The recordings lie
 * in ../shared/data/vectors beside the project; without them the test is skipped. */
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER SL_TEST_ROOT "/../shared/data/vectors/"
enum { SKIPPED = 77, MAX_TEXT = 1 << 20 };

static int n_failed;

/* The recordings are f32 results of other summation orders: a few roundings of the largest value. */
static void expect_near(const char *what, const sl_kernels *k, const float *got, const float *want, size_t n) {
    float worst = 0, reach = 0;
    for (size_t i = 0; i < n; i++) {
        worst = isnan(got[i]) ? INFINITY : fmaxf(worst, fabsf(got[i] - want[i]));
        reach = fmaxf(reach, fabsf(want[i]));
    }
    const bool good = worst <= 1e-6f * reach;
    n_failed += !good;
    printf("%s%s, %s: largest difference %g of %g\n", good ? "" : "FAILED ", what,
           sl_cpu_features_name(k->features), (double)worst, (double)reach);
}

/* ---- JSON: {family: {case: {inputs, outputs: {name: {data: nested lists}}}}}, with NaN in places ----- */

/* The text after the first "key": in text; keys are sought outside in, and each comes first where it nests. */
static const char *after(const char *text, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = text ? strstr(text, quoted) : NULL;
    return at ? at + strlen(quoted) : NULL;
}

static const char *find(const char *root, const char *family, const char *name) {
    return after(after(root, family), name);
}

/* The n numbers of a recorded array; fails the test if there are not exactly n. */
static const float *values(const char *recorded, const char *side, const char *name, float *out, size_t n) {
    const char *at = after(after(after(recorded, side), name), "data");
    size_t found = 0;
    int depth = 0;
    while (at && *at) {
        if (*at == '[') depth++;
        if (*at == ']' && --depth == 0) break;
        char *end;
        const float value = strtof(at, &end);
        if (end > at && found++ < n) out[found - 1] = value;
        at = end > at ? end : at + 1;
    }
    if (found == n) return out;
    printf("FAILED %s.%s: found %zu values, expected %zu\n", side, name, found, n);
    exit(1);
}

static void rmsnorm(const char *c, const sl_kernels *k) {
    float x[48], w[6], want[48], y[48];
    values(c, "inputs", "x", x, 48);
    values(c, "inputs", "w", w, 6);
    k->rmsnorm(x, w, y, 8, 6, 0, 1e-6f);
    expect_near("rms_norm", k, y, values(c, "outputs", "y", want, 48), 48);
}

/* Rows of gate and value, eight each. */
static void swiglu(const char *c, const sl_kernels *k) {
    float xy[32], want[16], y[16];
    values(c, "inputs", "xy", xy, 32);
    for (size_t r = 0; r < 2; r++) k->silu_mul(xy + 16 * r, xy + 16 * r + 8, y + 8 * r, 8);
    expect_near("swiglu", k, y, values(c, "outputs", "y", want, 16), 16);
}

/* x [2 sequences, 5 tokens, 8 channels], weight [8, 4] */
static void convolution(const char *c, const sl_kernels *k) {
    float x[80], weight[32], taps[32], want[80], y[80], ones[40], bias[8] = { 0 };
    values(c, "inputs", "x", x, 80);
    values(c, "inputs", "weight", weight, 32);
    for (size_t i = 0; i < 40; i++) ones[i] = 1;
    for (size_t i = 0; i < 32; i++) taps[i % 4 * 8 + i / 4] = weight[i];
    for (size_t r = 0; r < 2; r++) {
        float state[24] = { 0 };
        k->conv_gate(&(sl_conv_args){ .p = x + 40 * r, .v = ones, .s = y + 40 * r, .taps = taps, .bias = bias,
                                      .state = state, .in_stride = 8, .out_stride = 8, .taps_stride = 8,
                                      .state_stride = 8, .n = 8, .n_tok = 5, .k = 4 });
    }
    expect_near("causal convolution", k, y, values(c, "outputs", "y", want, 80), 80);
}

/* u, delta (before softplus), y [2, 3 channels, 5 tokens], A [3, 4], B and C [2, 4, 5]. Mamba's decays differ between the
 * elements of a channel's state, so each element is a head of its own here, and y their sum. */
static void selective_scan(const char *c, const sl_kernels *k) {
    static const float zeros[30];
    float u[30], delta[30], a[12], b[40], out[40], want[30], y[30] = { 0 };
    values(c, "inputs", "u", u, 30);
    values(c, "inputs", "delta", delta, 30);
    values(c, "inputs", "A", a, 12);
    values(c, "inputs", "B", b, 40);
    values(c, "inputs", "C", out, 40);
    k->softplus(delta, zeros, delta, 1, 30);
    for (size_t i = 0; i < 24; i++) {
        const size_t row = i / 4 * 5, bc = (i / 12 * 4 + i % 4) * 5;
        float part[5], state = 0, skip = 0;
        k->scan_s6(&(sl_scan_s6_args){ .r = u + row, .b = b + bc, .c = out + bc, .delta = delta + row,
                                       .skip = &skip, .state = &state, .y = part, .decay = -a[i % 12],
                                       .r_stride = 1, .bc_stride = 1, .delta_stride = 1, .y_stride = 1,
                                       .head_dim = 1, .n_state = 1, .n_tok = 5 });
        for (size_t t = 0; t < 5; t++) y[row + t] += part[t];
    }
    expect_near("selective scan", k, y, values(c, "outputs", "y", want, 30), 30);
}

/* ---- SSD fixture: 128 tokens, 2 heads of 8 channels, 16 states --------------------------------------- */

/* Data of a .npy file of n f32 values: after a header whose length stands in bytes 8 and 9. */
static bool npy(const char *name, float *out, size_t n) {
    char path[512];
    unsigned char head[10];
    snprintf(path, sizeof path, FOLDER "ssd_q64/%s.npy", name);
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    const bool good = fread(head, 1, 10, f) == 10 && fseek(f, 10 + head[8] + 256 * head[9], SEEK_SET) == 0 &&
                      fread(out, sizeof *out, n, f) == n && fgetc(f) == EOF;
    fclose(f);
    return good;
}

/* The fixture holds delta A and delta x; with delta = -delta A and a decay of 1, r = delta x / delta. */
static void duality(const sl_kernels *k) {
    enum { T = 128, H = 2, P = 8, N = 16 };
    static float a[T * H], b[T * H * N], c[T * H * N], x[T * H * P], want[T * H * P], last[H * P * N];
    static float y[T * H * P], state[H * N * P], turned[H * P * N];
    static const float skip[P] = { 0 };
    if (!npy("A", a, T * H) || !npy("B", b, T * H * N) || !npy("C", c, T * H * N) || !npy("X", x, T * H * P) ||
        !npy("Y", want, T * H * P) || !npy("final_state", last, H * P * N)) {
        printf("FAILED: ssd_q64: files of the expected sizes not found\n");
        n_failed++;
        return;
    }
    for (size_t i = 0; i < T * H; i++) a[i] = -a[i];
    for (size_t i = 0; i < T * H * P; i++) x[i] /= a[i / P];
    memset(state, 0, sizeof state);
    for (size_t h = 0; h < H; h++)
        k->scan_s6(&(sl_scan_s6_args){ .r = x + h * P, .b = b + h * N, .c = c + h * N, .delta = a + h,
                                       .skip = skip, .state = state + h * N * P, .y = y + h * P, .decay = 1,
                                       .r_stride = H * P, .bc_stride = H * N, .delta_stride = H,
                                       .y_stride = H * P, .head_dim = P, .n_state = N, .n_tok = T });
    for (size_t i = 0; i < H * P * N; i++) turned[i] = state[i / (P * N) * P * N + i % N * P + i / N % P];
    expect_near("duality, y", k, y, want, T * H * P);
    expect_near("duality, state", k, turned, last, H * P * N);
}

int main(void) {
    const unsigned features = sl_cpu_features();
    FILE *f = fopen(FOLDER "mamba_reference_cases.json", "rb");
    if (!f) {
        printf("skipped: no ../shared/data\n");
        return SKIPPED;
    }
    static char text[MAX_TEXT];
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    static const unsigned masks[] = { SL_CPU_REF, SL_CPU_AVX2, SL_CPU_AVX2 | SL_CPU_AVX512 };
    for (size_t i = 0; i < 3; i++) {
        if ((features & masks[i]) != masks[i]) continue;
        const sl_kernels k = sl_kernels_select(masks[i]);
        rmsnorm(find(text, "layer_norms", "rms_norm"), &k);
        swiglu(find(text, "swiglu", "swiglu"), &k);
        convolution(find(text, "dw_causal_conv", "channels_last_identity"), &k);
        selective_scan(find(text, "selective_scan", "time_varying_3d"), &k);
        duality(&k);
    }
    return n_failed > 0;
}
