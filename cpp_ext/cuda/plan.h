// How a search is cut into blocks for the current device, and the workspace that this takes.
#pragma once

#include <cstdint>

#include "platform.h"

namespace flawscope::cuda {

constexpr int kTileQueries = 128;    // queries of a block
constexpr int kMostTileRows = 256;   // bank rows that a block compares them with at a time; 128 before 8.0
constexpr int kStepDepth = 32;       // channels in shared memory at a time
constexpr int kSlots = 16;           // threads that have values of the same query
constexpr int kMaxCandidates = 64;
constexpr int64_t kAlignment = 256;

// Shared memory of a block of the search: what a query has, norms, packed queries and packed rows.
struct SearchMemory {
    static constexpr int kLimits = 0;                             // uint64 [kTileQueries]
    static constexpr int kFactors = kLimits + kTileQueries * 8;   // float [kTileQueries]
    static constexpr int kCounts = kFactors + kTileQueries * 4;   // unsigned [kTileQueries]
    static constexpr int kNorms = kCounts + kTileQueries * 4;
    int queries, rows, bytes;

    // Norms of one tile more than there are stages: those of the tile that ends are read while the last stage is filled.
    __host__ __device__ SearchMemory(int tile_rows, int stages, int query_steps)
        : queries(kNorms + (stages + 1) * tile_rows * 4),
          rows(queries + query_steps * kTileQueries * kStepDepth * 2),
          bytes(rows + stages * tile_rows * kStepDepth * 2) {}
};

// How a search is cut, and how many candidates it keeps.
struct Plan {
    int64_t n, d;
    int64_t query_tiles, row_tiles;
    int tile_rows;   // of the bank
    int splits;      // parts of the bank, each searched by its own blocks
    int shared;      // shared memory that a block may have on this device
    int stages;      // steps in shared memory
    bool resident;   // the queries of a block stay in shared memory
    bool slots;      // the nearest row of each slot is kept in registers; else a list of survivors in the workspace
    int stride;      // keys that a query has for each split
    int capacity;    // and how many of them are sorted at the end
    int candidates;  // of those of all splits, how many are computed again

    SearchMemory memory() const {
        const int64_t steps = divide_up(d, kStepDepth);
        return SearchMemory(tile_rows, stages, resident ? static_cast<int>(steps) : stages);
    }
};

// Sizes have been checked. `rerank` 0: some more than k.
cudaError_t make_plan(int64_t n, int64_t m, int64_t d, int k, int rerank, Plan& plan);

// Bytes of workspace that are enough for this many queries and for fewer: a captured graph has one address for all
// batches, and who asks for the largest must not be refused the smaller ones.
cudaError_t reserved_bytes(const Plan& plan, int64_t& bytes);

}  // namespace flawscope::cuda
