// The search loop, part of kernels.cpp: d(q, m) = ‖m‖² − 2·q·m, which orders the rows as ‖q − m‖² does. A register tile of
// kTileRows queries times kPanel bank rows is summed over all channels before anything leaves the registers; its
// epilogue takes the minimum.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace flawscope {
namespace FLAWSCOPE_LEVEL {
namespace {

// ---- Products of a tile of queries and a panel of rows ---------------------------------------------------------------

FLAWSCOPE_INLINE Vec load_bank(const float* p) { return load(p); }
FLAWSCOPE_INLINE Vec load_bank(const uint16_t* p) { return load_half(p); }

// dot = q·m.
template <class T>
FLAWSCOPE_INLINE void products(const SearchBlock&, const void* tile, const T* b, int64_t depth, int64_t,
                               Vec (&dot)[kTileRows][2]) {
    const float* q = static_cast<const float*>(tile);
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) { dot[r][0] = dot[r][1] = zero(); });
    for (int64_t i = 0; i < depth; ++i) {
        // All channels in ascending order, for every row of every tile: equal rows get equal sums, which decides ties.
        const Vec left = load_bank(b), right = load_bank(b + kLanes);
        unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
            const Vec x = broadcast(q[r]);
            dot[r][0] = fma(x, left, dot[r][0]);
            dot[r][1] = fma(x, right, dot[r][1]);
        });
        q += kTileRows;
        b += kPanel;
    }
}

// dot = q·m without the factor of the query.
FLAWSCOPE_INLINE void products(const SearchBlock& s, const void* tile, const int8_t* b, int64_t depth,
                               int64_t first_row, Vec (&dot)[kTileRows][2]) {
    const int32_t* q = static_cast<const int32_t*>(tile);
    // Integers are exact: what was added to the queries comes off to the last bit, up to kMaxInt8Channels channels.
    int32_t start[kPanel];
    for (int lane = 0; lane < kPanel; ++lane) start[lane] = kBiasedQueries ? -128 * s.sums[first_row + lane] : 0;
    IVec sums[kTileRows][2];
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        sums[r][0] = load_i(start);
        sums[r][1] = load_i(start + kLanes);
    });
    for (int64_t i = 0; i < depth; ++i) {
        const Bytes left = load_bytes(b), right = load_bytes(b + 4 * kLanes);
        unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
            const Bytes x = broadcast_bytes(q[r]);
            sums[r][0] = dot4(sums[r][0], x, left);
            sums[r][1] = dot4(sums[r][1], x, right);
        });
        q += kTileRows;
        b += 4 * kPanel;
    }
    const Vec factors[2] = {load(s.factors + first_row), load(s.factors + first_row + kLanes)};
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        dot[r][0] = mul(to_float(sums[r][0]), factors[0]);
        dot[r][1] = mul(to_float(sums[r][1]), factors[1]);
    });
}

// ---- Epilogues: what is done with ‖m‖² − 2·q·m ------------------------------------------------------------------------

// Lower the running minimum of every lane. Rows come in ascending order and only a smaller distance replaces: of equal
// rows in a lane the first stays.
// With kSecond the second least of every lane is kept too: it tells whether a row that was replaced matters.
template <bool kSecond>
FLAWSCOPE_INLINE void lower_minimum(Vec distance, IVec panel, Vec& best, IVec& where, Vec& second) {
    // A comparison with NaN is false: a query that is none leaves best and where as they were.
    const Mask better = less(distance, best);
    if (kSecond) second = minimum(second, maximum(distance, best));
    best = select(better, distance, best);
    where = select_i(better, panel, where);
}

// The same with the number of the panel in the low bits of the values, where it costs neither a comparison nor memory.
FLAWSCOPE_INLINE void lower_tagged(Vec distance, IVec keep, IVec panel, Vec& best, Vec& second) {
    const Vec value = tagged(distance, keep, panel);
    second = minimum(second, maximum(value, best));
    best = minimum(value, best);
}

// Insert into the k best of a query, ascending. Of equal distances the earlier row stays before.
FLAWSCOPE_INLINE void insert(float distance, int32_t row, int k, float* best, int32_t* where) {
    int place = k - 1;
    while (place > 0 && best[place - 1] > distance) {
        best[place] = best[place - 1];
        where[place] = where[place - 1];
        --place;
    }
    best[place] = distance;
    where[place] = row;
}

