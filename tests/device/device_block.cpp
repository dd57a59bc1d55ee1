/* The threads of a block as cooperative fibers.
 *
 * Threads are started one after another on one fiber; only when a thread waits does the next one get another
 * fiber, so a kernel without barriers costs no switches. A wait ends when all lanes of its mask (or all threads
 * of the block) wait alike; the last to arrive computes the results of all, queues the others and goes on.
 * Results are written to the waiting threads, so nobody's next collective can disturb them.
 *
 * Faults: a mask that names an exited or missing lane, a barrier that some thread can no longer reach because
 * it has returned (the hardware forgives that, its checking tools do not), and a standstill. The fibers of a
 * faulty block are abandoned where they are. */
#include "device_block.h"

#include "device_asan.h"
#include "device_fiber.h"
#include "device_races.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

enum state { STATE_WAITS = 1, STATE_READY, STATE_RETURNED };

struct lane {
    uint3 index;
    sl_fiber *fiber;
    state now;
    sl_device_wait wait;
    unsigned mask, arg, width;
    uint32_t value, result;
    sl_device_meeting meeting;
    void *data;
    bool begun;
};

struct warp {
    unsigned exists, arrived, returned; /* masks of lanes */
};

/* Numbers 0 .. n - 1 in an order that a seed chooses, and again: each is step more than the last, modulo n. */
struct order {
    uint64_t n, step, next;
};

/* The running block. Fibers are kept for the next. */
struct {
    lane lanes[SL_MAX_THREADS];
    sl_device_copies copies[SL_MAX_THREADS];
    sl_device_products products[SL_MAX_THREADS];
    warp warps[SL_MAX_THREADS / 32];
    unsigned ready[SL_MAX_THREADS]; /* ring */
    unsigned n_thread, n_started, n_returned, at_barrier, ready_head, n_ready, current, returned_first;
    order threads;
    sl_fiber *fibers[SL_MAX_THREADS], *free_fibers;
    unsigned n_fiber;
    sl_fiber *running, host;
    const sl_grid *grid;
    const void *args;
    unsigned char *shared;
    bool fault;
} block;

char fault_text[512];

const char *const wait_names[] = {"__syncwarp",      "__shfl_sync",   "__shfl_up_sync", "__shfl_down_sync",
                                  "__shfl_xor_sync", "__ballot_sync", "a matrix instruction",
                                  "__syncthreads"};

uint64_t common_divisor(uint64_t a, uint64_t b) { return b ? common_divisor(b, a % b) : a; }

order choose_order(uint64_t n, uint64_t seed) {
    order chosen = {n, 1, 0};
    if (seed == 0 || n < 2)
        return chosen;
    uint64_t mixed = seed * 0x9e3779b97f4a7c15u;
    mixed ^= mixed >> 29;
    chosen.next = mixed % n;
    for (chosen.step = 1 + (mixed >> 7) % (n - 1); common_divisor(n, chosen.step) != 1;)
        chosen.step = chosen.step % n + 1;
    return chosen;
}

uint64_t next_in(order *o) {
    uint64_t i = o->next;
    o->next = (i + o->step) % o->n;
    return i;
}

/* "kernel of sl_embed_args, block (0, 0, 0)" for the front of a message. */
void name_place(char *out, size_t size) {
    char kernel[96];
    sl_kernel_name(block.grid->label, kernel, sizeof kernel);
    snprintf(out, size, "kernel of %s, block (%u, %u, %u)", kernel, blockIdx.x, blockIdx.y, blockIdx.z);
}

/* Leaves the block for good, from one of its fibers. */
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char *format, ...) {
    char place[256], what[224];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    name_place(place, sizeof place);
    sl_fault_set("%s: %s", place, what);
    block.fault = true;
    sl_fiber_switch(block.running, &block.host);
    __builtin_trap();
}

void describe(unsigned thread, char *out, size_t size) {
    const lane *l = &block.lanes[thread];
    if (l->wait == SL_WAIT_BARRIER)
        snprintf(out, size, "thread %u waits at __syncthreads", thread);
    else
        snprintf(out, size, "thread %u waits at %s (mask 0x%08x)", thread, wait_names[l->wait], l->mask);
}

/* All wait and none can go on: tells of the first thread and of one that waits for something else. */
[[noreturn]] void fail_standstill(void) {
    const lane *lanes = block.lanes;
    unsigned a = 0, b;
    while (lanes[a].now != STATE_WAITS)
        a++;
    for (b = a + 1; b < block.n_thread; b++)
        if (lanes[b].now == STATE_WAITS && (lanes[b].wait != lanes[a].wait || lanes[b].mask != lanes[a].mask))
            break;
    char first[80], second[80] = "no other waits elsewhere";
    describe(a, first, sizeof first);
    if (b < block.n_thread)
        describe(b, second, sizeof second);
    fail("no thread can go on: %s, %s", first, second);
}

