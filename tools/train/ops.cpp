// Fused training operators for one or two CPU cores: activations bf16, arithmetic f32, gradients by hand.
//
// PyTorch runs the matrix products well (oneDNN, bf16) but spends as long again on element-wise passes and
// cannot run a recurrence at all. Each operator here is one pass over memory. ops.py wraps them for
// autograd, model.py compares the gradients with those of the reference model. Inner loops run over channels, so that the
// compiler vectorises them; the S6 scan is written in vectors of 16, with its state in L1.
#include <torch/extension.h>


#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

using at::Tensor;
using bf16 = uint16_t;

static inline float up(bf16 v) { return std::bit_cast<float>((uint32_t)v << 16); }
static inline bf16 down(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
// exp by 2^k times a polynomial (relative error 3e-7): unlike the library's it vectorises wherever it is called.
static inline float fast_exp(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float scaled = x * 1.44269504f;
    const int k = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f));
    const float f = (scaled - (float)k) * 0.693147181f;
    const float p = 1 + f * (1 + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
    return p * std::bit_cast<float>((k + 127) << 23);
}
static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
static inline float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }

static const float *f32(const Tensor &t) {
    TORCH_CHECK(t.is_contiguous() && t.scalar_type() == at::kFloat);
    return t.data_ptr<float>();
}
static float *f32_out(Tensor &t) { return t.data_ptr<float>(); }
static const bf16 *half(const Tensor &t) {
    TORCH_CHECK(t.is_contiguous() && t.scalar_type() == at::kBFloat16);
    return (const bf16 *)t.data_ptr();
}
static bf16 *half_out(Tensor &t) { return (bf16 *)t.data_ptr(); }
static Tensor zeros(at::IntArrayRef shape) { return at::zeros(shape, at::kFloat); }
static Tensor new_half(at::IntArrayRef shape) { return at::empty(shape, at::kBFloat16); }

// ---- RMSNorm: f32 residual stream in, bf16 out ----

static std::vector<Tensor> norm_fwd(Tensor x, Tensor w, double eps) {
    const int64_t n = x.size(0), d = x.size(1);
    Tensor y = new_half({n, d}), rstd = at::empty({n}, at::kFloat);
    const float *X = f32(x), *W = f32(w);
    bf16 *Y = half_out(y);
    float *R = f32_out(rstd);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const float *row = X + i * d;
        float sum = 0;
        for (int64_t c = 0; c < d; c++) sum += row[c] * row[c];
        const float r = R[i] = 1.0f / std::sqrt(sum / d + (float)eps);
        for (int64_t c = 0; c < d; c++) Y[i * d + c] = down(row[c] * r * W[c]);
    }
    return {y, rstd};
}

static std::vector<Tensor> norm_bwd(Tensor dy, Tensor x, Tensor w, Tensor rstd) {
    const int64_t n = x.size(0), d = x.size(1), parts = 8;
    Tensor dx = at::empty({n, d}, at::kFloat), dw = zeros({parts, d});
    const bf16 *DY = half(dy);
    const float *X = f32(x), *W = f32(w), *R = f32(rstd);
    float *DX = f32_out(dx), *DW = f32_out(dw);
#pragma omp parallel for
    for (int64_t part = 0; part < parts; part++)
        for (int64_t i = n * part / parts; i < n * (part + 1) / parts; i++) {
            const float *row = X + i * d, r = R[i];
            const bf16 *g = DY + i * d;
            float dot = 0, *acc = DW + part * d;
            for (int64_t c = 0; c < d; c++) dot += up(g[c]) * W[c] * row[c];
            dot *= r * r / d;
            for (int64_t c = 0; c < d; c++) {
                DX[i * d + c] = r * (up(g[c]) * W[c] - row[c] * dot);
                acc[c] += up(g[c]) * row[c] * r;
            }
        }
    return {dx, dw.sum(0)};
}

// ---- SwiGLU: silu(gate) * up ----

static Tensor swiglu_fwd(Tensor gate, Tensor value) {
    Tensor y = at::empty_like(gate);
    const bf16 *G = half(gate), *V = half(value);
    bf16 *Y = half_out(y);
    const int64_t n = gate.numel();
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) Y[i] = down(up(G[i]) * sigmoid(up(G[i])) * up(V[i]));
    return y;
}