// Not inlined: the loop that calls it keeps its registers.
__attribute__((noinline)) void insert_lanes(Vec distance, uint32_t found, int32_t first_row, int k, float* best,
                                            int32_t* where) {
    float lanes[kLanes];
    store(lanes, distance);
    for (; found != 0; found &= found - 1) {
        const int lane = __builtin_ctz(found);
        if (lanes[lane] < best[k - 1]) insert(lanes[lane], first_row + lane, k, best, where);  // may have improved
    }
}

FLAWSCOPE_INLINE void take_best(Vec distance, int64_t first_row, int k, float* best, int32_t* where) {
    const uint32_t found = bits(less(distance, broadcast(best[k - 1])));
    if (__builtin_expect(found != 0, 0)) {
        insert_lanes(distance, found, static_cast<int32_t>(first_row), k, best, where);
    }
}

__attribute__((noinline)) void append_lanes(uint32_t found, int32_t first_row, int64_t capacity, int32_t* count,
                                            int32_t* where) {
    for (; found != 0; found &= found - 1) {
        if (*count < capacity) where[*count] = first_row + __builtin_ctz(found);
        ++*count;
    }
}

FLAWSCOPE_INLINE void take_below(Vec distance, int64_t first_row, Vec limit, int64_t capacity, int32_t* count,
                                 int32_t* where) {
    const uint32_t found = bits(less(distance, limit));
    if (__builtin_expect(found != 0, 0)) {
        append_lanes(found, static_cast<int32_t>(first_row), capacity, count, where);
    }
}

// What a search keeps of its distances.
enum class Keep { kMinimum, kTwoMinima, kTagged, kBest, kBelow };

FLAWSCOPE_INLINE Keep keep_of(const SearchBlock& s) {
    if (s.limits != nullptr) return Keep::kBelow;
    if (s.k > 1) return Keep::kBest;
    if (s.second == nullptr) return Keep::kMinimum;
    return s.tag_mask != 0 ? Keep::kTagged : Keep::kTwoMinima;
}

// dot · scale is −2·q·m.
FLAWSCOPE_INLINE Vec distance_of(Vec dot, Vec scale, Vec norm) { return fma(scale, dot, norm); }
template <class T>
FLAWSCOPE_INLINE Vec scale_of(const SearchBlock& s, int64_t query) {
    return broadcast(sizeof(T) == 1 ? -2.0f * s.query_factors[query] : -2.0f);
}

// Masked lanes get a value that no row has. Not infinity where it is tagged, which would be NaN.
template <Keep kKeep>
FLAWSCOPE_INLINE Vec masked(Vec distance, uint32_t allowed) {
    return select(lanes_of(allowed), distance, broadcast(kKeep == Keep::kTagged ? 3.4028234e+38f : __builtin_inff()));
}

// `allowed`: lanes that count for each query of the tile, with kMasked.
template <class T, Keep kKeep, bool kMasked>
FLAWSCOPE_INLINE void take(const SearchBlock& s, const Vec (&dot)[kTileRows][2], int64_t panel, int64_t first_query,
                           const uint32_t* allowed) {
    constexpr bool kSecond = kKeep == Keep::kTwoMinima;
    const int64_t first_row = (s.first_panel + panel) * kPanel;
    const Vec norm[2] = {load(s.norms + panel * kPanel), load(s.norms + panel * kPanel + kLanes)};
    const IVec here = broadcast_i(static_cast<int32_t>(s.first_panel + panel));
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        const int64_t query = first_query + r;
        const Vec scale = scale_of<T>(s, query);
        unrolled<2>(FLAWSCOPE_EACH(v) {
            Vec distance = distance_of(dot[r][v], scale, norm[v]);
            if constexpr (kMasked) distance = masked<kKeep>(distance, allowed[r] >> v * kLanes);
            if constexpr (kKeep == Keep::kBelow) {
                take_below(distance, first_row + v * kLanes, broadcast(s.limits[query]), s.capacity, s.counts + query,
                           s.where + query * s.capacity);
            } else if constexpr (kKeep == Keep::kBest) {
                take_best(distance, first_row + v * kLanes, s.k, s.best + query * s.k, s.where + query * s.k);
            } else if constexpr (kKeep == Keep::kTagged) {
                const int64_t lane = query * kPanel + v * kLanes;
                Vec best = load(s.best + lane), second = load(s.second + lane);
                lower_tagged(distance, broadcast_i(~s.tag_mask), here, best, second);
                store(s.best + lane, best);
                store(s.second + lane, second);
            } else {
                const int64_t lane = query * kPanel + v * kLanes;
                Vec best = load(s.best + lane), second = kSecond ? load(s.second + lane) : best;
                IVec where = load_i(s.where + lane);
                lower_minimum<kSecond>(distance, here, best, where, second);
                store(s.best + lane, best);
                store_i(s.where + lane, where);
                if (kSecond) store(s.second + lane, second);
            }
        });
    });
}