void enter_fiber(void);

/* A fiber for threads not yet started. */
sl_fiber *take_fiber(void) {
    sl_fiber *fiber = block.free_fibers;
    if (fiber) {
        block.free_fibers = fiber->next;
        return fiber;
    }
    fiber = sl_fiber_create(enter_fiber);
    if (fiber)
        block.fibers[block.n_fiber++] = fiber;
    return fiber;
}

void resume(sl_fiber *fiber) {
    sl_fiber *self = block.running;
    block.running = fiber;
    sl_fiber_switch(self, fiber);
}

/* Gives the OS thread to whoever can use it; returns when the caller has been resumed. */
void give_way(void) {
    if (block.n_ready > 0) {
        block.current = block.ready[block.ready_head];
        block.ready_head = (block.ready_head + 1) % SL_MAX_THREADS;
        block.n_ready--;
        threadIdx = block.lanes[block.current].index;
        resume(block.lanes[block.current].fiber);
    } else if (block.n_started < block.n_thread) {
        sl_fiber *fiber = take_fiber();
        if (!fiber)
            fail("no memory for a stack of the test device");
        resume(fiber);
    } else if (block.n_returned == block.n_thread) {
        resume(&block.host);
    } else {
        fail_standstill();
    }
}

void make_ready(unsigned thread) {
    block.lanes[thread].now = STATE_READY;
    block.ready[(block.ready_head + block.n_ready++) % SL_MAX_THREADS] = thread;
}

void check_return(unsigned thread) {
    if (!block.lanes[thread].begun)
        fail("thread %u returned without sl_begin", thread);
    if (block.at_barrier > 0)
        fail("thread %u returned while %u threads wait at __syncthreads", thread, block.at_barrier);
    if (block.copies[thread].n > 0)
        fail("thread %u returned with %u copies under way", thread, block.copies[thread].n);
    if (block.products[thread].n > 0)
        fail("thread %u returned with %u products under way", thread, block.products[thread].n);
    const warp *w = &block.warps[thread / 32];
    for (unsigned waiting = w->arrived; waiting; waiting &= waiting - 1) {
        unsigned other = thread / 32 * 32 + static_cast<unsigned>(__builtin_ctz(waiting));
        if (block.lanes[other].mask >> thread % 32 & 1)
            fail("thread %u returned while thread %u waits for it at %s", thread, other,
                 wait_names[block.lanes[other].wait]);
    }
}

/* Starts the next thread and runs it to its end, on whichever fibers it takes meanwhile. */
void run_thread(void) {
    unsigned thread = static_cast<unsigned>(next_in(&block.threads));
    block.n_started++;
    lane *l = &block.lanes[thread];
    l->fiber = block.running;
    l->now = STATE_READY;
    l->begun = false;
    block.current = thread;
    threadIdx = l->index;
    block.grid->invoke(block.grid->kernel, block.args);
    l->now = STATE_RETURNED;
    check_return(thread);
    if (block.n_returned++ == 0)
        block.returned_first = thread;
    if (block.n_returned == block.n_thread)
        sl_device_products_end();
    block.warps[thread / 32].returned |= 1u << thread % 32;
}

void enter_fiber(void) {
    sl_fiber_entered();
    for (;;) {
        while (block.n_started < block.n_thread)
            run_thread();
        block.running->next = block.free_fibers;
        block.free_fibers = block.running;
        give_way();
    }
}

uint32_t ballot(unsigned first, unsigned mask) {
    uint32_t result = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        unsigned i = static_cast<unsigned>(__builtin_ctz(rest));
        result |= static_cast<uint32_t>(block.lanes[first + i].value != 0) << i;
    }
    return result;
}

/* Lane i of a shuffle reads the value of which lane. */
unsigned shuffle_source(const lane *l, unsigned i) {
    unsigned base = i & ~(l->width - 1), last = base + l->width - 1;
    switch (l->wait) {
    case SL_WAIT_INDEX: return base + (l->arg & (l->width - 1));
    case SL_WAIT_UP: return l->arg > i - base ? i : i - l->arg;
    case SL_WAIT_DOWN: return l->arg > last - i ? i : i + l->arg;
    default: return (i ^ l->arg) > last ? i : i ^ l->arg;
    }
}

void hold_meeting(unsigned first) {
    void *data[32];
    for (unsigned i = 0; i < 32; i++)
        data[i] = block.lanes[first + i].data;
    block.lanes[first].meeting(data);
}

