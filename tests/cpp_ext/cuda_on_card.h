// The checks of the emulated kernels on a GPU, in the place of the emulation. The arrays of the checks stay in host
// memory: every call of the kernels gets twins of them in device memory, with guard zones around, that are copied there
// before and back afterwards. Compiled, not run.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <vector>

#include "flawscope/patch_distance.h"
#include "half.h"

constexpr bool kEmulated = false;
constexpr int cudaErrorEmulated = 900;  // which no GPU returns: what needs it is left out here

namespace flawscope::emulation {

// What the checks set for the emulation; a GPU has its own.
enum class Order { kAscending, kShuffled, kFirstWarpAhead, kLastWarpAhead };
constexpr int kOrders = 4;

struct Settings {
    int processors = 0, major = 0, shared = 0, ptx = 0;
    Order order = Order::kAscending;
    int fail_at = 0, calls = 0, waits = 0;
    const void* elsewhere = nullptr;
    cudaPointerAttributes kind = {};
    int reads_host_memory = 0;
    bool capturing = false;
    std::set<const void*> loaded;
};
inline Settings settings;

}  // namespace flawscope::emulation

namespace card {

constexpr size_t kGuard = 1024;  // bytes on both sides; keeps the alignment of cudaMalloc
constexpr unsigned char kRubbish = 0xa5;

struct Twin {
    unsigned char* device;  // with the guard zones
    size_t bytes;
};
inline std::map<const unsigned char*, Twin> twins;  // by the array in host memory
inline int spoilt_guards = 0;

inline void expect(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    std::fflush(stdout);
    std::_Exit(3);  // nothing works after most errors of a device
}

inline void made(void* host, size_t bytes) {
    Twin twin{nullptr, bytes};
    void* memory = nullptr;
    expect(cudaMalloc(&memory, bytes + 2 * kGuard), "cudaMalloc");
    twin.device = static_cast<unsigned char*>(memory);
    expect(cudaMemset(twin.device, kRubbish, bytes + 2 * kGuard), "cudaMemset");
    twins[static_cast<const unsigned char*>(host)] = twin;
}

inline void gone(void* host) {
    const auto found = twins.find(static_cast<const unsigned char*>(host));
    expect(cudaFree(found->second.device), "cudaFree");
    twins.erase(found);
}

// The same place in the twin; what is of no array, such as where a size is written to, stays itself.
template <class Value>
Value* on_device(Value* place) {
    const auto* at = reinterpret_cast<const unsigned char*>(place);
    auto next = twins.upper_bound(at);
    if (next == twins.begin()) return place;
    const auto& [host, twin] = *std::prev(next);
    if (at >= host + std::max<size_t>(twin.bytes, 1)) return place;
    return reinterpret_cast<Value*>(twin.device + kGuard + (at - host));
}
template <class Value>
Value on_device(Value value) {
    return value;
}

inline void check_guards(const Twin& twin) {
    std::vector<unsigned char> guard(kGuard);
    for (const unsigned char* side : {twin.device, twin.device + kGuard + twin.bytes}) {
        expect(cudaMemcpy(guard.data(), side, kGuard, cudaMemcpyDeviceToHost), "copying a guard zone");
        if (std::all_of(guard.begin(), guard.end(), [](unsigned char x) { return x == kRubbish; })) continue;
        ++spoilt_guards;
        std::printf("FAILED: written beyond an array of %zu bytes\n", twin.bytes);
    }
}

template <class Function, class... Arguments>
int call(Function function, Arguments... arguments) {
    for (const auto& [host, twin] : twins) {
        expect(cudaMemcpy(twin.device + kGuard, host, twin.bytes, cudaMemcpyHostToDevice), "copying to the device");
    }
    const int status = function(on_device(arguments)...);
    expect(cudaDeviceSynchronize(), "a kernel");
    for (const auto& [host, twin] : twins) {
        unsigned char* back = const_cast<unsigned char*>(host);
        expect(cudaMemcpy(back, twin.device + kGuard, twin.bytes, cudaMemcpyDeviceToHost), "copying from the device");
        check_guards(twin);
    }
    return status;
}

}  // namespace card

// Function-like, so that a name inside its own expansion is the function itself.
#define flawscope_cuda_bank_pack(...) card::call(flawscope_cuda_bank_pack, __VA_ARGS__)
#define flawscope_cuda_bank_check(...) card::call(flawscope_cuda_bank_check, __VA_ARGS__)
#define flawscope_cuda_nearest(...) card::call(flawscope_cuda_nearest, __VA_ARGS__)
#define flawscope_cuda_windows_nearest(...) card::call(flawscope_cuda_windows_nearest, __VA_ARGS__)
#define flawscope_cuda_mahalanobis(...) card::call(flawscope_cuda_mahalanobis, __VA_ARGS__)
#define flawscope_cuda_mahalanobis_triangles(...) card::call(flawscope_cuda_mahalanobis_triangles, __VA_ARGS__)
#define flawscope_cuda_diffusion_step(...) card::call(flawscope_cuda_diffusion_step, __VA_ARGS__)
#define flawscope_cuda_kcenter_greedy(...) card::call(flawscope_cuda_kcenter_greedy, __VA_ARGS__)
