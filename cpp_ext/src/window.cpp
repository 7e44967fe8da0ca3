// Search within windows.
//
// Patches of neighbouring places look at nearly the same rows. A tile therefore takes a small block of places, or one
// place of several images; its products are computed for every panel of the bank that one of its windows touches, and
// lanes outside a query's own window are masked. Rows are sorted by place, so a window is one range of rows for each
// row of the grid that it reaches. Tiles that lie one below the other form a group: a panel is read once for them.
#include "window.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "screen.h"
#include "search.h"
#include "threads.h"
#include "tiles.h"

namespace flawscope {
namespace {

constexpr int64_t kQueryBytes = 32 << 20;  // patches and candidates held at a time: bounds the memory of large batches

constexpr int64_t kMaskBytes = 4 << 20;    // of a group

struct Block {
    int64_t height, width;  // in places
};

// The block of places whose tiles compute the fewest products.
Block best_block(const Windows& w, int64_t images, int64_t tile) {
    const int64_t radius = *std::min_element(w.reach.data(), w.reach.data() + w.places());
    const auto area = [&](int64_t h, int64_t v) {  // of the windows of a block together
        return double(std::min(w.height, h + 2 * radius)) * double(std::min(w.width, v + 2 * radius));
    };
    Block best{1, 1};
    double least = std::numeric_limits<double>::infinity();
    for (int64_t h = 1; h <= std::min(tile, w.height); ++h) {
        for (int64_t v = 1; v <= std::min(tile, w.width); ++v) {
            const double tiles = double(divide_up(w.height, h)) * double(divide_up(w.width, v)) *
                                 double(divide_up(h * v * images, tile));
            // A tile of many images has few places, however large the block is.
            const double share = std::min(1.0, double(tile) / double(h * v * images));
            const double own = area(1, 1), cost = tiles * (own + (area(h, v) - own) * share);
            if (cost < least) {
                least = cost;
                best = {h, v};
            }
        }
    }
    return best;
}

// The queries of images [first, first + count) in the order of their tiles, −1 where a tile is not full.
std::vector<int64_t> tile_order(const Windows& w, int64_t first, int64_t count, int64_t tile) {
    const Block block = best_block(w, count, tile);
    std::vector<int64_t> order;
    order.reserve(static_cast<size_t>(w.places() * count + tile));
    // Down a column of blocks first: those share more rows than blocks side by side, which are wider than high.
    for (int64_t left = 0; left < w.width; left += block.width) {
        for (int64_t top = 0; top < w.height; top += block.height) {
            for (int64_t y = top; y < std::min(w.height, top + block.height); ++y) {
                for (int64_t x = left; x < std::min(w.width, left + block.width); ++x) {
                    for (int64_t i = first; i < first + count; ++i) order.push_back(i * w.places() + y * w.width + x);
                }
            }
            while (order.size() % static_cast<size_t>(tile) != 0) order.push_back(-1);
        }
    }
    return order;
}

// What a thread needs for a group of tiles.
struct Scratch {
    Scratch(const Windows& w, int64_t group)
        : left(w.height), right(w.height), slots(w.height), allowed(divide_up(w.bank.m, w.bank.kernels.panel) * group),
          panels(divide_up(w.bank.m, w.bank.kernels.panel)) {}