void finish_collective(unsigned first, unsigned mask, sl_device_wait kind) {
    if (kind == SL_WAIT_MATRIX)
        hold_meeting(first);
    if (kind == SL_WAIT_SYNC)
        sl_races_warp(first, mask);
    uint32_t votes = kind == SL_WAIT_BALLOT ? ballot(first, mask) : 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        unsigned i = static_cast<unsigned>(__builtin_ctz(rest));
        lane *l = &block.lanes[first + i];
        l->result = votes;
        if (kind == SL_WAIT_SYNC || kind == SL_WAIT_BALLOT || kind == SL_WAIT_MATRIX)
            continue;
        unsigned source = shuffle_source(l, i);
        if (source > 31 || !(mask >> source & 1))
            fail("%s: lane %u reads lane %u, which mask 0x%08x does not name", wait_names[kind], i, source,
                 mask);
        l->result = block.lanes[first + source].value;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        unsigned thread = first + static_cast<unsigned>(__builtin_ctz(rest));
        if (thread != block.current)
            make_ready(thread);
    }
    block.warps[first / 32].arrived &= ~mask;
}

/* Do all lanes of the mask wait for this? */
bool all_arrived(unsigned first, unsigned mask, sl_device_wait kind) {
    if (mask & ~block.warps[first / 32].arrived)
        return false;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const lane *l = &block.lanes[first + static_cast<unsigned>(__builtin_ctz(rest))];
        if (l->mask != mask || l->wait != kind ||
            (kind == SL_WAIT_MATRIX && l->meeting != block.lanes[block.current].meeting))
            return false;
    }
    return true;
}

void check_mask(const char *name, unsigned mask, unsigned width, const warp *w, unsigned i) {
    if (!(mask >> i & 1))
        fail("%s: mask 0x%08x does not name the calling lane %u", name, mask, i);
    if (mask & ~w->exists)
        fail("%s: mask 0x%08x names lanes that the block does not have (it has 0x%08x)", name, mask, w->exists);
    if (mask & w->returned)
        fail("%s: mask 0x%08x names lanes that have returned (0x%08x)", name, mask, w->returned);
    if (width == 0 || width > 32 || (width & (width - 1)))
        fail("%s: width %u is not a power of two up to 32", name, width);
}

} // namespace

void sl_kernel_name(const char *label, char *out, size_t size) {
    const char *from = strstr(label, "A = ");
    from = from ? from + 4 : label;
    const char *end = from + strcspn(from, ";]");
    for (const char *at; (at = strstr(from, "::")) && at < end;)
        from = at + 2;
    snprintf(out, size, "%.*s", static_cast<int>(end - from), from);
}

uint32_t sl_device_warp(sl_device_wait kind, unsigned mask, uint32_t value, unsigned arg, unsigned width) {
    unsigned thread = block.current, first = thread / 32 * 32;
    warp *w = &block.warps[thread / 32];
    lane *l = &block.lanes[thread];
    check_mask(wait_names[kind], mask, width, w, thread - first);
    l->wait = kind, l->mask = mask, l->value = value, l->arg = arg, l->width = width;
    w->arrived |= 1u << (thread - first);
    if (all_arrived(first, mask, kind)) {
        finish_collective(first, mask, kind);
    } else {
        l->now = STATE_WAITS;
        give_way();
    }
    return l->result;
}

void sl_device_begin(void) { block.lanes[block.current].begun = true; }

void sl_device_barrier(void) {
    unsigned thread = block.current;
    lane *l = &block.lanes[thread];
    if (block.n_returned > 0)
        fail("thread %u reached __syncthreads, but thread %u has returned", thread, block.returned_first);
    if (++block.at_barrier < block.n_thread) {
        l->wait = SL_WAIT_BARRIER, l->mask = 0;
        l->now = STATE_WAITS;
        give_way();
        return;
    }
    block.at_barrier = 0;
    sl_races_barrier(__builtin_return_address(0));
    for (unsigned i = 0; i < block.n_thread; i++)
        if (i != thread)
            make_ready(i);
}

void sl_device_meet(sl_device_meeting meeting, void *data) {
    block.lanes[block.current].meeting = meeting, block.lanes[block.current].data = data;
    sl_device_warp(SL_WAIT_MATRIX, 0xffffffffu, 0, 0, 32);
}

sl_device_copies *sl_device_copies_here(void) { return &block.copies[block.current]; }

sl_device_products *sl_device_products_here(void) { return &block.products[block.current]; }

void *sl_device_shared(void) { return block.shared; }

size_t sl_device_shared_bytes(void) { return block.grid->shared_bytes; }

unsigned sl_device_thread(void) { return block.current; }

void sl_device_trap(const char *what) { fail("thread %u: %s", block.current, what); }

