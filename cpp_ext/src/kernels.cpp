// The inner loops, compiled once per SIMD level (FLAWSCOPE_LEVEL names the level and the namespace).
//
// Search: d(q, m) = ‖m‖² − 2·q·m, which orders the rows as ‖q − m‖² does. A register tile of kTileRows queries times
// kPanel bank rows is summed over all channels before anything leaves the registers; its epilogue takes the minimum.
#include "kernels.h"

#include "simd.h"

namespace flawscope {
namespace FLAWSCOPE_LEVEL {
namespace {

// ---- Products of a tile of queries and a panel of rows ---------------------------------------------------------------

FLAWSCOPE_INLINE Vec load_bank(const float* p) { return load(p); }
FLAWSCOPE_INLINE Vec load_bank(const uint16_t* p) { return load_half(p); }

template <class T>
FLAWSCOPE_INLINE void products(const SearchBlock&, const void* tile, const T* b, int64_t depth, int64_t, int64_t,
                               Vec (&dot)[kTileRows][2]) {
    const float* q = static_cast<const float*>(tile);
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) { dot[r][0] = dot[r][1] = zero(); });
    for (int64_t i = 0; i < depth; ++i) {
        const Vec left = load_bank(b), right = load_bank(b + kLanes);
        unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
            const Vec x = broadcast(q[r]);
            dot[r][0] = fma(x, left, dot[r][0]);
            dot[r][1] = fma(x, right, dot[r][1]);
        });
        q += kTileRows;
        b += kPanel;
    }
}

FLAWSCOPE_INLINE void products(const SearchBlock& s, const void* tile, const int8_t* b, int64_t depth,
                               int64_t first_query, int64_t first_row, Vec (&dot)[kTileRows][2]) {
    const int32_t* q = static_cast<const int32_t*>(tile);
    int32_t start[kPanel];
    for (int lane = 0; lane < kPanel; ++lane) start[lane] = kBiasedQueries ? -128 * s.sums[first_row + lane] : 0;
    IVec sums[kTileRows][2];
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        sums[r][0] = load_i(start);
        sums[r][1] = load_i(start + kLanes);
    });
    for (int64_t i = 0; i < depth; ++i) {
        const Bytes left = load_bytes(b), right = load_bytes(b + 4 * kLanes);
        unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
            const Bytes x = broadcast_bytes(q[r]);
            sums[r][0] = dot4(sums[r][0], x, left);
            sums[r][1] = dot4(sums[r][1], x, right);
        });
        q += kTileRows;
        b += 4 * kPanel;
    }
    const Vec factors[2] = {load(s.factors + first_row), load(s.factors + first_row + kLanes)};
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        const Vec factor = broadcast(s.query_factors[first_query + r]);
        dot[r][0] = mul(mul(to_float(sums[r][0]), factor), factors[0]);
        dot[r][1] = mul(mul(to_float(sums[r][1]), factor), factors[1]);
    });
}

// ---- Epilogues -------------------------------------------------------------------------------------------------------

// Lower the running minimum of every lane. Rows come in ascending order and only a smaller distance replaces: of equal
// rows in a lane the first stays.
// With kSecond the second least of every lane is kept too: it tells whether a row that was replaced matters.
template <bool kSecond>
FLAWSCOPE_INLINE void take_minimum(const Vec (&dot)[kTileRows][2], const float* norms, int64_t panel, float* best,
                                   int32_t* where, float* second) {
    const Vec norm[2] = {load(norms), load(norms + kLanes)};
    const IVec here = broadcast_i(static_cast<int32_t>(panel));
    const Vec minus_two = broadcast(-2.0f);
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        unrolled<2>(FLAWSCOPE_EACH(v) {
            float* lane = best + r * kPanel + v * kLanes;
            int32_t* place = where + r * kPanel + v * kLanes;
            const Vec distance = fma(minus_two, dot[r][v], norm[v]), old = load(lane);
            const Mask better = less(distance, old);
            if (kSecond) {
                float* next = second + r * kPanel + v * kLanes;
                store(next, minimum(load(next), maximum(distance, old)));
            }
            store(lane, select(better, distance, old));
            store_i(place, select_i(better, here, load_i(place)));
        });
    });
}

