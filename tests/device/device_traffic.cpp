/* What warps ask of memory (-DSL_RACES=ON, SLUICE_DEVICE_TRAFFIC=file): the n-th access of each lane at one place in the
 * code is taken for one instruction of its warp, and counted as the hardware serves it: device memory in sectors of 32
 * bytes, shared memory in passes over its 32 banks of 4 bytes (for accesses of 8 bytes half a warp at a time, of 16 a
 * quarter). Beside it what would do for the bytes that were asked for. tests/device/traffic makes a table of the file. */
#ifdef SL_RACES
#include "device_traffic.h"

#include "device_block.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <unordered_map>
#include <vector>

namespace {

struct access {
    uintptr_t from;
    unsigned bytes, lane;
};

/* One place in the code. */
struct place {
    uint64_t n_instruction = 0, bytes = 0, served = 0, ideal = 0;
    bool shared = false, writes = false;
};

struct instruction {
    place *at;
    std::vector<access> lanes;
};

FILE *file;
std::unordered_map<uint64_t, place> places;             /* by code, shared, writes */
std::unordered_map<uint64_t, unsigned> n_done;          /* by code and thread, in this block */
std::unordered_map<uint64_t, instruction> instructions; /* by code, warp and number, in this block */

uint64_t mix(uint64_t a, uint64_t b) { return (a * 0x9e3779b97f4a7c15u ^ b) * 0xbf58476d1ce4e5b9u; }

/* How many different units of `size` bytes are touched. */
uint64_t count_units(const std::vector<access> &lanes, size_t first, size_t end, unsigned size) {
    std::vector<uintptr_t> units;
    for (size_t i = first; i < end; i++)
        for (uintptr_t u = lanes[i].from / size; u <= (lanes[i].from + lanes[i].bytes - 1) / size; u++) {
            bool known = false;
            for (uintptr_t other : units)
                known = known || other == u;
            if (!known)
                units.push_back(u);
        }
    return units.size();
}

/* Passes over the banks: the most different words of one bank. */
uint64_t count_passes(const std::vector<access> &lanes, size_t first, size_t end) {
    std::vector<uintptr_t> words[32];
    size_t most = 0;
    for (size_t i = first; i < end; i++)
        for (uintptr_t w = lanes[i].from / 4; w <= (lanes[i].from + lanes[i].bytes - 1) / 4; w++) {
            std::vector<uintptr_t> &bank = words[w % 32];
            bool known = false;
            for (uintptr_t other : bank)
                known = known || other == w;
            if (!known)
                bank.push_back(w);
            most = most > bank.size() ? most : bank.size();
        }
    return most;
}

void count(instruction &one) {
    place *at = one.at;
    std::vector<access> &lanes = one.lanes; /* as they came: who waits last at a barrier goes on first */
    std::sort(lanes.begin(), lanes.end(), [](const access &a, const access &b) { return a.lane < b.lane; });
    at->n_instruction++;
    for (const access &a : lanes)
        at->bytes += a.bytes;
    if (!at->shared) {
        at->served += count_units(lanes, 0, lanes.size(), 32);
        at->ideal += (count_units(lanes, 0, lanes.size(), 1) + 31) / 32;
        return;
    }
    const size_t step = lanes[0].bytes > 8 ? 8 : lanes[0].bytes > 4 ? 16 : 32;
    for (size_t first = 0; first < lanes.size(); first += step) {
        const size_t end = first + step < lanes.size() ? first + step : lanes.size();
        at->served += count_passes(lanes, first, end);
        at->ideal += 1;
    }
}

bool is_builtin(const void *p) {
    return p == &threadIdx.x || p == &threadIdx.y || p == &threadIdx.z || p == &blockIdx.x || p == &blockIdx.y ||
           p == &blockIdx.z || p == &blockDim.x || p == &blockDim.y || p == &blockDim.z || p == &gridDim.x ||
           p == &gridDim.y || p == &gridDim.z;
}

void write_places(void) {
    for (const auto &entry : places)
        fprintf(file, "%lx %s %s %lu %lu %lu %lu\n", static_cast<unsigned long>(entry.first >> 2),
                entry.second.shared ? "shared" : "device", entry.second.writes ? "writes" : "reads",
                static_cast<unsigned long>(entry.second.n_instruction), static_cast<unsigned long>(entry.second.bytes),
                static_cast<unsigned long>(entry.second.served), static_cast<unsigned long>(entry.second.ideal));
    fclose(file);
}

} // namespace

void sl_traffic_open(void) {
    const char *path = getenv("SLUICE_DEVICE_TRAFFIC");
    file = path ? fopen(path, "w") : nullptr;
    if (file)
        atexit(write_places);
}

void sl_traffic_access(unsigned thread, const void *p, size_t n_bytes, bool writes, bool shared, uint32_t code) {
    if (!file || is_builtin(p))
        return;
    const unsigned number = n_done[mix(code, thread)]++;
    instruction &one = instructions[mix(mix(code, thread / 32), number)];
    if (one.lanes.empty()) {
        one.at = &places[static_cast<uint64_t>(code) << 2 | (shared ? 2u : 0u) | (writes ? 1u : 0u)];
        one.at->shared = shared, one.at->writes = writes;
    }
    one.lanes.push_back({reinterpret_cast<uintptr_t>(p), static_cast<unsigned>(n_bytes), thread % 32});
}

void sl_traffic_end_block(void) {
    for (auto &entry : instructions)
        count(entry.second);
    instructions.clear();
    n_done.clear();
}
#endif