static void begin_block(void) {
    unsigned n = block.n_thread;
    block.n_started = block.n_returned = block.at_barrier = block.n_ready = block.ready_head = 0;
    for (unsigned i = 0; i < n; i += 32)
        block.warps[i / 32] = {n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1, 0, 0};
    for (unsigned i = 0; i < n; i++)
        block.copies[i].n = block.copies[i].n_group = 0;
    sl_device_products_begin();
    for (unsigned i = 0; i < n; i++)
        block.products[i].n = block.products[i].n_group = 0, block.products[i].begun = false;
    if (block.grid->shared_bytes > 0)
        memset(block.shared, 0xff, block.grid->shared_bytes);
}

/* Takes back the fibers of a block that failed. */
static void abandon_block(void) {
    block.free_fibers = nullptr;
    for (unsigned i = 0; i < block.n_fiber; i++) {
        sl_fiber_rewind(block.fibers[i], enter_fiber);
        block.fibers[i]->next = block.free_fibers;
        block.free_fibers = block.fibers[i];
    }
}

/* Dynamic shared memory of exactly this size: it ends at a page without access (to 16 bytes; exactly under
 * AddressSanitizer). */
static bool place_shared(size_t bytes) {
    static unsigned char *end;
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = (SL_MAX_SHARED + page - 1) / page * page;
    if (!end) {
        void *map = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED || mprotect(static_cast<unsigned char *>(map) + room, page, PROT_NONE) != 0)
            return false;
        end = static_cast<unsigned char *>(map) + room;
        sl_races_watch(map, room, true);
    }
    block.shared = end - (bytes + 15) / 16 * 16;
    SL_POISON(end - room, room);
    SL_UNPOISON(block.shared, bytes);
    return true;
}

static void number_threads(dim3 size) {
    block.n_thread = size.x * size.y * size.z;
    for (unsigned i = 0; i < block.n_thread; i++)
        block.lanes[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

bool sl_grid_run(const sl_grid *grid, const void *args, unsigned long seed) {
    block.grid = grid, block.args = args, block.fault = false;
    gridDim = grid->grid, blockDim = grid->block;
    number_threads(grid->block);
    uint64_t n_block = static_cast<uint64_t>(grid->grid.x) * grid->grid.y * grid->grid.z;
    order blocks = choose_order(n_block, seed);
    block.threads = choose_order(block.n_thread, seed);
    for (sl_device_copies &copies : block.copies)
        copies.at_once = seed % 2;
    block.host = {}; /* another OS thread may be calling this time */
    if (!place_shared(grid->shared_bytes)) {
        sl_fault_set("no memory for the shared memory of the test device");
        return false;
    }
    sl_races_begin_launch();
    for (uint64_t i = 0; i < n_block && !block.fault; i++) {
        uint64_t b = next_in(&blocks);
        sl_races_begin_block(b);
        blockIdx = {static_cast<unsigned>(b % grid->grid.x),
                    static_cast<unsigned>(b / grid->grid.x % grid->grid.y),
                    static_cast<unsigned>(b / grid->grid.x / grid->grid.y)};
        begin_block();
        sl_fiber *fiber = take_fiber();
        if (!fiber) {
            sl_fault_set("no memory for a stack of the test device");
            sl_races_end_launch();
            return false;
        }
        block.running = fiber;
        sl_fiber_switch(&block.host, fiber);
    }
    sl_races_end_launch();
    if (block.fault)
        abandon_block();
    return !block.fault;
}

char *sl_fault_text(void) { return fault_text; }

void sl_fault_set(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(fault_text, sizeof fault_text, format, list);
    va_end(list);
}

/* ---- numbers of 16 bits -------------------------------------------------------------------------- */

/* The bits in a float's places are the number times 2^-112, subnormals too. */
float sl_device_half_to_float(uint16_t bits) {
    float v = __uint_as_float((bits & 0x7fffu) << 13) * 0x1p112f;
    if ((bits & 0x7c00) == 0x7c00)
        v = bits & 0x3ff ? NAN : INFINITY;
    return bits >> 15 ? -v : v;
}

/* Rounds to a multiple of the last place, which the processor does to nearest even. */
uint16_t sl_device_float_to_half(float v) {
    unsigned sign = __float_as_uint(v) >> 16 & 0x8000u;
    float size = fabsf(v);
    if (v != v)
        return 0x7fff;
    if (size >= 65520.0f)
        return static_cast<uint16_t>(sign | 0x7c00u);
    int exponent = size < ldexpf(1, -14) ? -14 : ilogbf(size);
    /* 1024 .. 2048, less if subnormal */
    unsigned steps = static_cast<unsigned>(rintf(ldexpf(size, 10 - exponent)));
    return static_cast<uint16_t>(sign | (static_cast<unsigned>(exponent + 14) * 1024u + steps));
}
