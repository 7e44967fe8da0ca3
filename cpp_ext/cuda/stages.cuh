// The way of operands from global memory through the stages of shared memory into the registers of the tensor cores.
//
// A row of operands is 64 bytes, four pieces of 16; piece c of row r lies at place c ^ (r / 2 % 4), so that the eight
// rows that a matrix load reads at once lie in different banks.
#pragma once

#include "launches.h"
#include "tensor_core.cuh"

namespace flawscope::cuda {

constexpr int kSearchThreads = 256;
constexpr int kWarpQueries = 64;                  // of the 2 × 4 warps of a block
constexpr int kQueryParts = kWarpQueries / 16;    // products of 16 × 8 in the tile of a warp
constexpr int kPieces = kStepDepth / 8;           // of 16 bytes in a row
constexpr int kRowsAtOnce = kSearchThreads / kPieces;  // 64: the place of a piece in its row stays the same
constexpr int kCopyStride = kRowsAtOnce * kStepDepth;
constexpr int kQueryStep = kTileQueries * kStepDepth;  // of operands

// Warps of 64 × 64 where copies are asynchronous: of the tiles that leave room for two sets of operands in registers the
// one with the fewest loads for a product. Before 8.0 the data on its way is in registers, too: 64 × 32.
template <int kRows>
struct Shape {
    static constexpr int kTileRows = kRows;
    static constexpr int kWarpRows = kRows / 4;
    static constexpr int kRowParts = kWarpRows / 8;
    static constexpr int kRowStep = kTileRows * kStepDepth;
    static constexpr bool kAsynchronous = kRows == kMostTileRows;
};
using Wide = Shape<kMostTileRows>;
using Narrow = Shape<kMostTileRows / 2>;

struct SearchArguments {
    Bank bank;
    Workspace workspace;
    int depth, row_tiles, splits, stages, stride, capacity;
    bool resident;
};

__device__ inline unsigned place_of(unsigned row, unsigned piece) {
    return (row * kPieces + (piece ^ (row / 2 % kPieces))) * 8;
}

// Where the parts of the block's shared memory are.
struct Parts {
    unsigned long long* limits;
    float *factors, *norms;
    unsigned* counts;
    Half *queries, *rows;

    __device__ Parts(unsigned char* memory, int tile_rows, const SearchArguments& a) {
        const SearchMemory at(tile_rows, a.stages, a.resident ? a.depth / kStepDepth : a.stages);
        limits = reinterpret_cast<unsigned long long*>(memory + SearchMemory::kLimits);
        factors = reinterpret_cast<float*>(memory + SearchMemory::kFactors);
        counts = reinterpret_cast<unsigned*>(memory + SearchMemory::kCounts);
        norms = reinterpret_cast<float*>(memory + SearchMemory::kNorms);
        queries = reinterpret_cast<Half*>(memory + at.queries);
        rows = reinterpret_cast<Half*>(memory + at.rows);
    }
};

// Fills stages with the bank rows of the block, 32 channels after 32 channels, tile after tile; with a tile's first step
// come its norms. Queries come with each step, or only with those of the first tile where they stay.
template <class Shape>
class Loader {
public:
    __device__ Loader(const SearchArguments& a, const Parts& parts, int64_t first_query, int64_t first_row)
        : parts_(parts),
          depth_(a.depth),
          stages_(a.stages),
          resident_(a.resident),
          place_(place_of(threadIdx.x / kPieces, threadIdx.x % kPieces)) {
        const unsigned row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
        queries_ = a.workspace.queries + (first_query + row) * depth_ + piece * 8;
        rows_ = a.bank.halves + (first_row + row) * depth_ + piece * 8;
        norms_ = a.bank.norms + first_row + threadIdx.x * 4;
    }

