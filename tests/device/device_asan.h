/* AddressSanitizer, where the build has it. */
#ifndef SL_TESTS_DEVICE_DEVICE_ASAN_H
#define SL_TESTS_DEVICE_DEVICE_ASAN_H

#if defined(__SANITIZE_ADDRESS__)
#define SL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SL_ASAN 1
#endif
#endif

#ifdef SL_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SL_POISON(p, n) __asan_poison_memory_region(p, n)
#define SL_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define SL_POISON(p, n) ((void)(p), (void)(n))
#define SL_UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#endif
