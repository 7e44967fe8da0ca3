// What a search holds while it works: queries packed for the search loop, and their candidates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "bank.h"
#include "kernels.h"
#include "memory.h"
#include "nearest.h"

namespace flawscope {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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
    Tiles(const Kernels& kernels, Storage storage, const Queries& queries, int64_t first, int64_t count)
        : kernels_(kernels),
          queries_(queries),
          storage_(storage),
          first_(first),
          count_(count),
          depth_(storage == Storage::kInt8 ? byte_depth(kernels, queries.d) : queries.d),
          height(tile_rows(kernels, storage)),
          tile_count(divide_up(count, height)),
          tile_bytes(4 * height * depth_),
          data_(tile_count * tile_bytes),
          scratch_(queries.halves ? tile_count * height * queries.d : 0),
          factors_(storage == Storage::kInt8 ? tile_count * height : 0),
          lost_(storage == Storage::kInt8 ? tile_count * height : 0),
          norms_(storage == Storage::kInt8 ? tile_count * height : 0),
          usable_(count) {}

    // Pack tile t; every tile is packed by one thread, once.
    void pack(int64_t t) {
        const int64_t d = queries_.d, begin = t * height, rows = std::min(height, count_ - begin);
        if (queries_.halves) {
            const uint16_t* halves = static_cast<const uint16_t*>(queries_.data) + (first_ + begin) * d;
            kernels_.halves_to_floats(halves, rows * d, scratch_.data() + begin * d);
        }
        // A query whose squared norm is NaN or out of range has no distance to anything.
        for (int64_t r = 0; r < rows; ++r) {
            usable_[begin + r] = within_range(kernels_.norm_as_product(query(begin + r), d));
        }
        if (storage_ == Storage::kInt8) {
            pack_bytes(query(begin), begin, rows);
        } else {
            kernels_.pack_tile(query(begin), d, rows, d, reinterpret_cast<float*>(tile(t)));
        }
    }

    // A query of a packed tile as float32 [d].
    const float* query(int64_t q) const {
        return queries_.halves ? scratch_.data() + q * queries_.d
                               : static_cast<const float*>(queries_.data) + (first_ + q) * queries_.d;
    }

    char* tile(int64_t t) { return data_.data() + t * tile_bytes; }
    const char* tile(int64_t t) const { return data_.data() + t * tile_bytes; }
    const float* factors(int64_t t) const { return factors_.data() + t * height; }
    bool usable(int64_t query) const { return usable_[query]; }
    float lost(int64_t query) const { return lost_[query]; }
    float norm(int64_t query) const { return norms_[query]; }

private:
    void pack_bytes(const float* source, int64_t begin, int64_t rows) {
        const int64_t d = queries_.d;
        Buffer<int8_t> bytes(tile_bytes);
        std::memset(bytes.data(), 0, static_cast<size_t>(tile_bytes));
        for (int64_t r = 0; r < height; ++r) {
            const int64_t q = begin + r;
            if (r < rows && usable_[q]) {
                kernels_.quantize(source + r * d, d, bytes.data() + 4 * depth_ * r, &factors_[q], &lost_[q], &norms_[q]);
            } else {
                factors_[q] = lost_[q] = norms_[q] = 0.0f;
            }
        }
        kernels_.pack_bytes(bytes.data(), depth_, tile(begin / height));
    }

    const Kernels& kernels_;
    const Queries& queries_;
    const Storage storage_;
    const int64_t first_, count_, depth_;

public:
    // Here and not with the others below: members are made in the order in which they stand, and buffers need these.
    const int64_t height, tile_count, tile_bytes;  // queries of a tile, tiles, bytes of a tile

private:
    Buffer<char> data_;
    Buffer<float> scratch_;                 // float16 queries as float32
    Buffer<float> factors_, lost_, norms_;  // int8: factor, ‖q − q̂‖² and ‖q̂‖² of each query
    Buffer<bool> usable_;
};

// Candidates of a run of queries, for each cut of the bank.
class State {
public:
    // With `tag_mask` the second least of every lane is kept too, and both have the number of their panel in these bits.
    State(const Kernels& kernels, const Tiles& tiles, int64_t cuts, int k, bool seconds = false, int32_t tag_mask = 0)
        : width(k == 1 ? kernels.panel : k), queries_(tiles.tile_count * tiles.height), panel_(kernels.panel), k_(k),
          best_(cuts * queries_ * width), where_(tag_mask == 0 ? cuts * queries_ * width : 0),
          second_(seconds ? cuts * queries_ * width : 0), has_second_(seconds), tag_mask(tag_mask) {}

    // Forget everything of queries [first, first + count) in one cut.
    void clear(int64_t cut, int64_t first, int64_t count) {
        std::fill_n(best(cut, first), count * width, kInfinity);
        if (tag_mask == 0) std::fill_n(where(cut, first), count * width, -1);
        if (has_second_) std::fill_n(second(cut, first), count * width, kInfinity);
    }

    static int64_t bytes_per_query(const Kernels& kernels, int k) { return 12 * (k == 1 ? kernels.panel : k); }

    float* best(int64_t cut, int64_t query) { return best_.data() + (cut * queries_ + query) * width; }
    int32_t* where(int64_t cut, int64_t query) {
        return tag_mask == 0 ? where_.data() + (cut * queries_ + query) * width : nullptr;
    }

    float* second(int64_t cut, int64_t query) {
        return has_second_ ? second_.data() + (cut * queries_ + query) * width : nullptr;
    }

    // k = 1: the row of a lane's candidate.
    int64_t row(int64_t cut, int64_t query, int64_t lane) {
        int32_t panel;
        if (tag_mask == 0) {
            panel = where(cut, query)[lane];
        } else {
            std::memcpy(&panel, best(cut, query) + lane, sizeof panel);
            panel &= tag_mask;
        }
        return int64_t{panel} * panel_ + lane;
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

public:
    const int32_t tag_mask;
};

}  // namespace flawscope
