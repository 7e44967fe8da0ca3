// Threads of control that hand over by themselves: what emulation.h runs the threads of a block on. For tests only.
//
// ucontext does it everywhere, but asks the kernel for the signal mask at each change; there are tens of millions of
// changes in a test, so x86-64 has a few lines of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(__x86_64__) && !defined(FLAWSCOPE_UCONTEXT)
#define FLAWSCOPE_OWN_SWITCH 1
// Keep what a function must keep (System V ABI) on this stack, and go on where the other one stopped.
asm(R"(
.text
.weak flawscope_switch_stack
.type flawscope_switch_stack, @function
flawscope_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size flawscope_switch_stack, . - flawscope_switch_stack
)");
extern "C" void flawscope_switch_stack(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace flawscope::emulation {

class Fiber {
public:
    // Make the next enter() start `body`, which must not return: it leaves for good at its end.
    void prepare(void (*body)()) {
#if defined(__SANITIZE_ADDRESS__)
        // The functions of the last run that left for good never cleaned up behind them.
        __asan_unpoison_memory_region(stack_.get(), kBytes);
#endif
#if defined(FLAWSCOPE_OWN_SWITCH)
        const uintptr_t end = reinterpret_cast<uintptr_t>(stack_.get() + kBytes) & ~uintptr_t{15};
        void** top = reinterpret_cast<void**>(end) - 2;
        top[1] = nullptr;  // where `body` would return to; leaves the stack aligned as after a call
        top[0] = reinterpret_cast<void*>(body);
        for (int i = 1; i <= 6; ++i) top[-i] = nullptr;  // registers
        own_ = top - 6;
#else
        getcontext(&own_);
        own_.uc_stack.ss_sp = stack_.get();
        own_.uc_stack.ss_size = kBytes;
        own_.uc_link = nullptr;
        makecontext(&own_, body, 0);
#endif
    }

#if defined(FLAWSCOPE_OWN_SWITCH)
    void enter() { flawscope_switch_stack(&caller_, own_); }
    void leave() { flawscope_switch_stack(&own_, caller_); }
#else
    void enter() { swapcontext(&caller_, &own_); }
    void leave() { swapcontext(&own_, &caller_); }
#endif

private:
    static constexpr size_t kBytes = 64 << 10;
    std::unique_ptr<char[]> stack_{new char[kBytes]};
#if defined(FLAWSCOPE_OWN_SWITCH)
    void *own_ = nullptr, *caller_ = nullptr;
#else
    ucontext_t own_, caller_;
#endif
};

}  // namespace flawscope::emulation
