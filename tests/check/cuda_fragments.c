/* The functions of kernels/mma_cuda.h, element by element from their definitions: where each number of a
 * fragment lies, sums in double, exact where the numbers are small integers. On a GPU this holds the inline
 * PTX to what the test device emulates. */
#include "cuda_check.h"
#include "cuda_fragments.h"

#include <math.h>
#include <string.h>

/* The matrices of one product and the registers that hold them. */
typedef struct product {
    float a[16][16], b[16][8], d[16][8];
    uint32_t words_a[32][4], words_b[32][2];
    float words_d[32][4];
} product;

static uint16_t bits_of(bool f16, float v) { return f16 ? sl_f32_to_f16(v) : sl_f32_to_bf16(v); }
static float value_of(bool f16, uint16_t bits) { return f16 ? sl_f16_to_f32(bits) : sl_bf16_to_f32(bits); }

static float random_number(check *c, bool f16, bool integer) {
    const float v = check_uniform(c, -8, 8);
    return integer ? rintf(v) : value_of(f16, bits_of(f16, v * v * v));
}

static uint32_t pair_of(bool f16, float low, float high) {
    return bits_of(f16, low) | (uint32_t)bits_of(f16, high) << 16;
}

static void make_product(check *c, bool f16, bool integer, product *p) {
    for (int i = 0; i < 16 * 16; i++) p->a[i / 16][i % 16] = random_number(c, f16, integer);
    for (int i = 0; i < 16 * 8; i++) p->b[i / 8][i % 8] = random_number(c, f16, integer);
    for (int i = 0; i < 16 * 8; i++) p->d[i / 8][i % 8] = random_number(c, f16, integer);
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, k = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const float *row = p->a[g + i % 2 * 8] + k + i / 2 * 8;
            p->words_a[lane][i] = pair_of(f16, row[0], row[1]);
            p->words_d[lane][i] = p->d[g + i / 2 * 8][k + i % 2];
        }
        for (int i = 0; i < 2; i++)
            p->words_b[lane][i] = pair_of(f16, p->b[k + 8 * i][g], p->b[k + 8 * i + 1][g]);
    }
}

/* 16 products and what they are added to, each cut to the last place of the largest at worst. */
static void check_sums(check *c, bool integer, const product *p, const float after[32][4]) {
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
            double sum = (double)p->d[row][col], magnitude = fabs(sum);
            for (int k = 0; k < 16; k++) {
                const double term = (double)p->a[row][k] * p->b[k][col];
                sum += term, magnitude += fabs(term);
            }
            const double bound = integer ? 0 : 18 * 2 * CHECK_U * magnitude;
            check_near(c, "d", (size_t)(8 * row + col), after[lane][i], sum, bound);
        }
    }
}

/* Rows of numbers that name their place. */
static void check_loads(check *c, const uint32_t *row, uint32_t n_valid, const uint32_t loaded[32][4],
                        const uint32_t transposed[32][4]) {
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t m = i / 2, g = lane / 4, k = lane % 4 * 2 + i % 2;
            const uint32_t plain_row = row[8 * m + g], turned_row = row[8 * m + k];
            const uint32_t plain = plain_row < n_valid ? plain_row * 8 + k : 0;
            const uint32_t turned = turned_row < n_valid ? turned_row * 8 + g : 0;
            check_near(c, "loaded", lane * 8 + i, loaded[lane][m] >> i % 2 * 16 & 0xffff, plain, 0);
            check_near(c, "transposed", lane * 8 + i, transposed[lane][m] >> i % 2 * 16 & 0xffff, turned, 0);
        }
    }
}

/* Two of three beyond the range of f16. */
static void check_pairs(check *c, const float pair[32][2], const uint32_t *f16, const uint32_t *half) {
    for (size_t i = 0; i < 32; i++) {
        check_near(c, "f16 pair", i, f16[i], cuda_f16(pair[i][0]) | (uint32_t)cuda_f16(pair[i][1]) << 16, 0);
        check_near(c, "half pair", i, half[i], pair_of(true, pair[i][0], pair[i][1]), 0);
    }
}

