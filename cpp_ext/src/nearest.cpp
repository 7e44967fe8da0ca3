// Nearest neighbours: the order of work around the search loop.
//
// Queries are packed into tiles once. A task is a run of tiles that fits the second-level cache times a run of panels;
// it keeps its own candidates, so no task waits for another. Where there are fewer query runs than threads the bank is
// cut as well, and the candidates of the cuts are merged by (distance, row). Candidates are found by the product form;
// the distances of the winners are then computed again as Σ(q − m)², which does not cancel.
//
// For k = 1 a float32 bank may have a screen, an int8 copy m̂ of its rows. By the triangle inequality every row that is
// as near as a row at distance t has ‖q̂ − m̂‖ ≤ t + ‖q − q̂‖ + ‖m − m̂‖. The screen keeps the least and the second least
// ‖q̂ − m̂‖² of every lane. Rows below the limit are compared in float32; where some second least is below it too, a row
// may have been lost, and the query is searched for in float32 as if there were no screen.
#include "nearest.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__unix__)
#include <unistd.h>
#endif

#include "threads.h"
#include "tiles.h"

namespace flawscope {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;          // bank rows packed at a time where no packed bank is given
constexpr int64_t kStateBytes = 24 << 20;         // candidates held at a time: bounds the memory of many queries
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Queries of a task: half the second-level cache, the other half is for the bank rows that pass by.
int64_t tile_bytes_per_task() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    static const int64_t size = 0;
#endif
    return std::max<int64_t>(256 << 10, std::min<int64_t>(size / 2, 4 << 20));
}

// Runs of tiles of equal length, as many as keep all threads at work.
int64_t run_count(int64_t tile_count, int64_t tile_bytes, int threads) {
    const int64_t fitting = std::max<int64_t>(1, tile_bytes_per_task() / tile_bytes);
    const int64_t runs = divide_up(tile_count, fitting);
    return std::min(tile_count, divide_up(runs, threads) * threads);
}

// Which tiles and which part of the bank a task has.
struct Share {
    int64_t first_tile, tile_count, cut, cuts;
};

// Search a cut of the panels [first, first + count) of the bank for the tiles of a task; `panels` holds them from its
// beginning.
void search_share(const Kernels& kernels, const Panels& panels, int64_t first, int64_t count, const Share& share,
                  const Tiles& tiles, State& state, int k) {
    const int64_t begin = count * share.cut / share.cuts, end = count * (share.cut + 1) / share.cuts;
    const int64_t row = begin * kernels.panel, query = share.first_tile * kernels.tile_rows;
    const bool bytes = panels.storage == Storage::kInt8;
    SearchBlock block;
    block.panels = panels.data.data() + begin * panels.panel_bytes;
    block.panel_bytes = panels.panel_bytes;
    block.norms = panels.norms.data() + row;
    block.factors = bytes ? panels.factors.data() + row : nullptr;
    block.sums = bytes ? panels.sums.data() + row : nullptr;
    block.panel_count = end - begin;
    block.first_panel = first + begin;
    block.depth = panels.depth;
    block.tiles = tiles.tile(share.first_tile);
    block.tile_bytes = tiles.tile_bytes;
    block.query_factors = bytes ? tiles.factors(share.first_tile) : nullptr;
    block.tile_count = share.tile_count;
    block.k = k;
    block.best = state.best(share.cut, query);
    block.where = state.where(share.cut, query);
    block.second = state.second(share.cut, query);
    kernels.search[static_cast<int>(panels.storage)](block);
}

// The order of a search over a whole bank. Usually a task has some queries and the whole bank: it packs, searches and
// finishes them without waiting for anybody. Where queries are few the bank is cut, and the steps are taken together.
template <class Finish>
void search_all(const Kernels& kernels, const Panels& panels, int64_t panel_count, Tiles& tiles, State& state,
                int64_t cuts, int k, int64_t count, int threads, const Finish& finish) {
    const int64_t runs = run_count(tiles.tile_count, tiles.tile_bytes, threads), height = kernels.tile_rows;
    const auto share_of = [&](int64_t run, int64_t cut) {
        const int64_t tile = tiles.tile_count * run / runs;
        return Share{tile, tiles.tile_count * (run + 1) / runs - tile, cut, cuts};
    };
    const auto pack = [&](const Share& share) {
        for (int64_t t = 0; t < share.tile_count; ++t) tiles.pack(share.first_tile + t);
    };
    const auto search = [&](const Share& share) {
        state.clear(share.cut, share.first_tile * height, share.tile_count * height);
        search_share(kernels, panels, 0, panel_count, share, tiles, state, k);
    };
    const auto finish_share = [&](const Share& share) {
        const int64_t begin = share.first_tile * height;
        finish(begin, std::min(count, begin + share.tile_count * height));
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

// How often the bank is cut so that all threads have work even where there are few queries.
int64_t cuts_for(int64_t tile_count, int64_t tile_bytes, int64_t panels, int threads) {
    const int64_t runs = run_count(tile_count, tile_bytes, threads);
    if (runs % threads == 0 || runs >= 4 * threads) return 1;
    return std::max<int64_t>(1, std::min<int64_t>(threads, panels / 4));
}

// Compute the distances of the winners of one query again, sort, and write them out.
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
        distances[i] = there ? found[i].distance : kNaN;
        places[i] = there ? found[i].row : -1;
    }
}