static std::vector<Tensor> swiglu_bwd(Tensor dy, Tensor gate, Tensor value) {
    Tensor dgate = at::empty_like(gate), dvalue = at::empty_like(value);
    const bf16 *D = half(dy), *G = half(gate), *V = half(value);
    bf16 *DG = half_out(dgate), *DV = half_out(dvalue);
    const int64_t n = gate.numel();
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        const float g = up(G[i]), s = sigmoid(g), d = up(D[i]);
        DV[i] = down(d * g * s);
        DG[i] = down(d * up(V[i]) * s * (1 + g * (1 - s)));
    }
    return {dgate, dvalue};
}

// ---- Cross-entropy: losses per token; overwrites the logits with d mean(loss) / d logits ----

static Tensor cross_entropy_(Tensor logits, Tensor targets) {
    const int64_t n = logits.size(0), v = logits.size(1);
    Tensor loss = at::empty({n}, at::kFloat);
    bf16 *L = half_out(logits);
    half(logits);  // checks the layout
    const int64_t *T = targets.data_ptr<int64_t>();
    float *out = f32_out(loss);
#pragma omp parallel
    {
        std::vector<float> e(v);
#pragma omp for
        for (int64_t i = 0; i < n; i++) {
            bf16 *row = L + i * v;
            float top = -1e30f, sum = 0;
            for (int64_t c = 0; c < v; c++) top = std::max(top, up(row[c]));
            for (int64_t c = 0; c < v; c++) {
                e[c] = fast_exp(up(row[c]) - top);
                sum += e[c];
            }
            out[i] = std::log(sum) + top - up(row[T[i]]);
            const float scale = 1.0f / (sum * n), hit = e[T[i]] * scale - 1.0f / n;
            for (int64_t c = 0; c < v; c++) row[c] = down(e[c] * scale);
            row[T[i]] = down(hit);
        }
    }
    return loss;
}

// ---- Causal softmax over [heads, queries, keys] scores, in place; the last query sees all keys, the one before it
// ---- all but one, and so on; what a query does not see becomes 0 ----

static void causal_softmax_(Tensor scores, double scale) {
    const int64_t t = scores.size(2), queries = scores.size(1), n = scores.size(0) * queries;
    bf16 *S = half_out(scores);
    half(scores);
#pragma omp parallel
    {
        std::vector<float> e(t);
#pragma omp for
        for (int64_t i = 0; i < n; i++) {
            bf16 *row = S + i * t;
            const int64_t len = t - queries + i % queries + 1;
            float top = -1e30f, sum = 0;
            for (int64_t c = 0; c < len; c++) top = std::max(top, up(row[c]));
            for (int64_t c = 0; c < len; c++) {
                e[c] = fast_exp((up(row[c]) - top) * (float)scale);
                sum += e[c];
            }
            const float r = 1.0f / sum;
            for (int64_t c = 0; c < len; c++) row[c] = down(e[c] * r);
            memset(row + len, 0, (t - len) * sizeof(bf16));
        }
    }
}

static void causal_softmax_bwd_(Tensor dy, Tensor y, double scale) {  // dy becomes d scores
    const int64_t t = y.size(2), queries = y.size(1), n = y.size(0) * queries;
    bf16 *D = half_out(dy);
    half(dy);
    const bf16 *Y = half(y);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        bf16 *d = D + i * t;
        const bf16 *p = Y + i * t;
        const int64_t len = t - queries + i % queries + 1;
        float dot = 0;
        for (int64_t c = 0; c < len; c++) dot += up(d[c]) * up(p[c]);
        for (int64_t c = 0; c < len; c++) d[c] = down(up(p[c]) * (up(d[c]) - dot) * (float)scale);
        memset(d + len, 0, (t - len) * sizeof(bf16));
    }
}

// ---- Gated convolution: s = head_norm(sum_j K_j (p v)_{t-j} + b) ----

struct conv_scratch {
    std::vector<float> z, a;  // z with k-1 rows of zeros before it; a: the convolution before its norm
};