    // Each start() is followed by one finish().
    __device__ void start() {
#pragma unroll
        for (int i = 0; i < kRowCopies; ++i) move<true>(i, row_place(i), rows_ + (i * kRowsAtOnce * depth_ + at_));
        if (queries_come_) {
#pragma unroll
            for (int i = 0; i < kQueryCopies; ++i) {
                move<true>(kRowCopies + i, query_place(i), queries_ + (i * kRowsAtOnce * depth_ + at_));
            }
        }
        if (norms_come()) move<true>(kRowCopies + kQueryCopies, norm_place(), norms_);
    }

    // Without asynchronous copies the data waits in registers until here.
    __device__ void finish() {
        if (!Shape::kAsynchronous) {
#pragma unroll
            for (int i = 0; i < kRowCopies; ++i) move<false>(i, row_place(i), rows_);
            if (queries_come_) {
#pragma unroll
                for (int i = 0; i < kQueryCopies; ++i) move<false>(kRowCopies + i, query_place(i), queries_);
            }
            if (norms_come()) move<false>(kRowCopies + kQueryCopies, norm_place(), norms_);
        }
        stage_ = stage_ + 1 == stages_ ? 0 : stage_ + 1;
        at_ += kStepDepth;
        if (at_ != depth_) return;
        at_ = 0;
        rows_ += int64_t{Shape::kTileRows} * depth_;
        norms_ += Shape::kTileRows;
        norm_slot_ = norm_slot_ == stages_ ? 0 : norm_slot_ + 1;
        if (resident_) queries_come_ = false;
    }

private:
    static constexpr int kRowCopies = Shape::kTileRows / kRowsAtOnce, kQueryCopies = kTileQueries / kRowsAtOnce;

    __device__ bool norms_come() const { return at_ == 0 && threadIdx.x < Shape::kTileRows / 4; }
    __device__ Half* row_place(int i) const { return parts_.rows + stage_ * Shape::kRowStep + place_ + i * kCopyStride; }
    __device__ Half* query_place(int i) const {
        return parts_.queries + (resident_ ? at_ / kStepDepth : stage_) * kQueryStep + place_ + i * kCopyStride;
    }
    __device__ float* norm_place() const { return parts_.norms + norm_slot_ * Shape::kTileRows + threadIdx.x * 4; }

    // 16 bytes, the i-th of this thread in a step.
    template <bool kStarts>
    __device__ void move([[maybe_unused]] int i, void* to, const void* from) {
        if constexpr (Shape::kAsynchronous) {
            copy_async(to, from);
        } else if constexpr (kStarts) {
            held_[i] = *static_cast<const uint4*>(from);
        } else {
            *static_cast<uint4*>(to) = held_[i];
        }
    }

    const Parts& parts_;
    const Half *queries_, *rows_;
    const float* norms_;
    const int depth_, stages_;
    const bool resident_;
    const unsigned place_;
    int at_ = 0, stage_ = 0, norm_slot_ = 0;
    bool queries_come_ = true;
    uint4 held_[Shape::kAsynchronous ? 1 : kRowCopies + kQueryCopies + 1];
};

template <class Shape>
using Sums = float[kQueryParts][Shape::kRowParts][4];

// Operands of a warp for 16 channels.
template <class Shape>
struct Operands {
    uint32_t a[kQueryParts][4], b[Shape::kRowParts / 2][4];

    // `half`: the first or the second 16 channels of the step.
    __device__ void load(const Half* queries, const Half* rows, int half) {
        const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const unsigned query = place_of(warp / 4 * kWarpQueries + lane % 16, lane / 16) ^ (half * 16);
        const unsigned row =
            place_of(warp % 4 * Shape::kWarpRows + lane / 16 * 8 + lane % 8, lane / 8 % 2) ^ (half * 16);
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) load_matrices(a[i], queries + query + i * 16 * kStepDepth);
#pragma unroll
        for (int j = 0; j < Shape::kRowParts / 2; ++j) load_matrices(b[j], rows + row + j * 16 * kStepDepth);
    }

    __device__ void multiply(Sums<Shape>& sums) const {
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
            for (int j = 0; j < Shape::kRowParts; ++j) {
                multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
};

}  // namespace flawscope::cuda