// Queries are taken in runs whose candidates and tiles stay within a bound.
int64_t run_length(const Kernels& kernels, const Queries& queries, int k) {
    const int64_t per_query = State::bytes_per_query(kernels, k) + 4 * queries.d;
    const int64_t fitting = std::max<int64_t>(1, kStateBytes / per_query / kernels.tile_rows) * kernels.tile_rows;
    return std::min(queries.n, fitting);
}

// Search the panels of the bank as they are stored, queries [first, first + count).
void search_stored(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int k, int wanted,
                   bool own_rows, int workers, float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d;
    Tiles tiles(kernels, bank.panels.storage, queries, first, count);
    const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, panels, workers);
    State state(kernels, tiles.tile_count, cuts, wanted);
    Buffer<float> scratch(own_rows ? 0 : tiles.tile_count * d);  // a stored row as float32, one for every tile
    const auto finish = [&](int64_t begin, int64_t end) {
        float* own = scratch.data() + (own_rows ? 0 : begin / kernels.tile_rows * d);
        const auto row_of = [&](int64_t row) -> const float* {
            if (own_rows) return bank.rows + row * d;
            bank.panels.unpack(kernels, row, own);
            return own;
        };
        for (int64_t q = begin; q < end; ++q) {
            finish_query(kernels, tiles, state, cuts, q, d, k, row_of, squared + (first + q) * k,
                         rows + (first + q) * k);
        }
    };
    search_all(kernels, bank.panels, panels, tiles, state, cuts, wanted, count, workers, finish);
}

// Find the nearest row of one query among the candidates of the screen; false where that cannot be proved.
bool prove(const Bank& bank, const float* query, const Tiles& tiles, int64_t q, State& state, int64_t cuts,
           Candidate* nearest) {
    constexpr double kUnit = 1.0 / (1 << 24);
    int64_t cut_of = -1, lane_of = 0;
    float least = kInfinity;
    for (int64_t cut = 0; cut < cuts; ++cut) {
        const float* best = state.best(cut, q);
        for (int64_t i = 0; i < state.width; ++i) {
            if (best[i] < least) {
                least = best[i];
                cut_of = cut;
                lane_of = i;
            }
        }
    }
    if (cut_of < 0) return false;
    const auto row_at = [&](int64_t cut, int64_t lane) {
        return int64_t{state.where(cut, q)[lane]} * bank.kernels.panel + lane;
    };
    const auto distance_to = [&](int64_t row) {
        return bank.kernels.squared_distance(query, bank.rows + row * bank.d, bank.d);
    };
    *nearest = {kInfinity, -1};
    const float first = distance_to(row_at(cut_of, lane_of));
    // Each root is taken a little larger than its rounding can have made it too small: D + 8 operations at most.
    const double grow = 1.0 + static_cast<double>(bank.d + 8) * kUnit;
    const double reach = (std::sqrt(double{first}) + std::sqrt(double{tiles.lost(q)}) + bank.screen_error) * grow;
    // What the screen computed is ‖m̂‖² − 2·q̂·m̂: an exact integer, three products and a sum, each within one unit.
    const double limit =
        reach * reach - double{tiles.norm(q)} + 16.0 * kUnit * (double{tiles.norm(q)} * grow + bank.screen_norm);
    if (!(limit < double{kInfinity})) return false;
    for (int64_t cut = 0; cut < cuts; ++cut) {
        const float* best = state.best(cut, q);
        const float* second = state.second(cut, q);
        for (int64_t i = 0; i < state.width; ++i) {
            if (double{second[i]} <= limit) return false;
            if (double{best[i]} > limit) continue;
            const Candidate candidate{distance_to(row_at(cut, i)), row_at(cut, i)};
            if (candidate < *nearest) *nearest = candidate;
        }
    }
    return nearest->row >= 0;
}

