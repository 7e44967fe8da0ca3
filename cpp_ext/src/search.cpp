#include "search.h"

#if defined(__unix__)
#include <unistd.h>
#endif

namespace flawscope {

int64_t half_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    // 0 or −1 where the system does not say, as on Arm and in some containers. Only time depends on it.
    static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
    static const int64_t size = 0;
#endif
    return std::max<int64_t>(256 << 10, std::min<int64_t>(size / 2, 4 << 20));
}

int64_t run_count(const Tiles& tiles, const Panels& panels, int threads) {
    // A bank that stays in the cache can be read again for every few tiles: short tasks end at the same time.
    if (panels.data.bytes() <= half_cache()) return std::min<int64_t>(tiles.tile_count, 2 * int64_t{threads});
    // Otherwise the queries take half the cache; the other half is for the bank rows that pass by.
    const int64_t fitting = std::max<int64_t>(1, half_cache() / tiles.tile_bytes);
    const int64_t runs = divide_up(tiles.tile_count, fitting);
    return std::min(tiles.tile_count, divide_up(runs, threads) * threads);
}

int64_t cuts_for(const Tiles& tiles, const Panels& panels, int64_t panel_count, int threads) {
    const int64_t runs = run_count(tiles, panels, threads);
    if (runs % threads == 0 || runs >= 4 * threads) return 1;
    return std::max<int64_t>(1, std::min<int64_t>(threads, panel_count / 4));
}

void search_share(const Kernels& kernels, const Panels& panels, int64_t first, int64_t count, const Share& share,
                  const Tiles& tiles, State& state, int k) {
    const int64_t begin = count * share.cut / share.cuts, end = count * (share.cut + 1) / share.cuts;
    const int64_t row = begin * kernels.panel, query = share.first_tile * tiles.height;
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
    block.tag_mask = state.tag_mask;
    block.limits = nullptr;
    block.counts = nullptr;
    block.capacity = 0;
    block.allowed = nullptr;
    kernels.search[static_cast<int>(panels.storage)](block);
}

int64_t run_length(const Kernels& kernels, const Queries& queries, int k, int64_t bytes_per_channel) {
    const int64_t per_query = State::bytes_per_query(kernels, k) + bytes_per_channel * queries.d;
    const int64_t fitting = std::max<int64_t>(1, kStateBytes / per_query / kernels.tile_rows) * kernels.tile_rows;
    return std::min(queries.n, fitting);
}

void search_stored(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int k, int wanted,
                   bool own_rows, int workers, float* squared, int64_t* rows) {
    const Kernels& kernels = bank.kernels;
    const int64_t panels = divide_up(bank.m, kernels.panel), d = bank.d;
    Tiles tiles(kernels, bank.panels.storage, queries, first, count);
    const int64_t cuts = cuts_for(tiles, bank.panels, panels, workers);
    State state(kernels, tiles, cuts, wanted);
    Buffer<float> scratch(own_rows ? 0 : tiles.tile_count * d);  // a stored row as float32, one for every tile
    const auto finish = [&](int64_t begin, int64_t end) {
        float* own = scratch.data() + (own_rows ? 0 : begin / tiles.height * d);
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

}  // namespace flawscope
