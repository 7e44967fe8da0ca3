#pragma once

#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace flawscope {

// One Gaussian per position, its whitening matrix cut into strips of columns, in the order in which the kernels read them.
//
// Where every matrix is an upper triangle, as PaDiM's are, nothing but the triangle is stored; see `triangle_strip`. Of
// other matrices a strip keeps the rows from the first to the last that is not zero.
class Gaussians {
public:
    // whitening: float [p, d, d].
    Gaussians(const Kernels& kernels, const float* mean, const float* whitening, int64_t p, int64_t d, int threads);
    // triangles: upper triangles row after row, [p, d·(d + 1)/2], float32 or, of the same bits as stored, float16.
    Gaussians(const Kernels& kernels, const float* mean, const void* triangles, Storage storage, int64_t p, int64_t d,
              int threads);

    void squared_distances(const float* features, int64_t n, int threads, float* squared) const;
    int64_t bytes() const { return mean_.bytes() + strips_.bytes() + ranges_.bytes() + starts_.bytes(); }

    const Kernels& kernels;
    const int64_t p, d;

private:
    void take_mean(const float* mean);
    // row(i, r): the factors of row r of matrix i from the diagonal on.
    template <class T, class Row>
    void pack_triangles(int workers, const Row& row);
    void pack_strips(const float* whitening, int workers);
    void distances_of_group(int64_t i, const float* centred, int group, float* found) const;

    bool triangles_ = false;
    Storage storage_ = Storage::kFloat32;
    int64_t strip_count_, stride_ = 0;  // stride_: factors of a packed triangle
    Buffer<float> mean_;
    Buffer<char> strips_;
    Buffer<int32_t> ranges_;  // [p, strip_count_, 2]; empty for triangles
    Buffer<int64_t> starts_;  // [p + 1], in floats; empty for triangles
};

}  // namespace flawscope
