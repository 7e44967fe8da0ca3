// The inner loops of every kernel, one table of functions per SIMD level. What calls them (threads, memory, order of
// work) is compiled once, for the oldest processor; only the loops behind these pointers use newer instructions.
#pragma once

#include <stdint.h>

namespace flawscope {

// Bank and queries as the search loop reads them. A panel holds `Kernels::panel` bank rows, channel by channel:
// float [d][panel], or for int8 [depth][panel][4]. A tile holds `Kernels::tile_rows` queries, float [d][tile_rows], or
// `Kernels::byte_tile_rows` queries in the order that `Kernels::pack_bytes` gives them.
struct SearchBlock {
    const void* panels;
    int64_t panel_bytes;
    const float* norms;         // [panel_count · panel], +inf beyond the last row
    const float* factors;       // int8: factor of each row
    const int32_t* sums;        // int8: Σ over channels of each row
    int64_t panel_count;
    int64_t first_panel;        // number of the first panel in the whole bank
    int64_t depth;              // channels; int8: groups of four, a multiple of `Kernels::byte_groups`
    const void* tiles;
    int64_t tile_bytes;
    const float* query_factors;  // int8: factor of each query
    int64_t tile_count;
    int k;
    // k = 1: per query one candidate for each lane of a panel, [queries][panel]. k > 1: the k best, ascending, [queries][k].
    float* best;
    int32_t* where;  // k = 1: number of the panel; k > 1: row
    float* second;   // null, or for k = 1 the second least of each lane, [queries][panel]
    // Not zero with `second` alone: `where` is null, and the number of the panel stands in these low bits of both values.
    int32_t tag_mask;
    // Not null: all rows below the limit of their query are put into `where`, [queries][capacity], instead.
    const float* limits;
    int32_t* counts;  // rows found; more than `capacity` where some had no room
    int64_t capacity;
    // Not null, k = 1 alone and without `limits`: bits of the lanes that count, [panels][tiles][queries of a tile]. A tile
    // for which no lane of a panel counts is passed over. The AMX loop takes none: see `kernels_for_windows`.
    const uint32_t* allowed;
};

enum class Storage : int { kFloat32 = 0, kFloat16 = 1, kInt8 = 2 };

struct Kernels {
    const char* name;
    int lanes;
    int panel;
    int tile_rows;
    int byte_tile_rows;  // queries of a tile for an int8 bank
    int byte_groups;     // int8: groups of four channels are filled up with zeros to a multiple of this
    int byte_speed;      // about how many int8 products take the time of one float32 product

    void (*search[3])(const SearchBlock&);  // by Storage

    // Rows [count ≤ panel] of float32 [d], `stride` floats apart, to one panel.
    void (*pack_panel)(const float* rows, int64_t stride, int64_t count, int64_t d, float* panel);
    // Queries [count ≤ tile_rows] to one tile.
    void (*pack_tile)(const float* rows, int64_t stride, int64_t count, int64_t d, float* tile);
    // Quantised queries [byte_tile_rows][4·depth] to one tile of the same size.
    void (*pack_bytes)(const int8_t* rows, int64_t depth, char* tile);
    void (*halves_to_floats)(const uint16_t* from, int64_t count, float* to);
    // x ≈ factor · bytes, |bytes| ≤ 127, ties to even; bytes [4·⌈d/4⌉], zeros beyond d. Also ‖x − factor·bytes‖² and
    // ‖factor·bytes‖².
    void (*quantize)(const float* row, int64_t d, int8_t* bytes, float* factor, float* lost, float* norm);
    float (*squared_distance)(const float* a, const float* b, int64_t d);

    // Of the lanes of a panel: the least value, and bits of those below a limit. No value is NaN.
    float (*least)(const float* values);
    uint32_t (*lanes_below)(const float* values, float limit);

    // k-centre: lower `closest` of four rows by the centres [first, last) of `centres` [.., stride]; first and last are
    // multiples of four, unused centres have norm +inf. Distances are (‖x‖² + ‖c‖²) − 2·x·c.
    void (*lower_closest)(const float* const* rows, const float* row_norms, const float* centres,
                          const float* centre_norms, int64_t first, int64_t last, int64_t d, int64_t stride,
                          float* closest);
    // ‖x‖² with the very operations of x·c in `lower_closest`: a row is at distance 0 from itself.
    float (*norm_as_product)(const float* row, int64_t d);

    // z = x − mean, and whether all of z is finite.
    bool (*centre)(const float* x, const float* mean, int64_t d, float* z);
    // Mahalanobis distances ‖z·W‖² of a group of samples, centred [group][d]; see `sample_group`. Columns are cut into
    // strips of `lanes`; of a strip only rows first..last−1 are stored, ranges [strips][2].
    void (*mahalanobis)(const float* strips, const int32_t* ranges, int64_t d, const float* centred, int group,
                        float* squared);
    // The same of an upper triangle, float32 or float16 by Storage; see `triangle_strip`. Reads up to a vector beyond it.
    void (*mahalanobis_triangle[2])(const void* strips, int64_t d, const float* centred, int group, float* squared);

    // out[i] = Σ_j weights[j] · rows[j], rows [count] of `width` floats; weights that are zero cost nothing.
    void (*weighted_sum)(const float* weights, const float* rows, int64_t count, int64_t width, float* out);
};

// Samples that share a factor while it is in a register, the largest group that `left` samples fill. One sample alone has
// four sums that are added at the end, the others have one: the last bit of a distance may depend on the size of the
// batch and the place in it, never on the other samples.
inline int sample_group(const Kernels& kernels, int64_t left) {
    return kernels.lanes == 16 && left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : 1;
}

// An upper triangle is cut into strips of `lanes` columns, of which the first has what is left over: there a strip that
// does not fill its lanes has the fewest rows.
constexpr int64_t first_strip_width(int64_t lanes, int64_t d) { return (d - 1) % lanes + 1; }

// Factors that a strip of an upper triangle takes: `width` columns from `first` on, row after row. The rows above the
// diagonal's block have `width` factors each, those of the block begin at the diagonal. Strips begin at a vector.
constexpr int64_t triangle_strip(int64_t lanes, int64_t first, int64_t width) {
    return (first * width + width * (width + 1) / 2 + lanes - 1) / lanes * lanes;
}

inline int tile_rows(const Kernels& kernels, Storage storage) {
    return storage == Storage::kInt8 ? kernels.byte_tile_rows : kernels.tile_rows;
}

// Channels as an int8 bank counts them: groups of four.
inline int64_t byte_depth(const Kernels& kernels, int64_t d) {
    const int64_t step = 4 * kernels.byte_groups;
    return (d + step - 1) / step * kernels.byte_groups;
}

const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512amx();
const Kernels* kernels_neon();

// The level in use: the best one, or the one that FLAWSCOPE_SIMD names; null where that one is not to be had.
const Kernels* active_kernels();
// The level that masks lanes where `kernels` cannot, or `kernels` itself.
const Kernels* kernels_for_windows(const Kernels* kernels);
bool choose_kernels(const char* name);
const Kernels* kernels_at(int i);

}  // namespace flawscope
