/* Fibers by a dozen instructions of assembly: a switch saves the registers that a called function must preserve
 * on the running stack, exchanges stack pointers and restores. Elsewhere than on x86-64 and aarch64: ucontext.
 * AddressSanitizer must be told of each switch where it keeps frames apart from the stack, to find uses after
 * return; where it does not, that is a third of a switch's time for nothing. */
#include "device_fiber.h"

#include "device_asan.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef SL_ASAN
enum { STACK_BYTES = 256 * 1024 }; /* frames with red zones are several times larger */
#else
enum { STACK_BYTES = 64 * 1024 };
#endif

#if defined(__x86_64__)
/* void swap(void **save (rdi), void *load (rsi)) */
asm(".text\n.globl sl_fiber_swap\n.hidden sl_fiber_swap\n.type sl_fiber_swap,@function\n"
    "sl_fiber_swap:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n.size sl_fiber_swap,.-sl_fiber_swap\n");
enum { SAVED_WORDS = 6, LINK_WORD = 6, FRAME_WORDS = 8 }; /* at entry rsp is 8 modulo 16, as after a call */
#elif defined(__aarch64__)
/* void swap(void **save (x0), void *load (x1)) */
asm(".text\n.globl sl_fiber_swap\n.hidden sl_fiber_swap\n.type sl_fiber_swap,%function\n"
    "sl_fiber_swap:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n.size sl_fiber_swap,.-sl_fiber_swap\n");
enum { LINK_WORD = 11, FRAME_WORDS = 20 };
#else
#define SL_FIBER_UCONTEXT 1
#include <ucontext.h>
#endif

#ifdef SL_ASAN
static bool keeps_frames(void) {
    static const bool keeps = __asan_get_current_fake_stack() != nullptr;
    return keeps;
}
#endif

/* Who is switching away, for the side that resumes. */
static sl_fiber *left;

#ifdef SL_FIBER_UCONTEXT
static bool arrange(sl_fiber *fiber, void (*entry)(void)) {
    ucontext_t *context =
        static_cast<ucontext_t *>(fiber->context ? fiber->context : malloc(sizeof(ucontext_t)));
    if (!context || getcontext(context) != 0)
        return false;
    context->uc_stack.ss_sp = fiber->stack;
    context->uc_stack.ss_size = fiber->stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    fiber->context = context;
    return true;
}

static void swap_to(sl_fiber *from, sl_fiber *to) {
    ucontext_t here; /* of a fiber that has no context of its own: the caller's */
    ucontext_t *save = from->context ? static_cast<ucontext_t *>(from->context) : &here;
    from->context = save;
    swapcontext(save, static_cast<ucontext_t *>(to->context));
    if (save == &here)
        from->context = nullptr;
}
#else
extern "C" void sl_fiber_swap(void **save, void *load);

static bool arrange(sl_fiber *fiber, void (*entry)(void)) {
    void **top = reinterpret_cast<void **>(fiber->stack + fiber->stack_bytes) - FRAME_WORDS;
    memset(top, 0, FRAME_WORDS * sizeof *top);
    top[LINK_WORD] = reinterpret_cast<void *>(entry);
    fiber->context = top;
    return true;
}

static void swap_to(sl_fiber *from, sl_fiber *to) { sl_fiber_swap(&from->context, to->context); }
#endif

/* On the resumed side: tells AddressSanitizer, and learns the bounds of a stack that is not ours. */
static void resumed(void *fake_stack) {
#ifdef SL_ASAN
    const void *bottom;
    size_t bytes;
    if (!keeps_frames())
        return;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (!left->stack || left->stack_bytes == 0) {
        left->stack = static_cast<unsigned char *>(const_cast<void *>(bottom));
        left->stack_bytes = bytes;
    }
#else
    (void)fake_stack;
#endif
}

void sl_fiber_entered(void) { resumed(nullptr); }

void sl_fiber_switch(sl_fiber *from, sl_fiber *to) {
    left = from;
#ifdef SL_ASAN
    if (keeps_frames())
        __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
    swap_to(from, to);
    resumed(from->fake_stack);
}

void sl_fiber_rewind(sl_fiber *fiber, void (*entry)(void)) {
    SL_UNPOISON(fiber->stack, fiber->stack_bytes);
    fiber->fake_stack = nullptr;
    arrange(fiber, entry);
}

sl_fiber *sl_fiber_create(void (*entry)(void)) {
    static size_t n_fiber;
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = STACK_BYTES + 2 * page;
    sl_fiber *fiber = static_cast<sl_fiber *>(calloc(1, sizeof *fiber));
    void *map = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber && map != MAP_FAILED) {
        fiber->stack = static_cast<unsigned char *>(map) + page;
        /* tops at different places of their pages, or all would fight for the same few sets of the cache */
        fiber->stack_bytes = STACK_BYTES - n_fiber++ % 31 * 128;
        if (mprotect(fiber->stack, STACK_BYTES, PROT_READ | PROT_WRITE) == 0 && arrange(fiber, entry))
            return fiber;
    }
    if (map != MAP_FAILED)
        munmap(map, room);
    free(fiber);
    return nullptr;
}
