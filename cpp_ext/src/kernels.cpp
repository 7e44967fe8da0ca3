// The inner loops, compiled once per SIMD level (FLAWSCOPE_LEVEL names the level and the namespace).
//
// Nothing of the C++ library is included here. An inline function of it would be compiled for every level, the linker
// keeps one copy for all, and where that is the one with AVX-512 older processors stop at an unknown instruction.
#include "kernels.h"

#include "search_loop.h"
#include "simd.h"

namespace flawscope {
namespace FLAWSCOPE_LEVEL {
namespace {

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

// Upwards, each vector read before it is written: Panels::unpack converts in place.
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

// What reference.stored_rows computes: a quotient, not a product with 1/factor, which rounds once more and gives other
// bytes; ties to even; and never −128, which dot4 counts on. `lost` and `norm` are sums in float32: the proof in
// screen.cpp makes room for their rounding.
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
        store_bytes(bytes + i, whole, static_cast<int>(padded - i < kLanes ? padded - i : kLanes));
    }
    for (int64_t i = (d + kLanes - 1) / kLanes * kLanes; i < padded; ++i) bytes[i] = 0;
    *lost = sum(error);
    *norm = sum(total);
}

// Every search ends here: the screen and the search in float32 give the same bits for a row only because they both do.
// load_first reads nothing beyond the row, behind which there may be no page.
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

// ---- Lanes of a panel ------------------------------------------------------------------------------------------------

static_assert(kPanel <= 32, "lanes_below has 32 bits");

float least(const float* values) {
    float lanes[kLanes];
    store(lanes, minimum(load(values), load(values + kLanes)));
    float found = lanes[0];
    for (int lane = 1; lane < kLanes; ++lane) found = lanes[lane] < found ? lanes[lane] : found;
    return found;
}

uint32_t lanes_below(const float* values, float limit) {
    const Vec most = broadcast(limit);
    return bits(less(load(values), most)) | bits(less(load(values + kLanes), most)) << kLanes;
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
            // The norms first. Of a row and itself their sum is twice the norm without rounding, and so is the product:
            // the difference is 0. In another order it may be a rounding off, and a row that repeats a centre be taken.
            const Four distance = (norms + centre_norms[c + j]) - 2.0f * load_four(products + 4 * j);
            least = distance < least ? distance : least;
        }
    }
    __builtin_memcpy(closest, &least, sizeof least);
}

// The operations of x·c above, whole vectors and then the rest, and `sum` in the order of `sum_tile`.
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

// z = x − mean, and whether all of z is finite.
bool centre(const float* x, const float* mean, int64_t d, float* z) {
    Vec zeros = zero();
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
        // Before the product: x·W − μ·W would lose its digits where a patch is near its mean.
        const Vec difference = sub(load(x + i), load(mean + i));
        zeros = fma(difference, zero(), zeros);  // zero times infinity is NaN too, and stays
        store(z + i, difference);
    }
    float rest = sum(zeros);
    for (; i < d; ++i) {
        z[i] = x[i] - mean[i];
        rest += z[i] * 0.0f;
    }
    return rest == 0.0f;
}

constexpr int kAhead = 8192;  // bytes asked for ahead: more than the processor's own prefetching, which a page ends

// Beyond the last strip too: a prefetch of memory that is not there does nothing.
FLAWSCOPE_INLINE void ask_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + kAhead, 0, 2); }

FLAWSCOPE_INLINE Vec load_factors(const float* p) { return load(p); }
FLAWSCOPE_INLINE Vec load_factors(const uint16_t* p) { return load_half(p); }

// The components of z·W that lie in one strip, for kSamples rows z at once, [kSamples][d]. Every factor is read from
// memory once for all of them.
template <int kSamples>
struct StripSums {
    static constexpr int kChains = kSamples == 1 ? 4 : 1;  // one sample alone would wait for every sum
    const int64_t d;
    Vec y[kSamples][kChains];

    __attribute__((always_inline)) explicit StripSums(int64_t d) : d(d) {
        unrolled<kSamples>(FLAWSCOPE_EACH(n) { unrolled<kChains>(FLAWSCOPE_EACH(c) { y[n][c] = zero(); }); });
    }
    template <int kChain>
    __attribute__((always_inline)) void add_row(const float* z, Vec w) {
        unrolled<kSamples>(FLAWSCOPE_EACH(n) { y[n][kChain] = fma(broadcast(z[n * d]), w, y[n][kChain]); });
    }
    // Rows first..last−1 of a strip, `step` factors apart; `load_row` makes one of them a vector.
    template <class T, class LoadRow>
    __attribute__((always_inline)) const T* add_rows(const T* strip, int64_t step, const float* z, int64_t first,
                                                     int64_t last, const LoadRow& load_row) {
        int64_t i = first;
        for (; i + kChains <= last; i += kChains) {
            unrolled<kChains>(FLAWSCOPE_EACH(c) {
                ask_ahead(strip + c * step);
                add_row<c>(z + i + c, load_row(strip + c * step));
            });
            strip += kChains * step;
        }
        for (; i < last; ++i) {
            add_row<0>(z + i, load_row(strip));
            strip += step;
        }
        return strip;
    }
    __attribute__((always_inline)) void square_into(Vec (&total)[kSamples]) {
        unrolled<kSamples>(FLAWSCOPE_EACH(n) {
            for (int c = 1; c < kChains; ++c) y[n][0] = add(y[n][0], y[n][c]);
            total[n] = fma(y[n][0], y[n][0], total[n]);
        });
    }
};

