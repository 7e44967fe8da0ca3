// Every SIMD level against plain loops, through the C interface alone: for processors that the Python tests do not
// reach (a cross compiler and an emulator run it, see test_other_processors.py). All values are small integers, so
// every sum is exact and every comparison is for equality.
#include <flawscope/patch_distance.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

std::mt19937 generator(7);
int failures = 0;

std::vector<float> integers(int64_t count, int high = 4) {
    std::uniform_int_distribution<int> draw(-high, high);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(draw(generator));
    return values;
}

void expect(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    if (failures < 20) std::printf("FAILED %s: %s\n", flawscope_simd_level(), what.c_str());
}

float squared(const float* a, const float* b, int64_t d) {
    float sum = 0.0f;
    for (int64_t i = 0; i < d; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

std::vector<std::pair<float, int64_t>> neighbours(const float* query, const std::vector<float>& bank, int64_t m,
                                                  int64_t d) {
    std::vector<std::pair<float, int64_t>> all;
    for (int64_t row = 0; row < m; ++row) all.emplace_back(squared(query, bank.data() + row * d, d), row);
    std::sort(all.begin(), all.end());
    return all;
}

// Integers up to 2,048 as float16.
uint16_t half(float value) {
    if (value == 0.0f) return 0;
    int exponent;
    const float fraction = std::frexp(std::fabs(value), &exponent);
    return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) |
                                 (static_cast<int>(fraction * 2048.0f) & 1023));
}

void check_nearest(int64_t n, int64_t m, int64_t d) {
    std::vector<float> queries = integers(n * d), bank = integers(m * d);
    // With a peak of 127 in every row the int8 storage is exact.
    std::vector<float> peaked_queries = queries, peaked_bank = bank;
    for (int64_t i = 0; i < n; ++i) peaked_queries[i * d] = 127.0f;
    for (int64_t i = 0; i < m; ++i) peaked_bank[i * d] = 127.0f;
    for (const auto storage : {FLAWSCOPE_STORE_FLOAT32, FLAWSCOPE_STORE_FLOAT16, FLAWSCOPE_STORE_INT8}) {
        const bool bytes = storage == FLAWSCOPE_STORE_INT8;
        const std::vector<float>& rows = bytes ? peaked_bank : bank;
        const std::vector<float>& asked = bytes ? peaked_queries : queries;
        std::vector<uint16_t> halves;
        for (float value : asked) halves.push_back(half(value));
        for (int screen = 0; screen <= (storage == FLAWSCOPE_STORE_FLOAT32 ? 1 : 0); ++screen) {
            flawscope_bank* packed = nullptr;
            expect(flawscope_bank_create(rows.data(), m, d, storage, 1, screen, 2, &packed) == FLAWSCOPE_OK, "bank");
            for (int k : {1, 2, 9, 64}) {
                if (k > m) continue;
                for (int rerank : {0, 64}) {
                    for (const bool is_half : {false, true}) {
                        std::vector<float> distances(n * k, -1.0f);
                        std::vector<int64_t> places(n * k, -5);
                        const void* data = is_half ? static_cast<const void*>(halves.data()) : asked.data();
                        const int status =
                            flawscope_nearest(packed, data, is_half ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, n, k,
                                              rerank, 2, distances.data(), places.data());
                        const std::string what = "nearest n=" + std::to_string(n) + " m=" + std::to_string(m) +
                                                 " d=" + std::to_string(d) + " k=" + std::to_string(k) + " storage " +
                                                 std::to_string(storage) + " screen " + std::to_string(screen) +
                                                 " rerank " + std::to_string(rerank) + (is_half ? " half" : "");
                        expect(status == FLAWSCOPE_OK, what + " status");
                        for (int64_t q = 0; q < n; ++q) {
                            const auto wanted = neighbours(asked.data() + q * d, rows, m, d);
                            for (int i = 0; i < k; ++i) {
                                expect(distances[q * k + i] == wanted[i].first && places[q * k + i] == wanted[i].second,
                                       what);
                            }
                        }
                    }
                }
            }
            flawscope_bank_destroy(packed);
        }
    }
    std::vector<float> distances(n);
    std::vector<int64_t> places(n);
    expect(flawscope_nearest_rows(bank.data(), m, d, queries.data(), FLAWSCOPE_FLOAT32, n, 1, 2, distances.data(),
                                  places.data()) == FLAWSCOPE_OK,
           "rows");
    for (int64_t q = 0; q < n; ++q) {
        const auto wanted = neighbours(queries.data() + q * d, bank, m, d);
        expect(distances[q] == wanted[0].first && places[q] == wanted[0].second, "nearest of plain rows");
    }
}

