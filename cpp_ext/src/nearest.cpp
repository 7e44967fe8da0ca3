// Nearest neighbours: which search a call gets, and the one over a bank that is packed on the way.
#include "nearest.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "screen.h"
#include "search.h"
#include "threads.h"
#include "tiles.h"

namespace flawscope {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;  // bank rows packed at a time where no packed bank is given

}  // namespace

void search_bank(const Bank& bank, const Queries& queries, int k, int rerank, int threads, float* squared,
                 int64_t* rows) {
    const int workers = thread_count(threads);
    const int wanted = std::max(k, static_cast<int>(std::min<int64_t>(rerank, bank.m)));
    const bool own_rows = bank.panels.storage == Storage::kFloat32 || rerank > 0;
    for (int64_t first = 0, count; first < queries.n; first += count) {
        const bool screened = screen_pays(bank, k);  // what it finds is computed in float32 and needs no candidates
        // Through the screen a query is held as bytes and, until it has a proof, as it came.
        const int64_t length = screened ? run_length(bank.kernels, queries, 1, 5)
                                        : run_length(bank.kernels, queries, wanted, 4);
        count = std::min(length, queries.n - first);
        if (screened) {
            search_screened(bank, queries, first, count, k, workers, squared, rows);
        } else {
            search_stored(bank, queries, first, count, k, wanted, own_rows, workers, squared, rows);
        }
    }
}

void search_rows(const Kernels& kernels, const float* bank, int64_t m, const Queries& queries, int k, int threads,
                 float* squared, int64_t* rows) {
    const int workers = thread_count(threads);
    const int64_t d = queries.d, all = divide_up(m, kernels.panel), height = kernels.tile_rows;
    const int64_t length = run_length(kernels, queries, k, 4);
    const int64_t chunk = std::min(all, std::max<int64_t>(workers, kChunkBytes / (4 * d * kernels.panel)));
    Panels panels(kernels, Storage::kFloat32, d, chunk);
    std::atomic<bool> finite{true};
    for (int64_t first = 0; first < queries.n; first += length) {
        const int64_t count = std::min(length, queries.n - first);
        Tiles tiles(kernels, Storage::kFloat32, queries, first, count);
        const int64_t cuts = cuts_for(tiles, panels, chunk, workers);
        const int64_t runs = run_count(tiles, panels, workers);
        State state(kernels, tiles, cuts, k);
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
