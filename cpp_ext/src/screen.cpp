#include "screen.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "search.h"
#include "threads.h"
#include "tiles.h"

namespace flawscope {
namespace {

constexpr int kMostNeighbours = 16;  // more of them would need more lanes than a panel has to tell them apart
constexpr int kMostTagBits = 12;     // of the 23 of a value; a bank with more panels keeps their numbers beside it
constexpr float kNoRow = 3e38f;      // values of rows are below: norms are below 2¹²⁶
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The k nearest so far, ascending.
class Nearest {
public:
    explicit Nearest(int k) : k_(k) {}

    void add(const Candidate& next) {
        if (count_ == k_ && !(next < found_[k_ - 1])) return;
        int place = count_ < k_ ? count_++ : k_ - 1;
        for (; place > 0 && next < found_[place - 1]; --place) found_[place] = found_[place - 1];
        found_[place] = next;
    }

    bool has(int64_t row) const {
        return std::any_of(found_, found_ + count_, [row](const Candidate& one) { return one.row == row; });
    }
    bool full() const { return count_ == k_; }
    const Candidate& last() const { return found_[count_ - 1]; }
    const Candidate& operator[](int i) const { return found_[i]; }

    void write(float* squared, int64_t* rows) const {
        for (int i = 0; i < k_; ++i) {
            squared[i] = i < count_ ? found_[i].distance : kNaN;
            rows[i] = i < count_ ? found_[i].row : -1;
        }
    }

private:
    int k_;
    int count_ = 0;
    Candidate found_[kMostNeighbours];
};

// The true distances of rows to one query. The next row is asked for while one is compared: they lie anywhere.
class Distances {
public:
    Distances(const Bank& bank, const float* query) : bank_(bank), query_(query) {}

    float to(int64_t row) const { return bank_.kernels.squared_distance(query_, at(row), bank_.d); }

    void ask_for(int64_t row) const {
        const char* const begin = reinterpret_cast<const char*>(at(row));
        for (int64_t i = 0; i < 4 * bank_.d; i += 64) __builtin_prefetch(begin + i, 0, 2);
    }

private:
    const float* at(int64_t row) const { return bank_.rows + row * bank_.d; }

    const Bank& bank_;
    const float* const query_;
};

float above(float x) { return std::nextafter(x, kInfinity); }

// The lanes of a panel whose value is below a limit.
template <class Visit>
void each_below(const Kernels& kernels, const float* values, float limit, const Visit& visit) {
    for (uint32_t found = kernels.lanes_below(values, limit); found != 0; found &= found - 1) {
        const int lane = __builtin_ctz(found);
        visit(lane, values[lane]);
    }
}

float least_of(const Kernels& kernels, State& state, int64_t q, int64_t cuts) {
    float least = kInfinity;
    for (int64_t cut = 0; cut < cuts; ++cut) least = std::min(least, kernels.least(state.best(cut, q)));
    return least;
}

// Find the nearest rows of one query among the candidates of the screen. False where they cannot be proved; then `below`
// is a limit that they are below, or infinite where there is none.
bool prove(const Bank& bank, const float* query, const Tiles& tiles, int64_t q, State& state, int64_t cuts, int k,
           Nearest& nearest, float* below) {
    constexpr double kUnit = 1.0 / (1 << 24);
    *below = kInfinity;
    const Distances distances(bank, query);
    Nearest likely(k);  // by what the screen says of them
    const float most = k == 1 ? std::min(above(least_of(bank.kernels, state, q, cuts)), kNoRow) : kNoRow;
    for (int64_t cut = 0; cut < cuts; ++cut) {
        each_below(bank.kernels, state.best(cut, q), most, [&](int64_t lane, float value) {
            likely.add({value, state.row(cut, q, lane)});
        });
    }
    if (!likely.full()) return false;
    for (int i = 0; i < k; ++i) {
        if (i + 1 < k) distances.ask_for(likely[i + 1].row);
        nearest.add({distances.to(likely[i].row), likely[i].row});
    }
    // Each root is taken a little larger than its rounding can have made it too small: D + 8 operations at most.
    const double grow = 1.0 + static_cast<double>(bank.d + 8) * kUnit;
    const double reach =
        (std::sqrt(double{nearest.last().distance}) + std::sqrt(double{tiles.lost(q)}) + bank.screen_error) * grow;
    // What the screen computed is ‖m̂‖² − 2·q̂·m̂: an exact integer, its conversion, a product, and a product and a sum in
    // one, each within one unit where they are fused and less than two where they are not. A tag moves a value of at
    // most 2·(‖q̂‖² + ‖m̂‖²) by less than its mask in units of the last place.
    const double units = 16.0 + 8.0 * state.tag_mask;
    const double limit =
        reach * reach - double{tiles.norm(q)} + units * kUnit * (double{tiles.norm(q)} * grow + bank.screen_norm);
    *below = above(above(static_cast<float>(limit)));
    // Written so that NaN, from a reach that overflows, is without a proof too.
    if (!(*below < kNoRow)) {
        *below = kInfinity;
        return false;
    }
    for (int64_t cut = 0; cut < cuts; ++cut) {
        if (bank.kernels.lanes_below(state.second(cut, q), *below) != 0) return false;
    }
    for (int64_t cut = 0; cut < cuts; ++cut) {
        each_below(bank.kernels, state.best(cut, q), *below, [&](int64_t lane, float value) {
            const Candidate screened{value, state.row(cut, q, lane)};
            if (likely.last() < screened) nearest.add({distances.to(screened.row), screened.row});
        });
    }
    return true;
}

// Queries without a proof, as float32 [count, d], with the limits that their nearest rows are below and the nearest of
// the rows that they were compared with.
struct Open {
    explicit Open(int64_t room, int64_t d) : places(room), limits(room), queries(room * d), nearest(room), d(d) {}