void check_windows(int64_t images, int64_t height, int64_t width, int64_t m, int64_t d, int32_t radius) {
    const int64_t places = height * width, n = images * places;
    const std::vector<float> queries = integers(n * d), bank = integers(m * d);
    std::vector<int64_t> cells(m), starts(places + 1);
    std::uniform_int_distribution<int64_t> draw(0, places - 1);
    for (int64_t& cell : cells) cell = draw(generator);
    std::sort(cells.begin(), cells.end());
    for (int64_t p = 0; p <= places; ++p) starts[p] = std::lower_bound(cells.begin(), cells.end(), p) - cells.begin();
    std::vector<int32_t> reach(places);
    for (int64_t p = 0; p < places; ++p) reach[p] = radius + static_cast<int32_t>(p % 2);
    flawscope_windows* windows = nullptr;
    expect(flawscope_windows_create(bank.data(), m, d, starts.data(), height, width, reach.data(), 2, &windows) ==
               FLAWSCOPE_OK,
           "windows");
    std::vector<float> distances(n, -1.0f);
    std::vector<int64_t> rows(n, -5);
    expect(flawscope_windows_nearest(windows, queries.data(), FLAWSCOPE_FLOAT32, images, 2, distances.data(),
                                     rows.data()) == FLAWSCOPE_OK,
           "nearest of windows");
    flawscope_windows_destroy(windows);
    for (int64_t q = 0; q < n; ++q) {
        const int64_t p = q % places;
        std::pair<float, int64_t> best(INFINITY, -1);
        for (int64_t row = 0; row < m; ++row) {
            const int64_t down = std::abs(cells[row] / width - p / width), along = std::abs(cells[row] % width - p % width);
            if (std::max(down, along) > reach[p]) continue;
            best = std::min(best, std::make_pair(squared(queries.data() + q * d, bank.data() + row * d, d), row));
        }
        const std::string what = "windows of " + std::to_string(height) + " x " + std::to_string(width) + ", m=" +
                                 std::to_string(m) + " d=" + std::to_string(d) + " radius " + std::to_string(radius);
        expect(rows[q] == best.second && (best.second < 0 ? std::isnan(distances[q]) : distances[q] == best.first), what);
    }
}

void check_kcenter(int64_t n, int64_t d, int64_t count) {
    const std::vector<float> features = integers(n * d);
    std::vector<int64_t> chosen(count), wanted{n / 2};
    expect(flawscope_kcenter_greedy(features.data(), n, d, count, n / 2, 2, nullptr, nullptr, chosen.data(),
                                    nullptr) == FLAWSCOPE_OK,
           "kcenter");
    std::vector<float> closest(n, INFINITY);
    while (static_cast<int64_t>(wanted.size()) < count) {
        const float* centre = features.data() + wanted.back() * d;
        for (int64_t i = 0; i < n; ++i) closest[i] = std::min(closest[i], squared(features.data() + i * d, centre, d));
        closest[wanted.back()] = -INFINITY;
        wanted.push_back(std::max_element(closest.begin(), closest.end()) - closest.begin());
    }
    expect(chosen == wanted, "kcenter n=" + std::to_string(n) + " d=" + std::to_string(d));
}

// The bits of −2, −1, 0, 1 or 2 as float16.
uint16_t half_of(float value) {
    const uint16_t sign = value < 0.0f ? 0x8000 : 0;
    return value == 0.0f ? 0 : static_cast<uint16_t>(sign | (std::fabs(value) == 2.0f ? 0x4000 : 0x3c00));
}

// The triangles of the matrices alone give what the matrices without the rest give.
void check_triangles(const std::vector<float>& features, const std::vector<float>& mean, std::vector<float> whitening,
                     int64_t n, int64_t p, int64_t d) {
    std::vector<float> triangles, whole(n * p), found(n * p);
    for (int64_t i = 0; i < p * d * d; ++i) {
        if (i % d < i / d % d) whitening[i] = 0.0f;
        else triangles.push_back(whitening[i]);
    }
    std::vector<uint16_t> halves(triangles.size());
    std::transform(triangles.begin(), triangles.end(), halves.begin(), half_of);
    flawscope_gaussians* gaussians = nullptr;
    expect(flawscope_gaussians_create(mean.data(), whitening.data(), p, d, 2, &gaussians) == FLAWSCOPE_OK, "gaussians");
    expect(flawscope_mahalanobis(gaussians, features.data(), n, 2, whole.data()) == FLAWSCOPE_OK, "mahalanobis");
    flawscope_gaussians_destroy(gaussians);
    for (const bool is_half : {false, true}) {
        const void* data = is_half ? static_cast<const void*>(halves.data()) : triangles.data();
        const int dtype = is_half ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32;
        expect(flawscope_gaussians_create_triangles(mean.data(), data, dtype, p, d, 2, &gaussians) == FLAWSCOPE_OK,
               "gaussians of triangles");
        expect(flawscope_mahalanobis(gaussians, features.data(), n, 2, found.data()) == FLAWSCOPE_OK, "mahalanobis");
        flawscope_gaussians_destroy(gaussians);
        expect(found == whole, "triangles n=" + std::to_string(n) + " d=" + std::to_string(d));
    }
}

