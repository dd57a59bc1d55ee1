/* What is kept of every two bytes (and which of them are meant): the last plain and the last atomic write, and the reads
 * since. A thread's accesses are numbered by two clocks:
 * barriers of its block, and between two of them, for each lane of its warp, how much of that lane's past it has met
 * with (a vector clock of 32). Kept is what a check needs to be exact between warps and between blocks, for accesses of two
 * bytes and more (of single bytes side by side the watch may see too much or too little); of the reads within a warp only
 * those of the last warp that read are kept, and of its lanes those that have met alike.
 *
 * SLUICE_DEVICE_BARRIERS=file: for every __syncthreads in the code, how often it was passed, and whether two accesses
 * were ever seen that would have been a race without it (tests/device/barriers reads it). */
#ifdef SL_RACES
#include "device_races.h"

#include "device_block.h"
#include "device_traffic.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>

extern "C" const char __executable_start, __data_start, _end;

namespace {

enum { GRANULE = 2 /* bytes */, PAGE = 4096, N_SLOT = PAGE / GRANULE };
enum : uint32_t { MANY_BLOCKS = 0xffffffffu };

struct moment {
    uint32_t launch, block, epoch, clock;
    uint32_t code; /* offset in the program */
};

struct written {
    moment at;
    uint32_t n_published; /* how often its thread had published until then */
    uint16_t thread;
    uint8_t bytes; /* which of the granule's, as a mask */
};

struct slot {
    written plain, atomic;
    moment read;
    uint32_t read_warps, read_lanes; /* in the epoch of read; lanes: of the warp of read_thread */
    uint16_t read_thread;
    uint8_t read_bytes;
};

struct page {
    bool watched, of_block;
    slot *slots; /* [N_SLOT], once touched */
};

struct site {
    uint32_t code, used;
    uint64_t n_passed, n_needed;
};
enum { N_SITE = 1 << 14 };

struct {
    std::unordered_map<uintptr_t, page> pages;
    bool active, atomic, async; /* async: the access is one of a warpgroup's products */
    bool ends;                  /* and its last, */
    uint32_t since;             /* which began in this epoch */
    struct { uint32_t n, n_before, epoch; } published[SL_MAX_THREADS]; /* times; those before the epoch of the last */
    uint32_t launch, block, epoch;
    uint32_t epoch_of[SL_MAX_THREADS]; /* to which met[] belongs */
    uint32_t met[SL_MAX_THREADS][32];
    site *sites, *last_barrier;
} races;

uint32_t offset_of(const void *code) {
    return static_cast<uint32_t>(static_cast<const char *>(code) - &__executable_start);
}

/* ---- order --------------------------------------------------------------------------------------- */

uint32_t *clocks_of(unsigned thread) {
    uint32_t *met = races.met[thread];
    if (races.epoch_of[thread] != races.epoch) {
        races.epoch_of[thread] = races.epoch;
        memset(met, 0, sizeof races.met[thread]);
        met[thread % 32] = 1;
    }
    return met;
}

bool same_warp(unsigned a, unsigned b) { return a / 32 == b / 32; }

/* Has `thread` met with what `other` did at m, in this epoch? */
bool ordered(unsigned thread, unsigned other, const moment *m) {
    return thread == other || (same_warp(thread, other) && clocks_of(thread)[other % 32] >= m->clock);
}

/* ---- barriers ------------------------------------------------------------------------------------ */

void open_sites(void) {
    const char *path = getenv("SLUICE_DEVICE_BARRIERS");
    const size_t bytes = N_SITE * sizeof(site);
    const int file = path ? open(path, O_RDWR | O_CREAT, 0666) : -1;
    void *map = MAP_FAILED;
    if (file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0)
        map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (file >= 0)
        close(file);
    if (map == MAP_FAILED)
        abort();
    races.sites = static_cast<site *>(map);
}

site *find_site(uint32_t code) {
    uint32_t i = code * 0x9e3779b9u >> 18;
    while (races.sites[i].used && races.sites[i].code != code)
        i = (i + 1) % N_SITE;
    races.sites[i].used = 1;
    races.sites[i].code = code;
    return &races.sites[i];
}

/* An access after one of another warp, or of a thread that it has not met with, at m. */
void note_need(const moment *m) {
    if (races.last_barrier && m->block == races.block && m->epoch + 1 == races.epoch)
        races.last_barrier->n_needed++;
}

/* ---- accesses ------------------------------------------------------------------------------------ */

[[noreturn]] void report(unsigned thread, const void *p, bool writes, const char *other_did, const moment *other,
                         unsigned other_thread, const void *code) {
    char who[64], text[256];
    if (other->block == MANY_BLOCKS)
        snprintf(who, sizeof who, "threads of several blocks");
    else if (other->block != races.block)
        snprintf(who, sizeof who, "thread %u of block number %u", other_thread, other->block);
    else
        snprintf(who, sizeof who, "thread %u", other_thread);
    snprintf(text, sizeof text, "a race: thread %u %s %p (code +0x%x), which %s %s (+0x%x), unordered", thread,
             writes ? "writes" : "reads", p, offset_of(code), who, other_did, other->code);
    fprintf(stderr, "test device: %s\n", text); /* programs say only that a launch failed */
    sl_device_trap(text);
    abort();
}

struct touch {
    unsigned thread;
    const void *p;
    bool writes, of_block;
    uint8_t bytes;
    const void *code;
};

/* Is m of this launch, and, if the memory is the block's own, of this block? */
bool counts(const touch *a, const moment *m) {
    return m->launch == races.launch && (!a->of_block || m->block == races.block);
}

/* How often a thread has published with a barrier behind it. */
uint32_t published_before(unsigned thread) {
    const auto *p = &races.published[thread];
    return p->epoch == races.epoch ? p->n_before : p->n;
}

void check_against_write(const touch *a, const written *w) {
    if (!counts(a, &w->at) || !(a->bytes & w->bytes))
        return;
    if (w->at.block != races.block)
        report(a->thread, a->p, a->writes, "wrote", &w->at, w->thread, a->code);
    if (w->at.epoch == races.epoch && !ordered(a->thread, w->thread, &w->at))
        report(a->thread, a->p, a->writes, "wrote", &w->at, w->thread, a->code);
    if (races.ends && w->at.epoch > races.since)
        report(a->thread, a->p, false, "wrote while a product read it", &w->at, w->thread, a->code);
    if (races.async && published_before(w->thread) <= w->n_published)
        report(a->thread, a->p, false, "wrote and did not publish", &w->at, w->thread, a->code);
    if (w->thread != a->thread)
        note_need(&w->at);
}

void check_against_reads(const touch *a, const slot *s) {
    if (!counts(a, &s->read) || !(a->bytes & s->read_bytes))
        return;
    if (s->read.block != races.block)
        report(a->thread, a->p, true, "read", &s->read, s->read_thread, a->code);
    const unsigned warp = a->thread / 32;
    if (s->read.epoch == races.epoch) {
        if (s->read_warps & ~(1u << warp))
            report(a->thread, a->p, true, "and others read", &s->read, s->read_thread, a->code);
        for (uint32_t rest = s->read_thread / 32u == warp ? s->read_lanes : 0; rest; rest &= rest - 1) {
            const unsigned other = warp * 32 + static_cast<unsigned>(__builtin_ctz(rest));
            if (!ordered(a->thread, other, &s->read))
                report(a->thread, a->p, true, "read", &s->read, other, a->code);
        }
    } else if (s->read_warps != 1u << warp || s->read_lanes != 1u << a->thread % 32) {
        note_need(&s->read);
    }
}

moment now(const touch *a) {
    return {races.launch, races.block, races.epoch, clocks_of(a->thread)[a->thread % 32], offset_of(a->code)};
}

void keep_read(const touch *a, slot *s) {
    const unsigned warp = a->thread / 32, lane = a->thread % 32;
    const bool known = counts(a, &s->read);
    const moment m = now(a);
    if (known && s->read.block != races.block) { /* several: a write by anyone is a race now */
        s->read.block = MANY_BLOCKS;
        return;
    }
    if (!known || s->read.epoch != races.epoch)
        s->read_warps = s->read_lanes = s->read_bytes = 0;
    if (s->read_thread / 32u != warp || s->read.clock != m.clock)
        s->read_lanes = 0;
    s->read = m;
    s->read_thread = static_cast<uint16_t>(a->thread);
    s->read_warps |= 1u << warp;
    s->read_lanes |= 1u << lane;
    s->read_bytes |= a->bytes;
}

/* Atomics are held to plain accesses only. What a plain write was ordered behind, later accesses are held to by it. */
void visit(const touch *a, slot *s) {
    check_against_write(a, &s->plain);
    if (!races.atomic)
        check_against_write(a, &s->atomic);
    if (!a->writes) {
        if (!races.atomic) /* an atomic's read is part of its write */
            keep_read(a, s);
        return;
    }
    check_against_reads(a, s);
    written *w = races.atomic ? &s->atomic : &s->plain;
    w->at = now(a);
    w->thread = static_cast<uint16_t>(a->thread);
    w->n_published = races.published[a->thread].n;
    w->bytes = a->bytes;
    if (!races.atomic)
        s->read.launch = s->atomic.at.launch = 0;
}

/* The watched page at an address; the last few are remembered. */
page *find_page(uintptr_t number) {
    static struct { uintptr_t number; page *found; } seen[256];
    auto *s = &seen[number % 256];
    if (s->number != number || !s->found) {
        auto at = races.pages.find(number);
        s->number = number;
        s->found = at == races.pages.end() ? nullptr : &at->second; /* an element stays where it is */
    }
    return s->found;
}

slot *slots_of(page *at) {
    if (!at->slots)
        at->slots = static_cast<slot *>(calloc(N_SLOT, sizeof(slot)));
    if (!at->slots)
        abort();
    return at->slots;
}

} // namespace