static double unit_of(double v) {
    int exponent;
    frexp(v, &exponent);
    return ldexp(1, exponent - 24);
}

/* Powers within 2 units in the last place of what is best, which is half a unit off, reciprocals within one; 0 where a
 * power is not normal. */
static void check_approx(check *c, const float *exponent, const float *power, const float *reciprocal) {
    for (size_t i = 0; i < 32; i++) {
        const double want = exp2((double)exponent[i]), of = 1 / (double)(1 + fabsf(exponent[i]));
        check_near(c, "power", i, power[i], want < 0x1p-126 ? 0 : want, want < 0x1p-126 ? 0 : 2.5 * unit_of(want));
        check_near(c, "reciprocal", i, reciprocal[i], of, 1.5 * unit_of(of));
    }
}

static void check_warp(check *c, bool f16, bool integer, uint32_t n_valid) {
    check_case(c, "%s, %s, %u rows", f16 ? "f16" : "bf16", integer ? "integers" : "any numbers", n_valid);
    product p;
    uint16_t rows[N_FRAGMENT_ROW * 8];
    uint32_t row[32], loaded[32][4], transposed[32][4], pair_f16[32], pair_half[32];
    float pair[32][2], after[32][4], exponent[32], power[32], reciprocal[32];
    make_product(c, f16, integer, &p);
    for (uint32_t i = 0; i < N_FRAGMENT_ROW * 8; i++) rows[i] = (uint16_t)i;
    for (int i = 0; i < 32; i++) {
        row[i] = (uint32_t)check_index(c, N_FRAGMENT_ROW);
        for (int j = 0; j < 2; j++) pair[i][j] = check_uniform(c, -9, 9) * (i % 3 ? 20000 : 1);
        exponent[i] = i ? check_uniform(c, i % 2 ? -135 : -1, i % 2 ? 127 : 1) : -INFINITY;
    }
    sl_fragments_args a = { .a = cuda_put(p.words_a, sizeof p.words_a, 16),
                            .b = cuda_put(p.words_b, sizeof p.words_b, 16),
                            .d = cuda_put(p.words_d, sizeof p.words_d, 16), .f16 = f16,
                            .rows = cuda_put(rows, n_valid * 16, 16), .row = cuda_put(row, sizeof row, 16),
                            .n_valid = n_valid, .pair = cuda_put(pair, sizeof pair, 16),
                            .exponent = cuda_put(exponent, sizeof exponent, 16) };
    a.loaded = cuda_new(sizeof loaded, 16), a.transposed = cuda_new(sizeof transposed, 16);
    a.f16_pair = cuda_new(sizeof pair_f16, 16), a.half_pair = cuda_new(sizeof pair_half, 16);
    a.power = cuda_new(sizeof power, 16), a.reciprocal = cuda_new(sizeof reciprocal, 16);
    cuda_run(sl_fragments_cuda(&a, NULL));
    cuda_get(power, a.power, sizeof power), cuda_get(reciprocal, a.reciprocal, sizeof reciprocal);
    cuda_get(after, a.d, sizeof after);
    cuda_get(loaded, a.loaded, sizeof loaded), cuda_get(transposed, a.transposed, sizeof transposed);
    cuda_get(pair_f16, a.f16_pair, sizeof pair_f16), cuda_get(pair_half, a.half_pair, sizeof pair_half);
    check_sums(c, integer, &p, (const float(*)[4])after);
    check_loads(c, row, n_valid, (const uint32_t(*)[4])loaded, (const uint32_t(*)[4])transposed);
    check_pairs(c, (const float(*)[2])pair, pair_f16, pair_half);
    check_approx(c, exponent, power, reciprocal);
    cuda_free();
    check_end(c);
}

void check_cuda_fragments(check *c) {
    for (int i = 0; i < 16 && !c->failed; i++) check_warp(c, i & 1, i & 2, i & 4 ? N_FRAGMENT_ROW : 37);
}
