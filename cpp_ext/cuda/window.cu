// Search within windows: for each patch the nearest of the rows that come from places near its own.
//
// A block has 4 × 4 places of one image and goes through the rows of all places that one of its windows reaches: of each
// row of the grid one range of the bank, whose rows are sorted by place. They come 128 at a time, from as many ranges as
// that takes, 32 channels after 32 channels through shared memory. A warp has two of the patches, a lane four of the
// rows: Σ(q − m)² is summed in float32 as it stands, which needs no norms, no packed bank and no second pass. A row
// counts for a patch if it lies in that patch's own range of that row of the grid.
//
// A pair of a patch and a row takes two operations a channel where a matrix product takes one on far faster units: this
// kernel is for windows that are a small share of the bank.
//
// State: compiled, not run (run in emulation on the CPU).
#include "launches.h"

namespace flawscope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 4;                             // places of a block, along rows and along columns
constexpr int kQueries = kSide * kSide;
constexpr int kQueriesOfWarp = kQueries / (kThreads / kWarp);
constexpr int kRows = 128;                           // at a time
constexpr int kRowsOfLane = kRows / kWarp;
constexpr int kDepth = 32;                           // channels at a time, one for each lane that copies

template <class Value>
struct WindowArguments {
    const float* rows;
    const int64_t* starts;   // [height · width + 1]
    const int32_t* reach;    // [height · width]
    const Value* queries;
    float* squared;
    int64_t* found;
    int64_t d, height, width;
    int64_t tiles_down, tiles_along;
};

struct WindowShared {
    float queries[kQueries][kDepth];
    float rows[kDepth][kRows + 1];  // one more: lanes that write the channels of a row reach different banks
    int64_t row_at[kRows];          // row of the bank, −1 beyond the last
    int32_t grid_row_at[kRows];     // and row of the grid that it comes from
    bool usable[kQueries];
};

// What a block looks at: rows of the grid from `first` to `last`, columns from `left` to `right`.
struct Area {
    int64_t first, last, left, right;
};

// Where the next rows begin: a row of the grid, and how many rows of its range have been taken.
struct Cursor {
    int64_t grid_row, taken;
};

template <class Value>
__device__ inline int64_t range_begin(const WindowArguments<Value>& a, int64_t grid_row, int64_t column) {
    return a.starts[grid_row * a.width + column];
}

// The cursor `by` rows further on.
template <class Value>
__device__ inline Cursor advanced(const WindowArguments<Value>& a, const Area& area, Cursor at, int64_t by) {
    at.taken += by;
    while (at.grid_row <= area.last) {
        const int64_t length =
            range_begin(a, at.grid_row, area.right + 1) - range_begin(a, at.grid_row, area.left);
        if (at.taken < length) break;
        at.taken -= length;
        ++at.grid_row;
    }
    return at;
}

