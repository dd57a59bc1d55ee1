/* What nvcc made of a kernel, run by the test device: PTX instructions for the C++ that tests/device/ptx writes from
 * a .ptx file. Built with -DSL_PTX=ON, where every launch runs the PTX of its kernel and not what the C++ compiler
 * made of the same source.
 *
 * Registers are unsigned integers of their width, whatever they hold; addresses are the processor's own but those of
 * shared memory, which count from the start of the block's. Every access is held to its alignment, one of shared
 * memory to the block's bytes. What the instruction set lets be inexact is so here: off by as much as it allows, up
 * or down as the operand's bits have it. */
#ifndef SL_TESTS_DEVICE_DEVICE_PTX_H
#define SL_TESTS_DEVICE_DEVICE_PTX_H

#include "device_block.h"

#include <fenv.h>
#include <math.h>

#include <type_traits>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

/* ---- kernels ------------------------------------------------------------------------------------- */

/* What all threads of a kernel have done. */
struct ptx_counts {
    u64 threads, instructions, device_bytes, shared_bytes, products; /* products: by lane, 32 to one of the units */
};
/* One thread's, until it returns. */
struct ptx_tally {
    ptx_counts *all;
    u64 instructions = 0, device_bytes = 0, shared_bytes = 0, products = 0;
    explicit ptx_tally(ptx_counts *counts) : all(counts) {}
    void add(u64 n, u64 device, u64 shared, u64 product) {
        instructions += n, device_bytes += device, shared_bytes += shared, products += product;
    }
    ~ptx_tally() {
        all->threads++, all->instructions += instructions, all->products += products;
        all->device_bytes += device_bytes, all->shared_bytes += shared_bytes;
    }
};

struct sl_ptx_kernel {
    void (*kernel)(void); /* what sl_launch is given */
    const char *name;
    void (*run)(unsigned char *args); /* on the kernel's argument */
    size_t shared_bytes; /* static */
    unsigned max_threads; /* of __launch_bounds__; 0: not said */
    ptx_counts *counts;
};
/* Makes kernels known; a static object for each translated file. */
struct sl_ptx_kernels {
    sl_ptx_kernels(const sl_ptx_kernel *list, size_t n);
};
/* NULL if there is none. */
const sl_ptx_kernel *sl_ptx_find(void (*kernel)(void));

/* ---- registers ----------------------------------------------------------------------------------- */

/* What a register holds that nothing was put in: as a float no number. */
constexpr bool PTX_UNSET_BOOL = false;
constexpr u16 PTX_UNSET_U16 = 0xffff;
constexpr u32 PTX_UNSET_U32 = ~0u;
constexpr u64 PTX_UNSET_U64 = ~0ull;

