// As much of CUDA as the kernels use, on the CPU: for tests where there is no GPU. Never part of the library.
//
// Blocks run one after another; the threads of a block are fibers, each running until it waits for others, in an order
// that the test chooses. What a kernel may not rely on is made to fail: shared memory begins each block as rubbish, an
// asynchronous copy arrives at once or only when it is waited for, warps run far ahead of others, lanes that meet in
// different operations stop the program, and so does a thread that waits for one that has ended. Tensor-core products
// are computed from the fragments of the lanes as the PTX manual lays them out, with sums in float32. What this cannot
// show: the rounding and order of a real tensor core, memory that is visible too late between blocks, and speed.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "fibers.h"
#include "half.h"

#ifndef FLAWSCOPE_EMULATED_ARCH
#error "FLAWSCOPE_EMULATED_ARCH is the compute capability to emulate, times 100"
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FLAWSCOPE_SHARED(type, name) \
    static type name;                \
    flawscope::emulation::block().enter_shared(&name, sizeof name)
#define FLAWSCOPE_DYNAMIC_SHARED(name) unsigned char* const name = flawscope::emulation::block().dynamic_shared()

// ---- Types and the part of the runtime interface that the launches use ----------------------------------------------

struct uint3 {
    unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

enum cudaError_t { cudaSuccess = 0, cudaErrorNoKernelImageForDevice = 209, cudaErrorEmulated = 900 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrPageableMemoryAccess,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
    int ptxVersion;
};
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
using cudaStream_t = struct CUstream_st*;

namespace flawscope::emulation {

// Of the threads of a block. In the first two all warps advance together; in the others a warp runs as far as it can.
enum class Order { kAscending, kShuffled, kFirstWarpAhead, kLastWarpAhead };
constexpr int kOrders = 4;

struct Settings {
    int processors = 4;
    int major = 8, shared = 99 * 1024;  // compute capability, and shared memory that a block may have
    int ptx = 0;  // capability that the code was compiled for, times 10; 0: what is emulated
    Order order = Order::kAscending;
    int fail_at = 0;  // number of the call of the runtime, from 1, that fails
    int calls = 0, waits = 0;
    // An address whose memory is not of device 0, and what it is.
    const void* elsewhere = nullptr;
    cudaPointerAttributes kind = {cudaMemoryTypeDevice, 1};
    int reads_host_memory = 0;
    std::map<const void*, int> may_have;  // dynamic shared memory of a kernel
    bool capturing = false;  // nothing that was not loaded before can be launched
    std::set<const void*> loaded;
};
inline Settings settings;

inline cudaError_t call() { return ++settings.calls == settings.fail_at ? cudaErrorEmulated : cudaSuccess; }

[[noreturn]] inline void stop(const char* why) {
    std::fprintf(stderr, "emulation: %s (block %u, %u, thread %u)\n", why, blockIdx.x, blockIdx.y, threadIdx.x);
    std::abort();
}

// ---- Threads of a block ---------------------------------------------------------------------------------------------

constexpr int kLanes = 32;

struct Copy {
    void* to;
    const void* from;
    int group;
};

struct Thread {
    Fiber fiber;
    unsigned index = 0;
    bool done = false;
    const unsigned* waits_for = nullptr;  // runs again when this has changed
    unsigned seen = 0;
    std::vector<Copy> copies;
    int groups = 0;  // that have been ended
};

struct Slot {
    alignas(16) char data[64];
};

struct Warp {
    Slot slots[2][kLanes];  // two, as a fast lane may meet again before a slow one has read
    float products[2][16][8];
    unsigned round = 0;
    int arrived = 0, operation = 0;
};

class Block {
public:
    void run(unsigned threads, const std::function<void()>& body) {
        body_ = &body;
        if (threads % kLanes != 0) stop("a block is not a number of warps");
        while (pool_.size() < threads) pool_.push_back(std::make_unique<Thread>());
        warps_.assign(threads / kLanes, Warp{});
        shared_.clear();
        threads_ = threads;
        arrived_ = 0;
        const bool ahead = settings.order >= Order::kFirstWarpAhead;
        std::vector<unsigned> order(threads);
        std::iota(order.begin(), order.end(), 0u);
        if (settings.order == Order::kLastWarpAhead) std::reverse(order.begin(), order.end());
        if (settings.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), random_);
        for (unsigned i = 0; i < threads; ++i) {
            Thread& thread = *pool_[i];
            thread.fiber.prepare(enter);
            thread.index = i;
            thread.done = false;
            thread.groups = 0;
        }
        const size_t together = ahead ? kLanes : threads;
        for (size_t left = threads; left > 0;) {
            bool moved = false;
            for (size_t first = 0; first < threads; first += together) {
                while (advance(order.data() + first, together, left)) moved = true;
            }
            if (!moved) stop("threads wait for others that never come");
        }
    }

