// What a block keeps of the products of a tile: for one neighbour the nearest row of each slot, for more a list.
//
// A thread has the values of 8 queries, and of each those of 8 or 16 rows of a tile; 16 threads, the slots, share a query.
#pragma once

#include <limits>

#include "select.cuh"
#include "stages.cuh"

namespace flawscope::cuda {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kQueriesOfThread = 2 * kQueryParts;  // query 16i + 8h of the warp's at 2i + h

// threadIdx.x in a way that the compiler cannot compute ahead: what is derived from it would otherwise take registers
// throughout the products, which have none to spare.
__device__ inline unsigned thread_again() {
#if defined(FLAWSCOPE_EMULATION)
    return threadIdx.x;
#else
    unsigned thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    return thread;
#endif
}

// Which values a thread has: of query `query` + 16i + 8h the rows `row` + 8j and `row` + 8j + 1 of the tile.
template <class Shape>
struct Place {
    unsigned query, row, slot;

    __device__ explicit Place(unsigned thread)
        : query(thread / kWarp / 4 * kWarpQueries + thread % kWarp / 4),
          row(thread / kWarp % 4 * Shape::kWarpRows + thread % 4 * 2),
          slot(thread / kWarp % 4 * 4 + thread % 4) {}
};

// Turn the sums of a query into values, and return the least of them. NaN is no least.
template <class Shape>
__device__ inline float values_of(Sums<Shape>& sums, const float2 (&norms)[Shape::kRowParts], float factor, int i, int h) {
    float least = kInfinity;
#pragma unroll
    for (int j = 0; j < Shape::kRowParts; ++j) {
        float& first = sums[i][j][2 * h];
        float& second = sums[i][j][2 * h + 1];
        first = fmaf(factor, norms[j].x, first);
        second = fmaf(factor, norms[j].y, second);
        least = fminf(least, fminf(first, second));
    }
    return least;
}

template <class Shape>
__device__ inline void load_norms(float2 (&out)[Shape::kRowParts], const float* norms) {
#pragma unroll
    for (int j = 0; j < Shape::kRowParts; ++j) out[j] = *reinterpret_cast<const float2*>(norms + 8 * j);
}

// For one neighbour: each thread has the nearest row of its slot for each of its queries in registers. No list, no
// barrier; a tile ends with one comparison a query, and only where that changes something its row is looked for. The
// slots of all splits are merged by finish.cu: slot by slot, so that what is found does not depend on the splits.
template <class Shape>
class NearestOfSlots {
public:
    __device__ NearestOfSlots(const SearchArguments&, const Parts&, int64_t) {
#pragma unroll
        for (int i = 0; i < kQueriesOfThread; ++i) {
            best_[i] = kInfinity;
            rows_[i] = 0;
        }
    }

    __device__ void keep(const Parts& parts, Sums<Shape>& sums, const float* tile_norms, uint32_t first_row) {
        const Place<Shape> place(thread_again());
        float2 norms[Shape::kRowParts];
        load_norms<Shape>(norms, tile_norms + place.row);
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float factor = parts.factors[place.query + 16 * i + 8 * h];
                const float least = values_of<Shape>(sums, norms, factor, i, h);
                // Rows come in ascending order: an equal value comes after what is kept.
                if (!(least < best_[2 * i + h])) continue;
                int at = 0;
#pragma unroll
                for (int c = 2 * Shape::kRowParts - 1; c >= 0; --c) {
                    if (sums[i][c / 2][2 * h + c % 2] == least) at = c;  // of equal values the first
                }
                best_[2 * i + h] = least;
                rows_[2 * i + h] = first_row + place.row + at / 2 * 8 + at % 2;
            }
        }
    }

    __device__ void end(const SearchArguments& a, const Parts&, int64_t first_query) const {
        const Place<Shape> place(threadIdx.x);
#pragma unroll
        for (int i = 0; i < kQueriesOfThread; ++i) {
            const int64_t query = first_query + place.query + 8 * i;
            a.workspace.partial[(query * a.splits + blockIdx.y) * kSlots + place.slot] = key_of(best_[i], rows_[i]);
        }
    }

private:
    float best_[kQueriesOfThread];
    uint32_t rows_[kQueriesOfThread];
};

// For several neighbours: a query has a limit that all threads share, and a buffer in the workspace. What comes before
// the limit is put there; when a buffer is full, those that are more than half full are sorted, the candidates stay, and
// the last of them is the new limit, also for the other blocks of the query. What a block leaves out because of the limit
// of another comes after that block's candidates: what is found does not depend on who was first.
template <class Shape>
class Survivors {
public:
    __device__ Survivors(const SearchArguments& a, const Parts& parts, int64_t first_query)
        : limits_(a.workspace.limits + first_query),
          buffers_(a.workspace.partial + (first_query * a.splits + blockIdx.y) * a.stride),
          distance_(int64_t{a.splits} * a.stride),
          stride_(a.stride),
          capacity_(a.capacity) {
        if (threadIdx.x >= kTileQueries) return;
        parts.counts[threadIdx.x] = 0;
        // Nothing comes before key 0: a query without a distance takes no time.
        parts.limits[threadIdx.x] = a.workspace.usable[first_query + threadIdx.x] != 0 ? kNoCandidate : 0;
    }

