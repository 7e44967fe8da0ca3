// The least keys of many, in order, kept by a warp in registers.
#pragma once

#include "layout.h"

namespace flawscope::cuda {

// Ascending: lane l holds entries l and l + 32. Others are sorted and merged in networks of fixed length (K. E. Batcher,
// Sorting networks and their applications, 1968). Inserting them one by one would take a turn of the warp for each key
// that belongs in, and in each turn all lanes are asked several times in a row.
class SortedKeys {
public:
    __device__ explicit SortedKeys(int lane) : lane_(lane) {}

    // The whole warp: take 64 more, two of each lane, in any order.
    __device__ void take(uint64_t low, uint64_t high) {
#pragma unroll 1
        for (int size = 2; size <= kMaxCandidates; size *= 2) sort_runs(low, high, size);
        take_sorted(low, high);
    }

    // The whole warp: take 64 that are ascending, each lane the entries l and l + 32.
    __device__ void take_sorted(uint64_t low, uint64_t high) {
        // The lesser of each entry and the one that is as far from the other end are the least of both; their order is one
        // that falls and rises once, which half a sort puts right.
        const uint64_t from_end = __shfl_xor_sync(kAllLanes, high, kWarp - 1);
        const uint64_t from_start = __shfl_xor_sync(kAllLanes, low, kWarp - 1);
        low_ = from_end < low_ ? from_end : low_;
        high_ = from_start < high_ ? from_start : high_;
        sort_runs(low_, high_, kMaxCandidates);
    }

    // The whole warp.
    __device__ uint64_t entry(int i) const { return __shfl_sync(kAllLanes, i < kWarp ? low_ : high_, i % kWarp); }

    __device__ void write(uint64_t* out) const {
        out[lane_] = low_;
        out[lane_ + kWarp] = high_;
    }

private:
    static_assert(kMaxCandidates == 2 * kWarp, "two entries a lane");

    // Runs of `size`, of which each first half rises and each second half falls, become runs that rise and fall by turns.
    __device__ void sort_runs(uint64_t& low, uint64_t& high, int size) const {
        const bool low_rises = (lane_ & size) == 0, high_rises = ((lane_ + kWarp) & size) == 0;
        if (size == kMaxCandidates && high < low) {
            const uint64_t least = high;
            high = low;
            low = least;
        }
#pragma unroll 1
        for (int apart = size < kMaxCandidates ? size / 2 : kWarp / 2; apart > 0; apart /= 2) {
            const uint64_t other_low = __shfl_xor_sync(kAllLanes, low, apart);
            const uint64_t other_high = __shfl_xor_sync(kAllLanes, high, apart);
            const bool is_first = (lane_ & apart) == 0;
            if ((other_low < low) == (is_first == low_rises)) low = other_low;
            if ((other_high < high) == (is_first == high_rises)) high = other_high;
        }
    }

    const int lane_;
    uint64_t low_ = kNoCandidate, high_ = kNoCandidate;
};

}  // namespace flawscope::cuda
