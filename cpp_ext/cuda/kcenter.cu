// Greedy k-centre: chosen[i + 1] = argmaxᵣ min over the centres so far of ‖xᵣ − xᶜ‖², of equal rows the lowest.
//
// A pass over the features for each centre. It is one kernel: it lowers every row's distance to its nearest centre,
// and takes the maximum of all rows by an atomic maximum of (distance, row) as one number, which does not depend on the
// order of the blocks. The next pass reads its centre from there, so nothing returns to the host between centres.
// Distances are Σ(x − c)², exactly zero for a row that repeats a centre.
//
// State: compiled, not run (run in emulation on the CPU).
#include <limits>

#include "launches.h"

namespace flawscope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsAtOnce = 4;  // of a warp: several loads are under way for each of the centre
constexpr int kRounds = 2;
constexpr int kBlockRows = kWarps * kRowsAtOnce * kRounds;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct StepShared {
    uint64_t best[kWarps];
};

struct Selection {
    uint32_t* refused;
    unsigned long long* best;  // [count]: (distance, ~row) of the centre after this one
    float* closest;            // [n]: distance to the nearest centre, −infinity for a centre
};

Selection selection_at(void* workspace, int64_t count) {
    char* base = static_cast<char*>(workspace);
    return {reinterpret_cast<uint32_t*>(base), reinterpret_cast<unsigned long long*>(base + kAlignment),
            reinterpret_cast<float*>(base + kAlignment + round_up(count * 8, kAlignment))};
}

__device__ inline int64_t centre_of(const Selection& selection, int64_t first, int64_t position) {
    return position == 0 ? first : ~row_of(selection.best[position - 1]);
}

// Refuse features without a distance, and begin with no centre.
__global__ void __launch_bounds__(kThreads)
    kcenter_begin_kernel(const float* features, int64_t n, int64_t d, Selection selection) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    // Whole warps leave, as a row is a warp's: warp_sum needs all 32 lanes.
    if (row >= n) return;
    float norm = 0.0f;
    for (int64_t i = lane; i < d; i += kWarp) norm += features[row * d + i] * features[row * d + i];
    norm = warp_sum(norm);
    if (lane != 0) return;
    selection.closest[row] = kInfinity;
    if (!within_range(norm)) *selection.refused = 1;
}

__device__ inline float squared_difference(float x, float c) { return (x - c) * (x - c); }
__device__ inline float squared_difference(float4 x, float4 c) {
    const float a = x.x - c.x, b = x.y - c.y, e = x.z - c.z, f = x.w - c.w;
    return (a * a + b * b) + (e * e + f * f);
}

// Vector: float, or float4 where rows are aligned to it; `d` counts Vectors.
template <class Vector>
__global__ void __launch_bounds__(kThreads)
    kcenter_step_kernel(const Vector* features, int64_t n, int64_t d, int64_t first, int64_t position,
                        Selection selection) {
    FLAWSCOPE_SHARED(StepShared, shared);
    if (*selection.refused != 0) return;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t centre = centre_of(selection, first, position);
    const Vector* centre_row = features + centre * d;
    uint64_t best = 0;
    for (int round = 0; round < kRounds; ++round) {
        const int64_t row = static_cast<int64_t>(blockIdx.x) * kBlockRows + (round * kWarps + warp) * kRowsAtOnce;
        if (row >= n) break;
        const Vector* source[kRowsAtOnce];
        float sums[kRowsAtOnce] = {};
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) source[r] = features + (row + r < n ? row + r : row) * d;
        for (int64_t i = lane; i < d; i += kWarp) {
            const Vector c = centre_row[i];
#pragma unroll
            for (int r = 0; r < kRowsAtOnce; ++r) sums[r] += squared_difference(source[r][i], c);
        }
#pragma unroll
        for (int r = 0; r < kRowsAtOnce; ++r) {
            const float sum = warp_sum(sums[r]);
            if (lane != 0 || row + r >= n) continue;
            // A centre is out, also where another row equals it: rows that remain come before it.
            const float closest = row + r == centre ? -kInfinity : fminf(selection.closest[row + r], sum);
            selection.closest[row + r] = closest;
            const uint64_t key = key_of(closest, ~static_cast<uint32_t>(row + r));
            best = key > best ? key : best;
        }
    }
    if (lane == 0) shared.best[warp] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kWarps; ++i) best = shared.best[i] > best ? shared.best[i] : best;
    atomicMax(selection.best + position, static_cast<unsigned long long>(best));
}

__global__ void __launch_bounds__(kThreads)
    kcenter_end_kernel(int64_t count, int64_t first, Selection selection, int64_t* chosen) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < count) chosen[i] = *selection.refused != 0 ? -1 : centre_of(selection, first, i);
}

}  // namespace

int64_t kcenter_bytes(int64_t n, int64_t count) {
    return kAlignment + round_up(count * 8, kAlignment) + round_up(n * 4, kAlignment);
}

cudaError_t kcenter_launch(const float* features, int64_t n, int64_t d, int64_t count, int64_t first, void* workspace,
                           int64_t* chosen, cudaStream_t stream) {
    const Selection selection = selection_at(workspace, count);
    // On the stream, as the kernels are: with cudaMemset the default stream would wait, and a capture would be refused.
    cudaError_t status = cudaMemsetAsync(workspace, 0, static_cast<size_t>(kAlignment + count * 8), stream);
    if (status != cudaSuccess) return status;
    status = launch(kcenter_begin_kernel, dim3(static_cast<unsigned>(divide_up(n, kWarps))), kThreads, stream,
                    features, n, d, selection);
    const bool vectors = d % 4 == 0 && reinterpret_cast<uintptr_t>(features) % sizeof(float4) == 0;
    const dim3 blocks(static_cast<unsigned>(divide_up(n, kBlockRows)));
    for (int64_t position = 0; status == cudaSuccess && position + 1 < count; ++position) {
        status = vectors ? launch(kcenter_step_kernel<float4>, blocks, kThreads, stream,
                                  reinterpret_cast<const float4*>(features), n, d / 4, first, position, selection)
                         : launch(kcenter_step_kernel<float>, blocks, kThreads, stream, features, n, d, first,
                                  position, selection);
    }
    if (status != cudaSuccess) return status;
    return launch(kcenter_end_kernel, dim3(static_cast<unsigned>(divide_up(count, kThreads))), kThreads, stream, count,
                  first, selection, chosen);
}

}  // namespace flawscope::cuda
