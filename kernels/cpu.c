/* What the processor has and the system has switched on: CPUID for instructions, XCR0 for registers. */
#include "kernels/kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

enum { XCR0_YMM = 0x06, XCR0_ZMM = 0xe6 }; /* SSE and AVX state; besides, opmask and both halves of ZMM */

__attribute__((target("xsave"))) static unsigned long long enabled_state(void) {
    return _xgetbv(0);
}

unsigned sl_cpu_features(void) {
    const unsigned fma = 1u << 12, osxsave = 1u << 27, f16c = 1u << 29;             /* leaf 1, ECX */
    const unsigned avx2 = 1u << 5;                                                  /* leaf 7, EBX ... */
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;              /* F, DQ, BW, VL */
    const unsigned vnni = 1u << 11;                                                 /* leaf 7, ECX */
    unsigned eax, ebx, ecx, edx, features = SL_CPU_REF;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
    const unsigned basic = fma | osxsave | f16c;
    if ((ecx & basic) != basic || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
    const unsigned long long state = enabled_state();
    if (!(ebx & avx2) || (state & XCR0_YMM) != XCR0_YMM) return features;
    features |= SL_CPU_AVX2;
    if ((ebx & avx512) != avx512 || (state & XCR0_ZMM) != XCR0_ZMM) return features;
    features |= SL_CPU_AVX512;
    return ecx & vnni ? features | SL_CPU_VNNI : features;
}

/* AMD's family 1Ah, Zen 5, where it was measured. */
static bool is_zen_5(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx) || ebx != signature_AMD_ebx) return false;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
    return (eax >> 8 & 15) == 15 && (eax >> 20 & 255) + 15 == 0x1a;
}

#else

unsigned sl_cpu_features(void) {
    return SL_CPU_REF;
}

static bool is_zen_5(void) {
    return false;
}

#endif

/* Asked for by every product: CPUID takes microseconds in a virtual machine. */
bool sl_cpu_fetches_to_first(void) {
    static atomic_int known; /* 1: no, 2: yes */
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (!answer) atomic_store_explicit(&known, answer = 1 + is_zen_5(), memory_order_relaxed);
    return answer == 2;
}

unsigned sl_cpu_features_allowed(const char **bad) {
    static const struct { const char *name; unsigned mask; } levels[] = {
        { "ref", SL_CPU_REF },
        { "avx2", SL_CPU_AVX2 },
        { "avx512", SL_CPU_AVX2 | SL_CPU_AVX512 | SL_CPU_VNNI },
    };
    const char *wanted = getenv("SLUICE_CPU");
    if (bad) *bad = NULL;
    if (!wanted || !*wanted) return sl_cpu_features();
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(wanted, levels[i].name) == 0) return sl_cpu_features() & levels[i].mask;
    }
    if (bad) *bad = wanted;
    return sl_cpu_features();
}

const char *sl_cpu_features_name(unsigned features) {
    if (features & SL_CPU_VNNI) return "avx512+vnni";
    if (features & SL_CPU_AVX512) return "avx512";
    return features & SL_CPU_AVX2 ? "avx2" : "ref";
}