// k = 1 through the screen.
void search_screened(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int workers,
                     float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d;
    Buffer<int64_t> open(count);  // queries without a proof
    std::atomic<int64_t> open_count{0};
    {
        Tiles tiles(kernels, Storage::kInt8, queries, first, count);
        const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, panels, workers);
        State state(kernels, tiles.tile_count, cuts, 1, true);
        search_all(kernels, bank.screen, panels, tiles, state, cuts, 1, count, workers,
                   [&](int64_t begin, int64_t end) {
                       for (int64_t q = begin; q < end; ++q) {
                           Candidate nearest{kNaN, -1};
                           if (tiles.usable(q) && !prove(bank, tiles.query(q), tiles, q, state, cuts, &nearest)) {
                               open[open_count++] = first + q;
                           }
                           squared[first + q] = nearest.distance;
                           rows[first + q] = nearest.row;
                       }
                   });
    }
    const int64_t left = open_count;
    bank.screened += count;
    bank.unproved += left;
    if (left == 0) return;
    const int64_t size = queries.halves ? 2 : 4;
    Buffer<char> gathered(left * d * size);
    Buffer<float> distances(left);
    Buffer<int64_t> places(left);
    for (int64_t i = 0; i < left; ++i) {
        std::memcpy(gathered.data() + i * d * size, static_cast<const char*>(queries.data) + open[i] * d * size,
                    static_cast<size_t>(d * size));
    }
    const Queries rest{gathered.data(), queries.halves, left, d};
    search_stored(bank, rest, 0, left, 1, 1, true, workers, distances.data(), places.data());
    for (int64_t i = 0; i < left; ++i) {
        squared[open[i]] = distances[i];
        rows[open[i]] = places[i];
    }
}

bool screen_pays(const Bank& bank) {
    // A query without a proof costs both searches: with more than two in three proved the screen still wins.
    return bank.has_screen && (bank.screened < 1024 || 3 * bank.unproved < bank.screened);
}

}  // namespace

void search_bank(const Bank& bank, const Queries& queries, int k, int rerank, int threads, float* squared,
                 int64_t* rows) {
    const int workers = thread_count(threads);
    const int wanted = std::max(k, static_cast<int>(std::min<int64_t>(rerank, bank.m)));
    const int64_t length = run_length(bank.kernels, queries, wanted);
    const bool own_rows = bank.panels.storage == Storage::kFloat32 || rerank > 0;
    for (int64_t first = 0; first < queries.n; first += length) {
        const int64_t count = std::min(length, queries.n - first);
        if (wanted == 1 && screen_pays(bank)) {
            search_screened(bank, queries, first, count, workers, squared, rows);
        } else {
            search_stored(bank, queries, first, count, k, wanted, own_rows, workers, squared, rows);
        }
    }
}

void search_rows(const Kernels& kernels, const float* bank, int64_t m, const Queries& queries, int k, int threads,
                 float* squared, int64_t* rows) {
    const int workers = thread_count(threads);
    const int64_t d = queries.d, all = divide_up(m, kernels.panel), height = kernels.tile_rows;
    const int64_t length = run_length(kernels, queries, k);
    const int64_t chunk = std::min(all, std::max<int64_t>(workers, kChunkBytes / (4 * d * kernels.panel)));
    Panels panels(kernels, Storage::kFloat32, d, chunk);
    std::atomic<bool> finite{true};
    for (int64_t first = 0; first < queries.n; first += length) {
        const int64_t count = std::min(length, queries.n - first);
        Tiles tiles(kernels, Storage::kFloat32, queries, first, count);
        const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, chunk, workers);
        const int64_t runs = run_count(tiles.tile_count, tiles.tile_bytes, workers);
        State state(kernels, tiles.tile_count, cuts, k);
        run_tasks(workers, tiles.tile_count, [&](int64_t t) {
            tiles.pack(t);
            for (int64_t cut = 0; cut < cuts; ++cut) state.clear(cut, t * height, height);
        });
        for (int64_t start = 0; start < all; start += chunk) {
            const int64_t here = std::min(chunk, all - start);
            run_tasks(workers, here, [&](int64_t p) {
                const int64_t row = (start + p) * kernels.panel;
                const int64_t there = std::min<int64_t>(kernels.panel, m - row);
                if (std::isnan(panels.pack(kernels, p, bank + row * d, there, nullptr))) finite = false;
            });
            if (!finite) throw NotFinite{};
            run_tasks(workers, runs * cuts, [&](int64_t task) {
                const int64_t run = task / cuts, tile = tiles.tile_count * run / runs;
                const Share share{tile, tiles.tile_count * (run + 1) / runs - tile, task % cuts, cuts};
                search_share(kernels, panels, start, here, share, tiles, state, k);
            });
        }
        run_tasks(workers, tiles.tile_count, [&](int64_t t) {
            for (int64_t q = t * height; q < std::min(count, (t + 1) * height); ++q) {
                finish_query(
                    kernels, tiles, state, cuts, q, d, k, [&](int64_t row) { return bank + row * d; },
                    squared + (first + q) * k, rows + (first + q) * k);
            }
        });
    }
}

}  // namespace flawscope
