// A small batch fills the device only if several blocks share the bank; too many parts cost their beginnings and their
// candidates. So the number of parts is the one whose last block is done first.
//
// State: compiled, not run (run in emulation on the CPU).
#include "plan.h"

#include "layout.h"

namespace flawscope::cuda {
namespace {

constexpr int kMargin = 7;              // candidates beyond k where the caller names no number
constexpr int kMaxSplits = 128;         // bounds the candidates that are merged for a query
constexpr int kBlocksPerProcessor = 2;  // of the search kernel, side by side
// Beyond that many blocks for each that can run, no further split: it is what the workspace is reserved for.
constexpr int kMostWaves = 2;
constexpr int64_t kBlockSteps = 4;      // what the beginning and the end of a block take, in steps of its loop

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

cudaError_t blocks_at_once(int64_t& blocks) {
    int device = 0, processors = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    blocks = int64_t{kBlocksPerProcessor} * processors;
    return status;
}

// Steps until the last block is done, where all take turns on the device.
int64_t steps_of(const Plan& plan, int64_t splits, int64_t at_once) {
    const int64_t waves = divide_up(plan.query_tiles * splits, at_once);
    const int64_t steps = packed_depth(plan.d) / kStepDepth + 1;  // one more for the end of a tile
    return waves * (divide_up(plan.row_tiles, splits) * steps + kBlockSteps);
}

}  // namespace

cudaError_t make_plan(int64_t n, int64_t m, int64_t d, int k, int rerank, Plan& plan) {
    int64_t at_once = 0;
    const cudaError_t status = blocks_at_once(at_once);
    if (status != cudaSuccess) return status;
    plan.n = n;
    plan.d = d;
    plan.query_tiles = divide_up(n, kTileQueries);
    plan.row_tiles = divide_up(m, kTileRows);
    const int64_t splits = least(kMostWaves * at_once / plan.query_tiles, least(plan.row_tiles, kMaxSplits));
    plan.splits = 1;
    for (int64_t i = 2; i <= splits; ++i) {
        if (steps_of(plan, i, at_once) < steps_of(plan, plan.splits, at_once)) plan.splits = static_cast<int>(i);
    }
    const int64_t candidates = least(rerank == 0 ? k + kMargin : rerank, kMaxCandidates);
    plan.candidates = static_cast<int>(least(candidates, m));
    plan.capacity = plan.candidates <= 8 ? 8 : plan.candidates <= 16 ? 16 : kMaxCandidates;
    return cudaSuccess;
}

cudaError_t reserved_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank, int64_t& bytes) {
    Plan plan;
    cudaError_t status = make_plan(n, m, d, k, rerank, plan);
    if (status != cudaSuccess) return status;
    int64_t at_once = 0;
    status = blocks_at_once(at_once);
    if (status != cudaSuccess) return status;
    // Not this plan's own blocks: fewer queries may be cut into more. No plan has more than this, and it only grows.
    const int64_t blocks = least(most(plan.query_tiles, kMostWaves * at_once),
                                 plan.query_tiles * least(plan.row_tiles, kMaxSplits));
    bytes = workspace_at(nullptr, plan, blocks).bytes;
    return cudaSuccess;
}

}  // namespace flawscope::cuda