// ‖z·W‖² of any W, as strips of whole vectors.
template <int kSamples>
FLAWSCOPE_INLINE void whiten(const float* strips, const int32_t* ranges, int64_t d, const float* z, float* squared) {
    Vec total[kSamples];
    unrolled<kSamples>(FLAWSCOPE_EACH(n) { total[n] = zero(); });
    for (int64_t s = 0; s * kLanes < d; ++s) {
        StripSums<kSamples> sums(d);
        strips = sums.add_rows(strips, kLanes, z, ranges[2 * s], ranges[2 * s + 1],
                               [](const float* p) __attribute__((always_inline)) { return load(p); });
        sums.square_into(total);
    }
    for (int n = 0; n < kSamples; ++n) squared[n] = sum(total[n]);
}

// ‖z·W‖² of an upper triangle W. What lies below the diagonal is not stored: a row of the diagonal's block begins at the
// diagonal, and its vector is read from where its first lane would be; lanes that belong to another row count as zero.
template <int kSamples, class T>
FLAWSCOPE_INLINE void whiten_triangle(const T* strips, int64_t d, const float* z, float* squared) {
    Vec total[kSamples];
    unrolled<kSamples>(FLAWSCOPE_EACH(n) { total[n] = zero(); });
    int width = static_cast<int>(first_strip_width(kLanes, d));
    for (int64_t first = 0; first < d; first += width, width = kLanes) {
        StripSums<kSamples> sums(d);
        const T* next = sums.add_rows(strips, kLanes, z, 0, first,
                                      [](const T* p) __attribute__((always_inline)) { return load_factors(p); });
        constexpr int kChains = StripSums<kSamples>::kChains;
        const uint32_t columns = (1u << width) - 1;
        const auto add_diagonal = [&](int row, auto chain) __attribute__((always_inline)) {
            const Mask inside = lanes_of(columns & ~((1u << row) - 1));
            ask_ahead(next);
            sums.template add_row<chain>(z + first + row, select(inside, load_factors(next - row), zero()));
            next += width - row;
        };
        int row = 0;
        for (; row + kChains <= width; row += kChains) unrolled<kChains>(FLAWSCOPE_EACH(c) { add_diagonal(row + c, c); });
        for (; row < width; ++row) add_diagonal(row, Index<0>{});
        sums.square_into(total);
        strips += triangle_strip(kLanes, first, width);
    }
    for (int n = 0; n < kSamples; ++n) squared[n] = sum(total[n]);
}

// Calls `work` with the samples of a group as a constant: 16, 8, 4 or 1; see `sample_group`.
template <class Work>
FLAWSCOPE_INLINE void with_group(int group, const Work& work) {
    if constexpr (kLanes == 16) {
        if (group == 16) return work(Index<16>{});
    }
    if (group == 8) return work(Index<8>{});
    if (group == 4) return work(Index<4>{});
    return work(Index<1>{});
}

void mahalanobis(const float* strips, const int32_t* ranges, int64_t d, const float* centred, int group,
                 float* squared) {
    with_group(group, FLAWSCOPE_EACH(samples) { whiten<samples>(strips, ranges, d, centred, squared); });
}

template <class T>
void mahalanobis_triangle(const void* strips, int64_t d, const float* centred, int group, float* squared) {
    with_group(group, FLAWSCOPE_EACH(samples) {
        whiten_triangle<samples>(static_cast<const T*>(strips), d, centred, squared);
    });
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
    kByteTileRows,
    kByteGroups,
    kByteSpeed,
    {search<float>, search<uint16_t>, search_bytes},
    pack_panel,
    pack_tile,
    pack_bytes,
    halves_to_floats,
    quantize,
    squared_distance,
    least,
    lanes_below,
    lower_closest,
    norm_as_product,
    centre,
    mahalanobis,
    {mahalanobis_triangle<float>, mahalanobis_triangle<uint16_t>},
    weighted_sum,
};

}  // namespace
}  // namespace FLAWSCOPE_LEVEL

#define FLAWSCOPE_JOIN_(a, b) a##b
#define FLAWSCOPE_JOIN(a, b) FLAWSCOPE_JOIN_(a, b)

const Kernels* FLAWSCOPE_JOIN(kernels_, FLAWSCOPE_LEVEL)() { return &FLAWSCOPE_LEVEL::kTable; }

}  // namespace flawscope
