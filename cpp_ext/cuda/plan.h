// How a search is cut into blocks for the current device, and the workspace that this takes.
#pragma once

#include <cstdint>

#include "platform.h"

namespace flawscope::cuda {

// How a search is cut, and how many candidates it keeps.
struct Plan {
    int64_t n, d;
    int64_t query_tiles, row_tiles;
    int splits;      // parts of the bank, each searched by its own blocks
    int capacity;    // candidates that a block keeps for a query
    int candidates;  // of those of all splits, how many are computed again
};

// Sizes have been checked. `rerank` 0: some more than k.
cudaError_t make_plan(int64_t n, int64_t m, int64_t d, int k, int rerank, Plan& plan);

// Bytes of workspace that are enough for this many queries and for fewer: a captured graph has one address for all
// batches, and who asks for the largest must not be refused the smaller ones.
cudaError_t reserved_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank, int64_t& bytes);

}  // namespace flawscope::cuda