// Insert into the k best of a query, ascending. Of equal distances the earlier row stays before.
FLAWSCOPE_INLINE void insert(float distance, int32_t row, int k, float* best, int32_t* where) {
    int place = k - 1;
    while (place > 0 && best[place - 1] > distance) {
        best[place] = best[place - 1];
        where[place] = where[place - 1];
        --place;
    }
    best[place] = distance;
    where[place] = row;
}

// Not inlined: the loop that calls it keeps its registers.
__attribute__((noinline)) void insert_lanes(Vec distance, uint32_t found, int32_t first_row, int k, float* best,
                                            int32_t* where) {
    float lanes[kLanes];
    store(lanes, distance);
    for (; found != 0; found &= found - 1) {
        const int lane = __builtin_ctz(found);
        if (lanes[lane] < best[k - 1]) insert(lanes[lane], first_row + lane, k, best, where);  // may have improved
    }
}

FLAWSCOPE_INLINE void take_best(const Vec (&dot)[kTileRows][2], const float* norms, int64_t first_row, int k,
                                float* best, int32_t* where) {
    const Vec norm[2] = {load(norms), load(norms + kLanes)};
    const Vec minus_two = broadcast(-2.0f);
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        float* mine = best + static_cast<int64_t>(r) * k;
        int32_t* rows = where + static_cast<int64_t>(r) * k;
        unrolled<2>(FLAWSCOPE_EACH(v) {
            const Vec distance = fma(minus_two, dot[r][v], norm[v]);
            const uint32_t found = bits(less(distance, broadcast(mine[k - 1])));
            if (__builtin_expect(found != 0, 0)) {
                insert_lanes(distance, found, static_cast<int32_t>(first_row + v * kLanes), k, mine, rows);
            }
        });
    });
}

__attribute__((noinline)) void append_lanes(uint32_t found, int32_t first_row, int64_t capacity, int32_t* count,
                                            int32_t* where) {
    for (; found != 0; found &= found - 1) {
        if (*count < capacity) where[*count] = first_row + __builtin_ctz(found);
        ++*count;
    }
}

FLAWSCOPE_INLINE void take_below(const Vec (&dot)[kTileRows][2], const float* norms, int64_t first_row,
                                 const float* limits, int64_t capacity, int32_t* counts, int32_t* where) {
    const Vec norm[2] = {load(norms), load(norms + kLanes)};
    const Vec minus_two = broadcast(-2.0f);
    unrolled<kTileRows>(FLAWSCOPE_EACH(r) {
        const Vec limit = broadcast(limits[r]);
        unrolled<2>(FLAWSCOPE_EACH(v) {
            const uint32_t found = bits(less(fma(minus_two, dot[r][v], norm[v]), limit));
            if (__builtin_expect(found != 0, 0)) {
                append_lanes(found, static_cast<int32_t>(first_row + v * kLanes), capacity, counts + r,
                             where + r * capacity);
            }
        });
    });
}

template <class T>
void search(const SearchBlock& s) {
    for (int64_t p = 0; p < s.panel_count; ++p) {
        const char* panel = static_cast<const char*>(s.panels) + p * s.panel_bytes;
        const float* norms = s.norms + p * kPanel;
        for (int64_t t = 0; t < s.tile_count; ++t) {
            const char* tile = static_cast<const char*>(s.tiles) + t * s.tile_bytes;
            Vec dot[kTileRows][2];
            products(s, tile, reinterpret_cast<const T*>(panel), s.depth, t * kTileRows, p * kPanel, dot);
            if (s.limits != nullptr) {
                const int64_t query = t * kTileRows;
                take_below(dot, norms, (s.first_panel + p) * kPanel, s.limits + query, s.capacity, s.counts + query,
                           s.where + query * s.capacity);
            } else if (s.k == 1) {
                const int64_t place = t * kTileRows * kPanel;
                if (s.second == nullptr) {
                    take_minimum<false>(dot, norms, s.first_panel + p, s.best + place, s.where + place, nullptr);
                } else {
                    take_minimum<true>(dot, norms, s.first_panel + p, s.best + place, s.where + place,
                                       s.second + place);
                }
            } else {
                const int64_t place = t * kTileRows * s.k;
                take_best(dot, norms, (s.first_panel + p) * kPanel, s.k, s.best + place, s.where + place);
            }
        }
    }
}

// ---- Packing ---------------------------------------------------------------------------------------------------------

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Four32 __attribute__((vector_size(16)));