static void convolve(conv_scratch &w, const bf16 *P, const bf16 *V, const float *K, const float *bias, int64_t t_max,
                     int64_t e, int64_t k) {
    w.z.assign((t_max + k - 1) * e, 0);
    w.a.resize(t_max * e);
    float *z = w.z.data() + (k - 1) * e;
    for (int64_t i = 0; i < t_max * e; i++) z[i] = up(P[i]) * up(V[i]);
    for (int64_t t = 0; t < t_max; t++) {
        float *a = w.a.data() + t * e;
        for (int64_t c = 0; c < e; c++) a[c] = bias[c];
        for (int64_t j = 0; j < k; j++)  // K is [k, e], row k-1 multiplies the present sample
            for (int64_t c = 0; c < e; c++) a[c] += K[j * e + c] * w.z[(t + j) * e + c];
    }
}

static Tensor conv_fwd(Tensor p, Tensor v, Tensor kernel, Tensor bias, Tensor norm, int64_t head, double eps) {
    const int64_t rows = p.size(0), t_max = p.size(1), e = p.size(2), k = kernel.size(0);
    Tensor s = new_half({rows, t_max, e});
    const bf16 *P = half(p), *V = half(v);
    const float *K = f32(kernel), *B = f32(bias), *W = f32(norm);
    bf16 *S = half_out(s);
#pragma omp parallel for
    for (int64_t b = 0; b < rows; b++) {
        conv_scratch w;
        const int64_t at = b * t_max * e;
        convolve(w, P + at, V + at, K, B, t_max, e, k);
        for (int64_t i = 0; i < t_max * e; i += head) {
            const float *a = w.a.data() + i, *wn = W + i % e;
            float sum = 0;
            for (int64_t c = 0; c < head; c++) sum += a[c] * a[c];
            const float r = 1.0f / std::sqrt(sum / head + (float)eps);
            for (int64_t c = 0; c < head; c++) S[at + i + c] = down(a[c] * r * wn[c]);
        }
    }
    return s;
}

static std::vector<Tensor> conv_bwd(Tensor ds, Tensor p, Tensor v, Tensor kernel, Tensor bias, Tensor norm, int64_t head,
                                    double eps) {
    const int64_t rows = p.size(0), t_max = p.size(1), e = p.size(2), k = kernel.size(0);
    Tensor dp = at::empty_like(p), dv = at::empty_like(v);
    Tensor dk = zeros({rows, k, e}), db = zeros({rows, e}), dn = zeros({rows, e});
    const bf16 *DS = half(ds), *P = half(p), *V = half(v);
    const float *K = f32(kernel), *B = f32(bias), *W = f32(norm);
    bf16 *DP = half_out(dp), *DV = half_out(dv);
    float *DK = f32_out(dk), *DB = f32_out(db), *DN = f32_out(dn);
#pragma omp parallel for
    for (int64_t b = 0; b < rows; b++) {
        conv_scratch w;
        const int64_t at = b * t_max * e;
        convolve(w, P + at, V + at, K, B, t_max, e, k);
        float *gk = DK + b * k * e, *gb = DB + b * e, *gn = DN + b * e;
        std::vector<float> dz((t_max + k - 1) * e, 0.0f), da(e);
        for (int64_t t = 0; t < t_max; t++) {
            for (int64_t h = 0; h < e; h += head) {
                const float *a = w.a.data() + t * e + h;
                const bf16 *g = DS + at + t * e + h;
                float sum = 0, dot = 0;
                for (int64_t c = 0; c < head; c++) {
                    sum += a[c] * a[c];
                    dot += up(g[c]) * W[h + c] * a[c];
                }
                const float r = 1.0f / std::sqrt(sum / head + (float)eps), mean = dot * r * r / head;
                for (int64_t c = 0; c < head; c++) {
                    da[h + c] = r * (up(g[c]) * W[h + c] - a[c] * mean);
                    gn[h + c] += up(g[c]) * a[c] * r;
                }
            }
            for (int64_t c = 0; c < e; c++) gb[c] += da[c];
            for (int64_t j = 0; j < k; j++)
                for (int64_t c = 0; c < e; c++) {
                    gk[j * e + c] += da[c] * w.z[(t + j) * e + c];
                    dz[(t + j) * e + c] += da[c] * K[j * e + c];
                }
        }
        const float *g = dz.data() + (k - 1) * e;
        for (int64_t i = 0; i < t_max * e; i++) {
            DP[at + i] = down(g[i] * up(V[at + i]));
            DV[at + i] = down(g[i] * up(P[at + i]));
        }
    }
    return {dp, dv, dk.sum(0), db.sum(0), dn.sum(0)};
}