    Buffer<int64_t> left, right;  // of each row of the grid, the columns that some window of the group has
    Buffer<int64_t> slots;        // of each row of the grid, where its first panel stands in `panels`
    Buffer<uint32_t> allowed;     // [panels of the group][tiles][queries of a tile]
    Buffer<int64_t> panels;       // numbers of the panels that the group needs, ascending
};

// Of a place, the ranges of its window: `visit(row of the grid, first row, last row + 1)` of the bank.
template <class Visit>
void each_range(const Windows& w, int64_t place, const Visit& visit) {
    const int64_t y = place / w.width, x = place % w.width, reach = w.reach[place];
    const int64_t left = std::max<int64_t>(0, x - reach), right = std::min(w.width - 1, x + reach);
    for (int64_t row = std::max<int64_t>(0, y - reach); row <= std::min(w.height - 1, y + reach); ++row) {
        visit(row, left, right);
    }
}

uint32_t lanes_between(int64_t first, int64_t last) {
    return static_cast<uint32_t>((uint64_t{1} << last) - (uint64_t{1} << first));
}

// One search of some queries, in float32 or through the screen.
class Search {
public:
    Search(const Windows& windows, const Queries& queries, const std::vector<int64_t>& order, bool screened,
           int workers)
        : w_(windows), kernels_(windows.bank.kernels), order_(order), screened_(screened), workers_(workers),
          gathered_(static_cast<int64_t>(order.size()) * queries.d),
          own_{gathered_.data(), false, static_cast<int64_t>(order.size()), queries.d},
          panels_(screened ? windows.bank.screen : windows.bank.panels),
          tiles_(kernels_, panels_.storage, own_, 0, own_.n),
          state_(kernels_, tiles_, 1, 1, screened,
                 screened ? screen_tag_mask(divide_up(w_.bank.m, kernels_.panel)) : 0),
          open_(own_.n) {
        const int64_t d = queries.d;
        run_tasks(workers, tiles_.tile_count, [&](int64_t t) {
            for (int64_t q = t * tiles_.height; q < (t + 1) * tiles_.height; ++q) {
                float* to = gathered_.data() + q * d;
                if (order_[q] < 0) {
                    std::fill_n(to, d, 0.0f);
                } else if (queries.halves) {
                    kernels_.halves_to_floats(static_cast<const uint16_t*>(queries.data) + order_[q] * d, d, to);
                } else {
                    std::memcpy(to, static_cast<const float*>(queries.data) + order_[q] * d, sizeof(float) * d);
                }
            }
        });
    }

    // Returns the places in `order` of queries that the screen could not prove.
    std::vector<int64_t> run(float* squared, int64_t* rows) {
        // Tiles of a group fit half the second-level cache; a few groups a thread end at about the same time.
        // So do their masks, of however many panels a bank has.
        const int64_t mask_bytes = 4 * tiles_.height * divide_up(w_.bank.m, kernels_.panel);
        const int64_t most = std::min(half_cache() / tiles_.tile_bytes, kMaskBytes / mask_bytes);
        const int64_t fitting = std::max<int64_t>(1, most);
        const int64_t wanted = std::max(divide_up(tiles_.tile_count, fitting), 4 * int64_t{workers_});
        const int64_t groups = std::min(tiles_.tile_count, wanted);
        const int64_t group = divide_up(tiles_.tile_count, groups);
        const int used = static_cast<int>(std::min<int64_t>(workers_, groups));
        std::vector<Scratch> scratch;  // before the threads start: nothing in them may throw
        scratch.reserve(static_cast<size_t>(used));
        for (int i = 0; i < used; ++i) scratch.emplace_back(w_, group * tiles_.height);
        std::atomic<int64_t> next{0};
        run_on_threads(used, [&](int worker) {
            for (int64_t g = next++; g * group < tiles_.tile_count; g = next++) {
                const int64_t first = g * group;
                search(first, std::min(group, tiles_.tile_count - first), scratch[static_cast<size_t>(worker)]);
                finish(first, std::min(group, tiles_.tile_count - first), squared, rows);
            }
        });
        std::vector<int64_t> open(open_.data(), open_.data() + open_count_);
        std::sort(open.begin(), open.end());  // threads add to it in any order
        return open;
    }

private:
    void search(int64_t first_tile, int64_t tile_count, Scratch& scratch) {
        const int64_t height = tiles_.height, begin = first_tile * height, end = (first_tile + tile_count) * height;
        for (int64_t t = first_tile; t < first_tile + tile_count; ++t) tiles_.pack(t);
        state_.clear(0, begin, end - begin);
        const int64_t count = choose_panels(begin, end, scratch);
        if (count == 0) return;
        mask(begin, end, tile_count, count, scratch);
        for (int64_t slot = 0, next; slot < count; slot = next) {  // panels that lie one after the other go together
            next = slot + 1;
            while (next < count && scratch.panels[next] == scratch.panels[next - 1] + 1) ++next;
            const int64_t panel = scratch.panels[slot], row = panel * kernels_.panel;
            SearchBlock block{};
            block.panels = panels_.data.data() + panel * panels_.panel_bytes;
            block.panel_bytes = panels_.panel_bytes;
            block.norms = panels_.norms.data() + row;
            block.factors = screened_ ? panels_.factors.data() + row : nullptr;
            block.sums = screened_ ? panels_.sums.data() + row : nullptr;
            block.panel_count = next - slot;
            block.first_panel = panel;
            block.depth = panels_.depth;
            block.tiles = tiles_.tile(first_tile);
            block.tile_bytes = tiles_.tile_bytes;
            block.query_factors = screened_ ? tiles_.factors(first_tile) : nullptr;
            block.tile_count = tile_count;
            block.k = 1;
            block.best = state_.best(0, begin);
            block.where = state_.where(0, begin);
            block.second = state_.second(0, begin);
            block.tag_mask = state_.tag_mask;
            block.allowed = scratch.allowed.data() + slot * tile_count * height;
            kernels_.search[static_cast<int>(panels_.storage)](block);
        }
    }