FLAWSCOPE_INLINE Four load_four(const float* p) {
    Four a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

// Row-major rows to [d][kWidth], four rows and four channels at a time.
template <int kWidth>
FLAWSCOPE_INLINE void interleave(const float* rows, int64_t stride, int64_t count, int64_t d, float* out) {
    int64_t i = 0;
    for (; i + 4 <= d; i += 4) {
        float* to = out + i * kWidth;
        int64_t r = 0;
        for (; r + 4 <= count; r += 4) {
            const float* from = rows + r * stride + i;
            const Four a = load_four(from), b = load_four(from + stride), c = load_four(from + 2 * stride),
                       e = load_four(from + 3 * stride);
            const Four ab = __builtin_shuffle(a, b, Four32{0, 4, 1, 5}), ce = __builtin_shuffle(c, e, Four32{0, 4, 1, 5});
            const Four ab2 = __builtin_shuffle(a, b, Four32{2, 6, 3, 7}),
                       ce2 = __builtin_shuffle(c, e, Four32{2, 6, 3, 7});
            const Four columns[4] = {
                __builtin_shuffle(ab, ce, Four32{0, 1, 4, 5}), __builtin_shuffle(ab, ce, Four32{2, 3, 6, 7}),
                __builtin_shuffle(ab2, ce2, Four32{0, 1, 4, 5}), __builtin_shuffle(ab2, ce2, Four32{2, 3, 6, 7})};
            for (int j = 0; j < 4; ++j) __builtin_memcpy(to + j * kWidth + r, &columns[j], sizeof(Four));
        }
        for (; r < count; ++r) {
            for (int j = 0; j < 4; ++j) to[j * kWidth + r] = rows[r * stride + i + j];
        }
        for (; r < kWidth; ++r) {
            for (int j = 0; j < 4; ++j) to[j * kWidth + r] = 0.0f;
        }
    }
    for (; i < d; ++i) {
        for (int64_t r = 0; r < kWidth; ++r) out[i * kWidth + r] = r < count ? rows[r * stride + i] : 0.0f;
    }
}

void pack_panel(const float* rows, int64_t stride, int64_t count, int64_t d, float* panel) {
    interleave<kPanel>(rows, stride, count, d, panel);
}

void pack_tile(const float* rows, int64_t stride, int64_t count, int64_t d, float* tile) {
    interleave<kTileRows>(rows, stride, count, d, tile);
}

void halves_to_floats(const uint16_t* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load_half(from + i));
    for (; i < count; ++i) {
        uint16_t lanes[kLanes] = {from[i]};
        float wide[kLanes];
        store(wide, load_half(lanes));
        to[i] = wide[0];
    }
}

void quantize(const float* row, int64_t d, int8_t* bytes, float* factor, float* lost, float* norm) {
    Vec peak = zero();
    for (int64_t i = 0; i < d; i += kLanes) {
        const int left = static_cast<int>(d - i < kLanes ? d - i : kLanes);
        peak = maximum(peak, absolute(load_first(row + i, left)));
    }
    float lanes[kLanes], largest = 0.0f;
    store(lanes, peak);
    for (int lane = 0; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
    *factor = largest / 127.0f;
    const int64_t padded = (d + 3) / 4 * 4;
    if (!(*factor > 0.0f)) {  // a row of zeros, or so small that the factor vanishes
        __builtin_memset(bytes, 0, static_cast<size_t>(padded));
        *norm = 0.0f;
        Vec all = zero();
        for (int64_t i = 0; i < d; i += kLanes) {
            const Vec x = load_first(row + i, static_cast<int>(d - i < kLanes ? d - i : kLanes));
            all = fma(x, x, all);
        }
        *lost = sum(all);
        return;
    }
    const Vec step = broadcast(*factor), low = broadcast(-127.0f), high = broadcast(127.0f);
    Vec error = zero(), total = zero();
    for (int64_t i = 0; i < d; i += kLanes) {
        const int left = static_cast<int>(d - i < kLanes ? d - i : kLanes);
        const Vec x = load_first(row + i, left);
        const IVec whole = round_to_int(minimum(maximum(divide(x, step), low), high));
        const Vec kept = mul(step, to_float(whole)), difference = sub(x, kept);
        error = fma(difference, difference, error);
        total = fma(kept, kept, total);
        int32_t wide[kLanes];
        store_i(wide, whole);
        const int64_t count = padded - i < kLanes ? padded - i : kLanes;
        for (int64_t j = 0; j < count; ++j) bytes[i + j] = static_cast<int8_t>(wide[j]);
    }
    for (int64_t i = (d + kLanes - 1) / kLanes * kLanes; i < padded; ++i) bytes[i] = 0;
    *lost = sum(error);
    *norm = sum(total);
}

float squared_distance(const float* a, const float* b, int64_t d) {
    Vec total[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const Vec difference = sub(load(a + i + j * kLanes), load(b + i + j * kLanes));
            total[j] = fma(difference, difference, total[j]);
        }
    }
    for (; i < d; i += kLanes) {
        const int left = static_cast<int>(d - i < kLanes ? d - i : kLanes);
        const Vec difference = sub(load_first(a + i, left), load_first(b + i, left));
        total[0] = fma(difference, difference, total[0]);
    }
    return sum(add(add(total[0], total[1]), add(total[2], total[3])));
}