// ---- Recurrent gating bridge and the mix of the two pathways ----
// gates: [blocks, rows*T, 2b] = block-diagonal products of s without biases, input gate first.
// params: [8, e] = b_i, b_f, 8 softplus(Lambda), kappa, omega, gamma (two rows unused).

static inline float one_minus_square(float a, float log_a) {  // 1 - a^2 without cancellation near a = 1
    const float y = -2 * log_a;
    const float series = y * (1 - y * 0.5f * (1 - y * (1 / 3.0f) * (1 - y * 0.25f)));
    return y < 0.03f ? series : 1 - a * a;
}

static std::vector<Tensor> bridge_fwd(Tensor s, Tensor gates, Tensor q, Tensor m, Tensor params) {
    const int64_t rows = s.size(0), t_max = s.size(1), e = s.size(2), blocks = gates.size(0), b = e / blocks;
    Tensor o = new_half({rows, t_max, e}), h = at::empty({rows, t_max, e}, at::kFloat);
    const bf16 *S = half(s), *G = half(gates), *Q = half(q), *M = half(m);
    const float *W = f32(params);
    bf16 *O = half_out(o);
    float *H = f32_out(h);
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        std::vector<float> state(e, 0.0f);
        for (int64_t k = 0; k < blocks; k++)
            for (int64_t t = 0; t < t_max; t++) {
                const int64_t token = row * t_max + t, at = token * e + k * b;
                const bf16 *gi = G + (k * rows * t_max + token) * 2 * b, *gf = gi + b;
                float *hs = state.data() + k * b;
#pragma omp simd
                for (int64_t c = 0; c < b; c++) {
                    const float *w = W + k * b + c;
                    const float x = up(S[at + c]);
                    const float log_a = std::min(-w[2 * e] * sigmoid(up(gf[c]) + w[e]), -1e-12f), a = fast_exp(log_a);
                    const float hh = a * hs[c] + std::sqrt(one_minus_square(a, log_a)) * sigmoid(up(gi[c]) + w[0]) * x;
                    const float beta = sigmoid(w[4 * e] * hh + w[5 * e]);
                    hs[c] = hh;
                    H[at + c] = hh;
                    O[at + c] = down((1 - beta) * up(Q[at + c]) * (x + w[3 * e] * hh) + beta * up(M[at + c]));
                }
            }
    }
    return {o, h};
}

static std::vector<Tensor> bridge_bwd(Tensor d_o, Tensor d_h, Tensor s, Tensor gates, Tensor q, Tensor m, Tensor h,
                                      Tensor params) {
    const int64_t rows = s.size(0), t_max = s.size(1), e = s.size(2), blocks = gates.size(0), b = e / blocks;
    Tensor ds = at::empty_like(s), dg = at::empty_like(gates), dq = at::empty_like(q), dm = at::empty_like(m);
    Tensor dw = zeros({rows, 8, e});
    const bool extra = d_h.numel() > 0;
    const bf16 *S = half(s), *G = half(gates), *Q = half(q), *M = half(m), *DO = half(d_o);
    const float *W = f32(params), *H = f32(h), *DH = extra ? f32(d_h) : nullptr;
    bf16 *DS = half_out(ds), *DG = half_out(dg), *DQ = half_out(dq), *DM = half_out(dm);
    float *DW = f32_out(dw);
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        std::vector<float> carry(e, 0.0f), none(e, 0.0f);
        for (int64_t k = 0; k < blocks; k++)
            for (int64_t t = t_max - 1; t >= 0; t--) {
                const int64_t token = row * t_max + t, at = token * e + k * b;
                const int64_t gate_at = (k * rows * t_max + token) * 2 * b;
                const bf16 *gi = G + gate_at, *gf = gi + b;
                const float *before = t ? H + at - e : none.data(), *late = extra ? DH + at : none.data();
                float *cs = carry.data() + k * b, *acc = DW + row * 8 * e + k * b;
#pragma omp simd
                for (int64_t c = 0; c < b; c++) {
                    const float *w = W + k * b + c;
                    const float x = up(S[at + c]), hh = H[at + c], qq = up(Q[at + c]), d = up(DO[at + c]);
                    const float i = sigmoid(up(gi[c]) + w[0]), f = sigmoid(up(gf[c]) + w[e]);
                    const float log_a = std::min(-w[2 * e] * f, -1e-12f), a = fast_exp(log_a);
                    const float gain = std::sqrt(one_minus_square(a, log_a));
                    const float beta = sigmoid(w[4 * e] * hh + w[5 * e]);
                    const float mem = x + w[3 * e] * hh, dc = (1 - beta) * d;
                    const float db = d * (up(M[at + c]) - qq * mem) * beta * (1 - beta);
                    const float dh = cs[c] + late[c] + dc * qq * w[3 * e] + db * w[4 * e];
                    const float dla = dh * (a * before[c] - i * x * a * a / gain);
                    cs[c] = a * dh;
                    DM[at + c] = down(beta * d);
                    DQ[at + c] = down(dc * mem);
                    DS[at + c] = down(dc * qq + dh * gain * i);
                    const float di = dh * gain * x * i * (1 - i), df = -dla * w[2 * e] * f * (1 - f);
                    DG[gate_at + c] = down(di);
                    DG[gate_at + b + c] = down(df);
                    acc[c] += di;
                    acc[e + c] += df;
                    acc[2 * e + c] -= dla * f;
                    acc[3 * e + c] += dc * qq * hh;
                    acc[4 * e + c] += db * hh;
                    acc[5 * e + c] += db;
                }
            }
    }
    return {ds, dg, dq, dm, dw.sum(0)};
}

