/* Races of a kernel's threads: two accesses to the same memory of which one at least is a write and one at least is no
 * atomic, by threads that nothing orders. Built with -DSL_RACES=ON, where the compiler calls for every access of a .cu
 * file (gcc's -fsanitize=thread; no runtime but this one answers). Without it everything here does nothing.
 *
 * What orders: __syncthreads all threads of a block, __syncwarp the lanes of its mask. Shuffles, ballots and matrix
 * instructions exchange values, but by the language's definition order no memory. Blocks of one launch are not ordered
 * at all; launches are. */
#ifndef SL_TESTS_DEVICE_DEVICE_RACES_H
#define SL_TESTS_DEVICE_DEVICE_RACES_H

#include <stddef.h>
#include <stdint.h>

#ifdef SL_RACES
/* Memory to watch: a block's own (shared memory), or the device's. Accesses elsewhere (stacks, constants) are free. */
void sl_races_watch(const void *from, size_t n_bytes, bool of_block);
void sl_races_forget(const void *from, size_t n_bytes);
void sl_races_begin_launch(void);
void sl_races_begin_block(uint64_t number);
void sl_races_end_launch(void);
/* The running thread reads or writes. `code`: where, for the message. A race ends the launch with a fault. */
void sl_races_access(const void *p, size_t n_bytes, bool writes, const void *code);
/* The same by another thread of the block (the lane whose address a matrix load takes). */
void sl_races_access_of(unsigned thread, const void *p, size_t n_bytes, bool writes, const void *code);
/* Products of a warpgroup read (device_wgmma.cpp): what was written must have been published since by who wrote it. */
void sl_races_access_async(unsigned thread, const void *p, size_t n_bytes, const void *code);
void sl_races_publish(void);
/* The same read, as it ends: nobody must have written since an epoch, by barriers of the block. */
uint32_t sl_races_epoch(void);
void sl_races_end_async(unsigned thread, const void *p, size_t n_bytes, uint32_t since, const void *code);
/* A barrier at `code` of all threads of the block; of the lanes of a mask of the warp that begins with thread `first`. */
void sl_races_barrier(const void *code);
void sl_races_warp(unsigned first, unsigned mask);
#else
static inline void sl_races_watch(const void *, size_t, bool) {}
static inline void sl_races_forget(const void *, size_t) {}
static inline void sl_races_begin_launch(void) {}
static inline void sl_races_begin_block(uint64_t) {}
static inline void sl_races_end_launch(void) {}
static inline void sl_races_access(const void *, size_t, bool, const void *) {}
static inline void sl_races_access_of(unsigned, const void *, size_t, bool, const void *) {}
static inline void sl_races_access_async(unsigned, const void *, size_t, const void *) {}
static inline void sl_races_publish(void) {}
static inline uint32_t sl_races_epoch(void) { return 0; }
static inline void sl_races_end_async(unsigned, const void *, size_t, uint32_t, const void *) {}
static inline void sl_races_barrier(const void *) {}
static inline void sl_races_warp(unsigned, unsigned) {}
#endif

#endif