// ---- k-centre --------------------------------------------------------------------------------------------------------

// x·c for four rows and four centres, channels along the lanes. The order of operations of every product is the same
// wherever it stands in the tile.
void lower_closest(const float* const* rows, const float* row_norms, const float* centres, const float* centre_norms,
                   int64_t first, int64_t last, int64_t d, int64_t stride, float* closest) {
    const int64_t whole = d / kLanes * kLanes;
    const int left = static_cast<int>(d - whole);
    const Four norms = load_four(row_norms);
    Four least = load_four(closest);
    for (int64_t c = first; c < last; c += 4) {
        const float* centre = centres + c * stride;
        Vec dot[4][4];
        unrolled<4>(FLAWSCOPE_EACH(r) { unrolled<4>(FLAWSCOPE_EACH(j) { dot[r][j] = zero(); }); });
        for (int64_t i = 0; i < whole; i += kLanes) {
            const Vec y[4] = {load(centre + i), load(centre + stride + i), load(centre + 2 * stride + i),
                              load(centre + 3 * stride + i)};
            unrolled<4>(FLAWSCOPE_EACH(r) {
                const Vec x = load(rows[r] + i);
                unrolled<4>(FLAWSCOPE_EACH(j) { dot[r][j] = fma(x, y[j], dot[r][j]); });
            });
        }
        if (left != 0) {  // centres are padded with zeros to whole vectors, rows are the caller's
            const Vec y[4] = {load(centre + whole), load(centre + stride + whole), load(centre + 2 * stride + whole),
                              load(centre + 3 * stride + whole)};
            unrolled<4>(FLAWSCOPE_EACH(r) {
                const Vec x = load_first(rows[r] + whole, left);
                unrolled<4>(FLAWSCOPE_EACH(j) { dot[r][j] = fma(x, y[j], dot[r][j]); });
            });
        }
        float products[16];
        sum_tile(dot, products);
        for (int j = 0; j < 4; ++j) {
            const Four distance = (norms + centre_norms[c + j]) - 2.0f * load_four(products + 4 * j);
            least = distance < least ? distance : least;
        }
    }
    __builtin_memcpy(closest, &least, sizeof least);
}

float norm_as_product(const float* row, int64_t d) {
    Vec total = zero();
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) total = fma(load(row + i), load(row + i), total);
    if (i < d) {
        const Vec x = load_first(row + i, static_cast<int>(d - i));
        total = fma(x, x, total);
    }
    return sum(total);
}

// ---- Mahalanobis -----------------------------------------------------------------------------------------------------