// ---- S6 on the deep tokens of every row ----
// projected [deep, 2e + 2GN + H]; where[j]: place of deep token j in the dense sequence; first[row]: its start.
// Output: rho * m, dense, zero for light tokens. Heads have 64 channels (four vectors).

constexpr int64_t P = 64, CHUNK = 32;
// Sixteen floats, whatever the machine's registers hold; loaded and stored at any address.
typedef float vec __attribute__((vector_size(64)));
typedef float vec_anywhere __attribute__((vector_size(64), aligned(4), may_alias));
struct vec4 {
    vec v[4];
};
static inline vec load(const float *p) { return *(const vec_anywhere *)p; }
static inline void store(float *p, vec x) { *(vec_anywhere *)p = x; }
static inline float sum(vec x) {
    float total = 0;
    for (int i = 0; i < 16; i++) total += x[i];
    return total;
}
static inline vec4 load4(const float *p) { return {{load(p), load(p + 16), load(p + 32), load(p + 48)}}; }
static inline void store4(float *p, const vec4 &x) {
    for (int i = 0; i < 4; i++) store(p + 16 * i, x.v[i]);
}

// S[n, :] = a S[n, :] + B_n x; returns sum_n C_n S[n, :]. S_in may be S_out.
static inline vec4 scan_step(const float *s_in, float *s_out, float a, const float *B, const float *C, const vec4 &x, int64_t n_max) {
    vec4 y = {};
    for (int64_t n = 0; n < n_max; n++) {
        for (int i = 0; i < 4; i++) {
            const vec s = B[n] * x.v[i] + a * load(s_in + n * P + 16 * i);
            store(s_out + n * P + 16 * i, s);
            y.v[i] += C[n] * s;
        }
    }
    return y;
}

struct s6_shape {
    int64_t e, heads, groups, n, width;
};

// Per-token inputs of the scan of one row, in f32.
struct s6_row {
    std::vector<float> r, x, bc, delta, a;  // r = silu(r + s), x = Delta r, [B; C], Delta and a per head
    void prepare(const s6_shape &k, const bf16 *proj, const bf16 *S, const float *rho, const int64_t *where, int64_t count,
                 const float *rate, const float *dt_bias) {
        const int64_t e = k.e, gn = 2 * k.groups * k.n;
        r.resize(count * e), x.resize(count * e), bc.resize(count * gn), delta.resize(count * k.heads), a.resize(count * k.heads);
        for (int64_t j = 0; j < count; j++) {
            const bf16 *row = proj + j * k.width, *s = S + where[j] * e;
            for (int64_t c = 0; c < e; c++) {
                const float v = up(row[e + c]) + up(s[c]);
                r[j * e + c] = v * sigmoid(v);
            }
            for (int64_t c = 0; c < gn; c++) bc[j * gn + c] = up(row[2 * e + c]);
            for (int64_t h = 0; h < k.heads; h++) {
                const float d = rho[j] * softplus(up(row[2 * e + gn + h]) + dt_bias[h]);
                delta[j * k.heads + h] = d;
                a[j * k.heads + h] = std::exp(-rate[h] * d);
                for (int64_t p = 0; p < P; p++) x[j * e + h * P + p] = d * r[j * e + h * P + p];
            }
        }
    }
};