void sl_races_access_of(unsigned thread, const void *p, size_t n_bytes, bool writes, const void *code) {
    if (!races.active)
        return;
    const uintptr_t from = reinterpret_cast<uintptr_t>(p), last = from + n_bytes - 1;
    const page *first = find_page(from / PAGE);
    if (first && first->watched)
        sl_traffic_access(thread, p, n_bytes, writes, first->of_block, offset_of(code));
    for (uintptr_t at = from / GRANULE; at <= last / GRANULE; at++) {
        page *found = find_page(at / N_SLOT);
        if (!found || !found->watched)
            return;
        const unsigned bytes = (at * GRANULE >= from ? 1u : 0u) | (at * GRANULE + 1 <= last ? 2u : 0u);
        const touch a = {thread, reinterpret_cast<const void *>(at * GRANULE), writes, found->of_block,
                         static_cast<uint8_t>(bytes), code};
        visit(&a, slots_of(found) + at % N_SLOT);
    }
}

void sl_races_access(const void *p, size_t n_bytes, bool writes, const void *code) {
    sl_races_access_of(sl_device_thread(), p, n_bytes, writes, code);
}

void sl_races_access_async(unsigned thread, const void *p, size_t n_bytes, const void *code) {
    races.async = true;
    sl_races_access_of(thread, p, n_bytes, false, code);
    races.async = false;
}

