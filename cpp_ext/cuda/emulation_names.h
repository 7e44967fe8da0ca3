// The functions of CUDA that kernels and launches call, in emulation: the end of emulation.h, for nobody else.
#pragma once

#include "emulation.h"

inline void __syncthreads() { flawscope::emulation::block().barrier(0); }
inline int __syncthreads_or(int value) { return flawscope::emulation::block().barrier(value); }

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source) {
    return flawscope::emulation::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int with) {
    const unsigned lane = flawscope::emulation::block().lane();
    return flawscope::emulation::shuffle(mask, value, lane ^ static_cast<unsigned>(with));
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, int by) {
    const unsigned lane = flawscope::emulation::block().lane(), step = static_cast<unsigned>(by);
    return flawscope::emulation::shuffle(mask, value, lane < step ? lane : lane - step);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    if (mask != 0xffffffffu) flawscope::emulation::stop("a mask that leaves lanes out");
    const flawscope::emulation::Slot* slots =
        flawscope::emulation::block().meet(flawscope::emulation::kBallot, &vote, sizeof vote);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        int value;
        std::memcpy(&value, slots[lane].data, sizeof value);
        votes |= (value != 0 ? 1u : 0u) << lane;
    }
    return votes;
}

// Rounded by themselves: the compiler may not fuse what has to be stored.
inline float __fmul_rn(float a, float b) {
    const volatile float product = a * b;
    return product;
}
inline float __fadd_rn(float a, float b) {
    const volatile float sum = a + b;
    return sum;
}
inline float __fsub_rn(float a, float b) {
    const volatile float difference = a - b;
    return difference;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
template <class Value>
Value atomicAdd(Value* place, Value value) {
    const Value old = *place;
    *place += value;
    return old;
}
template <class Value>
Value atomicMin(Value* place, Value value) {
    const Value old = *place;
    *place = value < old ? value : old;
    return old;
}
template <class Value>
Value atomicMax(Value* place, Value value) {
    const Value old = *place;
    *place = value > old ? value : old;
    return old;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return flawscope::emulation::call();
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return flawscope::emulation::call();
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    const flawscope::emulation::Settings& settings = flawscope::emulation::settings;
    *attributes = {cudaMemoryTypeDevice, 0};
    if (address == settings.elsewhere) *attributes = settings.kind;
    return flawscope::emulation::call();
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const flawscope::emulation::Settings& settings = flawscope::emulation::settings;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = settings.processors; break;
        case cudaDevAttrComputeCapabilityMajor: *value = settings.major; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = settings.shared; break;
        default: *value = settings.reads_host_memory;
    }
    return flawscope::emulation::call();
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    const cudaError_t status = flawscope::emulation::call();
    if (status == cudaSuccess) std::memset(to, value, bytes);
    return status;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    const cudaError_t status = flawscope::emulation::call();
    if (status == cudaSuccess) std::memcpy(to, from, bytes);
    return status;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    ++flawscope::emulation::settings.waits;
    return flawscope::emulation::call();
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorEmulated ? "an emulated failure" : "no error";
}

namespace flawscope::cuda {

template <class... Parameters>
cudaError_t load(void (*kernel)(Parameters...)) {
    emulation::Settings& settings = emulation::settings;
    const void* const key = reinterpret_cast<const void*>(kernel);
    if (settings.capturing && settings.loaded.count(key) == 0) return cudaErrorEmulated;
    const cudaError_t status = emulation::call();
    if (status == cudaSuccess) settings.loaded.insert(key);
    return status;
}

template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
    attributes->ptxVersion = emulation::settings.ptx != 0 ? emulation::settings.ptx : FLAWSCOPE_EMULATED_ARCH / 10;
    return load(kernel);
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
    if (bytes > emulation::settings.shared) emulation::stop("more shared memory than the device has");
    const cudaError_t status = emulation::call();
    if (status == cudaSuccess) emulation::settings.may_have[reinterpret_cast<const void*>(kernel)] = bytes;
    return status;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_with_shared(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, cudaStream_t,
                               Arguments... arguments) {
    const cudaError_t status = load(kernel);
    if (status != cudaSuccess) return status;
    const int most = emulation::settings.may_have[reinterpret_cast<const void*>(kernel)];
    if (shared_bytes > std::max(most, 48 * 1024)) emulation::stop("a launch asks for more shared memory than it may have");
    emulation::block().size_dynamic(static_cast<size_t>(shared_bytes));
    gridDim = blocks;
    blockDim = dim3(static_cast<unsigned>(threads));
    const std::function<void()> body = [&] { kernel(static_cast<Parameters>(arguments)...); };
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
            emulation::block().run(static_cast<unsigned>(threads), body);
        }
    }
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
    return launch_with_shared(kernel, blocks, threads, 0, stream, arguments...);
}

}  // namespace flawscope::cuda