    // The panels that some window of queries [begin, end) touches; returns how many they are.
    int64_t choose_panels(int64_t begin, int64_t end, Scratch& scratch) const {
        std::fill_n(scratch.left.data(), w_.height, w_.width);
        std::fill_n(scratch.right.data(), w_.height, int64_t{-1});
        for (int64_t q = begin; q < end; ++q) {
            if (order_[q] < 0) continue;
            each_range(w_, order_[q] % w_.places(), [&](int64_t row, int64_t left, int64_t right) {
                scratch.left[row] = std::min(scratch.left[row], left);
                scratch.right[row] = std::max(scratch.right[row], right);
            });
        }
        int64_t count = 0;
        for (int64_t row = 0; row < w_.height; ++row) {
            if (scratch.right[row] < 0) continue;
            const int64_t first = w_.starts[row * w_.width + scratch.left[row]];
            const int64_t last = w_.starts[row * w_.width + scratch.right[row] + 1];
            if (first == last) continue;
            int64_t panel = first / kernels_.panel;
            // The last panel of one row of the grid may be the first of the next that has any.
            if (count > 0 && scratch.panels[count - 1] == panel) --count;
            scratch.slots[row] = count - panel;
            for (; panel * kernels_.panel < last; ++panel) scratch.panels[count++] = panel;
        }
        return count;
    }

    void mask(int64_t begin, int64_t end, int64_t tile_count, int64_t count, Scratch& scratch) const {
        const int64_t height = tiles_.height, width = kernels_.panel, line = tile_count * height;
        std::fill_n(scratch.allowed.data(), count * line, 0u);
        for (int64_t q = begin; q < end; ++q) {
            if (order_[q] < 0) continue;
            each_range(w_, order_[q] % w_.places(), [&](int64_t row, int64_t left, int64_t right) {
                const int64_t first = w_.starts[row * w_.width + left], last = w_.starts[row * w_.width + right + 1];
                for (int64_t panel = first / width; panel * width < last; ++panel) {
                    const int64_t from = std::max(first, panel * width) - panel * width;
                    const int64_t to = std::min(last - panel * width, width);
                    if (from >= to) continue;
                    scratch.allowed[(scratch.slots[row] + panel) * line + q - begin] |= lanes_between(from, to);
                }
            });
        }
        int64_t blocks = 0;
        for (int64_t tile = 0; tile < count * tile_count; ++tile) {
            const uint32_t* lanes = scratch.allowed.data() + tile * height;
            blocks += std::any_of(lanes, lanes + height, [](uint32_t one) { return one != 0; });
        }
        w_.computed += blocks * height * width;
    }

