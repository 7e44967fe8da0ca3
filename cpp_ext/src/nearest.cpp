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

namespace flawscope {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;          // bank rows packed at a time where no packed bank is given
constexpr int64_t kStateBytes = 24 << 20;         // candidates held at a time: bounds the memory of many queries
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

struct Candidate {
    float distance;
    int64_t row;
    bool operator<(const Candidate& other) const {
        return distance < other.distance || (distance == other.distance && row < other.row);
    }
};

// A run of queries made ready: tiles, and whether each query has a distance at all.
class Tiles {
public:
    Tiles(const Kernels& kernels, Storage storage, const Queries& queries, int64_t first, int64_t count, int threads)
        : kernels_(kernels),
          queries_(queries),
          first_(first),
          count_(count),
          tile_count(divide_up(count, kernels.tile_rows)),
          tile_bytes(4 * kernels.tile_rows * (storage == Storage::kInt8 ? divide_up(queries.d, 4) : queries.d)),
          data_(tile_count * tile_bytes),
          factors_(storage == Storage::kInt8 ? tile_count * kernels.tile_rows : 0),
          lost_(storage == Storage::kInt8 ? tile_count * kernels.tile_rows : 0),
          norms_(storage == Storage::kInt8 ? tile_count * kernels.tile_rows : 0),
          bytes_(storage == Storage::kInt8 ? tile_count * 4 * divide_up(queries.d, 4) : 0),
          usable_(count) {
        const int64_t height = kernels.tile_rows, d = queries.d, share = 4;
        const bool direct = storage != Storage::kInt8 && !queries.halves;
        Buffer<float> scratch(direct ? 0 : divide_up(tile_count, share) * height * d);
        run_tasks(threads, divide_up(tile_count, share), [&](int64_t task) {
            for (int64_t t = task * share; t < std::min(tile_count, (task + 1) * share); ++t) {
                const int64_t begin = t * height, rows = std::min(height, count - begin);
                float* own = direct ? nullptr : scratch.data() + task * height * d;
                const float* source;
                if (queries.halves) {
                    const uint16_t* halves = static_cast<const uint16_t*>(queries.data) + (first + begin) * d;
                    kernels.halves_to_floats(halves, rows * d, own);
                    source = own;
                } else {
                    source = static_cast<const float*>(queries.data) + (first + begin) * d;
                }
                for (int64_t r = 0; r < rows; ++r) usable_[begin + r] = is_usable(source + r * d, d);
                if (storage == Storage::kInt8) {
                    pack_bytes(source, begin, rows);
                } else {
                    kernels.pack_tile(source, d, rows, d, reinterpret_cast<float*>(tile(t)));
                }
            }
        });
    }

    char* tile(int64_t t) { return data_.data() + t * tile_bytes; }
    const char* tile(int64_t t) const { return data_.data() + t * tile_bytes; }
    const float* factors(int64_t t) const { return factors_.data() + t * kernels_.tile_rows; }
    bool usable(int64_t query) const { return usable_[query]; }
    float lost(int64_t query) const { return lost_[query]; }
    float norm(int64_t query) const { return norms_[query]; }

private:
    // A query whose squared norm is NaN or beyond float32 has no distance to anything.
    static bool is_usable(const float* row, int64_t d) {
        float total[8] = {};
        int64_t i = 0;
        for (; i + 8 <= d; i += 8) {
            for (int j = 0; j < 8; ++j) total[j] += row[i + j] * row[i + j];
        }
        for (; i < d; ++i) total[0] += row[i] * row[i];
        float sum = 0.0f;
        for (float part : total) sum += part;
        return std::isfinite(sum);
    }

    void pack_bytes(const float* source, int64_t begin, int64_t rows) {
        const int64_t height = kernels_.tile_rows, d = queries_.d, groups = divide_up(d, 4);
        const uint32_t bias = kernels_.biased_queries ? 0x80808080u : 0u;  // adds 128 to each of four bytes
        char* out = tile(begin / height);
        int8_t* bytes = bytes_.data() + begin / height * 4 * groups;
        for (int64_t r = 0; r < height; ++r) {
            const int64_t q = begin + r;
            if (r < rows && usable_[q]) {
                kernels_.quantize(source + r * d, d, bytes, &factors_[q], &lost_[q], &norms_[q]);
            } else {
                std::memset(bytes, 0, static_cast<size_t>(4 * groups));
                factors_[q] = lost_[q] = norms_[q] = 0.0f;
            }
            for (int64_t g = 0; g < groups; ++g) {
                uint32_t four;
                std::memcpy(&four, bytes + 4 * g, 4);
                four ^= bias;
                std::memcpy(out + (g * height + r) * 4, &four, 4);
            }
        }
    }

