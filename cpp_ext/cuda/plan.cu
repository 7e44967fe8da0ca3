// A small batch fills the device only if several blocks share the bank; too many parts cost their beginnings and their
// candidates. So the number of parts is the one whose last block is done first. Shared memory goes to the queries where
// they fit beside three stages, as each tile of the bank would fetch them again.
//
// State: compiled, not run (run in emulation on the CPU).
#include "plan.h"

#include "layout.h"

namespace flawscope::cuda {
namespace {

constexpr int kMargin = 7;       // candidates beyond k where the caller names no number
constexpr int kMaxSplits = 128;  // bounds the candidates that are merged for a query
// What the beginning and the end of a block take, in steps of its loop: where lists are kept, the first tile fills them.
constexpr int64_t kSlotSteps = 4, kListSteps = 32;
// Buffers of lists: room for survivors beside the candidates, so that they are merged rarely.
constexpr int kSmallList = 16, kSmallStride = 64, kLargeStride = 128;

struct DeviceFacts {
    int processors = 0, major = 0, shared = 0;
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

cudaError_t facts_of_device(DeviceFacts& facts) {
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&facts.processors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&facts.major, cudaDevAttrComputeCapabilityMajor, device);
    if (status != cudaSuccess) return status;
    return cudaDeviceGetAttribute(&facts.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Blocks beyond that many do not make a search faster; the workspace is reserved for them.
int64_t most_blocks(const Plan& plan, int processors) { return (plan.slots ? 4 : 2) * int64_t{processors}; }

// Steps until the last block is done, where they take turns on the device, one on each multiprocessor.
int64_t steps_of(const Plan& plan, int64_t splits, int processors) {
    const int64_t waves = divide_up(plan.query_tiles * splits, processors);
    const int64_t steps = packed_depth(plan.d) / kStepDepth + 1;  // one more for the end of a tile
    return waves * (divide_up(plan.row_tiles, splits) * steps + (plan.slots ? kSlotSteps : kListSteps));
}

void choose_memory(const DeviceFacts& facts, Plan& plan) {
    // Before 8.0 data waits in registers on its way: a third stage would not begin any earlier.
    const int most_stages = facts.major >= 8 ? 4 : 2, least_stages = facts.major >= 8 ? 3 : 2;
    for (const bool resident : {true, false}) {
        for (int stages = most_stages; stages >= (resident ? least_stages : 2); --stages) {
            plan.resident = resident;
            plan.stages = stages;
            if (plan.memory().bytes <= facts.shared) return;
        }
    }
}

}  // namespace

cudaError_t make_plan(int64_t n, int64_t m, int64_t d, int k, int rerank, Plan& plan) {
    DeviceFacts facts;
    const cudaError_t status = facts_of_device(facts);
    if (status != cudaSuccess) return status;
    plan.n = n;
    plan.d = d;
    plan.shared = facts.shared;
    plan.tile_rows = facts.major >= 8 ? kMostTileRows : kMostTileRows / 2;
    plan.query_tiles = divide_up(n, kTileQueries);
    plan.row_tiles = divide_up(m, plan.tile_rows);
    const int64_t candidates = least(rerank == 0 ? k + kMargin : rerank, kMaxCandidates);
    plan.candidates = static_cast<int>(least(candidates, m));
    plan.slots = k == 1 && plan.candidates <= kSlots;
    plan.capacity = plan.slots ? kSlots : plan.candidates;
    plan.stride = plan.slots ? kSlots : plan.candidates <= kSmallList ? kSmallStride : kLargeStride;
    choose_memory(facts, plan);
    const int64_t splits =
        least(most_blocks(plan, facts.processors) / plan.query_tiles, least(plan.row_tiles, kMaxSplits));
    plan.splits = 1;
    for (int64_t i = 2; i <= splits; ++i) {
        if (steps_of(plan, i, facts.processors) < steps_of(plan, plan.splits, facts.processors)) {
            plan.splits = static_cast<int>(i);
        }
    }
    return cudaSuccess;
}

cudaError_t reserved_bytes(const Plan& plan, int64_t& bytes) {
    DeviceFacts facts;
    const cudaError_t status = facts_of_device(facts);
    if (status != cudaSuccess) return status;
    // Not this plan's own blocks: fewer queries may be cut into more. No plan has more than this, and it only grows.
    const int64_t blocks = least(most(plan.query_tiles, most_blocks(plan, facts.processors)),
                                 plan.query_tiles * least(plan.row_tiles, kMaxSplits));
    bytes = workspace_at(nullptr, plan, blocks).bytes;
    return cudaSuccess;
}

}  // namespace flawscope::cuda
