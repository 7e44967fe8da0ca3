#pragma once

#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace flawscope {

// One Gaussian per position, its whitening matrix cut into strips of columns. Of a strip only the rows from the first to
// the last that is not zero are kept: of a triangular factor about half.
class Gaussians {
public:
    Gaussians(const Kernels& kernels, const float* mean, const float* whitening, int64_t p, int64_t d, int threads);

    void squared_distances(const float* features, int64_t n, int threads, float* squared) const;
    int64_t bytes() const { return mean_.bytes() + strips_.bytes() + ranges_.bytes() + starts_.bytes(); }

    const Kernels& kernels;
    const int64_t p, d;

private:
    int64_t strip_count_;
    Buffer<float> mean_, strips_;
    Buffer<int32_t> ranges_;  // [p, strip_count_, 2]
    Buffer<int64_t> starts_;  // [p + 1], in floats
};

}  // namespace flawscope
