// Search: for each query the rows with the least ‖m̂‖²·factor + q̂·m̂ of a part of the bank, on tensor cores.
//
// A block has 128 queries and goes through its part of the bank by 128 rows at a time. Its eight warps, 2 × 4, compute
// the 128 × 128 products in registers, 64 × 32 each, from two stages of 32 channels in shared memory: while one is
// multiplied the other is filled. The products of a tile never leave the registers. Each thread has 8 values of each of
// 8 queries; where the least of the 8 comes before the last candidate that the query has, the thread offers it, and a
// thread per query takes what is offered into the list. That repeats until nobody has anything to offer. Once a list is
// full of near rows, that is rare, and a tile ends after one comparison a query and thread.
//
// Shared memory, 48 KiB at most, so that no launch has to ask for more: 2 × 16 KiB of operands and the lists. A row of
// operands is 64 bytes, four pieces of 16; piece c of row r lies at place c ^ (r / 2 % 4), so that the eight rows that
// a matrix load reads at once lie in different banks. Offers use the stage that has just been multiplied; those of slot s are turned by 4·(s % 4)
// queries, or four slots of a quarter warp would meet in the same banks.
//
// State: compiled, not run (run in emulation on the CPU).
#include <limits>

#include "launches.h"
#include "tensor_core.cuh"

namespace flawscope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpQueries = 64, kWarpRows = 32;                // tile of a warp
constexpr int kQueryParts = kWarpQueries / 16;                  // products of 16 × 8 in it
constexpr int kRowParts = kWarpRows / 8;
constexpr int kSlots = 16;                                      // threads that have values of the same query
constexpr int kStageRows = kTileQueries + kTileRows;            // queries first, then bank rows
constexpr int kPieces = kStepDepth / 8;                         // of 16 bytes in a row
constexpr int kCopies = kStageRows * kPieces / kThreads;        // pieces that a thread copies for a stage
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Lists of more than 16 would not leave room for the operands: they stay in global memory.
template <int kCapacity>
constexpr bool kListsInShared = kCapacity <= 16;

union Stage {
    Half operands[kStageRows * kStepDepth];
    uint64_t offers[kSlots][kTileQueries];
};

template <int kCapacity>
struct SearchShared {
    alignas(128) Stage stages[2];
    // The last entry is the last candidate of the query, whatever the order of the others. Where the lists are in
    // global memory, it is the only one here.
    uint64_t lists[kListsInShared<kCapacity> ? kCapacity : 1][kTileQueries];
};
static_assert(sizeof(SearchShared<16>) <= 48 * 1024, "more than a launch gets without asking");

struct SearchArguments {
    Bank bank;
    Workspace workspace;
    int depth, row_tiles, query_tiles, splits;
};

__device__ inline unsigned place_of(unsigned row, unsigned piece) {
    return (row * kPieces + (piece ^ (row / 2 % kPieces))) * 8;
}

__device__ inline int offer_place(int slot, int query) { return query ^ (slot % 4 * 4); }

// Fills stages with the queries of the block and its bank rows, 32 channels after 32 channels, tile after tile.
class Loader {
public:
    __device__ Loader(const SearchArguments& a, int64_t first_query, int64_t first_row)
        : depth_(a.depth), place_(place_of(threadIdx.x / kPieces, threadIdx.x % kPieces)) {
        const unsigned row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
        queries_ = a.workspace.queries + (first_query + row) * depth_ + piece * 8;
        rows_ = a.bank.halves + (first_row + row) * depth_ + piece * 8;
    }

    __device__ void start([[maybe_unused]] Stage& stage) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
#if FLAWSCOPE_ASYNC_COPY
            copy_async(stage.operands + place_ + i * kStride, source(i));
#else
            held_[i] = *reinterpret_cast<const uint4*>(source(i));
#endif
        }
        at_ += kStepDepth;
        if (at_ == depth_) {
            at_ = 0;
            rows_ += int64_t{kTileRows} * depth_;
        }
    }

    // Without asynchronous copies the data waits in registers while the other stage is multiplied.
    __device__ void finish([[maybe_unused]] Stage& stage) {
#if !FLAWSCOPE_ASYNC_COPY
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            *reinterpret_cast<uint4*>(stage.operands + place_ + i * kStride) = held_[i];
        }
#endif
    }

    __device__ void wait() {
#if FLAWSCOPE_ASYNC_COPY
        wait_for_copies();
#endif
    }

private:
    static constexpr int kRowsAtOnce = kThreads / kPieces;  // 64: the place of a piece in its row stays the same
    static constexpr int kStride = kRowsAtOnce * kStepDepth;

    __device__ const Half* source(int i) const {
        constexpr int kQueryCopies = kTileQueries / kRowsAtOnce;
        return i < kQueryCopies ? queries_ + (i * kRowsAtOnce * depth_ + at_)
                                : rows_ + ((i - kQueryCopies) * kRowsAtOnce * depth_ + at_);
    }

    const Half *queries_, *rows_;
    const int depth_;
    int at_ = 0;
    const unsigned place_;
