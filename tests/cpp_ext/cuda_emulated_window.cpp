// The search within windows on the CPU, against loops in float64: exact on small integers, bounded on floats, refused
// where there is no result. Built and run by test_cuda_emulated.py.
#include "cuda_emulated.h"

namespace {

struct Grid {
    int64_t height, width;
    std::vector<int64_t> starts;
    std::vector<int32_t> reach;

    int64_t places() const { return height * width; }
};

// m rows on random places before `beyond`, and reaches around `radius`.
Grid random_grid(int64_t height, int64_t width, int64_t m, int radius, int64_t beyond) {
    Grid grid{height, width, {}, {}};
    std::uniform_int_distribution<int64_t> place(0, beyond - 1);
    std::vector<int64_t> places(static_cast<size_t>(m));
    for (int64_t& one : places) one = place(random_engine);
    std::sort(places.begin(), places.end());
    for (int64_t p = 0; p <= height * width; ++p) {
        grid.starts.push_back(std::lower_bound(places.begin(), places.end(), p) - places.begin());
    }
    for (int64_t p = 0; p < height * width; ++p) grid.reach.push_back(radius + static_cast<int32_t>(p % 3 == 1));
    return grid;
}

struct Answer {
    std::vector<float> squared;
    std::vector<int64_t> rows;
};

Answer nearest(const Grid& grid, const Rows& bank, const Rows& queries, int64_t d, bool half = false) {
    static int turn = 0;
    emulation::settings.order = static_cast<Order>(turn++ % emulation::kOrders);
    const int64_t count = static_cast<int64_t>(queries.size()) / d, m = static_cast<int64_t>(bank.size()) / d;
    const Device<float> rows(bank), plain(queries), squared(static_cast<size_t>(count));
    const Device<uint16_t> narrow(halves(queries));
    const Device<int64_t> starts(grid.starts), found(static_cast<size_t>(count));
    const Device<int32_t> reach(grid.reach);
    const void* data = half ? static_cast<const void*>(narrow.get()) : plain.get();
    const int status = without_waiting([&] {
        return flawscope_cuda_windows_nearest(rows.get(), m, d, starts.get(), grid.height, grid.width, reach.get(), data,
                                              half ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, count / grid.places(),
                                              squared.get(), found.get(), nullptr);
    });
    check(status == FLAWSCOPE_OK, "windows: status");
    return {{squared.get(), squared.get() + count}, {found.get(), found.get() + count}};
}

// Distance and row of the nearest row within the window; −1 where there is none.
std::pair<double, int64_t> wanted(const Grid& grid, const Rows& bank, const Rows& queries, int64_t q, int64_t d) {
    const int64_t place = q % grid.places(), y = place / grid.width, x = place % grid.width;
    std::pair<double, int64_t> best(std::numeric_limits<double>::infinity(), -1);
    for (int64_t other = 0; other < grid.places(); ++other) {
        const int64_t away = std::max(std::abs(other / grid.width - y), std::abs(other % grid.width - x));
        if (away > grid.reach[place]) continue;
        for (int64_t row = grid.starts[other]; row < grid.starts[other + 1]; ++row) {
            best = std::min(best, std::make_pair(squared_distance(queries, q, bank, row, d), row));
        }
    }
    return best;
}

void compare(const Grid& grid, const Rows& bank, const Rows& queries, int64_t d, const std::string& what) {
    for (const bool half : {false, true}) {
        const Answer got = nearest(grid, bank, queries, d, half);
        for (int64_t q = 0; q < static_cast<int64_t>(got.rows.size()); ++q) {
            const auto [distance, row] = wanted(grid, bank, queries, q, d);
            check(got.rows[q] == row, what + ", row");
            check(row < 0 ? std::isnan(got.squared[q]) : got.squared[q] == distance, what + ", distance");
        }
    }
}

void test_integers_on_every_edge() {
    const int64_t grids[][2] = {{1, 1}, {4, 4}, {5, 3}, {1, 9}, {9, 1}, {7, 10}};
    for (const auto& g : grids) {
        for (const int64_t m : {1, 31, 127, 129, 300}) {
            for (const int64_t d : {1, 31, 33}) {
                for (const int radius : {0, 2, 12}) {
                    const int64_t images = 1 + m % 2;
                    const Grid grid = random_grid(g[0], g[1], m, radius, g[0] * g[1]);
                    compare(grid, integers(m * d, 1), integers(images * grid.places() * d, 1), d,
                            "windows on " + std::to_string(g[0]) + " x " + std::to_string(g[1]) + ", m " +
                                std::to_string(m) + ", d " + std::to_string(d) + ", radius " + std::to_string(radius));
                }
            }
        }
    }
    compare(random_grid(6, 6, 40, 0, 7), integers(40 * 5), integers(36 * 5), 5, "places without rows");
    compare(random_grid(3, 3, 700, 1, 9), Rows(700 * 2, 1.0f), Rows(9 * 2, 1.0f), 2, "rows that are all equal");
}

void test_floats_are_sums_of_squares() {
    const int64_t d = 70;
    const Grid grid = random_grid(6, 7, 200, 1, 42);
    const Rows bank = normals(200 * d), queries = normals(2 * 42 * d);
    const Answer got = nearest(grid, bank, queries, d);
    const double unit = (d + 3) / double(1 << 24);
    for (int64_t q = 0; q < 84; ++q) {
        const auto [distance, row] = wanted(grid, bank, queries, q, d);
        if (row < 0) {
            check(got.rows[q] == -1, "floats: no row");
            continue;
        }
        check(std::fabs(got.squared[q] - distance) <= 2.01 * unit * distance, "floats: the distance");
        check(squared_distance(queries, q, bank, got.rows[q], d) <= distance * (1.0 + 2.01 * unit), "floats: the row");
    }
}

void test_what_is_not_finite() {
    const int64_t d = 5;
    const Grid grid = random_grid(5, 5, 60, 1, 25);
    for (const float bad : {kNaN, kInf, -kInf, 1e30f}) {
        const Rows bank = integers(60 * d);
        Rows queries = integers(25 * d), damaged = bank;
        queries[7 * d + 4] = bad;
        const Answer got = nearest(grid, bank, queries, d);
        for (int64_t q = 0; q < 25; ++q) {
            const int64_t row = wanted(grid, bank, queries, q, d).second;
            check(got.rows[q] == (q == 7 ? -1 : row) && std::isnan(got.squared[q]) == (q == 7 || row < 0), "a bad query");
        }
        for (int64_t i = 0; i < 60 * d; ++i) damaged[i] = bad;
        const Answer none = nearest(grid, damaged, integers(25 * d), d);
        for (int64_t q = 0; q < 25; ++q) {
            check(none.rows[q] == -1 && std::isnan(none.squared[q]), "a bank that is not finite");
        }
    }
}

void test_refusals_and_failures() {
    const Grid grid = random_grid(2, 3, 4, 1, 6);
    const Device<float> rows(integers(4 * 2)), queries(integers(6 * 2)), squared(6);
    const Device<int64_t> starts(grid.starts), found(6);
    const Device<int32_t> reach(grid.reach);
    const auto call = [&](const float* bank, int64_t m, int64_t d, int64_t height, int64_t width, const void* asked,
                          int dtype, int64_t n) {
        return flawscope_cuda_windows_nearest(bank, m, d, starts.get(), height, width, reach.get(), asked, dtype, n,
                                              squared.get(), found.get(), nullptr);
    };
    const int64_t large = INT64_MAX;
    check(call(rows.get(), 4, 2, 2, 3, nullptr, FLAWSCOPE_FLOAT32, 0) == FLAWSCOPE_OK, "no images");
    for (const int status :
         {call(nullptr, 4, 2, 2, 3, queries.get(), 0, 1), call(rows.get(), 0, 2, 2, 3, queries.get(), 0, 1),
          call(rows.get(), 4, 0, 2, 3, queries.get(), 0, 1), call(rows.get(), 4, 2, 0, 3, queries.get(), 0, 1),
          call(rows.get(), 4, 2, 2, -1, queries.get(), 0, 1), call(rows.get(), 4, 2, 2, 3, nullptr, 0, 1),
          call(rows.get(), 4, 2, 2, 3, queries.get(), 2, 1), call(rows.get(), 4, 2, 2, 3, queries.get(), 0, -1),
          call(rows.get(), 4, 2, 2, 3, queries.get(), 0, large), call(rows.get(), 4, large, 2, 3, queries.get(), 0, 1),
          call(rows.get(), 4, 2, large, large, queries.get(), 0, 1), call(rows.get(), large, 1, 2, 3, queries.get(), 0, 1)}) {
        check(status == FLAWSCOPE_BAD_ARGUMENT, "a bad argument of windows");
    }
    if (!kEmulated) return;
    emulation::settings.calls = 0;
    emulation::settings.fail_at = 1;
    const int status = call(rows.get(), 4, 2, 2, 3, queries.get(), 0, 1);
    emulation::settings.fail_at = 0;
    check(status == FLAWSCOPE_CUDA + cudaErrorEmulated, "a failure of CUDA is told");
}

}  // namespace

int main() {
    test_integers_on_every_edge();
    test_floats_are_sums_of_squares();
    test_what_is_not_finite();
    test_refusals_and_failures();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
