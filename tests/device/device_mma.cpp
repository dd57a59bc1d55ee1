/* Matrix units and asynchronous copies of the test device, by their definitions (kernels/mma_cuda.h). Each
 * matrix instruction is one meeting of a warp's lanes: the last to arrive does the work of all. */
#include "device_block.h"
#include "device_races.h"

namespace {

constexpr int ROWS = 16, COLS = 8, DEPTH = 16;

struct mma_lane {
    float *d;
    const uint32_t *a, *b;
};

struct load_lane {
    uint32_t *r;
    const uint16_t *row;
    const void *code;
};

float bf16_to_float(uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

/* Element i of a fragment's word. */
uint16_t half_of(uint32_t word, int i) { return static_cast<uint16_t>(i ? word >> 16 : word); }

template <float number(uint16_t bits)> void multiply(void *const *data) {
    float a[ROWS][DEPTH], b[DEPTH][COLS];
    mma_lane *const *lanes = reinterpret_cast<mma_lane *const *>(data);
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, q = l % 4;
        for (int i = 0; i < 2; i++) {
            for (int part = 0; part < 4; part++)
                a[g + part % 2 * 8][2 * q + part / 2 * 8 + i] = number(half_of(lanes[l]->a[part], i));
            for (int part = 0; part < 2; part++)
                b[2 * q + part * 8 + i][g] = number(half_of(lanes[l]->b[part], i));
        }
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
            float sum = lanes[l]->d[i];
            for (int k = 0; k < DEPTH; k++)
                sum += a[row][k] * b[k][col];
            lanes[l]->d[i] = sum;
        }
}

template <bool transposed> void load(void *const *data) {
    load_lane *const *lanes = reinterpret_cast<load_lane *const *>(data);
    for (unsigned l = 0; l < 32; l++)
        sl_races_access_of(sl_device_thread() / 32 * 32 + l, lanes[l]->row, 16, false, lanes[l]->code);
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            uint32_t word = 0;
            for (int i = 0; i < 2; i++) {
                const int row = transposed ? l % 4 * 2 + i : l / 4, col = transposed ? l / 4 : l % 4 * 2 + i;
                word |= static_cast<uint32_t>(lanes[8 * m + row]->row[col]) << 16 * i;
            }
            lanes[l]->r[m] = word;
        }
}

template <bool transposed> void meet_load(uint32_t r[4], const void *row, const void *code) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        sl_device_trap("a row of sl_mma_load does not start at a multiple of 16 bytes");
    load_lane lane = {r, static_cast<const uint16_t *>(row), code};
    sl_device_meet(load<transposed>, &lane);
}

} // namespace

void sl_device_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_lane lane = {d, a, b};
    sl_device_meet(multiply<bf16_to_float>, &lane);
}

void sl_device_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_lane lane = {d, a, b};
    sl_device_meet(multiply<sl_device_half_to_float>, &lane);
}

void sl_device_mma_load(uint32_t r[4], const void *row) {
    meet_load<false>(r, row, __builtin_return_address(0));
}
void sl_device_mma_load_transposed(uint32_t r[4], const void *row) {
    meet_load<true>(r, row, __builtin_return_address(0));
}

/* ---- copies -------------------------------------------------------------------------------------- */

namespace {

/* It happens at some time from the call to the wait: races are looked for at both. */
void look_for_races(const sl_device_copying &copy, const void *code) {
    sl_races_access(copy.to, 16, true, code);
    if (copy.from)
        sl_races_access(copy.from, 16, false, code);
}

void do_copy(const sl_device_copying &copy) {
    if (copy.from)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
}

} // namespace

void sl_device_copy(void *shared, const void *global, bool valid) {
    sl_device_copies *c = sl_device_copies_here();
    if ((reinterpret_cast<uintptr_t>(shared) | (valid ? reinterpret_cast<uintptr_t>(global) : 0)) % 16 != 0)
        sl_device_trap("a copy of sl_copy_async16 does not start at a multiple of 16 bytes");
    const sl_device_copying copy = {shared, valid ? global : nullptr, c->n_group};
    look_for_races(copy, __builtin_return_address(0));
    if (c->at_once)
        do_copy(copy);
    if (c->n == SL_MAX_COPIES)
        sl_device_trap("more copies under way than the test device keeps");
    c->list[c->n++] = copy;
}

void sl_device_copy_commit(void) { sl_device_copies_here()->n_group++; }

void sl_device_copy_wait(unsigned n) {
    sl_device_copies *c = sl_device_copies_here();
    unsigned n_kept = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->list[i].group + n >= c->n_group) {
            c->list[n_kept++] = c->list[i];
            continue;
        }
        look_for_races(c->list[i], __builtin_return_address(0));
        if (!c->at_once)
            do_copy(c->list[i]);
    }
    c->n = n_kept;
}
