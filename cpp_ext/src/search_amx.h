// Bytes of an int8 bank by AMX, part of kernels.cpp: `tdpbssd` adds a 16 × 64 tile of queries times a 64 × 16 tile of
// bank rows to 16 × 16 sums, eight times the products that VNNI makes in the same time. The sums leave the tile
// registers through memory of the first-level cache.
#pragma once

#include <immintrin.h>

#include "search_loop.h"

namespace flawscope {
namespace FLAWSCOPE_LEVEL {
namespace {

constexpr int kByteTileRows = 32;
constexpr int kByteGroups = 16;  // 64 channels, a row of a tile register

constexpr int kSumsHeld = 4;  // blocks of sums made before they are taken: 16 KiB
constexpr int64_t kChunkBytes = 512 << 10;  // bank rows that all tiles meet before the next
typedef int32_t Sums[kByteTileRows][kPanel];

// A query tile is [depth / 16][32][64]: what a tile register takes lies together.
void pack_bytes(const int8_t* rows, int64_t depth, char* tile) {
    for (int64_t i = 0; i < depth / kByteGroups; ++i) {
        for (int64_t r = 0; r < kByteTileRows; ++r) {
            __builtin_memcpy(tile + (i * kByteTileRows + r) * 64, rows + r * 4 * depth + i * 64, 64);
        }
    }
}

// The tile registers belong to the thread; they are given back so that a switch of threads need not save them.
class TileRegisters {
public:
    TileRegisters() {
        // Zero where nothing is said, as for tiles 8 to 15, which no processor has: ldtilecfg faults on other values.
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } layout;
        static_assert(sizeof layout == 64, "the layout that ldtilecfg reads");
        _tile_loadconfig(&layout);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

FLAWSCOPE_INLINE void sum_products(const char* tile, const char* panel, int64_t depth, Sums& sums) {
    // The numbers of tiles are part of the instructions and written out, as neither loop nor compiler hands them out:
    // 0 to 3 are sums, 4 and 5 queries, 6 and 7 bank rows.
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < depth; i += kByteGroups) {
        _tile_loadd(4, tile, 64);
        _tile_loadd(6, panel, 128);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, panel + 64, 128);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, tile + 16 * 64, 64);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        tile += kByteTileRows * 64;
        panel += kByteGroups * 4 * kPanel;
    }
    _tile_stored(0, &sums[0][0], sizeof sums[0]);
    _tile_stored(1, &sums[0][16], sizeof sums[0]);
    _tile_stored(2, &sums[16][0], sizeof sums[0]);
    _tile_stored(3, &sums[16][16], sizeof sums[0]);
}

FLAWSCOPE_INLINE Vec distance_from(const int32_t* sums, Vec factor, Vec scale, Vec norm) {
    return distance_of(mul(to_float(load_i(sums)), factor), scale, norm);
}

// The k best of a query; rows in ascending order, which decides between equal ones.
template <int kCount>
FLAWSCOPE_INLINE void take_best_of(const SearchBlock& s, const Sums* sums, int64_t panel, int64_t first_query) {
    for (int r = 0; r < kByteTileRows; ++r) {
        const int64_t query = first_query + r;
        const Vec scale = scale_of<int8_t>(s, query);
        for (int p = 0; p < kCount; ++p) {
            for (int v = 0; v < 2; ++v) {
                const int64_t lane = (panel + p) * kPanel + v * kLanes;
                const Vec distance = distance_from(&sums[p][r][v * kLanes], load(s.factors + lane), scale,
                                                   load(s.norms + lane));
                take_best(distance, s.first_panel * kPanel + lane, s.k, s.best + query * s.k, s.where + query * s.k);
            }
        }
    }
}

// Minima or limits. What is known of a query passes through registers once for kCount panels, of which `panel` is the
// first.
template <Keep kKeep, int kCount>
FLAWSCOPE_INLINE void take_lanes_of(const SearchBlock& s, const Sums* sums, int64_t panel, int64_t first_query) {
    constexpr bool kSecond = kKeep == Keep::kTwoMinima;
    const int64_t number = s.first_panel + panel;
    for (int v = 0; v < 2; ++v) {
        Vec factor[kCount], norm[kCount];
        unrolled<kCount>(FLAWSCOPE_EACH(p) {
            factor[p] = load(s.factors + (panel + p) * kPanel + v * kLanes);
            norm[p] = load(s.norms + (panel + p) * kPanel + v * kLanes);
        });
        for (int r = 0; r < kByteTileRows; ++r) {
            const int64_t query = first_query + r;
            const Vec scale = scale_of<int8_t>(s, query);
            Vec distance[kCount];
            unrolled<kCount>(FLAWSCOPE_EACH(p) {
                distance[p] = distance_from(&sums[p][r][v * kLanes], factor[p], scale, norm[p]);
            });
            if constexpr (kKeep == Keep::kBelow) {
                const Vec limit = broadcast(s.limits[query]);
                unrolled<kCount>(FLAWSCOPE_EACH(p) {
                    take_below(distance[p], (number + p) * kPanel + v * kLanes, limit, s.capacity, s.counts + query,
                               s.where + query * s.capacity);
                });
            } else if constexpr (kKeep == Keep::kTagged) {
                const int64_t lane = query * kPanel + v * kLanes;
                const IVec keep = broadcast_i(~s.tag_mask);
                Vec best = load(s.best + lane), second = load(s.second + lane);
                unrolled<kCount>(FLAWSCOPE_EACH(p) {
                    lower_tagged(distance[p], keep, broadcast_i(static_cast<int32_t>(number + p)), best, second);
                });
                store(s.best + lane, best);
                store(s.second + lane, second);
            } else {
                const int64_t lane = query * kPanel + v * kLanes;
                Vec best = load(s.best + lane), second = kSecond ? load(s.second + lane) : best;
                IVec where = load_i(s.where + lane);
                unrolled<kCount>(FLAWSCOPE_EACH(p) {
                    lower_minimum<kSecond>(distance[p], broadcast_i(static_cast<int32_t>(number + p)), best, where,
                                           second);
                });
                store(s.best + lane, best);
                store_i(s.where + lane, where);
                if (kSecond) store(s.second + lane, second);
            }
        }
    }
}

template <Keep kKeep, int kCount>
FLAWSCOPE_INLINE void take_sums(const SearchBlock& s, const Sums* sums, int64_t panel, int64_t first_query) {
    if constexpr (kKeep == Keep::kBest) {
        take_best_of<kCount>(s, sums, panel, first_query);
    } else {
        take_lanes_of<kKeep, kCount>(s, sums, panel, first_query);
    }
}

template <Keep kKeep>
void search_bytes_keeping(const SearchBlock& s) {
    const TileRegisters registers;
    alignas(64) Sums sums[kSumsHeld];
    // A tile of queries and its candidates stay in the first-level cache while the panels of a chunk pass by; the chunk
    // stays in the second-level cache until all tiles have met it.
    const int64_t fitting = kChunkBytes / s.panel_bytes;
    const int64_t chunk = fitting < 1 ? 1 : fitting < s.panel_count ? fitting : s.panel_count;
    for (int64_t start = 0; start < s.panel_count; start += chunk) {
        const int64_t end = s.panel_count - start < chunk ? s.panel_count : start + chunk;
        for (int64_t t = 0; t < s.tile_count; ++t) {
            const char* tile = static_cast<const char*>(s.tiles) + t * s.tile_bytes;
            const char* panels = static_cast<const char*>(s.panels);
            int64_t panel = start;
            for (; panel + kSumsHeld <= end; panel += kSumsHeld) {
                for (int p = 0; p < kSumsHeld; ++p) {
                    sum_products(tile, panels + (panel + p) * s.panel_bytes, s.depth, sums[p]);
                }
                take_sums<kKeep, kSumsHeld>(s, sums, panel, t * kByteTileRows);
            }
            for (; panel < end; ++panel) {
                sum_products(tile, panels + panel * s.panel_bytes, s.depth, sums[0]);
                take_sums<kKeep, 1>(s, sums, panel, t * kByteTileRows);
            }
        }
    }
}

void search_bytes(const SearchBlock& s) {
    switch (keep_of(s)) {
        case Keep::kMinimum: return search_bytes_keeping<Keep::kMinimum>(s);
        case Keep::kTwoMinima: return search_bytes_keeping<Keep::kTwoMinima>(s);
        case Keep::kTagged: return search_bytes_keeping<Keep::kTagged>(s);
        case Keep::kBest: return search_bytes_keeping<Keep::kBest>(s);
        case Keep::kBelow: return search_bytes_keeping<Keep::kBelow>(s);
    }
}

}  // namespace
}  // namespace FLAWSCOPE_LEVEL
}  // namespace flawscope