    const Kernels& kernels_;
    const Queries& queries_;
    const int64_t first_, count_;

public:
    const int64_t tile_count, tile_bytes;

private:
    Buffer<char> data_;
    Buffer<float> factors_, lost_, norms_;  // int8: factor, ‖q − q̂‖² and ‖q̂‖² of each query
    Buffer<int8_t> bytes_;
    Buffer<bool> usable_;
};

// Candidates of a run of queries, for each cut of the bank.
class State {
public:
    State(const Kernels& kernels, int64_t tile_count, int64_t cuts, int k, bool seconds = false)
        : width(k == 1 ? kernels.panel : k), queries_(tile_count * kernels.tile_rows), panel_(kernels.panel), k_(k),
          best_(cuts * queries_ * width), where_(cuts * queries_ * width),
          second_(seconds ? cuts * queries_ * width : 0), has_second_(seconds) {
        std::fill_n(best_.data(), cuts * queries_ * width, kInfinity);
        std::fill_n(where_.data(), cuts * queries_ * width, -1);
        if (seconds) std::fill_n(second_.data(), cuts * queries_ * width, kInfinity);
    }

    static int64_t bytes_per_query(const Kernels& kernels, int k) { return 12 * (k == 1 ? kernels.panel : k); }

    float* best(int64_t cut, int64_t query) { return best_.data() + (cut * queries_ + query) * width; }
    int32_t* where(int64_t cut, int64_t query) { return where_.data() + (cut * queries_ + query) * width; }

    float* second(int64_t cut, int64_t query) {
        return has_second_ ? second_.data() + (cut * queries_ + query) * width : nullptr;
    }

    // The k best of a query over all cuts, ascending by (distance, row); fewer where fewer were found.
    int collect(int64_t cuts, int64_t query, Candidate* found) {
        int count = 0;
        for (int64_t cut = 0; cut < cuts; ++cut) {
            const float* distances = best(cut, query);
            const int32_t* places = where(cut, query);
            for (int64_t i = 0; i < width; ++i) {
                if (places[i] < 0) continue;
                const Candidate next{distances[i], k_ == 1 ? int64_t{places[i]} * panel_ + i : int64_t{places[i]}};
                if (count == k_ && !(next < found[k_ - 1])) continue;
                int place = count < k_ ? count++ : k_ - 1;
                for (; place > 0 && next < found[place - 1]; --place) found[place] = found[place - 1];
                found[place] = next;
            }
        }
        return count;
    }