FLAWSCOPE_INLINE bool any_of_tile(const uint32_t* allowed) {
    uint32_t any = 0;
    for (int r = 0; r < kTileRows; ++r) any |= allowed[r];
    return any != 0;
}

template <class T, Keep kKeep, bool kMasked = false>
void search_keeping(const SearchBlock& s) {
    for (int64_t p = 0; p < s.panel_count; ++p) {
        const char* panel = static_cast<const char*>(s.panels) + p * s.panel_bytes;
        for (int64_t t = 0; t < s.tile_count; ++t) {
            const uint32_t* allowed = kMasked ? s.allowed + (p * s.tile_count + t) * kTileRows : nullptr;
            if (kMasked && !any_of_tile(allowed)) continue;
            const char* tile = static_cast<const char*>(s.tiles) + t * s.tile_bytes;
            Vec dot[kTileRows][2];
            products(s, tile, reinterpret_cast<const T*>(panel), s.depth, p * kPanel, dot);
            take<T, kKeep, kMasked>(s, dot, p, t * kTileRows, allowed);
        }
    }
}

template <class T>
void search(const SearchBlock& s) {
    if constexpr (sizeof(T) != 2) {  // nothing searches windows of halves
        if (s.allowed != nullptr) {
            switch (keep_of(s)) {
                case Keep::kTwoMinima: return search_keeping<T, Keep::kTwoMinima, true>(s);
                case Keep::kTagged: return search_keeping<T, Keep::kTagged, true>(s);
                default: return search_keeping<T, Keep::kMinimum, true>(s);
            }
        }
    }
    switch (keep_of(s)) {
        case Keep::kMinimum: return search_keeping<T, Keep::kMinimum>(s);
        case Keep::kTwoMinima: return search_keeping<T, Keep::kTwoMinima>(s);
        case Keep::kTagged: return search_keeping<T, Keep::kTagged>(s);
        case Keep::kBest: return search_keeping<T, Keep::kBest>(s);
        case Keep::kBelow: return search_keeping<T, Keep::kBelow>(s);
    }
}

}  // namespace
}  // namespace FLAWSCOPE_LEVEL
}  // namespace flawscope

#if defined(__AMX_INT8__) && !defined(FLAWSCOPE_FORCE_SCALAR)
#include "search_amx.h"
#else

namespace flawscope {
namespace FLAWSCOPE_LEVEL {
namespace {

constexpr int kByteTileRows = kTileRows;
constexpr int kByteGroups = 1;

void search_bytes(const SearchBlock& s) { search<int8_t>(s); }

void pack_bytes(const int8_t* rows, int64_t depth, char* tile) {
    const uint32_t bias = kBiasedQueries ? 0x80808080u : 0u;  // adds 128 to each of four bytes
    for (int64_t r = 0; r < kTileRows; ++r) {
        for (int64_t g = 0; g < depth; ++g) {
            uint32_t four;
            __builtin_memcpy(&four, rows + 4 * (r * depth + g), 4);
            four ^= bias;
            __builtin_memcpy(tile + 4 * (g * kTileRows + r), &four, 4);
        }
    }
}

}  // namespace
}  // namespace FLAWSCOPE_LEVEL
}  // namespace flawscope

#endif