/* A value's bits in a register, and back. */
template <class R, class T> static inline R ptx_bits(T v) {
    if constexpr (std::is_floating_point<T>::value)
        return static_cast<R>(sl_device_cast<std::conditional_t<sizeof(T) == 4, u32, u64>>(v));
    else
        return static_cast<R>(v); /* signed ones extend their sign */
}
template <class T, class R> static inline T ptx_value(R bits) {
    if constexpr (std::is_floating_point<T>::value)
        return sl_device_cast<T>(static_cast<std::conditional_t<sizeof(T) == 4, u32, u64>>(bits));
    else
        return static_cast<T>(bits);
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* T: element; n of them at once. */
template <class T, int n = 1> static inline T *ptx_at(u64 address) {
    if (address % (sizeof(T) * n) != 0)
        sl_device_trap("PTX: an access is not at a multiple of its size");
    return reinterpret_cast<T *>(address);
}
template <class T, int n = 1> static inline T *ptx_at_shared(u64 offset) {
    if (offset + sizeof(T) * n > sl_device_shared_bytes() || offset + sizeof(T) * n < offset)
        sl_device_trap("PTX: an access beyond the block's shared memory");
    return ptx_at<T, n>(reinterpret_cast<u64>(sl_device_shared()) + offset);
}

/* ---- integers ------------------------------------------------------------------------------------ */

template <class T> struct ptx_twice;
template <> struct ptx_twice<u16> { typedef u32 type; };
template <> struct ptx_twice<s16> { typedef s32 type; };
template <> struct ptx_twice<u32> { typedef u64 type; };
template <> struct ptx_twice<s32> { typedef s64 type; };
template <> struct ptx_twice<u64> { typedef unsigned __int128 type; };
template <> struct ptx_twice<s64> { typedef __int128 type; };
template <class T> static inline auto ptx_wide(T a, T b) {
    typedef typename ptx_twice<T>::type W;
    return static_cast<W>(static_cast<W>(a) * static_cast<W>(b));
}
template <class T> static inline T ptx_mul_hi(T a, T b) { return static_cast<T>(ptx_wide(a, b) >> 8 * sizeof(T)); }

/* T is unsigned: sums and products wrap. carry: that of .cc, in and out. */
template <class T> static inline T ptx_add_carry(T a, T b, unsigned in, unsigned *out) {
    const T part = static_cast<T>(a + b), sum = static_cast<T>(part + in);
    *out = part < a || sum < part;
    return sum;
}
/* The carry flag holds "borrow" for subtractions. */
template <class T> static inline T ptx_sub_borrow(T a, T b, unsigned in, unsigned *out) {
    const T part = static_cast<T>(a - b), difference = static_cast<T>(part - in);
    *out = a < b || part < in;
    return difference;
}
template <class T> static inline T ptx_shl(T a, u32 n) { return n < 8 * sizeof(T) ? static_cast<T>(a << n) : T(0); }
template <class T> static inline T ptx_shr(T a, u32 n) {
    if (n >= 8 * sizeof(T))
        n = 8 * sizeof(T) - 1, a = static_cast<T>(std::is_signed<T>::value && a < 0 ? -1 : 0);
    return static_cast<T>(a >> n);
}
static inline u32 ptx_shf_l_wrap(u32 a, u32 b, u32 n) {
    return n & 31 ? b << (n & 31) | a >> (32 - (n & 31)) : b;
}
static inline u32 ptx_shf_r_wrap(u32 a, u32 b, u32 n) {
    return n & 31 ? b << (32 - (n & 31)) | a >> (n & 31) : a;
}
template <class T> static inline T ptx_bfe(T a, u32 from, u32 n) { /* T unsigned */
    from &= 255, n &= 255;
    if (n == 0 || from >= 8 * sizeof(T))
        return 0;
    a = static_cast<T>(a >> from);
    return n < 8 * sizeof(T) ? static_cast<T>(a & ((T(1) << n) - 1)) : a;
}
template <class T> static inline T ptx_bfi(T a, T b, u32 from, u32 n) {
    from &= 255, n &= 255;
    if (n == 0 || from >= 8 * sizeof(T))
        return b;
    const T ones = n < 8 * sizeof(T) ? static_cast<T>((T(1) << n) - 1) : static_cast<T>(~T(0));
    const T mask = static_cast<T>(ones << from);
    return static_cast<T>((b & ~mask) | (static_cast<T>(a << from) & mask));
}
/* A selector's bit 3 asks for the sign of the byte, eight times. */
static inline u32 ptx_prmt(u32 a, u32 b, u32 selector) {
    const u64 both = static_cast<u64>(b) << 32 | a;
    u32 v = 0;
    for (int i = 0; i < 4; i++) {
        const u32 byte = both >> 8 * (selector >> 4 * i & 7) & 0xff;
        v |= (selector >> 4 * i & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return v;
}

/* A processor's fault otherwise; what a GPU gives is not defined. */
template <class T> static inline T ptx_divisor(T v) {
    if (v == 0)
        sl_device_trap("PTX: an integer is divided by 0");
    return v;
}

/* ---- floating point ------------------------------------------------------------------------------ */

/* Rounded as asked: the processor's mode while the operation runs. */
enum ptx_rounding { PTX_RN = FE_TONEAREST, PTX_RM = FE_DOWNWARD, PTX_RP = FE_UPWARD, PTX_RZ = FE_TOWARDZERO };
template <class F> static inline auto ptx_rounded(ptx_rounding rounding, F operation) {
    fesetround(rounding);
    const auto v = operation();
    fesetround(FE_TONEAREST);
    return v;
}
/* Not moved out of the mode that it is meant for. */
template <class T> static inline T ptx_kept(T v) {
    volatile T kept = v;
    return kept;
}
template <class T> static inline T ptx_add(ptx_rounding r, T a, T b) {
    if (r == PTX_RN)
        return a + b;
    return ptx_rounded(r, [&] { return ptx_kept(ptx_kept(a) + ptx_kept(b)); });
}
template <class T> static inline T ptx_mul(ptx_rounding r, T a, T b) {
    if (r == PTX_RN)
        return a * b;
    return ptx_rounded(r, [&] { return ptx_kept(ptx_kept(a) * ptx_kept(b)); });
}
static inline f32 ptx_fma(ptx_rounding r, f32 a, f32 b, f32 c) {
    if (r == PTX_RN)
        return __builtin_fmaf(a, b, c);
    return ptx_rounded(r, [&] { return ptx_kept(__builtin_fmaf(ptx_kept(a), ptx_kept(b), ptx_kept(c))); });
}
static inline f64 ptx_fma(ptx_rounding r, f64 a, f64 b, f64 c) {
    if (r == PTX_RN)
        return __builtin_fma(a, b, c);
    return ptx_rounded(r, [&] { return ptx_kept(__builtin_fma(ptx_kept(a), ptx_kept(b), ptx_kept(c))); });
}

/* The number if one of the two is no number; -0 is less than +0. */
template <class T> static inline T ptx_min(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) {
        if (a != a || b != b)
            return a != a ? b : a;
        if (a == b)
            return signbit(a) ? a : b;
    }
    return a < b ? a : b;
}
template <class T> static inline T ptx_max(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) {
        if (a != a || b != b)
            return a != a ? b : a;
        if (a == b)
            return signbit(a) ? b : a;
    }
    return a > b ? a : b;
}

static inline f32 ptx_flush(f32 v) { return fabsf(v) < 0x1p-126f ? copysignf(0, v) : v; }
/* As many units in the last place off, up or down. */
static inline f32 ptx_inexact(f32 exact, f32 operand, u32 units) {
    const u32 size = __float_as_uint(exact) & 0x7fffffffu;
    if (size < 0x00800002u || size > 0x7f7ffffdu) /* none left to be off by, infinite, no number */
        return exact;
    const bool up = (__float_as_uint(operand) * 0x9e3779b9u) >> 31;
    return __uint_as_float(__float_as_uint(exact) + (up ? units : 0 - units));
}
/* Powers of whole numbers are exact. */
static inline f32 ptx_ex2(f32 a) {
    const f32 exact = static_cast<f32>(exp2(static_cast<f64>(a)));
    return a == rintf(a) ? exact : ptx_inexact(exact, a, 2);
}
static inline f32 ptx_rcp_approx(f32 a) { return ptx_flush(ptx_inexact(1 / ptx_flush(a), a, 1)); }
static inline f32 ptx_saturate(f32 v) { return v != v ? 0.0f : ptx_min(ptx_max(v, 0.0f), 1.0f); }

/* To an integer: no number is 0, what is beyond is the nearest there is. */
template <class T, class F> static inline T ptx_integer(F whole) {
    const F low = static_cast<F>(std::is_signed<T>::value ? -ldexp(1.0, 8 * sizeof(T) - 1) : 0.0);
    const F high = static_cast<F>(ldexp(1.0, 8 * static_cast<int>(sizeof(T)) - std::is_signed<T>::value));
    if (whole != whole)
        return 0;
    if (whole < low)
        return static_cast<T>(std::is_signed<T>::value ? T(1) << (8 * sizeof(T) - 1) : 0);
    return whole >= high ? static_cast<T>(~(std::is_signed<T>::value ? T(1) << (8 * sizeof(T) - 1) : 0))
                         : static_cast<T>(whole);
}

/* ---- 16-bit numbers ------------------------------------------------------------------------------ */

static inline f32 ptx_from_half(u16 v) { return sl_device_half_to_float(v); }
static inline u16 ptx_to_half(f32 v) { return sl_device_float_to_half(v); }
static inline u16 ptx_to_bf16(f32 v) {
    const u32 u = __float_as_uint(v);
    return v != v ? 0x7fff : static_cast<u16>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
static inline f32 ptx_from_bf16(u16 v) { return __uint_as_float(static_cast<u32>(v) << 16); }
static inline u32 ptx_pair(u16 low, u16 high) { return low | static_cast<u32>(high) << 16; }

/* Sums and products of two f16 are rounded once: f32 has more than twice their bits. */
static inline u16 ptx_half_add(u16 a, u16 b) { return ptx_to_half(ptx_from_half(a) + ptx_from_half(b)); }
static inline u16 ptx_half_sub(u16 a, u16 b) { return ptx_to_half(ptx_from_half(a) - ptx_from_half(b)); }
static inline u16 ptx_half_mul(u16 a, u16 b) { return ptx_to_half(ptx_from_half(a) * ptx_from_half(b)); }
static inline bool ptx_half_is_nan(u16 a) { return (a & 0x7fffu) > 0x7c00u; }
static inline u16 ptx_half_min_nan(u16 a, u16 b) {
    if (ptx_half_is_nan(a) || ptx_half_is_nan(b))
        return 0x7fff;
    return ptx_min(ptx_from_half(a), ptx_from_half(b)) == ptx_from_half(a) && (a != 0 || b != 0x8000) ? a : b;
}
static inline u16 ptx_half_max_nan(u16 a, u16 b) {
    if (ptx_half_is_nan(a) || ptx_half_is_nan(b))
        return 0x7fff;
    return ptx_max(ptx_from_half(a), ptx_from_half(b)) == ptx_from_half(a) && (a != 0x8000 || b != 0) ? a : b;
}
template <u16 operation(u16, u16)> static inline u32 ptx_halves(u32 a, u32 b) {
    return ptx_pair(operation(static_cast<u16>(a), static_cast<u16>(b)),
                    operation(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16)));
}

/* ---- warps --------------------------------------------------------------------------------------- */

/* `control`: the width of the groups of lanes, as PTX says it. */
static inline u32 ptx_shuffle(sl_device_wait kind, u32 v, u32 lane, u32 control, u32 mask) {
    return sl_device_warp(kind, mask, v, lane, 32 - (control >> 8 & 31));
}
/* Is the lane that it reads in its own group? */
static inline bool ptx_shuffle_in_range(sl_device_wait kind, u32 b, u32 control) {
    const u32 lane = sl_device_thread() % 32, group = control >> 8 & 31;
    const u32 limit = (lane & group) | (control & 31 & ~group);
    b &= 31;
    switch (kind) {
    case SL_WAIT_XOR: return (lane ^ b) <= limit;
    case SL_WAIT_DOWN: return lane + b <= limit;
    case SL_WAIT_UP: return lane >= b + limit;
    default: return ((lane & group) | (b & ~group)) <= limit;
    }
}

#endif