static s6_shape shape_of(const Tensor &projected, const Tensor &s, int64_t heads, int64_t groups) {
    s6_shape k{s.size(-1), heads, groups, 0, projected.size(1)};
    k.n = (k.width - 2 * k.e - heads) / (2 * groups);
    TORCH_CHECK(k.e == heads * P, "heads of 64 channels only");
    return k;
}

static std::vector<Tensor> s6_fwd(Tensor projected, Tensor s, Tensor rho, Tensor where, Tensor first, Tensor rate,
                                  Tensor dt_bias, Tensor D, Tensor norm, int64_t groups, double eps) {
    const s6_shape k = shape_of(projected, s, rate.numel(), groups);
    const int64_t rows = first.numel() - 1, deep = projected.size(0), state = k.n * P, e = k.e, gn = k.groups * k.n;
    Tensor m = at::zeros({s.size(0), e}, at::kBFloat16), y = at::empty({deep, e}, at::kFloat);
    Tensor starts = at::empty({deep / CHUNK + rows, k.heads, k.n, P}, at::kFloat);  // state before each chunk
    const bf16 *PR = half(projected), *S = half(s);
    const float *RHO = f32(rho), *RATE = f32(rate), *DT = f32(dt_bias), *DD = f32(D), *W = f32(norm);
    const int64_t *WHERE = where.data_ptr<int64_t>(), *FIRST = first.data_ptr<int64_t>();
    bf16 *M = half_out(m);
    float *Y = f32_out(y), *START = f32_out(starts);
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t begin = FIRST[row], count = FIRST[row + 1] - begin;
        float *start = START + (begin / CHUNK + row) * k.heads * state;
        s6_row in;
        in.prepare(k, PR + begin * k.width, S, RHO + begin, WHERE + begin, count, RATE, DT);
        std::vector<float> st(state);
        for (int64_t h = 0; h < k.heads; h++) {
            const int64_t group = h / (k.heads / k.groups) * k.n;
            std::fill(st.begin(), st.end(), 0.0f);
            for (int64_t j = 0; j < count; j++) {
                if (j % CHUNK == 0) memcpy(start + (j / CHUNK * k.heads + h) * state, st.data(), state * sizeof(float));
                const float *B = in.bc.data() + j * 2 * gn + group;
                store4(Y + (begin + j) * e + h * P, scan_step(st.data(), st.data(), in.a[j * k.heads + h], B, B + gn,
                                                              load4(in.x.data() + j * e + h * P), k.n));
            }
        }
        for (int64_t j = 0; j < count; j++)
            for (int64_t h = 0; h < e; h += P) {
                const bf16 *g = PR + (begin + j) * k.width + h;
                float v[P], sum = 0;
                for (int64_t p = 0; p < P; p++) {
                    v[p] = (Y[(begin + j) * e + h + p] + DD[h + p] * in.r[j * e + h + p]) * up(g[p]) * sigmoid(up(g[p]));
                    sum += v[p] * v[p];
                }
                const float scale = RHO[begin + j] / std::sqrt(sum / P + (float)eps);
                for (int64_t p = 0; p < P; p++) M[WHERE[begin + j] * e + h + p] = down(v[p] * scale * W[h + p]);
            }
    }
    return {m, y, starts};
}