#if !FLAWSCOPE_ASYNC_COPY
    uint4 held_[kCopies];
#endif
};

using Sums = float[kQueryParts][kRowParts][4];

// sums += 64 queries × 32 rows × 32 channels of this warp.
__device__ inline void multiply(const Stage& stage, Sums& sums) {
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const unsigned query = warp / 4 * kWarpQueries + lane % 16, query_piece = lane / 16;
    const unsigned row = kTileQueries + warp % 4 * kWarpRows + lane / 16 * 8 + lane % 8, row_piece = lane / 8 % 2;
#pragma unroll
    for (int half = 0; half < kStepDepth / 16; ++half) {
        uint32_t a[kQueryParts][4], b[kRowParts / 2][4];
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
            load_matrices(a[i], stage.operands + place_of(query + 16 * i, 2 * half + query_piece));
        }
#pragma unroll
        for (int j = 0; j < kRowParts / 2; ++j) {
            load_matrices(b[j], stage.operands + place_of(row + 16 * j, 2 * half + row_piece));
        }
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
            for (int j = 0; j < kRowParts; ++j) {
                multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

// The candidates of a block's queries.
template <int kCapacity>
class Candidates {
public:
    // `out`: keys [query][kCapacity] of this block in global memory, `stride` from one query to the next.
    __device__ Candidates(SearchShared<kCapacity>& shared, uint64_t* out, int64_t stride, const uint32_t* usable)
        : shared_(shared), out_(out), stride_(stride) {
        const int query = threadIdx.x;
        if (query < kTileQueries) {
            for (int i = 0; i < kCapacity; ++i) at(i, query) = kNoCandidate;
            // Nothing comes before key 0: a query without a distance takes no time.
            shared_.lists[kLast][query] = usable[query] != 0 ? kNoCandidate : 0;
        }
    }

    __device__ uint64_t last(int query) const { return shared_.lists[kLast][query]; }

    // Take the offers of a query in. The last candidate makes room, and the new last is brought to the end.
    __device__ void take(const Stage& stage, int query) {
        uint64_t last = shared_.lists[kLast][query];
        for (int slot = 0; slot < kSlots; ++slot) {
            const uint64_t offer = stage.offers[slot][offer_place(slot, query)];
            if (offer >= last) continue;
            int place = kCapacity - 1;
            last = offer;
#pragma unroll 4  // the values of the tile are in registers meanwhile: more loads at once would spill
            for (int i = 0; i < kCapacity - 1; ++i) {
                const uint64_t key = at(i, query);
                if (key > last) {
                    last = key;
                    place = i;
                }
            }
            if (place != kCapacity - 1) at(place, query) = offer;
            if (!kListsInShared<kCapacity>) at(kCapacity - 1, query) = last;
            shared_.lists[kLast][query] = last;
        }
    }

    __device__ void write() const {
        if (!kListsInShared<kCapacity>) return;
        for (int i = threadIdx.x; i < kCapacity * kTileQueries; i += kThreads) {
            const int query = i / kCapacity, entry = i % kCapacity;
            out_[query * stride_ + entry] = shared_.lists[entry % kRowsHere][query];
        }
    }

private:
    static constexpr int kRowsHere = kListsInShared<kCapacity> ? kCapacity : 1;
    static constexpr int kLast = kRowsHere - 1;

    __device__ uint64_t& at(int i, int query) {
        return kListsInShared<kCapacity> ? shared_.lists[i % kRowsHere][query] : out_[query * stride_ + i];
    }

    SearchShared<kCapacity>& shared_;
    uint64_t* out_;
    const int64_t stride_;
};

// threadIdx.x in a way that the compiler cannot compute ahead: what keep() derives from it would otherwise take
// registers throughout the products, which have none to spare.
__device__ inline unsigned thread_again() {
#if defined(FLAWSCOPE_EMULATION)
    return threadIdx.x;
#else
    unsigned thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    return thread;
#endif
}

// Turn the sums of a tile into values and let the queries have those that are near enough.
template <int kCapacity>
__device__ inline void keep(const SearchArguments& a, int64_t first_query, int tile, Sums& values, Stage& stage,
                            Candidates<kCapacity>& candidates) {
    constexpr int kValues = 2 * kRowParts;  // of a query in this thread: rows 8j + 2t and 8j + 2t + 1
    const unsigned thread = thread_again(), lane = thread % kWarp, warp = thread / kWarp;
    const int row = warp % 4 * kWarpRows + lane % 4 * 2, query = warp / 4 * kWarpQueries + lane / 4;
    const uint32_t first_row = static_cast<uint32_t>(tile) * kTileRows + row;
    const int slot = warp % 4 * 4 + lane % 4;
    float2 norms[kRowParts];
#pragma unroll
    for (int j = 0; j < kRowParts; ++j) {
        norms[j] = *reinterpret_cast<const float2*>(a.bank.norms + (first_row + 8 * j));
    }
    unsigned live = 0;  // bit 2i + h: this thread may have something for query 16i + 8h
#pragma unroll
    for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int q = query + 16 * i + 8 * h;
            const float factor = a.workspace.factors[first_query + q];
            float least = kInfinity;
#pragma unroll
            for (int j = 0; j < kRowParts; ++j) {
                values[i][j][2 * h] = fmaf(factor, norms[j].x, values[i][j][2 * h]);
                values[i][j][2 * h + 1] = fmaf(factor, norms[j].y, values[i][j][2 * h + 1]);
                least = fminf(least, fminf(values[i][j][2 * h], values[i][j][2 * h + 1]));
            }
            // Rows that are in the list already are lower: an equal value comes after them.
            if (ordered_bits(least) < static_cast<uint32_t>(candidates.last(q) >> 32)) live |= 1u << (2 * i + h);
        }
    }
    // The barrier also tells that all warps have read the stage that offers are going to be written to.
    int going = __syncthreads_or(static_cast<int>(live));
    while (going != 0) {
        bool offered = false;
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int q = query + 16 * i + 8 * h;
                uint64_t offer = kNoCandidate;
                if (live >> (2 * i + h) & 1u) {
                    float least = kInfinity;
                    int at = 0;
#pragma unroll
                    for (int c = 0; c < kValues; ++c) {
                        const float value = values[i][c / 2][2 * h + c % 2];
                        if (value < least) {  // of equal values the first: it has the lowest row
                            least = value;
                            at = c;
                        }
                    }
                    const uint64_t key = key_of(least, first_row + at / 2 * 8 + at % 2);
                    if (key < candidates.last(q)) {
                        offer = key;
                        offered = true;
#pragma unroll
                        for (int c = 0; c < kValues; ++c) {
                            if (c == at) values[i][c / 2][2 * h + c % 2] = kInfinity;
                        }
                    } else {
                        live &= ~(1u << (2 * i + h));
                    }
                }
                stage.offers[slot][offer_place(slot, q)] = offer;
            }
        }
        going = __syncthreads_or(offered ? 1 : 0);
        if (going == 0) break;
        if (threadIdx.x < kTileQueries) candidates.take(stage, threadIdx.x);
        __syncthreads();
    }
}