    Thread& thread() { return *current_; }

    // Rubbish that is a small float, a small float16 and an early key: whoever reads it gets a wrong result.
    void enter_shared(void* memory, size_t bytes) {
        if (shared_.insert(memory).second) std::memset(memory, 0xa5, bytes);
    }

    // Of exactly the size of the launch, so that the address sanitizer sees what goes beyond; rubbish for each block.
    void size_dynamic(size_t bytes) {
        dynamic_.reset(bytes == 0 ? nullptr : static_cast<unsigned char*>(std::aligned_alloc(128, bytes)));
        dynamic_bytes_ = bytes;
    }
    unsigned char* dynamic_shared() {
        enter_shared(dynamic_.get(), dynamic_bytes_);
        return dynamic_.get();
    }

    int barrier(int value) {
        const unsigned round = round_;
        any_[(round + 1) % 3] = 0;  // three: the last round may not have been read by all
        any_[round % 3] |= value;
        if (++arrived_ == threads_) {
            arrived_ = 0;
            ++round_;
        } else {
            wait(round_, round);
        }
        return any_[round % 3];
    }

    // All lanes of the warp give their data and get that of all. The last to come calls `combine`.
    template <class Combine>
    unsigned meet(int operation, const void* data, size_t bytes, const Combine& combine) {
        Warp& warp = this->warp();
        const unsigned round = warp.round;
        if (warp.arrived != 0 && warp.operation != operation) stop("lanes of a warp meet in different operations");
        if (bytes > sizeof(Slot)) stop("too much to exchange");
        warp.operation = operation;
        std::memcpy(warp.slots[round % 2][current_->index % kLanes].data, data, bytes);
        if (++warp.arrived == kLanes) {
            combine(warp, round % 2);
            warp.arrived = 0;
            ++warp.round;
        } else {
            wait(warp.round, round);
        }
        return round % 2;
    }

    const Slot* meet(int operation, const void* data, size_t bytes) {
        return warp().slots[meet(operation, data, bytes, [](Warp&, unsigned) {})];
    }

    Warp& warp() { return warps_[current_->index / kLanes]; }

    unsigned lane() const { return current_->index % kLanes; }

    bool coin() { return (random_() & 1) != 0; }

private:
    static void enter();

    // Let each of these threads run until it waits; false where all wait for others.
    bool advance(const unsigned* threads, size_t count, size_t& left) {
        bool moved = false;
        for (size_t i = 0; i < count; ++i) {
            Thread& thread = *pool_[threads[i]];
            if (thread.done || (thread.waits_for != nullptr && *thread.waits_for == thread.seen)) continue;
            moved = true;
            current_ = &thread;
            threadIdx.x = thread.index;
            thread.fiber.enter();
            if (thread.done) --left;
        }
        return moved;
    }

    void wait(const unsigned& counter, unsigned seen) {
        current_->waits_for = &counter;
        current_->seen = seen;
        current_->fiber.leave();
        current_->waits_for = nullptr;
    }

    const std::function<void()>* body_ = nullptr;
    std::vector<std::unique_ptr<Thread>> pool_;
    std::vector<Warp> warps_;
    std::set<void*> shared_;
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<unsigned char, Free> dynamic_;
    size_t dynamic_bytes_ = 0;
    Thread* current_ = nullptr;
    unsigned threads_ = 0, arrived_ = 0, round_ = 0;
    int any_[3] = {};
    std::mt19937 random_{1};
};

inline Block& block() {
    static Block block;
    return block;
}

inline void Block::enter() {
    Block& self = block();
    (*self.body_)();
    if (!self.current_->copies.empty()) stop("a thread ended before its copies arrived");
    self.current_->done = true;
    self.current_->fiber.leave();
}

// ---- What a warp does together --------------------------------------------------------------------------------------

enum Operation { kShuffle = 1, kBallot, kLoadMatrices, kMultiply16, kMultiply8 };

template <class Value>
Value shuffle(unsigned mask, Value value, unsigned source) {
    if (mask != 0xffffffffu) stop("a mask that leaves lanes out");
    const Slot* slots = block().meet(kShuffle, &value, sizeof value);
    std::memcpy(&value, slots[source].data, sizeof value);
    return value;
}

inline void copy_async(void* to, const void* from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0) stop("a copy is not aligned");
    if (block().coin()) std::memcpy(to, from, 16);
    else block().thread().copies.push_back({to, from, block().thread().groups});
}