    __device__ void keep(const Parts& parts, Sums<Shape>& values, const float* tile_norms, uint32_t first_row) {
        const Place<Shape> place(thread_again());
        unsigned live = 0;  // bit 2i + h: this thread may have something for query 16i + 8h
        {
            float2 norms[Shape::kRowParts];
            load_norms<Shape>(norms, tile_norms + place.row);
#pragma unroll
            for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const unsigned query = place.query + 16 * i + 8 * h;
                    const float least = values_of<Shape>(values, norms, parts.factors[query], i, h);
                    if (least <= value_of(parts.limits[query])) live |= 1u << (2 * i + h);
                }
            }
        }
        for (;;) {
            const unsigned full = put(parts, values, place, first_row, live);
            live = full;
            if (__syncthreads_or(static_cast<int>(full)) == 0) return;
            merge(parts, static_cast<unsigned>(stride_) / 2);
            __syncthreads();
        }
    }

    // Nobody puts anything into a buffer any more: the last tile ended with a barrier.
    __device__ void end(const SearchArguments&, const Parts& parts, int64_t) { merge(parts, 0); }

private:
    // The float whose ordered bits are the upper half of a key; NaN, which nothing is below, for key 0.
    __device__ static float value_of(unsigned long long key) {
        const uint32_t bits = static_cast<uint32_t>(key >> 32);
        return __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
    }

    // Put what comes before the limits into the buffers; return the queries whose buffers were full, as `live`.
    __device__ unsigned put(const Parts& parts, Sums<Shape>& values, const Place<Shape>& place, uint32_t first_row,
                            unsigned live) {
        unsigned full = 0;
#pragma unroll
        for (int i = 0; i < kQueryParts; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if ((live >> (2 * i + h) & 1u) == 0) continue;
                const unsigned query = place.query + 16 * i + 8 * h;
                const unsigned long long limit = parts.limits[query];
                const float last = value_of(limit);
#pragma unroll
                for (int c = 0; c < 2 * Shape::kRowParts; ++c) {
                    float& value = values[i][c / 2][2 * h + c % 2];
                    if (!(value <= last)) continue;
                    const uint64_t key = key_of(value, first_row + place.row + c / 2 * 8 + c % 2);
                    if (key >= limit) continue;
                    const unsigned entry = atomicAdd(parts.counts + query, 1u);
                    if (entry < static_cast<unsigned>(stride_)) {
                        buffers_[query * distance_ + entry] = key;
                        value = kInfinity;  // not twice
                    } else {
                        full |= 1u << (2 * i + h);
                    }
                }
            }
        }
        return full;
    }

    // The whole block, between barriers: sort the buffers that have more than `fewest` keys, and all at the end.
    __device__ void merge(const Parts& parts, unsigned fewest) {
        constexpr int kQueriesOfWarp = kTileQueries / (kSearchThreads / kWarp);
        const int lane = static_cast<int>(threadIdx.x % kWarp), warp = static_cast<int>(threadIdx.x / kWarp);
        for (int query = warp * kQueriesOfWarp; query < (warp + 1) * kQueriesOfWarp; ++query) {
            const unsigned count = parts.counts[query];
            if (fewest != 0 && count <= fewest) continue;
            const int there = count < static_cast<unsigned>(stride_) ? static_cast<int>(count) : stride_;
            uint64_t* buffer = buffers_ + query * distance_;
            SortedKeys keys(lane);
            for (int i = lane; i - lane < there; i += 2 * kWarp) {
                keys.take(i < there ? buffer[i] : kNoCandidate, i + kWarp < there ? buffer[i + kWarp] : kNoCandidate);
            }
            const unsigned long long last = keys.entry(capacity_ - 1);
            keys.write(buffer);
            if (lane != 0) continue;
            const unsigned long long others = atomicMin(limits_ + query, last), own = parts.limits[query];
            const unsigned long long limit = others < last ? others : last;
            parts.limits[query] = limit < own ? limit : own;
            parts.counts[query] = static_cast<unsigned>(there < capacity_ ? there : capacity_);
        }
    }

    unsigned long long* limits_;
    uint64_t* buffers_;
    const int64_t distance_;
    const int stride_, capacity_;
};

}  // namespace flawscope::cuda
