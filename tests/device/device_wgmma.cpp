/* Products of warpgroups on the test device, by their definitions (kernels/wgmma_cuda.h). Each is one meeting of a warp's
 * lanes, where the last to arrive does the warp's part of it: 16 rows by all columns. It happens when the warp waits for
 * it, or at once if the order's seed is odd. The four warps of a group must ask for the same ones in the same order.
 * What is not seen: sums that are touched between sl_wgmma_begin and the wait, unless their value tells. */
#include "device_block.h"
#include "device_races.h"

namespace {

enum { ROWS = 16, DEPTH = 16, MAX_COLS = 256, ROW_BYTES = 128, ATOM_BYTES = 1024, N_RECENT = 32 };

/* What a descriptor says. */
struct tile {
    uint64_t start, stride, leading, exchanged;
};
tile read_tile(uint64_t descriptor) {
    return {(descriptor & 0x3fff) * 16, (descriptor >> 32 & 0x3fff) * 16, (descriptor >> 16 & 0x3fff) * 16,
            descriptor >> 62};
}

/* Rows of 128 bytes whose chunks are exchanged, eight of them from each multiple of 1024 bytes on; from 32 d bytes of
 * the first on. */
void check_tile(uint64_t descriptor, unsigned n_row) {
    const tile t = read_tile(descriptor);
    const uint64_t first = t.start / ATOM_BYTES * ATOM_BYTES;
    if (t.exchanged != 1 || t.stride != ATOM_BYTES || t.start - first >= ROW_BYTES || t.start % 32 != 0)
        sl_device_trap("a tile of a warpgroup's product does not begin at a multiple of 1024 bytes, or not at 16 elements");
    const uint64_t known = 0xc0003fff3fff3fff;
    if (descriptor & ~known)
        sl_device_trap("a descriptor of a warpgroup's product has bits that the test device does not know");
    if (first + n_row * ROW_BYTES > sl_device_shared_bytes() || reinterpret_cast<uintptr_t>(sl_device_shared()) % ATOM_BYTES)
        sl_device_trap("a tile of a warpgroup's product lies beyond the block's shared memory");
}

/* Chunk c (0 or 1) of a row, as the units find it: address bits 4 to 6 exchanged by bits 7 to 9. */
const uint16_t *chunk_at(uint64_t descriptor, unsigned row, unsigned c) {
    const tile t = read_tile(descriptor);
    const uint64_t at = t.start + row / 8 * t.stride + row % 8 * ROW_BYTES + c * 16;
    return reinterpret_cast<const uint16_t *>(static_cast<unsigned char *>(sl_device_shared()) + (at ^ (at >> 7 & 7) << 4));
}

void take_row(float *to, uint64_t descriptor, unsigned row) {
    for (unsigned i = 0; i < DEPTH; i++)
        to[i] = sl_device_half_to_float(chunk_at(descriptor, row, i / 8)[i % 8]);
}

/* f for a lane's share of what its warp reads. */
template <class F> void for_each_chunk(unsigned warp, unsigned lane, const sl_device_multiplying *m, F f) {
    f(warp * 32 + lane, chunk_at(m->x, warp % 4 * ROWS + lane / 2, lane % 2));
    for (unsigned i = lane; i < 2 * m->n_col; i += 32)
        f(warp * 32 + lane, chunk_at(m->w, i / 2, i % 2));
}
void begin_reading(unsigned warp, unsigned lane, const sl_device_multiplying *m) {
    for_each_chunk(warp, lane, m, [&](unsigned thread, const void *p) { sl_races_access_async(thread, p, 16, m->code); });
}
void end_reading(unsigned warp, unsigned lane, const sl_device_multiplying *m) {
    for_each_chunk(warp, lane, m,
                   [&](unsigned thread, const void *p) { sl_races_end_async(thread, p, 16, m->epoch, m->code); });
}

void multiply(const sl_device_multiplying *const lanes[32]) {
    static float x[ROWS][DEPTH], w[MAX_COLS][DEPTH];
    const unsigned warp = sl_device_thread() / 32;
    const sl_device_multiplying *m = lanes[0];
    for (unsigned row = 0; row < ROWS; row++)
        take_row(x[row], m->x, warp % 4 * ROWS + row);
    for (unsigned col = 0; col < m->n_col; col++)
        take_row(w[col], m->w, col);
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < m->n_col / 2; i++) {
            const float *x_row = x[lane / 4 + i / 2 % 2 * 8], *w_row = w[i / 4 * 8 + lane % 4 * 2 + i % 2];
            float *d = lanes[lane]->d ? lanes[lane]->d + i : reinterpret_cast<float *>(lanes[lane]->registers[i]);
            for (unsigned k = 0; k < DEPTH; k++)
                *d += x_row[k] * w_row[k];
        }
}