    const int64_t width;

private:
    const int64_t queries_, panel_;
    const int k_;
    Buffer<float> best_;
    Buffer<int32_t> where_;
    Buffer<float> second_;
    const bool has_second_;
};

// Search panels [first, first + count) of the bank, `panels` holding them from its panel `offset` on.
void search_panels(const Kernels& kernels, const Panels& panels, int64_t offset, int64_t first, int64_t count,
                   const Tiles& tiles, State& state, int64_t cuts, int k, int threads) {
    const int64_t runs = run_count(tiles.tile_count, tiles.tile_bytes, threads);
    run_tasks(threads, runs * cuts, [&](int64_t task) {
        const int64_t run = task / cuts, cut = task % cuts;
        const int64_t begin = count * cut / cuts, end = count * (cut + 1) / cuts;
        const int64_t tile = tiles.tile_count * run / runs, next = tiles.tile_count * (run + 1) / runs;
        const int64_t place = (offset + begin) * kernels.panel;
        SearchBlock block;
        block.panels = panels.data.data() + (offset + begin) * panels.panel_bytes;
        block.panel_bytes = panels.panel_bytes;
        block.norms = panels.norms.data() + place;
        block.factors = panels.factors.data() + (panels.storage == Storage::kInt8 ? place : 0);
        block.sums = panels.sums.data() + (panels.storage == Storage::kInt8 ? place : 0);
        block.panel_count = end - begin;
        block.first_panel = first + begin;
        block.depth = panels.depth;
        block.tiles = tiles.tile(tile);
        block.tile_bytes = tiles.tile_bytes;
        block.query_factors = tiles.factors(panels.storage == Storage::kInt8 ? tile : 0);
        block.tile_count = next - tile;
        block.k = k;
        block.best = state.best(cut, tile * kernels.tile_rows);
        block.where = state.where(cut, tile * kernels.tile_rows);
        block.second = state.second(cut, tile * kernels.tile_rows);
        kernels.search[static_cast<int>(panels.storage)](block);
    });
}

// How often the bank is cut so that all threads have work even where there are few queries.
int64_t cuts_for(int64_t tile_count, int64_t tile_bytes, int64_t panels, int threads) {
    const int64_t runs = run_count(tile_count, tile_bytes, threads);
    if (runs % threads == 0 || runs >= 4 * threads) return 1;
    return std::max<int64_t>(1, std::min<int64_t>(threads, panels / 4));
}

// Compute the distances of the winners again, sort, and write them out.
template <class RowOf>
void finish(const Kernels& kernels, const Queries& queries, int64_t first, int64_t count, const Tiles& tiles,
            State& state, int64_t cuts, int k, int threads, const RowOf& row_of, float* squared, int64_t* rows) {
    const int64_t d = queries.d, share = 32;
    Buffer<float> scratch(2 * divide_up(count, share) * d);
    run_tasks(threads, divide_up(count, share), [&](int64_t task) {
        float* query_floats = scratch.data() + 2 * task * d;
        float* row_floats = query_floats + d;
        Candidate found[64];
        for (int64_t q = task * share; q < std::min(count, (task + 1) * share); ++q) {
            float* distances = squared + (first + q) * k;
            int64_t* places = rows + (first + q) * k;
            int kept = 0;
            if (tiles.usable(q)) {
                const float* query;
                if (queries.halves) {
                    kernels.halves_to_floats(static_cast<const uint16_t*>(queries.data) + (first + q) * d, d,
                                             query_floats);
                    query = query_floats;
                } else {
                    query = static_cast<const float*>(queries.data) + (first + q) * d;
                }
                kept = state.collect(cuts, q, found);
                for (int i = 0; i < kept; ++i) {
                    found[i].distance = kernels.squared_distance(query, row_of(found[i].row, row_floats), d);
                }
                std::sort(found, found + kept);
            }
            for (int i = 0; i < k; ++i) {
                const bool there = i < kept && std::isfinite(found[i].distance);
                distances[i] = there ? found[i].distance : kNaN;
                places[i] = there ? found[i].row : -1;
            }
        }
    });
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
    const int64_t panels = divide_up(bank.m, kernels.panel);
    const Tiles tiles(kernels, bank.panels.storage, queries, first, count, workers);
    const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, panels, workers);
    State state(kernels, tiles.tile_count, cuts, wanted);
    search_panels(kernels, bank.panels, 0, 0, panels, tiles, state, cuts, wanted, workers);
    const auto row_of = [&](int64_t row, float* scratch) -> const float* {
        if (own_rows) return bank.rows + row * bank.d;
        bank.panels.unpack(kernels, row, scratch);
        return scratch;
    };
    finish(kernels, queries, first, count, tiles, state, cuts, k, workers, row_of, squared, rows);
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
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d, share = 32;
    Buffer<int64_t> open(count);  // queries without a proof
    std::atomic<int64_t> open_count{0};
    {
        const Tiles tiles(kernels, Storage::kInt8, queries, first, count, workers);
        const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, panels, workers);
        State state(kernels, tiles.tile_count, cuts, 1, true);
        search_panels(kernels, bank.screen, 0, 0, panels, tiles, state, cuts, 1, workers);
        Buffer<float> scratch(queries.halves ? divide_up(count, share) * d : 0);
        run_tasks(workers, divide_up(count, share), [&](int64_t task) {
            for (int64_t q = task * share; q < std::min(count, (task + 1) * share); ++q) {
                squared[first + q] = kNaN;
                rows[first + q] = -1;
                if (!tiles.usable(q)) continue;
                const float* query = queries.halves ? scratch.data() + task * d
                                                    : static_cast<const float*>(queries.data) + (first + q) * d;
                if (queries.halves) {
                    kernels.halves_to_floats(static_cast<const uint16_t*>(queries.data) + (first + q) * d, d,
                                             scratch.data() + task * d);
                }
                Candidate nearest;
                if (!prove(bank, query, tiles, q, state, cuts, &nearest)) {
                    open[open_count++] = first + q;
                } else if (std::isfinite(nearest.distance)) {
                    squared[first + q] = nearest.distance;
                    rows[first + q] = nearest.row;
                }
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
    const int64_t d = queries.d, all = divide_up(m, kernels.panel);
    const int64_t length = run_length(kernels, queries, k);
    const int64_t chunk = std::min(all, std::max<int64_t>(workers, kChunkBytes / (4 * d * kernels.panel)));
    Panels panels(kernels, Storage::kFloat32, d, chunk);
    Buffer<double> errors(chunk);
    for (int64_t first = 0; first < queries.n; first += length) {
        const int64_t count = std::min(length, queries.n - first);
        const Tiles tiles(kernels, Storage::kFloat32, queries, first, count, workers);
        const int64_t cuts = cuts_for(tiles.tile_count, tiles.tile_bytes, chunk, workers);
        State state(kernels, tiles.tile_count, cuts, k);
        for (int64_t start = 0; start < all; start += chunk) {
            const int64_t here = std::min(chunk, all - start);
            run_tasks(workers, here, [&](int64_t p) {
                const int64_t row = (start + p) * kernels.panel;
                errors[p] = panels.pack(kernels, p, bank + row * d, std::min<int64_t>(kernels.panel, m - row), nullptr);
            });
            for (int64_t p = 0; p < here; ++p) {
                if (std::isnan(errors[p])) throw NotFinite{};
            }
            search_panels(kernels, panels, 0, start, here, tiles, state, cuts, k, workers);
        }
        const auto row_of = [&](int64_t row, float*) { return bank + row * d; };
        finish(kernels, queries, first, count, tiles, state, cuts, k, workers, row_of, squared, rows);
    }
}

}  // namespace flawscope