// 7.5 has shared memory for one block and holds the next data in registers; the others run two blocks side by side.
#if FLAWSCOPE_ASYNC_COPY
#define FLAWSCOPE_SEARCH_BLOCKS 2
#else
#define FLAWSCOPE_SEARCH_BLOCKS 1
#endif

template <int kCapacity>
__global__ void __launch_bounds__(kThreads, FLAWSCOPE_SEARCH_BLOCKS) search_kernel(SearchArguments a) {
    FLAWSCOPE_SHARED(SearchShared<kCapacity>, shared);
    const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kTileQueries;
    const int begin = static_cast<int>(int64_t{a.row_tiles} * blockIdx.y / a.splits);
    const int end = static_cast<int>(int64_t{a.row_tiles} * (blockIdx.y + 1) / a.splits);
    const int64_t stride = int64_t{a.splits} * kCapacity;
    Candidates<kCapacity> candidates(shared, a.workspace.partial + first_query * stride + blockIdx.y * kCapacity, stride,
                                     a.workspace.usable + first_query);
    Loader loader(a, first_query, int64_t{begin} * kTileRows);
    loader.start(shared.stages[0]);
    loader.finish(shared.stages[0]);
    int now = 0;
    for (int tile = begin; tile < end; ++tile) {
        Sums sums = {};
        for (int at = 0; at < a.depth; at += kStepDepth) {
            const bool more = at + kStepDepth < a.depth || tile + 1 < end;
            loader.wait();
            __syncthreads();  // this stage is filled, and nobody reads the other one any more
            if (more) loader.start(shared.stages[now ^ 1]);
            multiply(shared.stages[now], sums);
            if (more) loader.finish(shared.stages[now ^ 1]);
            now ^= 1;
        }
        keep<kCapacity>(a, first_query, tile, sums, shared.stages[now ^ 1], candidates);
    }
    candidates.write();
}

}  // namespace

cudaError_t search_launch(const Bank& bank, const Plan& plan, const Workspace& workspace, cudaStream_t stream) {
    const SearchArguments arguments{bank,
                                    workspace,
                                    static_cast<int>(packed_depth(plan.d)),
                                    static_cast<int>(plan.row_tiles),
                                    static_cast<int>(plan.query_tiles),
                                    plan.splits};
    const dim3 blocks(static_cast<unsigned>(plan.query_tiles), static_cast<unsigned>(plan.splits));
    switch (plan.capacity) {
        case 8: return launch(search_kernel<8>, blocks, kThreads, stream, arguments);
        case 16: return launch(search_kernel<16>, blocks, kThreads, stream, arguments);
        default: return launch(search_kernel<kMaxCandidates>, blocks, kThreads, stream, arguments);
    }
}

}  // namespace flawscope::cuda
