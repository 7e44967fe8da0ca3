// The end of a search: the best candidates of all parts of the bank, Σ(q − m)² in float32 from the caller's rows, order
// by (distance, lower row), and the k first are written. Where slots have been kept, each is merged over the parts first:
// the candidates are then the same whatever the number of parts. A query without a distance gets NaN and row −1.
//
// A block of four warps has a query. Each warp merges a quarter of the candidates, the first merges the four lists, and
// all compute distances: a lane adds up every 32nd channel, and the 32 sums are added as a tree.
//
// State: compiled, not run (run in emulation on the CPU).
#include "launches.h"
#include "select.cuh"

namespace flawscope::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

struct FinishArguments {
    const BankHeader* header;
    const void *queries, *rows;
    const float* centre;       // of the packed rows, which also have the scale of the bank; null for the caller's own
    int64_t d, stride;         // channels, and elements from one row to the next
    const uint32_t* usable;
    const uint64_t* partial;
    int splits, entries, capacity, candidates, k;
    bool slots;
    float* squared;
    int64_t* found;
};

struct FinishShared {
    uint64_t keys[kWarps][kMaxCandidates];
    uint64_t slots[kThreads / kSlots][kSlots];
    uint64_t winners[kMaxCandidates];  // by (distance, row)
};

__device__ inline void write_nothing(const FinishArguments& a, int64_t query, int place) {
    a.squared[query * a.k + place] = __uint_as_float(0x7fc00000u);
    a.found[query * a.k + place] = -1;
}

// Leave the best of the slots in shared.keys[0], best first.
__device__ inline void merge_slots(const FinishArguments& a, int64_t query, FinishShared& shared) {
    const int thread = threadIdx.x, slot = thread % kSlots;
    uint64_t least = kNoCandidate;
    for (int split = thread / kSlots; split < a.splits; split += kThreads / kSlots) {
        const uint64_t key = a.partial[(query * a.splits + split) * kSlots + slot];
        least = key < least ? key : least;
    }
    shared.slots[thread / kSlots][slot] = least;
    __syncthreads();
    if (thread < kWarp) {
        for (int i = 0; i < kThreads / kSlots; ++i) least = shared.slots[i][slot] < least ? shared.slots[i][slot] : least;
        SortedKeys keys(thread);
        keys.take(thread < kSlots ? least : kNoCandidate, kNoCandidate);
        keys.write(shared.keys[0]);
    }
    __syncthreads();
}

// Leave the candidates of all splits in shared.keys[0], best first.
__device__ inline void merge(const FinishArguments& a, int64_t query, FinishShared& shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int total = a.splits * a.capacity;
    const auto key = [&](int i) {
        const int split = i / a.capacity, entry = i % a.capacity;
        return i < total ? a.partial[(query * a.splits + split) * a.entries + entry] : kNoCandidate;
    };
    SortedKeys keys(lane);
    for (int first = warp * 2 * kWarp; first < total; first += 2 * kThreads) {
        keys.take(key(first + lane), key(first + kWarp + lane));
    }
    keys.write(shared.keys[warp]);
    __syncthreads();
    if (warp == 0) {
        for (int other = 1; other < kWarps; ++other) {
            keys.take_sorted(shared.keys[other][lane], shared.keys[other][lane + kWarp]);
        }
        keys.write(shared.keys[0]);
    }
    __syncthreads();
}

template <class Difference>
__device__ inline float distance_of_lane(int64_t d, int lane, const Difference& difference) {
    float sum = 0.0f;
    for (int64_t c = lane; c < d; c += kWarp) sum += difference(c) * difference(c);
    return sum;
}

template <class Query, class Row>
__global__ void __launch_bounds__(kThreads) finish_kernel(FinishArguments a) {
    FLAWSCOPE_SHARED(FinishShared, shared);
    const int64_t query = blockIdx.x;
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    // The same for all threads of the block: a barrier below that some never reach would hang.
    if (a.usable[query] == 0 || a.header->refused != 0) {
        if (thread < a.k) write_nothing(a, query, thread);
        return;
    }
    if (a.slots) merge_slots(a, query, shared);
    else merge(a, query, shared);
    const Query* q = static_cast<const Query*>(a.queries) + query * a.d;
    for (int i = warp; i < a.candidates; i += kWarps) {
        const uint64_t key = shared.keys[0][i];
        float sum = 0.0f;
        if (key < kNoCandidate) {
            const Row* m = static_cast<const Row*>(a.rows) + row_of(key) * a.stride;
            if (a.centre == nullptr) {
                sum = distance_of_lane(a.d, lane, [&](int64_t c) { return to_float(q[c]) - to_float(m[c]); });
            } else {
                const float scale = power_of_two(-scale_exponent(a.header->peak_bits));
                sum = distance_of_lane(
                    a.d, lane, [&](int64_t c) { return to_float(q[c]) - a.centre[c] - scale * to_float(m[c]); });
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            // Rows that are not what was packed may have no distance. Such a key comes after all candidates.
            const bool there = key < kNoCandidate && isfinite(sum);
            shared.winners[i] = there ? key_of(sum, row_of(key)) : kNoCandidate;
        }
    }
    __syncthreads();
    // After the last barrier; before it these threads were waited for.
    if (thread >= a.candidates) return;
    // The place of a winner is the number of those before it. What is none comes after all others, by its number.
    const uint64_t mine = shared.winners[thread];
    int place = 0;
    for (int i = 0; i < a.candidates; ++i) {
        const uint64_t other = shared.winners[i];
        place += other < mine || (other == mine && i < thread) ? 1 : 0;
    }
    if (place >= a.k) return;
    if (mine >= kNoCandidate) {
        write_nothing(a, query, place);
        return;
    }
    const uint32_t bits = static_cast<uint32_t>(mine >> 32);  // of a value that is not negative
    a.squared[query * a.k + place] = __uint_as_float(bits & 0x7fffffffu);
    a.found[query * a.k + place] = row_of(mine);
}

}  // namespace

cudaError_t finish_load() {
    cudaError_t status = load(finish_kernel<Half, Half>);
    if (status == cudaSuccess) status = load(finish_kernel<Half, float>);
    if (status == cudaSuccess) status = load(finish_kernel<float, Half>);
    return status == cudaSuccess ? load(finish_kernel<float, float>) : status;
}

cudaError_t finish_launch(const Bank& bank, Matrix rows, Matrix queries, const Plan& plan, const Workspace& workspace,
                          int k, float* squared, int64_t* found, cudaStream_t stream) {
    FinishArguments a;
    const bool packed = rows.data == nullptr;
    a.header = bank.header;
    a.queries = queries.data;
    a.rows = packed ? bank.halves : rows.data;
    a.centre = packed ? bank.centre : nullptr;
    a.d = plan.d;
    a.stride = packed ? packed_depth(plan.d) : plan.d;
    a.usable = workspace.usable;
    a.partial = workspace.partial;
    a.splits = plan.splits;
    a.slots = plan.slots;
    a.entries = plan.stride;
    a.capacity = plan.capacity;
    a.candidates = plan.candidates;
    a.k = k;
    a.squared = squared;
    a.found = found;
    const dim3 blocks(static_cast<unsigned>(plan.n));
    if (packed || rows.halves) {
        return queries.halves ? launch(finish_kernel<Half, Half>, blocks, kThreads, stream, a)
                              : launch(finish_kernel<float, Half>, blocks, kThreads, stream, a);
    }
    return queries.halves ? launch(finish_kernel<Half, float>, blocks, kThreads, stream, a)
                          : launch(finish_kernel<float, float>, blocks, kThreads, stream, a);
}

}  // namespace flawscope::cuda