uint32_t sl_races_epoch(void) { return races.epoch; }

void sl_races_end_async(unsigned thread, const void *p, size_t n_bytes, uint32_t since, const void *code) {
    races.ends = true, races.since = since;
    sl_races_access_async(thread, p, n_bytes, code);
    races.ends = false;
}

void sl_races_publish(void) {
    auto *p = &races.published[sl_device_thread()];
    if (p->epoch != races.epoch)
        p->epoch = races.epoch, p->n_before = p->n;
    p->n++;
}

/* ---- memory, launches, waits --------------------------------------------------------------------- */

void sl_races_watch(const void *from, size_t n_bytes, bool of_block) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(from) / PAGE;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(from) + n_bytes - 1) / PAGE;
    for (uintptr_t number = first; number <= last; number++)
        races.pages[number].watched = true, races.pages[number].of_block = of_block;
}

/* Pages stay in the table, so that what find_page remembers stays true. */
void sl_races_forget(const void *from, size_t n_bytes) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(from) / PAGE;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(from) + n_bytes - 1) / PAGE;
    for (uintptr_t number = first; number <= last; number++) {
        page *at = &races.pages[number];
        free(at->slots);
        at->watched = false, at->slots = nullptr;
    }
}

void sl_races_begin_launch(void) {
    if (!races.sites) {
        open_sites();
        sl_traffic_open();
        sl_races_watch(&__data_start, static_cast<size_t>(&_end - &__data_start), true); /* static shared memory */
    }
    races.active = true, races.atomic = false;
    races.launch++;
}

void sl_races_begin_block(uint64_t number) {
    sl_traffic_end_block();
    races.block = static_cast<uint32_t>(number);
    races.epoch++;
    races.last_barrier = nullptr;
}

void sl_races_end_launch(void) {
    sl_traffic_end_block();
    races.active = false;
}

void sl_races_barrier(const void *code) {
    races.epoch++;
    races.last_barrier = find_site(offset_of(code));
    races.last_barrier->n_passed++;
}

void sl_races_warp(unsigned first, unsigned mask) {
    uint32_t joint[32] = {0};
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint32_t *met = clocks_of(first + static_cast<unsigned>(__builtin_ctz(rest)));
        for (unsigned i = 0; i < 32; i++)
            joint[i] = joint[i] > met[i] ? joint[i] : met[i];
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        uint32_t *met = clocks_of(first + lane);
        memcpy(met, joint, sizeof joint);
        met[lane]++;
    }
}

/* ---- what the compiler calls --------------------------------------------------------------------- */

/* Atomics (device_host.h) announce themselves; what they do in between is theirs. */
extern "C" void sl_races_atomic(bool begins) { races.atomic = begins; }

#define SL_HERE __builtin_return_address(0)
#define SL_ACCESS(n)                                                                                          \
    extern "C" void __tsan_read##n(const void *p) { sl_races_access(p, n, false, SL_HERE); }                  \
    extern "C" void __tsan_write##n(const void *p) { sl_races_access(p, n, true, SL_HERE); }
SL_ACCESS(1) SL_ACCESS(2) SL_ACCESS(4) SL_ACCESS(8) SL_ACCESS(16)
#define SL_UNALIGNED(n)                                                                                       \
    extern "C" void __tsan_unaligned_read##n(const void *p) { sl_races_access(p, n, false, SL_HERE); }        \
    extern "C" void __tsan_unaligned_write##n(const void *p) { sl_races_access(p, n, true, SL_HERE); }
SL_UNALIGNED(2) SL_UNALIGNED(4) SL_UNALIGNED(8) SL_UNALIGNED(16)
extern "C" void __tsan_read_range(const void *p, size_t n) { sl_races_access(p, n, false, SL_HERE); }
extern "C" void __tsan_write_range(const void *p, size_t n) { sl_races_access(p, n, true, SL_HERE); }
extern "C" void __tsan_init(void) {}
extern "C" void __tsan_func_entry(const void *) {}
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_vptr_update(const void *, const void *) {}
#endif