// Gradients of one token's gate, norm and skip; fills dy and the shares of dproj (g) and dr that do not pass the scan.
static float s6_out_bwd(const s6_shape &k, const bf16 *proj, const float *y, const float *r, const bf16 *dm, float rho,
                        const float *D, const float *W, float eps, bf16 *dproj, float *dy, float *dr, float *dD, float *dW) {
    float drho = 0;
    for (int64_t h = 0; h < k.e; h += P) {
        float yy[P], gate[P], v[P], sum = 0, dot = 0, plain = 0;
        for (int64_t p = 0; p < P; p++) {
            const float g = up(proj[h + p]);
            yy[p] = y[h + p] + D[h + p] * r[h + p];
            gate[p] = g * sigmoid(g);
            v[p] = yy[p] * gate[p];
            sum += v[p] * v[p];
            dot += up(dm[h + p]) * W[h + p] * v[p];
        }
        const float rstd = 1.0f / std::sqrt(sum / P + eps), mean = rho * dot * rstd * rstd / P;
        plain = dot * rstd;
        drho += plain;
        for (int64_t p = 0; p < P; p++) {
            const float g = up(proj[h + p]), sg = sigmoid(g), d = up(dm[h + p]);
            const float dv = rstd * (rho * d * W[h + p] - v[p] * mean);
            dW[h + p] += rho * d * v[p] * rstd;
            dproj[h + p] = down(dv * yy[p] * sg * (1 + g * (1 - sg)));
            dy[h + p] = dv * gate[p];
            dD[h + p] += dy[h + p] * r[h + p];
            dr[h + p] = dy[h + p] * D[h + p];
        }
    }
    return drho;
}

// One head's scan backwards over one chunk whose states are in `states` ([count+1, n, P]); dS is carried on.
static void scan_chunk_bwd(const s6_shape &k, const s6_row &in, int64_t j0, int64_t count, int64_t h, const float *states,
                           const float *dy, float *dS, float *dx, float *dbc, float *dlog_a) {
    const int64_t gn = k.groups * k.n, group = h / (k.heads / k.groups) * k.n;
    for (int64_t i = count - 1; i >= 0; i--) {
        const int64_t j = j0 + i;
        const float *B = in.bc.data() + j * 2 * gn + group, *C = B + gn, *now = states + (i + 1) * k.n * P, *old = now - k.n * P;
        const vec4 g = load4(dy + j * k.e + h * P), x = load4(in.x.data() + j * k.e + h * P);
        vec4 dxv = {}, da = {};
        const float a = in.a[j * k.heads + h];
        float *dB = dbc + j * 2 * gn + group, *dC = dB + gn;
        for (int64_t n = 0; n < k.n; n++) {
            vec sum_b = {}, sum_c = {};
            for (int v = 0; v < 4; v++) {
                const int64_t at = n * P + 16 * v;
                const vec d = C[n] * g.v[v] + load(dS + at);
                sum_c += load(now + at) * g.v[v];
                sum_b += d * x.v[v];
                dxv.v[v] += B[n] * d;
                da.v[v] += d * load(old + at);
                store(dS + at, a * d);
            }
            dB[n] += sum(sum_b);
            dC[n] += sum(sum_c);
        }
        store4(dx + j * k.e + h * P, dxv);
        dlog_a[j * k.heads + h] = a * sum(da.v[0] + da.v[1] + da.v[2] + da.v[3]);
    }
}