    void add(int64_t place, const float* query, float limit, const Nearest& so_far) {
        const int64_t i = count++;
        places[i] = place;
        limits[i] = limit;
        nearest[i] = so_far;
        std::memcpy(queries.data() + i * d, query, static_cast<size_t>(d) * sizeof(float));
    }

    Buffer<int64_t> places;  // of the query in the results
    Buffer<float> limits, queries;
    Buffer<Nearest> nearest;
    const int64_t d;
    std::atomic<int64_t> count{0};
};

// Compare open queries with every row that the screen has below their limits; what has too many stays open.
void search_below(const Bank& bank, const Open& open, int k, int workers, Open& rest, float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t count = open.count, d = bank.d, height = kernels.byte_tile_rows;
    // With more candidates than this the search in float32 costs less than comparing them.
    const int64_t capacity = std::max<int64_t>(64, std::min<int64_t>(1024, bank.m / 32));
    const int64_t length = std::max<int64_t>(height, kStateBytes / (4 * (capacity + 2 * d)) / height * height);
    for (int64_t first = 0; first < count; first += length) {
        const int64_t here = std::min(length, count - first);
        const Queries queries{open.queries.data() + first * d, false, here, d};
        Tiles tiles(kernels, Storage::kInt8, queries, 0, here);
        Buffer<float> limits(tiles.tile_count * height);
        Buffer<int32_t> counts(tiles.tile_count * height), found(tiles.tile_count * height * capacity);
        const int64_t runs = run_count(tiles, bank.screen, workers);
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
                if (!(limits[q] < kInfinity) || counts[q] < k || counts[q] > capacity) {
                    rest.add(open.places[first + q], query, kInfinity, Nearest(k));
                    continue;
                }
                const Distances distances(bank, query);
                // Every row is compared once: a second time it would stand in the list twice.
                const Nearest known = open.nearest[first + q];
                Nearest nearest = known;
                const int32_t* rows_below = found.data() + q * capacity;
                for (int64_t i = 0; i < counts[q]; ++i) {
                    if (i + 1 < counts[q]) distances.ask_for(rows_below[i + 1]);
                    if (!known.has(rows_below[i])) nearest.add({distances.to(rows_below[i]), rows_below[i]});
                }
                nearest.write(squared + open.places[first + q] * k, rows + open.places[first + q] * k);
            }
        });
    }
}

}  // namespace

int32_t screen_tag_mask(int64_t panels) {
    int bits = 1;
    while (int64_t{1} << bits < panels) ++bits;
    return bits <= kMostTagBits ? (1 << bits) - 1 : 0;
}

bool write_proved(const Bank& bank, const Tiles& tiles, int64_t q, State& state, float* squared, int64_t* row) {
    Nearest nearest(1);
    float below;
    if (tiles.usable(q) && !prove(bank, tiles.query(q), tiles, q, state, 1, 1, nearest, &below)) return false;
    nearest.write(squared, row);
    return true;
}

bool screen_pays(const Bank& bank, int k) {
    // A query that stays open costs the float32 search and two of the screen, which take half as long together.
    return bank.has_screen && k <= kMostNeighbours && (bank.screened < 1024 || 3 * bank.unproved < bank.screened);
}

void search_screened(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int k, int workers,
                     float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d;
    Open open(count, d);
    {
        Tiles tiles(kernels, Storage::kInt8, queries, first, count);
        const int64_t cuts = cuts_for(tiles, bank.screen, panels, workers);
        State state(kernels, tiles, cuts, 1, true, screen_tag_mask(panels));
        const auto finish = [&](int64_t begin, int64_t end) {
            for (int64_t q = begin; q < end; ++q) {
                Nearest nearest(k);
                float below;
                if (tiles.usable(q) && !prove(bank, tiles.query(q), tiles, q, state, cuts, k, nearest, &below)) {
                    open.add(first + q, tiles.query(q), below, nearest);
                } else {
                    nearest.write(squared + (first + q) * k, rows + (first + q) * k);
                }
            }
        };
        search_all(kernels, bank.screen, panels, tiles, state, cuts, 1, count, workers, finish);
    }
    bank.screened += count;
    if (open.count == 0) return;
    Open rest(open.count, d);
    search_below(bank, open, k, workers, rest, squared, rows);
    const int64_t left = rest.count;
    bank.unproved += left;
    if (left == 0) return;
    Buffer<float> distances(left * k);
    Buffer<int64_t> places(left * k);
    search_stored(bank, {rest.queries.data(), false, left, d}, 0, left, k, k, true, workers, distances.data(),
                  places.data());
    for (int64_t i = 0; i < left; ++i) {
        std::copy_n(distances.data() + i * k, k, squared + rest.places[i] * k);
        std::copy_n(places.data() + i * k, k, rows + rest.places[i] * k);
    }
}

}  // namespace flawscope