/* ---- meetings ------------------------------------------------------------------------------------ */

/* The last products that each group's warps have asked for. */
struct group_history {
    sl_device_multiplying recent[N_RECENT];
    uint64_t n[4], most;
} groups[SL_MAX_THREADS / 128];
bool any_group; /* has asked for something in this block */

bool is_same(const sl_device_multiplying *a, const sl_device_multiplying *b) {
    return a->x == b->x && a->w == b->w && a->n_col == b->n_col;
}

void check_group(const sl_device_multiplying *m) {
    const unsigned warp = sl_device_thread() / 32;
    group_history *g = &groups[warp / 4];
    const uint64_t number = g->n[warp % 4]++, at = number % N_RECENT;
    any_group = true;
    if (number == g->most)
        g->recent[at] = *m, g->most++;
    else if (!is_same(&g->recent[at], m))
        sl_device_trap("the warps of a warpgroup ask for different products");
}

void begin_products(void *const data[32]) {
    const sl_device_multiplying *lanes[32];
    const unsigned warp = sl_device_thread() / 32;
    for (unsigned lane = 0; lane < 32; lane++) {
        lanes[lane] = static_cast<const sl_device_multiplying *>(data[lane]);
        if (!is_same(lanes[lane], lanes[0]))
            sl_device_trap("the lanes of a warp ask for different products");
        begin_reading(warp, lane, lanes[lane]);
    }
    check_group(lanes[0]);
    if (lanes[0]->registers || sl_device_copies_here()->at_once)
        multiply(lanes);
}

/* Of a lane: its products, and those from the first on that are waited for. */
struct waiting {
    const sl_device_products *products;
    unsigned n_done;
};

void end_products(void *const data[32]) {
    const waiting *const *waits = reinterpret_cast<const waiting *const *>(data);
    const unsigned warp = sl_device_thread() / 32;
    for (unsigned lane = 0; lane < 32; lane++)
        if (waits[lane]->n_done != waits[0]->n_done)
            sl_device_trap("the lanes of a warp wait for different products");
    for (unsigned i = 0; i < waits[0]->n_done; i++) {
        const sl_device_multiplying *lanes[32];
        for (unsigned lane = 0; lane < 32; lane++) {
            lanes[lane] = &waits[lane]->products->list[i];
            end_reading(warp, lane, lanes[lane]);
        }
        if (!lanes[0]->registers && !sl_device_copies_here()->at_once)
            multiply(lanes);
    }
}

void ask_for(sl_device_multiplying m) {
    sl_device_products *p = sl_device_products_here();
    if (!p->begun)
        sl_device_trap("a warpgroup's product without sl_wgmma_begin in front of its group");
    if (m.n_col > MAX_COLS)
        sl_device_trap("a warpgroup's product of more than 256 columns");
    check_tile(m.x, 64), check_tile(m.w, m.n_col);
    m.group = p->n_group, m.epoch = sl_races_epoch();
    sl_device_meet(begin_products, &m);
    if (p->n == SL_MAX_PRODUCTS)
        sl_device_trap("more products under way than the test device keeps");
    p->list[p->n++] = m;
}

} // namespace

void sl_device_wgmma(float *d, unsigned n_col, uint64_t x, uint64_t w) {
    ask_for({d, nullptr, n_col, 0, x, w, __builtin_return_address(0), 0});
}

void sl_device_wgmma_registers(uint32_t *const *d, unsigned n_col, uint64_t x, uint64_t w) {
    ask_for({nullptr, d, n_col, 0, x, w, __builtin_return_address(0), 0});
}

void sl_device_wgmma_begin(void) { sl_device_products_here()->begun = true; }

void sl_device_wgmma_commit(void) {
    sl_device_products *p = sl_device_products_here();
    p->n_group++, p->begun = false;
}

void sl_device_wgmma_wait(unsigned n) {
    sl_device_products *p = sl_device_products_here();
    waiting wait = {p, 0};
    while (wait.n_done < p->n && p->list[wait.n_done].group + n < p->n_group)
        wait.n_done++;
    sl_device_meet(end_products, &wait);
    p->n -= wait.n_done;
    memmove(p->list, p->list + wait.n_done, p->n * sizeof *p->list);
}

void sl_device_products_begin(void) {
    if (any_group)
        memset(groups, 0, sizeof groups);
    any_group = false;
}

void sl_device_products_end(void) {
    if (!any_group)
        return;
    bool whole = blockDim.x * blockDim.y * blockDim.z % 128 == 0;
    for (const group_history &g : groups)
        for (uint64_t n : g.n)
            whole = whole && n == g.most;
    if (!whole)
        sl_device_trap("a product that not all four warps of a warpgroup have asked for");
}

void sl_device_wgmma_publish(void) { sl_races_publish(); }
