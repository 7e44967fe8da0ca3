#pragma once

#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace flawscope {

constexpr uint32_t kGaussiansBlockVersion = 1;  // raise it wherever a strip or the header of a block gets another meaning

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
    // Triangles that lie packed in a block, which was checked (`gaussians_block_state`) and must outlive them.
    Gaussians(const Kernels& kernels, Storage storage, int64_t p, int64_t d, const char* block);

    void squared_distances(const float* features, int64_t n, int threads, float* squared) const;
    int64_t bytes() const { return mean_.bytes() + strips_.bytes() + ranges_.bytes() + starts_.bytes(); }

    const Kernels& kernels;
    const int64_t p, d;

private:
    void take_mean(const float* mean);
    void make_room();
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

// Packed triangles as one block of memory: a page with a header, means, and strips. Written once, it is mapped by many
// processes, which then have its pages in common.
int64_t gaussians_block_bytes(const Kernels& kernels, Storage storage, int64_t p, int64_t d);
void write_gaussians_block(const Kernels& kernels, const float* mean, const void* triangles, Storage storage, int64_t p,
                           int64_t d, int threads, char* block);

enum class BlockState { kSame, kOther, kDamaged };

// Whether a block is to the last bit what these Gaussians write on this level: all of it is compared with them. So there
// is no sum that could be made to fit.
BlockState gaussians_block_state(const Kernels& kernels, const char* block, int64_t bytes, const float* mean,
                                 const void* triangles, Storage storage, int64_t p, int64_t d, int threads);

}  // namespace flawscope