__device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Value>
__global__ void __launch_bounds__(kThreads, 2) window_kernel(WindowArguments<Value> a) {
    FLAWSCOPE_SHARED(WindowShared, shared);
    const int64_t tile = blockIdx.x % (a.tiles_down * a.tiles_along), image = blockIdx.x / (a.tiles_down * a.tiles_along);
    const int64_t top = tile / a.tiles_along * kSide, side = tile % a.tiles_along * kSide;
    const int64_t places = a.height * a.width;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const Value* queries = a.queries + image * places * a.d;
    const auto place_of = [&](int q) -> int64_t {  // −1 beyond the grid
        const int64_t y = top + q / kSide, x = side + q % kSide;
        return y < a.height && x < a.width ? y * a.width + x : -1;
    };
    Area area{a.height, -1, a.width, -1};
    for (int q = 0; q < kQueries; ++q) {
        const int64_t place = place_of(q);
        if (place < 0) continue;
        const int64_t y = place / a.width, x = place % a.width, reach = a.reach[place];
        area.first = least(area.first, most(0, y - reach));
        area.last = most(area.last, least(a.height - 1, y + reach));
        area.left = least(area.left, most(0, x - reach));
        area.right = most(area.right, least(a.width - 1, x + reach));
    }
    for (int i = 0; i < kQueriesOfWarp; ++i) {
        const int q = warp * kQueriesOfWarp + i;
        const int64_t place = place_of(q);
        float norm = 0.0f;
        for (int64_t c = lane; place >= 0 && c < a.d; c += kWarp) {
            const float x = to_float(queries[place * a.d + c]);
            norm = fmaf(x, x, norm);
        }
        norm = warp_sum(norm);
        if (lane == 0) shared.usable[q] = place >= 0 && within_range(norm);
    }
    uint64_t best[kQueriesOfWarp];
    for (int i = 0; i < kQueriesOfWarp; ++i) best[i] = kNoCandidate;
    Cursor at = advanced(a, area, {area.first, 0}, 0);
    while (at.grid_row <= area.last) {
        __syncthreads();  // nobody reads the rows before any more
        if (threadIdx.x < kRows) {
            const Cursor mine = advanced(a, area, at, threadIdx.x);
            const bool there = mine.grid_row <= area.last;
            shared.row_at[threadIdx.x] = there ? range_begin(a, mine.grid_row, area.left) + mine.taken : -1;
            shared.grid_row_at[threadIdx.x] = static_cast<int32_t>(mine.grid_row);
        }
        float sums[kQueriesOfWarp][kRowsOfLane] = {};
        for (int64_t start = 0; start < a.d; start += kDepth) {
            const int64_t channel = start + lane;
            __syncthreads();
            for (int q = warp; q < kQueries; q += kThreads / kWarp) {
                const int64_t place = place_of(q);
                const bool there = place >= 0 && channel < a.d;
                shared.queries[q][lane] = there ? to_float(queries[place * a.d + channel]) : 0.0f;
            }
            for (int r = warp; r < kRows; r += kThreads / kWarp) {
                const int64_t row = shared.row_at[r];
                shared.rows[lane][r] = row >= 0 && channel < a.d ? a.rows[row * a.d + channel] : 0.0f;
            }
            __syncthreads();
#pragma unroll 4
            for (int c = 0; c < kDepth; ++c) {
#pragma unroll
                for (int j = 0; j < kRowsOfLane; ++j) {
                    const float value = shared.rows[c][lane + j * kWarp];
#pragma unroll
                    for (int i = 0; i < kQueriesOfWarp; ++i) {
                        const float difference = shared.queries[warp * kQueriesOfWarp + i][c] - value;
                        sums[i][j] = fmaf(difference, difference, sums[i][j]);
                    }
                }
            }
        }
        for (int i = 0; i < kQueriesOfWarp; ++i) {
            const int64_t place = place_of(warp * kQueriesOfWarp + i);
            if (place < 0) continue;
            const int64_t y = place / a.width, x = place % a.width, reach = a.reach[place];
            const int64_t left = most(0, x - reach), right = least(a.width - 1, x + reach);
            for (int j = 0; j < kRowsOfLane; ++j) {
                const int64_t row = shared.row_at[lane + j * kWarp], grid_row = shared.grid_row_at[lane + j * kWarp];
                if (row < 0 || grid_row < y - reach || grid_row > y + reach) continue;
                if (row < range_begin(a, grid_row, left) || row >= range_begin(a, grid_row, right + 1)) continue;
                // A row that is no number has no finite distance and is never near.
                if (!isfinite(sums[i][j])) continue;
                const uint64_t key = key_of(sums[i][j], static_cast<uint32_t>(row));
                best[i] = key < best[i] ? key : best[i];
            }
        }
        at = advanced(a, area, at, kRows);
    }
    __syncthreads();  // the flags of the queries are there, also where a block has no rows
    for (int i = 0; i < kQueriesOfWarp; ++i) {
        uint64_t key = best[i];
        for (int step = kWarp / 2; step > 0; step /= 2) {
            const uint64_t other = __shfl_xor_sync(kAllLanes, key, step);
            key = other < key ? other : key;
        }
        const int q = warp * kQueriesOfWarp + i;
        const int64_t place = place_of(q);
        if (lane != 0 || place < 0) continue;
        const bool is_found = shared.usable[q] && key != kNoCandidate;
        // A square is not below 0: of its ordered bits only the first is not its own.
        const uint32_t bits = static_cast<uint32_t>(key >> 32) & 0x7fffffffu;
        a.squared[image * places + place] = __uint_as_float(is_found ? bits : 0x7fc00000u);
        a.found[image * places + place] = is_found ? int64_t{row_of(key)} : -1;
    }
}

template <class Value>
cudaError_t start(const float* rows, int64_t d, const Windows& windows, const Value* queries, int64_t images,
                  float* squared, int64_t* found, cudaStream_t stream) {
    WindowArguments<Value> arguments{rows, windows.starts, windows.reach, queries, squared, found, d,
                                     windows.height, windows.width, divide_up(windows.height, kSide),
                                     divide_up(windows.width, kSide)};
    const int64_t blocks = arguments.tiles_down * arguments.tiles_along * images;
    return launch(window_kernel<Value>, dim3(static_cast<unsigned>(blocks)), kThreads, stream, arguments);
}

}  // namespace

cudaError_t windows_launch(const float* rows, int64_t d, const Windows& windows, Matrix queries, int64_t images,
                           float* squared, int64_t* found, cudaStream_t stream) {
    if (queries.halves) {
        return start(rows, d, windows, static_cast<const Half*>(queries.data), images, squared, found, stream);
    }
    return start(rows, d, windows, static_cast<const float*>(queries.data), images, squared, found, stream);
}

}  // namespace flawscope::cuda