void check_mahalanobis(int64_t n, int64_t p, int64_t d) {
    const std::vector<float> features = integers(n * p * d), mean = integers(p * d);
    std::vector<float> whitening = integers(p * d * d, 2);
    for (int64_t i = 0; i < p; ++i) {  // the first a triangle, as PaDiM has it; a column of zeros in the second
        for (int64_t r = 0; r < d; ++r) {
            for (int64_t c = 0; c < d; ++c) {
                if ((i == 0 && c < r) || (i == 1 && c == d / 2)) whitening[(i * d + r) * d + c] = 0.0f;
            }
        }
    }
    flawscope_gaussians* packed = nullptr;
    expect(flawscope_gaussians_create(mean.data(), whitening.data(), p, d, 2, &packed) == FLAWSCOPE_OK, "gaussians");
    std::vector<float> found(n * p);
    check_triangles(features, mean, whitening, n, p, d);
    expect(flawscope_mahalanobis(packed, features.data(), n, 2, found.data()) == FLAWSCOPE_OK, "mahalanobis");
    flawscope_gaussians_destroy(packed);
    for (int64_t s = 0; s < n; ++s) {
        for (int64_t i = 0; i < p; ++i) {
            float total = 0.0f;
            for (int64_t c = 0; c < d; ++c) {
                float y = 0.0f;
                for (int64_t r = 0; r < d; ++r) {
                    y += (features[(s * p + i) * d + r] - mean[i * d + r]) * whitening[(i * d + r) * d + c];
                }
                total += y * y;
            }
            expect(found[s * p + i] == total, "mahalanobis n=" + std::to_string(n) + " d=" + std::to_string(d));
        }
    }
}

void check_maps(int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w) {
    const std::vector<float> grids = integers(n * h * w), columns = integers(w * out_w, 2);
    std::vector<float> rows = integers(out_h * h, 2), maps(n * out_h * out_w);
    for (int64_t i = 0; i < h; ++i) rows[i] = 0.0f;
    expect(flawscope_separable_maps(grids.data(), n, h, w, rows.data(), out_h, columns.data(), out_w, 2,
                                    maps.data()) == FLAWSCOPE_OK,
           "maps");
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t y = 0; y < out_h; ++y) {
            for (int64_t x = 0; x < out_w; ++x) {
                float total = 0.0f;
                for (int64_t a = 0; a < h; ++a) {
                    for (int64_t b = 0; b < w; ++b) {
                        total += rows[y * h + a] * grids[(i * h + a) * w + b] * columns[b * out_w + x];
                    }
                }
                expect(maps[(i * out_h + y) * out_w + x] == total, "maps");
            }
        }
    }
}

}  // namespace

int main() {
    std::vector<std::string> levels;
    for (int i = 0; const char* name = flawscope_simd_level_at(i); ++i) levels.push_back(name);
    for (const std::string& level : levels) {
        expect(flawscope_set_simd_level(level.c_str()) == FLAWSCOPE_OK, "level");
        for (int64_t n : {1, 3, 13, 14, 15, 29}) {
            for (int64_t m : {1, 7, 8, 9, 33, 70}) {
                for (int64_t d : {1, 3, 4, 5, 17, 32}) check_nearest(n, m, d);
            }
        }
        for (int64_t d : {1, 5, 32}) {
            for (int64_t m : {1, 33, 400}) {
                check_windows(1, 1, 1, m, d, 0);
                check_windows(3, 5, 4, m, d, 1);
                check_windows(1, 9, 17, m, d, 2);
            }
        }
        for (int64_t d : {1, 3, 4, 5, 19}) {
            check_kcenter(1, d, 1);
            check_kcenter(127, d, 127);
            check_kcenter(300, d, 70);
            for (int64_t n : {1, 4, 8, 9, 65}) check_mahalanobis(n, 3, d);
        }
        check_maps(2, 5, 7, 11, 33);
        check_maps(1, 1, 1, 1, 1);
        std::printf("%s checked\n", level.c_str());
    }
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