// ‖z·W‖² of kSamples rows z at once: every strip of W is read from memory once for all of them.
template <int kSamples>
FLAWSCOPE_INLINE void whiten(const float* strips, const int32_t* ranges, int64_t strip_count, const float* centred,
                             int64_t stride, float* squared) {
    constexpr int kChains = kSamples == 1 ? 4 : 1;  // one sample alone would wait for every sum
    Vec total[kSamples];
    for (int n = 0; n < kSamples; ++n) total[n] = zero();
    for (int64_t s = 0; s < strip_count; ++s) {
        const int32_t first = ranges[2 * s], last = ranges[2 * s + 1];
        Vec y[kSamples][kChains];
#pragma GCC unroll 8
        for (int n = 0; n < kSamples; ++n) {
#pragma GCC unroll 4
            for (int c = 0; c < kChains; ++c) y[n][c] = zero();
        }
        int32_t i = first;
        for (; i + kChains <= last; i += kChains) {
#pragma GCC unroll 4
            for (int c = 0; c < kChains; ++c) {
                const Vec w = load(strips + c * kLanes);
#pragma GCC unroll 8
                for (int n = 0; n < kSamples; ++n) y[n][c] = fma(broadcast(centred[n * stride + i + c]), w, y[n][c]);
            }
            strips += kChains * kLanes;
        }
        for (; i < last; ++i) {
            const Vec w = load(strips);
            for (int n = 0; n < kSamples; ++n) y[n][0] = fma(broadcast(centred[n * stride + i]), w, y[n][0]);
            strips += kLanes;
        }
#pragma GCC unroll 8
        for (int n = 0; n < kSamples; ++n) {
            for (int c = 1; c < kChains; ++c) y[n][0] = add(y[n][0], y[n][c]);
            total[n] = fma(y[n][0], y[n][0], total[n]);
        }
    }
    for (int n = 0; n < kSamples; ++n) squared[n] = sum(total[n]);
}

void mahalanobis(const float* strips, const int32_t* ranges, int64_t strip_count, const float* centred,
                 int64_t samples, int64_t stride, float* squared) {
    while (samples >= 8) {
        whiten<8>(strips, ranges, strip_count, centred, stride, squared);
        samples -= 8;
        centred += 8 * stride;
        squared += 8;
    }
    if (samples >= 4) {
        whiten<4>(strips, ranges, strip_count, centred, stride, squared);
        samples -= 4;
        centred += 4 * stride;
        squared += 4;
    }
    for (; samples > 0; --samples) {
        whiten<1>(strips, ranges, strip_count, centred, stride, squared);
        centred += stride;
        ++squared;
    }
}

// ---- Maps ------------------------------------------------------------------------------------------------------------

void weighted_sum(const float* weights, const float* rows, int64_t count, int64_t width, float* out) {
    int64_t first = 0, last = count;
    while (first < last && weights[first] == 0.0f) ++first;  // a smoothing kernel reaches a few rows only
    while (last > first && weights[last - 1] == 0.0f) --last;
    for (int64_t i = 0; i < width; i += 4 * kLanes) {
        Vec total[4] = {zero(), zero(), zero(), zero()};
        const int64_t left = width - i;
        if (left >= 4 * kLanes) {
            for (int64_t j = first; j < last; ++j) {
                const Vec weight = broadcast(weights[j]);
                const float* row = rows + j * width + i;
                unrolled<4>(FLAWSCOPE_EACH(v) { total[v] = fma(weight, load(row + v * kLanes), total[v]); });
            }
            unrolled<4>(FLAWSCOPE_EACH(v) { store(out + i + v * kLanes, total[v]); });
            continue;
        }
        for (int64_t v = 0; v * kLanes < left; ++v) {
            const int part = static_cast<int>(left - v * kLanes < kLanes ? left - v * kLanes : kLanes);
            Vec sum = zero();
            for (int64_t j = first; j < last; ++j) {
                sum = fma(broadcast(weights[j]), load_first(rows + j * width + i + v * kLanes, part), sum);
            }
            float lanes[kLanes];
            store(lanes, sum);
            for (int lane = 0; lane < part; ++lane) out[i + v * kLanes + lane] = lanes[lane];
        }
    }
}

#define FLAWSCOPE_TEXT_(x) #x
#define FLAWSCOPE_TEXT(x) FLAWSCOPE_TEXT_(x)

constexpr Kernels kTable = {
    FLAWSCOPE_TEXT(FLAWSCOPE_LEVEL),
    kLanes,
    kPanel,
    kTileRows,
    kBiasedQueries,
    kFastBytes,
    {search<float>, search<uint16_t>, search<int8_t>},
    pack_panel,
    pack_tile,
    halves_to_floats,
    quantize,
    squared_distance,
    lower_closest,
    norm_as_product,
    mahalanobis,
    weighted_sum,
};

}  // namespace
}  // namespace FLAWSCOPE_LEVEL

#define FLAWSCOPE_JOIN_(a, b) a##b
#define FLAWSCOPE_JOIN(a, b) FLAWSCOPE_JOIN_(a, b)

const Kernels* FLAWSCOPE_JOIN(kernels_, FLAWSCOPE_LEVEL)() { return &FLAWSCOPE_LEVEL::kTable; }

}  // namespace flawscope
