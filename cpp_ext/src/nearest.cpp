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
// may have been lost: the screen is searched again for all rows below the limit, which by now is known. Where they are
// too many the query is searched for in float32 as if there were no screen.
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
constexpr int64_t kStateBytes = 16 << 20;         // candidates held at a time: bounds the memory of many queries
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
    block.limits = nullptr;
    block.counts = nullptr;
    block.capacity = 0;
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

// Find the nearest row of one query among the candidates of the screen. False where that cannot be proved; then `below`
// is a limit that the nearest row is below, or infinite where there is none.
bool prove(const Bank& bank, const float* query, const Tiles& tiles, int64_t q, State& state, int64_t cuts,
           Candidate* nearest, float* below) {
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
    *below = kInfinity;
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
    *below = std::nextafter(std::nextafter(static_cast<float>(limit), kInfinity), kInfinity);
    if (!(*below < kInfinity)) return false;
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

// Queries without a proof, as float32 [count, d], and the limits that their nearest rows are below.
struct Open {
    explicit Open(int64_t room, int64_t d) : places(room), limits(room), queries(room * d), d(d) {}

    void add(int64_t place, const float* query, float limit) {
        const int64_t i = count++;
        places[i] = place;
        limits[i] = limit;
        std::memcpy(queries.data() + i * d, query, static_cast<size_t>(d) * sizeof(float));
    }

    Buffer<int64_t> places;  // of the query in the results
    Buffer<float> limits, queries;
    const int64_t d;
    std::atomic<int64_t> count{0};
};

// Compare open queries with every row that the screen has below their limits; what has too many stays open.
void search_below(const Bank& bank, const Open& open, int workers, Open& rest, float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t count = open.count, d = bank.d, height = kernels.tile_rows;
    // With more candidates than this the search in float32 costs less than comparing them.
    const int64_t capacity = std::max<int64_t>(64, std::min<int64_t>(1024, bank.m / 32));
    const int64_t length = std::max<int64_t>(height, kStateBytes / (4 * (capacity + 2 * d)) / height * height);
    for (int64_t first = 0; first < count; first += length) {
        const int64_t here = std::min(length, count - first);
        const Queries queries{open.queries.data() + first * d, false, here, d};
        Tiles tiles(kernels, Storage::kInt8, queries, 0, here);
        Buffer<float> limits(tiles.tile_count * height);
        Buffer<int32_t> counts(tiles.tile_count * height), found(tiles.tile_count * height * capacity);
        const int64_t runs = run_count(tiles.tile_count, tiles.tile_bytes, workers);
        run_tasks(workers, runs, [&](int64_t run) {
            const int64_t tile = tiles.tile_count * run / runs, next = tiles.tile_count * (run + 1) / runs;
            for (int64_t t = tile; t < next; ++t) tiles.pack(t);
            for (int64_t q = tile * height; q < next * height; ++q) {
                limits[q] = q < here ? open.limits[first + q] : -kInfinity;
                counts[q] = 0;
            }
            SearchBlock block{};
            block.panels = bank.screen.data.data();
            block.panel_bytes = bank.screen.panel_bytes;
            block.norms = bank.screen.norms.data();
            block.factors = bank.screen.factors.data();
            block.sums = bank.screen.sums.data();
            block.panel_count = divide_up(bank.m, kernels.panel);
            block.depth = bank.screen.depth;
            block.tiles = tiles.tile(tile);
            block.tile_bytes = tiles.tile_bytes;
            block.query_factors = tiles.factors(tile);
            block.tile_count = next - tile;
            block.where = found.data() + tile * height * capacity;
            block.limits = limits.data() + tile * height;
            block.counts = counts.data() + tile * height;
            block.capacity = capacity;
            kernels.search[static_cast<int>(Storage::kInt8)](block);
            for (int64_t q = tile * height; q < std::min(here, next * height); ++q) {
                const float* query = tiles.query(q);
                if (!(limits[q] < kInfinity) || counts[q] == 0 || counts[q] > capacity) {
                    rest.add(open.places[first + q], query, kInfinity);
                    continue;
                }
                Candidate nearest{kInfinity, -1};
                for (int64_t i = 0; i < counts[q]; ++i) {
                    const int64_t row = found[q * capacity + i];
                    const Candidate next_one{kernels.squared_distance(query, bank.rows + row * d, d), row};
                    if (next_one < nearest) nearest = next_one;
                }
                squared[open.places[first + q]] = nearest.distance;
                rows[open.places[first + q]] = nearest.row;
            }
        });
    }
}

// k = 1 through the screen.
void search_screened(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int workers,
                     float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d;
    Open open(count, d);
    {
        Tiles tiles(kernels, Storage::kInt8, queries, first, count);
        const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, panels, workers);
        State state(kernels, tiles.tile_count, cuts, 1, true);
        search_all(kernels, bank.screen, panels, tiles, state, cuts, 1, count, workers,
                   [&](int64_t begin, int64_t end) {
                       for (int64_t q = begin; q < end; ++q) {
                           Candidate nearest{kNaN, -1};
                           float below;
                           if (tiles.usable(q) && !prove(bank, tiles.query(q), tiles, q, state, cuts, &nearest, &below)) {
                               open.add(first + q, tiles.query(q), below);
                               continue;
                           }
                           squared[first + q] = nearest.distance;
                           rows[first + q] = nearest.row;
                       }
                   });
    }
    bank.screened += count;
    if (open.count == 0) return;
    Open rest(open.count, d);
    search_below(bank, open, workers, rest, squared, rows);
    const int64_t left = rest.count;
    bank.unproved += left;
    if (left == 0) return;
    Buffer<float> distances(left);
    Buffer<int64_t> places(left);
    search_stored(bank, {rest.queries.data(), false, left, d}, 0, left, 1, 1, true, workers, distances.data(),
                  places.data());
    for (int64_t i = 0; i < left; ++i) {
        squared[rest.places[i]] = distances[i];
        rows[rest.places[i]] = places[i];
    }
}

bool screen_pays(const Bank& bank) {
    // A query that stays open costs the float32 search and two of the screen, which take half as long together.
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
