// The least keys of many, in order, kept by a warp in registers.
#pragma once

#include "layout.h"

namespace flawscope::cuda {

// Ascending: lane l holds entries l and l + 32.
class SortedKeys {
public:
    __device__ explicit SortedKeys(int lane) : lane_(lane) {}

    // The whole warp, with the same key.
    __device__ void insert(uint64_t key) {
        const int place = __popc(__ballot_sync(kAllLanes, low_ < key)) + __popc(__ballot_sync(kAllLanes, high_ < key));
        // All exchanges before the first assignment: each reads what other lanes still have.
        const uint64_t before_low = __shfl_up_sync(kAllLanes, low_, 1), end = __shfl_sync(kAllLanes, low_, kWarp - 1);
        const uint64_t before_high = __shfl_up_sync(kAllLanes, high_, 1);
        if (lane_ == place) low_ = key;
        if (lane_ > place) low_ = before_low;
        if (lane_ + kWarp == place) high_ = key;
        if (lane_ + kWarp > place) high_ = lane_ == 0 ? end : before_high;
    }

    // The whole warp: take what each lane offers, where it comes before entry `count` − 1.
    __device__ void insert_all(uint64_t offer, int count) {
        for (;;) {
            const unsigned near = __ballot_sync(kAllLanes, offer < entry(count - 1));
            if (near == 0) return;
            const int source = __ffs(static_cast<int>(near)) - 1;
            insert(__shfl_sync(kAllLanes, offer, source));
            if (lane_ == source) offer = kNoCandidate;
        }
    }

    // The whole warp.
    __device__ uint64_t entry(int i) const { return __shfl_sync(kAllLanes, i < kWarp ? low_ : high_, i % kWarp); }

    __device__ void write(uint64_t* out) const {
        out[lane_] = low_;
        out[lane_ + kWarp] = high_;
    }

private:
    static_assert(kMaxCandidates == 2 * kWarp, "two entries a lane");
    const int lane_;
    uint64_t low_ = kNoCandidate, high_ = kNoCandidate;
};

}  // namespace flawscope::cuda
