/* Memory of the test device. Each allocation has its own pages between a megabyte of guard on each side, placed
 * so that its end is as near to the guard as an alignment of 256 bytes allows; what is left around it holds a
 * pattern that is checked after every run of the device, and is poisoned under AddressSanitizer. New memory is
 * 0xFF: NaN in every type. On request the pages cannot be touched outside the device's runs, so that a host
 * which reads a device pointer crashes as with a real device; that costs system calls in proportion to the
 * memory. */
#include "device_runtime.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device_asan.h"
#include "device_races.h"

enum { ALIGNMENT = 256, PATTERN = 0xa5, GUARD = 1 << 20 };

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static size_t page_bytes(void) { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

/* ---- device -------------------------------------------------------------------------------------- */

static void set_access(const sl_allocation *a, bool open) {
    mprotect(a->map, a->map_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void sl_memory_open(bool open) {
    if (!sl_rt.protect)
        return;
    for (const auto &entry : sl_rt.allocations)
        set_access(&entry.second, open);
}

static void set_poison(const sl_allocation *a, bool poison) {
    unsigned char *end = a->base + a->size;
    size_t before = static_cast<size_t>(a->base - a->map), after = a->map_bytes - before - a->size;
    if (poison) {
        SL_POISON(a->map, before);
        SL_POISON(end, after);
    } else {
        SL_UNPOISON(a->map, before);
        SL_UNPOISON(end, after);
    }
}

static bool map_allocation(size_t size, sl_allocation *a) {
    a->size = size;
    a->map_bytes = round_up(size + ALIGNMENT, page_bytes());
    void *map =
        mmap(nullptr, a->map_bytes + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return false;
    a->map = static_cast<unsigned char *>(map) + GUARD;
    a->base = a->map + (a->map_bytes - round_up(size, 16)) / ALIGNMENT * ALIGNMENT;
    set_access(a, true);
    memset(a->map, PATTERN, a->map_bytes);
    memset(a->base, 0xff, size);
    set_poison(a, true);
    set_access(a, !sl_rt.protect);
    sl_races_watch(a->base, a->size, false);
    return true;
}

static void unmap_allocation(const sl_allocation *a) {
    set_poison(a, false);
    sl_races_forget(a->base, a->size);
    munmap(a->map - GUARD, a->map_bytes + 2 * GUARD);
}

cudaError_t cudaMalloc(void **ptr, size_t size) {
    return sl_call("cudaMalloc", CALL_ALLOCATES | CALL_NOT_IN_CAPTURE, [&] {
        *ptr = nullptr;
        if (size == 0)
            return cudaSuccess;
        size_t left = sl_rt.memory_limit > sl_rt.memory_used ? sl_rt.memory_limit - sl_rt.memory_used : 0;
        sl_allocation a;
        if (size > left || round_up(size, ALIGNMENT) > left || !map_allocation(size, &a))
            return sl_refuse(cudaErrorMemoryAllocation, "cudaMalloc of %zu bytes: %zu of %zu are free", size,
                             left, sl_rt.memory_limit);
        sl_rt.memory_used += round_up(size, ALIGNMENT);
        sl_rt.allocations[a.base] = a;
        *ptr = a.base;
        return cudaSuccess;
    });
}

/* The first byte of p [n] that is not the pattern; NULL: none. */
static const unsigned char *find_other(const unsigned char *p, size_t n) {
    if (n == 0 || (*p == PATTERN && memcmp(p, p + 1, n - 1) == 0))
        return nullptr;
    while (*p == PATTERN)
        p++;
    return p;
}

/* The first byte around the allocation that has been written to; NULL: none. */
static const unsigned char *find_damage(const sl_allocation *a) {
    const unsigned char *end = a->base + a->size;
    set_poison(a, false);
    const unsigned char *damage = find_other(end, static_cast<size_t>(a->map + a->map_bytes - end));
    if (!damage)
        damage = find_other(a->map, static_cast<size_t>(a->base - a->map));
    set_poison(a, true);
    return damage;
}

static cudaError_t check_allocation(const sl_allocation *a) {
    const unsigned char *damage = find_damage(a);
    if (!damage)
        return cudaSuccess;
    sl_refuse(cudaSuccess, "a write at offset %td of a device allocation of %zu bytes", damage - a->base,
              a->size);
    return sl_refuse_forever(cudaErrorIllegalAddress);
}

cudaError_t sl_memory_check(void) {
    cudaError_t result = cudaSuccess;
    for (const auto &entry : sl_rt.allocations)
        if (result == cudaSuccess)
            result = check_allocation(&entry.second);
    return result;
}

cudaError_t cudaFree(void *ptr) {
    return sl_call("cudaFree", CALL_NOT_IN_CAPTURE | CALL_RELEASES, [&] {
        if (!ptr)
            return cudaSuccess;
        auto found = sl_rt.allocations.find(static_cast<unsigned char *>(ptr));
        if (found == sl_rt.allocations.end())
            return sl_refuse(cudaErrorInvalidValue, "cudaFree of %p, which no allocation begins with", ptr);
        cudaError_t error = sl_stream_run_all();
        sl_rt.memory_used -= round_up(found->second.size, ALIGNMENT);
        unmap_allocation(&found->second);
        sl_rt.allocations.erase(found);
        return error;
    });
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    return sl_call("cudaMemGetInfo", CALL_CAN_FAIL, [&] {
        *total = sl_rt.memory_limit;
        *free_bytes = sl_rt.memory_limit > sl_rt.memory_used ? sl_rt.memory_limit - sl_rt.memory_used : 0;
        return cudaSuccess;
    });
}

/* The allocation that begins at or before p. */
static const sl_allocation *allocation_before(const unsigned char *p) {
    auto above = sl_rt.allocations.upper_bound(p);
    return above == sl_rt.allocations.begin() ? nullptr : &(--above)->second;
}

bool sl_memory_is_device(const char *name, const void *p, size_t n_bytes) {
    const unsigned char *from = static_cast<const unsigned char *>(p);
    const sl_allocation *a = allocation_before(from);
    if (!a || from >= a->base + a->size) {
        sl_refuse(cudaSuccess, "%s: %p is not device memory", name, p);
        return false;
    }
    size_t offset = static_cast<size_t>(from - a->base);
    if (n_bytes > a->size - offset) {
        sl_refuse(cudaSuccess, "%s: %zu bytes at offset %zu of a device allocation of %zu", name, n_bytes,
                  offset, a->size);
        return false;
    }
    return true;
}

/* Called by a kernel. A GPU passes over what is not there, but then it was not meant so. */
void sl_device_prefetch(const void *p) {
    if (!sl_memory_is_device("sl_prefetch", p, 1))
        sl_device_trap("sl_prefetch of what is not device memory");
}

bool sl_memory_is_host(const char *name, const void *p, size_t n_bytes) {
    const unsigned char *from = static_cast<const unsigned char *>(p);
    const sl_allocation *a = allocation_before(from + n_bytes - 1);
    if (p && (!a || a->base + a->size <= from))
        return true;
    sl_refuse(cudaSuccess, "%s: %p is %s, expected host memory", name, p, p ? "device memory" : "null");
    return false;
}

/* ---- host ---------------------------------------------------------------------------------------- */

static cudaError_t allocate_host(void **ptr, size_t size) {
    *ptr = nullptr;
    if (size == 0)
        return cudaSuccess;
    if (posix_memalign(ptr, page_bytes(), size) != 0)
        return sl_refuse(cudaErrorMemoryAllocation, "%zu bytes of pinned memory", size);
    memset(*ptr, 0xff, size);
    sl_rt.host_allocations.insert(*ptr);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **ptr, size_t size) {
    return sl_call("cudaMallocHost", CALL_ALLOCATES | CALL_NOT_IN_CAPTURE,
                   [&] { return allocate_host(ptr, size); });
}

cudaError_t cudaHostAlloc(void **ptr, size_t size, unsigned) {
    return sl_call("cudaHostAlloc", CALL_ALLOCATES | CALL_NOT_IN_CAPTURE,
                   [&] { return allocate_host(ptr, size); });
}

cudaError_t cudaFreeHost(void *ptr) {
    return sl_call("cudaFreeHost", CALL_NOT_IN_CAPTURE | CALL_RELEASES, [&] {
        if (!ptr)
            return cudaSuccess;
        if (sl_rt.host_allocations.count(ptr) == 0)
            return sl_refuse(cudaErrorInvalidValue, "cudaFreeHost of %p, which is not pinned memory", ptr);
        cudaError_t error = sl_stream_run_all();
        sl_rt.host_allocations.erase(ptr);
        free(ptr);
        return error;
    });
}

void sl_memory_release_all(void) {
    for (const auto &entry : sl_rt.allocations)
        unmap_allocation(&entry.second);
    sl_rt.allocations.clear();
    for (void *p : sl_rt.host_allocations)
        free(p);
    sl_rt.host_allocations.clear();
    sl_rt.memory_used = 0;
}
