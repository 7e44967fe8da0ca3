// Which SIMD level runs: the best that both processor and library have, or the one that FLAWSCOPE_SIMD asks for.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(FLAWSCOPE_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace flawscope {
namespace {

std::atomic<const Kernels*> chosen{nullptr};
std::once_flag once;

#if defined(FLAWSCOPE_HAS_AMX)
// The tile registers are 8 KiB that Linux saves for a thread; a process has to ask for them once.
bool have_amx() {
    static const bool granted = [] {
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
        constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
        if ((edx & kTile) == 0 || (edx & kInt8) == 0) return false;
        constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return granted;
}
#endif

}  // namespace

const Kernels* kernels_at(int i) {
    const Kernels* found[6];
    int count = 0;
#if defined(__x86_64__)
    // These ask the operating system too: a processor's AVX-512 is of no use where its registers are not saved.
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#if defined(FLAWSCOPE_HAS_AMX)
    if (vnni && have_amx()) found[count++] = kernels_avx512amx();
#endif
    if (vnni) found[count++] = kernels_avx512vnni();
    if (avx512) found[count++] = kernels_avx512();
    if (avx2) found[count++] = kernels_avx2();
#elif defined(__aarch64__)
    found[count++] = kernels_neon();
#endif
    found[count++] = kernels_scalar();
    return i >= 0 && i < count ? found[i] : nullptr;
}

const Kernels* kernels_for_windows(const Kernels* kernels) {
#if defined(FLAWSCOPE_HAS_AMX)
    // Every processor with AMX has VNNI. Its own loop takes panels four at a time, which few windows fill.
    if (kernels == kernels_avx512amx()) return kernels_avx512vnni();
#endif
    return kernels;
}

bool choose_kernels(const char* name) {
    for (int i = 0; const Kernels* level = kernels_at(i); ++i) {
        if (std::strcmp(level->name, name) == 0) {
            chosen.store(level);
            return true;
        }
    }
    return false;
}

const Kernels* active_kernels() {
    std::call_once(once, [] {
        const char* wanted = std::getenv("FLAWSCOPE_SIMD");
        if (chosen.load() != nullptr) return;
        // A level that is asked for and not there leaves none: nothing runs on another one in silence.
        chosen.store(wanted == nullptr || *wanted == '\0' ? kernels_at(0) : nullptr);
        if (wanted != nullptr && *wanted != '\0') choose_kernels(wanted);
    });
    return chosen.load();
}

}  // namespace flawscope
