// What the kernels take from CUDA, or from its emulation on the CPU (emulation.h), under one name.
#pragma once

#include <cstdint>

#if defined(FLAWSCOPE_EMULATION)
#include "emulation.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// Shared memory of a block. A macro because the emulation has to fill it with rubbish before each block.
#define FLAWSCOPE_SHARED(type, name) __shared__ type name
// And that whose size the launch says.
#define FLAWSCOPE_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

// Compute capability that is compiled for, times 100. 0 in the pass for the host, which runs no kernel.
#if defined(FLAWSCOPE_EMULATION)
#define FLAWSCOPE_CUDA_ARCH FLAWSCOPE_EMULATED_ARCH
#elif defined(__CUDA_ARCH__)
#define FLAWSCOPE_CUDA_ARCH __CUDA_ARCH__
#else
#define FLAWSCOPE_CUDA_ARCH 0
#endif

namespace flawscope::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// float16 as its 16 bits: the kernels convert, they never compute in it.
struct Half {
    uint16_t bits;
};

#if defined(FLAWSCOPE_EMULATION)
inline float half_to_float(Half x) { return emulation::half_to_float(x.bits); }
inline Half float_to_half(float x) { return {flawscope::float_to_half(x)}; }
#else
__device__ inline float half_to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline Half float_to_half(float x) { return {__half_as_ushort(__float2half_rn(x))}; }

// Start a kernel and return what CUDA says of it. cudaLaunchKernelEx returns the status of this launch: an error that
// somebody left behind earlier is not taken for ours, as it would be by cudaGetLastError.
template <class... Parameters, class... Arguments>
cudaError_t launch_with_shared(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes,
                               cudaStream_t stream, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Load a kernel, which else happens at its first launch: one that is captured into a graph should not have to.
template <class... Parameters>
cudaError_t load(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
    return launch_with_shared(kernel, blocks, threads, 0, stream, arguments...);
}
#endif

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return half_to_float(x); }

// 2ᵉ, −126 ≤ e ≤ 127.
__device__ inline float power_of_two(int e) { return __uint_as_float(static_cast<uint32_t>(e + 127) << 23); }

__device__ inline float warp_sum(float x) {
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}
__device__ inline double warp_sum(double x) {
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}
__device__ inline uint32_t warp_max(uint32_t x) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const uint32_t other = __shfl_xor_sync(kAllLanes, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// Whether a row of this squared norm has distances: below 2¹²⁶ no distance between two rows overflows. NaN has none.
__device__ inline bool within_range(float norm) { return isfinite(4.0f * norm); }

// ---- Keys: a value and a row in 64 bits, so that one comparison orders by (value, lower row) -----------------------

// The order of floats as the order of integers. The sum makes −0 the 0 that it is equal to.
__device__ inline uint32_t ordered_bits(float value) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline uint64_t key_of(float value, uint32_t row) {
    return static_cast<uint64_t>(ordered_bits(value)) << 32 | row;
}

__device__ inline uint32_t row_of(uint64_t key) { return static_cast<uint32_t>(key); }

// The key of infinity at row 0: no candidate is less unless its value is finite.
constexpr uint64_t kNoCandidate = uint64_t{0xff800000u} << 32;

}  // namespace flawscope::cuda
