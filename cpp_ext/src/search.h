// The order of work around the search loop.
//
// Queries are packed into tiles once. A task is a run of tiles that fits the second-level cache times a run of panels;
// it keeps its own candidates, so no task waits for another. Where there are fewer query runs than threads the bank is
// cut as well, and the candidates of the cuts are merged by (distance, row).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bank.h"
#include "nearest.h"
#include "threads.h"
#include "tiles.h"

namespace flawscope {

constexpr int64_t kStateBytes = 16 << 20;  // candidates held at a time: bounds the memory of many queries

// Half the second-level cache, in bytes.
int64_t half_cache();

// Runs of tiles of equal length, as many as keep all threads at work.
int64_t run_count(const Tiles& tiles, const Panels& panels, int threads);

// How often the bank, or the part of it that is searched at a time, is cut so that all threads have work even where
// there are few queries.
int64_t cuts_for(const Tiles& tiles, const Panels& panels, int64_t panel_count, int threads);

// Queries that are searched for at a time: their candidates, and so many bytes for each channel, stay within a bound.
int64_t run_length(const Kernels& kernels, const Queries& queries, int k, int64_t bytes_per_channel);

// Which tiles and which part of the bank a task has.
struct Share {
    int64_t first_tile, tile_count, cut, cuts;
};

// Search a cut of the panels [first, first + count) of the bank for the tiles of a task; `panels` holds them from its
// beginning.
void search_share(const Kernels& kernels, const Panels& panels, int64_t first, int64_t count, const Share& share,
                  const Tiles& tiles, State& state, int k);

// The order of a search over a whole bank. Usually a task has some queries and the whole bank: it packs, searches and
// finishes them without waiting for anybody. Where queries are few the bank is cut, and the steps are taken together.
template <class Finish>
void search_all(const Kernels& kernels, const Panels& panels, int64_t panel_count, Tiles& tiles, State& state,
                int64_t cuts, int k, int64_t count, int threads, const Finish& finish) {
    const int64_t runs = run_count(tiles, panels, threads);
    const auto share_of = [&](int64_t run, int64_t cut) {
        const int64_t tile = tiles.tile_count * run / runs;
        return Share{tile, tiles.tile_count * (run + 1) / runs - tile, cut, cuts};
    };
    const auto pack = [&](const Share& share) {
        for (int64_t t = 0; t < share.tile_count; ++t) tiles.pack(share.first_tile + t);
    };
    const auto search = [&](const Share& share) {
        state.clear(share.cut, share.first_tile * tiles.height, share.tile_count * tiles.height);
        search_share(kernels, panels, 0, panel_count, share, tiles, state, k);
    };
    const auto finish_share = [&](const Share& share) {
        const int64_t begin = share.first_tile * tiles.height;
        finish(begin, std::min(count, begin + share.tile_count * tiles.height));
    };
    if (cuts == 1) {
        run_tasks(threads, runs, [&](int64_t run) {
            const Share share = share_of(run, 0);
            pack(share);
            search(share);
            finish_share(share);
        });
        return;
    }
    for (int64_t run = 0; run < runs; ++run) pack(share_of(run, 0));
    run_tasks(threads, runs * cuts, [&](int64_t task) { search(share_of(task / cuts, task % cuts)); });
    run_tasks(threads, runs, [&](int64_t run) { finish_share(share_of(run, 0)); });
}

// Compute the distances of the winners of one query again as Σ(q − m)², which does not cancel, sort, and write them out.
template <class RowOf>
void finish_query(const Kernels& kernels, const Tiles& tiles, State& state, int64_t cuts, int64_t q, int64_t d, int k,
                  const RowOf& row_of, float* distances, int64_t* places) {
    Candidate found[64];
    int kept = 0;
    if (tiles.usable(q)) {
        kept = state.collect(cuts, q, found);
        for (int i = 0; i < kept; ++i) {
            found[i].distance = kernels.squared_distance(tiles.query(q), row_of(found[i].row), d);
        }
        std::sort(found, found + kept);
    }
    for (int i = 0; i < k; ++i) {
        const bool there = i < kept && std::isfinite(found[i].distance);
        distances[i] = there ? found[i].distance : std::numeric_limits<float>::quiet_NaN();
        places[i] = there ? found[i].row : -1;
    }
}

// Search the panels of the bank as they are stored, queries [first, first + count), for the `wanted` best candidates of
// each and write the k best of them.
void search_stored(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int k, int wanted,
                   bool own_rows, int workers, float* squared, int64_t* rows);

}  // namespace flawscope