inline void end_copies() { ++block().thread().groups; }

// Those of the last `groups` groups, and of none, arrive another time.
inline void wait_for_copies(int groups) {
    std::vector<Copy>& copies = block().thread().copies;
    const auto late = [&](const Copy& copy) { return copy.group >= block().thread().groups - groups; };
    for (const Copy& copy : copies) {
        if (!late(copy)) std::memcpy(copy.to, copy.from, 16);
    }
    copies.erase(std::remove_if(copies.begin(), copies.end(), [&](const Copy& copy) { return !late(copy); }),
                 copies.end());
}

inline void load_matrices(uint32_t (&out)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) stop("a matrix row is not aligned to 16 bytes");
    const Slot* slots = block().meet(kLoadMatrices, &row, sizeof row);
    for (unsigned i = 0; i < 4; ++i) {
        const char* source;
        std::memcpy(&source, slots[8 * i + block().lane() / 4].data, sizeof source);
        std::memcpy(&out[i], source + block().lane() % 4 * 4, 4);
    }
}

inline float half_to_float(uint16_t bits) {
    static const std::vector<float> floats = [] {
        std::vector<float> table;
        for (int i = 0; i < 1 << 15; ++i) {
            const int exponent = i >> 10, fraction = i & 1023;
            table.push_back(exponent == 31  ? (fraction == 0 ? HUGE_VALF : NAN)
                            : exponent == 0 ? ldexpf(static_cast<float>(fraction), -24)
                                            : ldexpf(static_cast<float>(1024 + fraction), exponent - 25));
        }
        return table;
    }();
    return bits >> 15 ? -floats[bits & 0x7fff] : floats[bits];
}

// C[16][8] += A[16][kDepth] · B[kDepth][8]; registers of lane 4g + t as the manual has them: pairs of channels, first
// those of row g and of row g + 8, then the same 8 channels on.
template <unsigned kDepth>
void multiply(Operation operation, float (&c)[4], const uint32_t* a, const uint32_t* b) {
    constexpr unsigned kParts = kDepth / 8, kRegisters = 3 * kParts;  // two of `a` and one of `b` for 8 channels
    uint32_t mine[kRegisters];
    std::copy(a, a + 2 * kParts, mine);
    std::copy(b, b + kParts, mine + 2 * kParts);
    const unsigned round = block().meet(operation, mine, sizeof mine, [](Warp& warp, unsigned now) {
        float left[16][kDepth], right[8][kDepth];
        for (unsigned lane = 0; lane < kLanes; ++lane) {
            uint16_t halves[2 * kRegisters];
            std::memcpy(halves, warp.slots[now][lane].data, sizeof halves);
            for (unsigned i = 0; i < 2 * kRegisters; ++i) {
                const unsigned reg = i / 2, part = reg < 2 * kParts ? reg / 2 : reg - 2 * kParts;
                const unsigned channel = 8 * part + lane % 4 * 2 + i % 2;
                (reg < 2 * kParts ? left[lane / 4 + reg % 2 * 8] : right[lane / 4])[channel] = half_to_float(halves[i]);
            }
        }
        for (unsigned r = 0; r < 16; ++r) {
            for (unsigned column = 0; column < 8; ++column) {
                float sum = 0.0f;
                for (unsigned k = 0; k < kDepth; ++k) sum += left[r][k] * right[column][k];
                warp.products[now][r][column] = sum;
            }
        }
    });
    const unsigned g = block().lane() / 4, t = block().lane() % 4;
    for (unsigned i = 0; i < 4; ++i) c[i] += block().warp().products[round][g + i / 2 * 8][2 * t + i % 2];
}

}  // namespace flawscope::emulation

#include "emulation_names.h"