    void finish(int64_t first_tile, int64_t tile_count, float* squared, int64_t* rows) {
        const Bank& bank = w_.bank;
        for (int64_t q = first_tile * tiles_.height; q < (first_tile + tile_count) * tiles_.height; ++q) {
            if (order_[q] < 0) continue;
            if (!screened_) {
                finish_query(
                    kernels_, tiles_, state_, 1, q, bank.d, 1, [&](int64_t row) { return bank.rows + row * bank.d; },
                    squared + order_[q], rows + order_[q]);
            } else if (!write_proved(bank, tiles_, q, state_, squared + order_[q], rows + order_[q])) {
                open_[open_count_++] = q;
            }
        }
    }

    const Windows& w_;
    const Kernels& kernels_;
    const std::vector<int64_t>& order_;
    const bool screened_;
    const int workers_;
    Buffer<float> gathered_;  // the queries in the order of their tiles
    const Queries own_;
    const Panels& panels_;
    Tiles tiles_;
    State state_;
    Buffer<int64_t> open_;
    std::atomic<int64_t> open_count_{0};
};

}  // namespace

Windows::Windows(const Kernels& kernels, const float* rows, int64_t m, int64_t d, const int64_t* first_rows,
                 int64_t height, int64_t width, const int32_t* cells, int threads)
    : bank(kernels, rows, m, d, Storage::kFloat32, true, Screen::kAuto, threads),
      height(height),
      width(width),
      starts(height * width + 1),
      reach(height * width) {
    take(first_rows, cells);
}

Windows::Windows(const Kernels& kernels, const BlockHeader& header, const char* block, const int64_t* first_rows,
                 int64_t height, int64_t width, const int32_t* cells)
    : bank(kernels, header, block),
      height(height),
      width(width),
      starts(height * width + 1),
      reach(height * width) {
    take(first_rows, cells);
}

void Windows::take(const int64_t* first_rows, const int32_t* cells) {
    std::copy_n(first_rows, height * width + 1, starts.data());
    // A reach beyond the grid is the whole grid: sums with it then stay small.
    const int64_t most = std::max(height, width);
    for (int64_t p = 0; p < places(); ++p) reach[p] = static_cast<int32_t>(std::min<int64_t>(cells[p], most));
}

void search_windows(const Windows& windows, const Queries& queries, int threads, float* squared, int64_t* rows) {
    const Bank& bank = windows.bank;
    const int64_t images = queries.n / windows.places();
    const int64_t bytes = windows.places() * (12 * bank.kernels.panel + 8 * bank.d);
    const int64_t length = std::max<int64_t>(1, kQueryBytes / bytes);
    for (int64_t first = 0; first < images; first += length) {
        const bool screened = screen_pays(bank, 1);
        const int64_t tile = tile_rows(bank.kernels, screened ? Storage::kInt8 : Storage::kFloat32);
        const std::vector<int64_t> order = tile_order(windows, first, std::min(length, images - first), tile);
        std::vector<int64_t> open;
        {
            Search search(windows, queries, order, screened, thread_count(threads));
            open = search.run(squared, rows);
        }
        if (screened) {
            bank.screened += std::min(length, images - first) * windows.places();
            bank.unproved += static_cast<int64_t>(open.size());
        }
        if (open.empty()) continue;
        for (int64_t& q : open) q = order[static_cast<size_t>(q)];
        while (open.size() % static_cast<size_t>(bank.kernels.tile_rows) != 0) open.push_back(-1);
        Search(windows, queries, open, false, thread_count(threads)).run(squared, rows);
    }
}

}  // namespace flawscope