static std::vector<Tensor> s6_bwd(Tensor dm, Tensor projected, Tensor s, Tensor rho, Tensor where, Tensor first, Tensor rate,
                                  Tensor dt_bias, Tensor D, Tensor norm, Tensor y, Tensor starts, int64_t groups, double eps) {
    const s6_shape k = shape_of(projected, s, rate.numel(), groups);
    const int64_t rows = first.numel() - 1, deep = projected.size(0), state = k.n * P, e = k.e, gn = 2 * k.groups * k.n;
    Tensor dproj = at::empty_like(projected), ds = at::zeros_like(s), drho = zeros({deep});
    Tensor drate = zeros({rows, k.heads}), ddt = zeros({rows, k.heads}), dD = zeros({rows, e}), dW = zeros({rows, e});
    const bf16 *PR = half(projected), *S = half(s), *DM = half(dm);
    const float *RHO = f32(rho), *RATE = f32(rate), *DT = f32(dt_bias), *DD = f32(D), *W = f32(norm), *Y = f32(y), *START = f32(starts);
    const int64_t *WHERE = where.data_ptr<int64_t>(), *FIRST = first.data_ptr<int64_t>();
    bf16 *DPR = half_out(dproj), *DS = half_out(ds);
    float *DRHO = f32_out(drho), *GRATE = f32_out(drate), *GDT = f32_out(ddt), *GD = f32_out(dD), *GW = f32_out(dW);
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t begin = FIRST[row], count = FIRST[row + 1] - begin;
        const float *start = START + (begin / CHUNK + row) * k.heads * state;
        s6_row in;
        in.prepare(k, PR + begin * k.width, S, RHO + begin, WHERE + begin, count, RATE, DT);
        std::vector<float> dy(count * e), dr(count * e), dx(count * e), dbc(count * gn, 0.0f), dla(count * k.heads);
        for (int64_t j = 0; j < count; j++) {
            const int64_t t = begin + j;
            DRHO[t] = s6_out_bwd(k, PR + t * k.width, Y + t * e, &in.r[j * e], DM + WHERE[t] * e, RHO[t], DD, W, (float)eps,
                                 DPR + t * k.width, &dy[j * e], &dr[j * e], GD + row * e, GW + row * e);
        }
        std::vector<float> states((CHUNK + 1) * state), dS(state);
        for (int64_t h = 0; h < k.heads; h++) {
            std::fill(dS.begin(), dS.end(), 0.0f);
            const int64_t group = h / (k.heads / k.groups) * k.n;
            for (int64_t chunk = (count + CHUNK - 1) / CHUNK - 1; chunk >= 0; chunk--) {
                const int64_t j0 = chunk * CHUNK, len = std::min(CHUNK, count - j0);
                memcpy(states.data(), start + (chunk * k.heads + h) * state, state * sizeof(float));
                for (int64_t i = 0; i < len; i++) {
                    const int64_t j = j0 + i;
                    const float *B = in.bc.data() + j * gn + group;
                    scan_step(&states[i * state], &states[(i + 1) * state], in.a[j * k.heads + h], B, B + gn / 2,
                              load4(&in.x[j * e + h * P]), k.n);
                }
                scan_chunk_bwd(k, in, j0, len, h, states.data(), dy.data(), dS.data(), dx.data(), dbc.data(), dla.data());
            }
        }
        for (int64_t j = 0; j < count; j++) {
            const int64_t t = begin + j;
            const bf16 *proj = PR + t * k.width;
            bf16 *dp = DPR + t * k.width, *dst = DS + WHERE[t] * e;
            for (int64_t h = 0; h < k.heads; h++) {
                float dot = 0;
                for (int64_t p = h * P; p < (h + 1) * P; p++) dot += dx[j * e + p] * in.r[j * e + p];
                const float d = in.delta[j * k.heads + h], raw = up(proj[2 * e + gn + h]) + DT[h];
                const float ddelta = dot - dla[j * k.heads + h] * RATE[h];
                GRATE[row * k.heads + h] -= dla[j * k.heads + h] * d;
                DRHO[t] += ddelta * softplus(raw);
                const float draw = ddelta * RHO[t] * sigmoid(raw);
                GDT[row * k.heads + h] += draw;
                dp[2 * e + gn + h] = down(draw);
                for (int64_t p = h * P; p < (h + 1) * P; p++) dr[j * e + p] += d * dx[j * e + p];
            }
            for (int64_t c = 0; c < e; c++) {
                const float v = up(proj[e + c]) + up(S[WHERE[t] * e + c]), sg = sigmoid(v);
                dst[c] = dp[e + c] = down(dr[j * e + c] * sg * (1 + v * (1 - sg)));
            }
            for (int64_t c = 0; c < gn; c++) dp[2 * e + c] = down(dbc[j * gn + c]);
        }
    }
    return {dproj, ds, drho, drate.sum(0), ddt.sum(0), dD.sum(0), dW.sum(0)};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("norm_fwd", &norm_fwd);
    m.def("norm_bwd", &norm_bwd);
    m.def("swiglu_fwd", &swiglu_fwd);
    m.def("swiglu_bwd", &swiglu_bwd);
    m.def("cross_entropy_", &cross_entropy_);
    m.def("causal_softmax_", &causal_softmax_);
    m.def("causal_softmax_bwd_", &causal_softmax_bwd_);
    m.def("conv_fwd", &conv_fwd);
    m.def("conv_bwd", &conv_bwd);
    m.def("bridge_fwd", &bridge_fwd);
    m.def("bridge_bwd", &bridge_bwd);
    m.def("s6_fwd", &s6_fwd);
    m.def("s6_bwd", &s6_bwd);
}
