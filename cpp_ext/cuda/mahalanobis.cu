// Mahalanobis distances: squared[s, p] = Σⱼ (Σᵢ (x[s, p, i] − μ[p, i])·W[p, i, j])².
//
// The whitening matrices are nearly all of the memory that is read. A block has a position and up to 16 samples; a
// thread has a column of W, so a row of W is read side by side, once for all samples. Centred samples are kept in
// shared memory, 64 channels at a time, with the samples of a channel side by side: threads of a warp read the same.
// Of an upper triangle that is stored without its zeros nothing else is read, and no row below a thread's column is
// multiplied. Zeros of a whole matrix are multiplied like other numbers: which triangle holds them is the caller's affair.
//
// State: compiled, not run (run in emulation on the CPU).
#include "launches.h"

namespace flawscope::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kChannels = 64;  // in shared memory at a time

// Factors of one position as they lie in memory: whole matrices [p, d, d].
struct Squares {
    const float* data;
    __device__ Squares of(int64_t position, int64_t d) const { return {data + position * d * d}; }
    __device__ static int64_t rows(int64_t, int64_t d) { return d; }
    __device__ float at(int64_t row, int64_t column, int64_t d) const { return data[row * d + column]; }
};

// Upper triangles row after row, [p, d·(d + 1)/2].
template <class T>
struct Triangles {
    const T* data;
    __device__ Triangles of(int64_t position, int64_t d) const { return {data + position * (d * (d + 1) / 2)}; }
    __device__ static int64_t rows(int64_t column, int64_t) { return column + 1; }
    __device__ float at(int64_t row, int64_t column, int64_t d) const {
        return to_float(data[row * d - row * (row - 1) / 2 + column - row]);
    }
};

template <int kSamples>
struct MahalanobisShared {
    // A warp stores four samples of eight channels at a time: with these strides 32 different banks.
    static constexpr int kTogether = kSamples < 4 ? kSamples : 4;
    static constexpr int kStride = kSamples <= 4 ? kSamples : kSamples + 4;
    alignas(16) float centred[kChannels][kStride];
    float sums[kMostWarps][kSamples];
};

template <int kSamples, class Factors>
__global__ void __launch_bounds__(kMostThreads)
    mahalanobis_kernel(const float* mean, Factors whitening, int64_t p, int64_t d, const float* features,
                       int64_t n, int64_t chunks, float* squared) {
    FLAWSCOPE_SHARED(MahalanobisShared<kSamples>, shared);
    // Chunks of one position follow each other, so that those after the first find W in the second-level cache.
    const int64_t position = blockIdx.x / chunks, first = blockIdx.x % chunks * kSamples;
    const int count = static_cast<int>(n - first < kSamples ? n - first : kSamples);
    const int thread = threadIdx.x, threads = blockDim.x, lane = thread % kWarp, warp = thread / kWarp;
    const Factors matrix = whitening.of(position, d);
    float total[kSamples] = {};
    for (int64_t group = 0; group < d; group += threads) {
        const int64_t column = group + thread;
        float sums[kSamples] = {};
        for (int64_t start = 0; start < d; start += kChannels) {
            const int channels = static_cast<int>(d - start < kChannels ? d - start : kChannels);
            __syncthreads();
            for (int i = thread; i < kChannels * kSamples; i += threads) {
                constexpr int kTogether = MahalanobisShared<kSamples>::kTogether;
                const int channel = i / kTogether % kChannels;
                const int sample = i / (kTogether * kChannels) * kTogether + i % kTogether;
                float value = 0.0f;
                if (channel < channels && sample < count) {
                    const int64_t place = position * d + start + channel;
                    value = features[(first + sample) * p * d + place] - mean[place];
                }
                shared.centred[channel][sample] = value;
            }
            __syncthreads();
            // Not before the barriers: threads without a column have copied samples for the others.
            if (column >= d) continue;
            const int64_t left = Factors::rows(column, d) - start;  // less than 1 below the diagonal
            const int rows = static_cast<int>(left < channels ? left : channels);
#pragma unroll 8
            for (int i = 0; i < rows; ++i) {
                const float weight = matrix.at(start + i, column, d);
#pragma unroll
                for (int s = 0; s < kSamples; ++s) sums[s] = fmaf(shared.centred[i][s], weight, sums[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < kSamples; ++s) total[s] = fmaf(sums[s], sums[s], total[s]);
    }
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
        const float sum = warp_sum(total[s]);
        if (lane == 0) shared.sums[warp][s] = sum;
    }
    __syncthreads();
    if (thread >= count) return;
    float sum = 0.0f;
    for (int i = 0; i < threads / kWarp; ++i) sum += shared.sums[i][thread];
    squared[(first + thread) * p + position] = isfinite(sum) ? sum : __uint_as_float(0x7fc00000u);
}

template <class Factors>
cudaError_t launch_with(const float* mean, Factors factors, int64_t p, int64_t d, const float* features, int64_t n,
                        float* squared, cudaStream_t stream) {
    const int threads = d <= 64 ? 64 : d <= 128 ? 128 : kMostThreads;
    const auto start = [&](auto kernel, int64_t samples) {
        const int64_t chunks = divide_up(n, samples);
        return launch(kernel, dim3(static_cast<unsigned>(p * chunks)), threads, stream, mean, factors, p, d,
                      features, n, chunks, squared);
    };
    if (n == 1) return start(mahalanobis_kernel<1, Factors>, 1);
    if (n <= 4) return start(mahalanobis_kernel<4, Factors>, 4);
    return start(mahalanobis_kernel<16, Factors>, 16);
}

}  // namespace

cudaError_t mahalanobis_launch(const float* mean, const float* whitening, int64_t p, int64_t d, const float* features,
                               int64_t n, float* squared, cudaStream_t stream) {
    return launch_with(mean, Squares{whitening}, p, d, features, n, squared, stream);
}

cudaError_t mahalanobis_triangles_launch(const float* mean, Matrix triangles, int64_t p, int64_t d,
                                         const float* features, int64_t n, float* squared, cudaStream_t stream) {
    if (triangles.halves) {
        const Triangles<Half> halves{static_cast<const Half*>(triangles.data)};
        return launch_with(mean, halves, p, d, features, n, squared, stream);
    }
    const Triangles<float> floats{static_cast<const float*>(triangles.data)};
    return launch_with(mean, floats, p, d, features, n, squared, stream);
}

}  // namespace flawscope::cuda
