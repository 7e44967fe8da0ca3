// The search for nearest rows on the CPU, against loops in float64: exact on small integers, bounded on floats, refused
// where there is no result. Built and run by test_cuda_emulated.py, which names the compute capability.
#include "cuda_emulated.h"

namespace {

int architecture = 0;  // compute capability times 100 that the search has been compiled for

// (distance, row) of all rows, nearest first.
std::vector<std::pair<double, int64_t>> ranked(const Rows& queries, int64_t q, const Rows& bank, int64_t d) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t m = 0; m < static_cast<int64_t>(bank.size()) / d; ++m) {
        all.emplace_back(squared_distance(queries, q, bank, m, d), m);
    }
    std::sort(all.begin(), all.end());
    return all;
}

bool usable(const Rows& queries, int64_t q, int64_t d) {
    float sum = 0.0f;
    for (int64_t i = 0; i < d; ++i) sum += queries[q * d + i] * queries[q * d + i];
    return std::isfinite(4.0f * sum);
}

// ---- Nearest neighbours ---------------------------------------------------------------------------------------------

enum RowsFrom { kFloats, kHalves, kPacked };

struct Search {
    int64_t d;
    int k;
    int rerank = 0;
    bool half_queries = false;
    RowsFrom rows = kFloats;
    int processors = 4;
};

struct Found {
    std::vector<float> squared;
    std::vector<int64_t> rows;
    int pack = 0, status = 0;
};

// `changed`: row that is NaN in what is given as rows, but was not when they were packed; -1 for none.
Found search(const Rows& queries, const Rows& bank, const Search& s, int64_t changed = -1) {
    const int64_t n = static_cast<int64_t>(queries.size()) / s.d, m = static_cast<int64_t>(bank.size()) / s.d;
    static int turn = 0;
    // KiB of shared memory that a block may have on 7.5; on 8.6, 8.9 and 12.0; on 8.0 and 8.7; on 9.0, 10.0 and 11.0.
    static const std::vector<int> limits = architecture < 800 ? std::vector<int>{64} : std::vector<int>{99, 163, 227};
    emulation::settings.major = architecture / 100;
    emulation::settings.shared = limits[turn % limits.size()] * 1024;
    emulation::settings.order = static_cast<Order>(turn++ % emulation::kOrders);
    emulation::settings.processors = s.processors;
    const Device<float> float_rows(bank), float_queries(queries);
    const Device<uint16_t> half_rows(halves(bank)), half_queries(halves(queries));
    int64_t bytes = 0, work = 0;
    Found found;
    check(flawscope_cuda_bank_bytes(m, s.d, &bytes) == FLAWSCOPE_OK, "bank_bytes");
    const Device<char> packed(static_cast<size_t>(bytes));
    const int rows_dtype = s.rows == kHalves ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32;
    const void* rows = s.rows == kHalves ? static_cast<const void*>(half_rows.get()) : float_rows.get();
    int status = without_waiting(
        [&] { return flawscope_cuda_bank_pack(rows, rows_dtype, m, s.d, packed.get(), nullptr); });
    check(status == FLAWSCOPE_OK, "bank_pack");
    found.pack = flawscope_cuda_bank_check(packed.get(), nullptr);
    if (changed >= 0) float_rows[changed * s.d] = kNaN;
    check(flawscope_cuda_nearest_bytes(n, m, s.d, s.k, s.rerank, &work) == FLAWSCOPE_OK, "nearest_bytes");
    const Device<char> workspace(static_cast<size_t>(work));
    const Device<float> squared(static_cast<size_t>(n * s.k));
    const Device<int64_t> places(static_cast<size_t>(n * s.k));
    found.status = without_waiting([&] {
        return flawscope_cuda_nearest(
            packed.get(), s.rows == kPacked ? nullptr : rows, rows_dtype, m, s.d,
            s.half_queries ? static_cast<const void*>(half_queries.get()) : float_queries.get(),
            s.half_queries ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, n, s.k, s.rerank, workspace.get(), work,
            squared.get(), places.get(), nullptr);
    });
    found.squared.assign(squared.get(), squared.get() + n * s.k);
    found.rows.assign(places.get(), places.get() + n * s.k);
    return found;
}

// Exactly what the loops give; a query without a distance has NaN and −1.
void expect_exact(const std::string& name, const Rows& queries, const Rows& bank, const Search& s) {
    const Found found = search(queries, bank, s);
    check(found.status == FLAWSCOPE_OK && found.pack == FLAWSCOPE_OK, name + ": status");
    for (int64_t q = 0; q < static_cast<int64_t>(queries.size()) / s.d; ++q) {
        const bool there = usable(queries, q, s.d);
        const auto wanted = ranked(queries, q, bank, s.d);
        bool same = true;
        for (int i = 0; i < s.k; ++i) {
            const float distance = found.squared[q * s.k + i];
            const int64_t row = found.rows[q * s.k + i];
            same &= there ? distance == wanted[i].first && row == wanted[i].second : std::isnan(distance) && row == -1;
        }
        check(same, name + ": query " + std::to_string(q));
    }
}

void test_sizes_on_tile_edges() {
    const struct {
        int64_t n, m, d;
        int k, rerank, processors;
    } cases[] = {
        {1, 1, 1, 1, 0, 1},     {1, 127, 31, 1, 1, 1},    {127, 128, 32, 2, 2, 1},  {128, 129, 33, 9, 9, 1},
        {129, 257, 64, 1, 0, 1}, {3, 600, 65, 1, 1, 1},   {2, 300, 17, 64, 64, 1},  {3, 64, 5, 64, 0, 1},
        {5, 9, 3, 9, 0, 1},     {4, 500, 40, 16, 16, 2},  {4, 500, 40, 17, 17, 3},  {130, 400, 16, 8, 8, 8},
        {1, 255, 64, 1, 0, 1},  {3, 256, 160, 1, 0, 1},   {2, 257, 416, 1, 0, 2},   {5, 511, 33, 3, 0, 3},
        {4, 513, 32, 20, 0, 2}, {257, 300, 31, 1, 0, 3},  {2, 769, 384, 5, 0, 1},   {2, 1025, 100, 1, 0, 3},
        {2, 700, 8, 1, 1, 64},  {2, 700, 8, 33, 0, 2},    {1, 1100, 96, 2, 0, 2},   {7, 130, 15, 58, 0, 1},
    };
    int turn = 0;
    for (const auto& c : cases) {
        const Rows queries = integers(c.n * c.d), bank = integers(c.m * c.d);
        for (int i = 0; i < 2; ++i, ++turn) {
            const Search s{c.d, c.k, c.rerank, turn % 2 == 1, static_cast<RowsFrom>(turn % 3), c.processors};
            expect_exact("n " + std::to_string(c.n) + ", m " + std::to_string(c.m) + ", d " + std::to_string(c.d) +
                             ", k " + std::to_string(c.k),
                         queries, bank, s);
        }
    }
}

void test_ties_take_the_lower_rows() {
    for (const int k : {1, 2, 9, 64}) {
        expect_exact("three values", integers(5 * 3, 1), integers(400 * 3, 1), {3, k, k});
        expect_exact("many queries, three values", integers(128 * 2, 1), integers(200 * 2, 1), {2, k, k});
        expect_exact("all rows equal", integers(2 * 4), Rows(300 * 4, 1.0f), {4, k, k, false, kFloats, 1});
        expect_exact("all rows equal, in splits", integers(2 * 4), Rows(300 * 4, 1.0f), {4, k, k});
    }
    Rows twice = integers(150 * 20);
    twice.insert(twice.end(), twice.begin(), twice.end());
    // Two places are left for rows at distance 1. Rows 0, 16 and 24 are of one thread: it has to offer row 0 first.
    Rows few(128, 3.0f);
    for (const int row : {40, 50, 70, 80, 100, 120}) few[row] = 0.0f;
    for (const int row : {0, 2, 4, 16, 24}) few[row] = 1.0f;
    expect_exact("equal values in one thread", {0.0f}, few, {1, 8, 8, false, kFloats, 1});
    expect_exact("every row twice", Rows(twice.begin(), twice.begin() + 9 * 20), twice, {20, 2, 2});
}

// Rows that come nearer and nearer: every value of every tile is offered, which takes the most rounds.
void test_the_worst_order_of_rows() {
    Rows falling(300), rising(300);
    for (int i = 0; i < 300; ++i) {
        falling[i] = static_cast<float>(300 - i);
        rising[i] = static_cast<float>(i);
    }
    for (const int k : {1, 8, 9, 16, 40}) {
        expect_exact("falling", {0, -3, 150}, falling, {1, k, k, false, kFloats, 1});
        expect_exact("rising", {0, -3, 150}, rising, {1, k, k, false, kFloats, 1});
    }
}

void test_scales() {
    const Rows queries = integers(6 * 18), bank = integers(200 * 18);
    for (const int exponent : {-60, -20, 0, 14, 40, 58}) {
        const float by = std::ldexp(1.0f, exponent);
        expect_exact("scale 2^" + std::to_string(exponent), scaled(queries, by), scaled(bank, by), {18, 3, 3});
        expect_exact("packed, 2^" + std::to_string(exponent), scaled(queries, by), scaled(bank, by),
                     {18, 3, 3, false, kPacked});
    }
    expect_exact("larger queries", scaled(queries, 64.0f), bank, {18, 3, 3});
    expect_exact("smaller queries", queries, scaled(bank, 64.0f), {18, 3, 3});
    expect_exact("a bank of zeros", queries, Rows(200 * 18, 0.0f), {18, 3, 3});
    expect_exact("queries of zeros", Rows(3 * 18, 0.0f), bank, {18, 3, 3});
    expect_exact("zeros to zeros", Rows(3 * 18, 0.0f), Rows(200 * 18, 0.0f), {18, 3, 3});
    // A huge query sees only directions, and one that is nothing beside the bank only norms.
    const Found huge = search({1e18f, 0}, {0, 1, 1, 0, -1, 0}, {2, 1, 1});
    check(huge.rows[0] == 1, "a huge query");
    const Found huger = search({8e18f, 0}, {0, 1e-20f, 1e-20f, 0, -1e-20f, 0}, {2, 1, 1});
    check(huger.rows[0] == 1, "a query 2^129 times larger than the bank");
    const Found tiny = search({1e-30f, 0}, {1e9f, 0, 3e8f, 0, -2e9f, 0}, {2, 1, 1});
    check(tiny.rows[0] == 1, "a tiny query");
    const Found least = search({0, 0, 1e-44f, 0}, {1e-44f, 0, 1e-40f, 0}, {2, 2, 2});
    check(least.status == FLAWSCOPE_OK && least.squared[0] == 0.0f && least.squared[3] == 0.0f, "subnormal numbers");
}

void test_queries_without_a_distance() {
    Rows queries = integers(6 * 5);
    queries[0] = kNaN;
    queries[1 * 5 + 4] = kInf;
    queries[2 * 5 + 2] = -kInf;
    queries[3 * 5] = 1e30f;  // its square is beyond float32
    for (const int k : {1, 9, 64}) expect_exact("no distance", queries, integers(140 * 5), {5, k, k});
    queries[3 * 5] = 3.0f;
    expect_exact("no distance, float16", queries, integers(140 * 5), {5, 2, 0, true});
    const Found largest = search({9e18f, 9.3e18f, 1.0f}, {-9e18f, 1.0f}, {1, 2});
    check(largest.rows == std::vector<int64_t>({1, 0, -1, -1, 1, 0}), "at the end of what has a distance");
    check(std::isfinite(largest.squared[1]) && std::isnan(largest.squared[2]), "which does not overflow");
}

void test_a_bank_that_is_not_finite() {
    for (const float bad : {kNaN, kInf, -kInf, 1e30f}) {
        Rows bank = integers(140 * 5);
        bank[77 * 5 + 3] = bad;
        const Found found = search(integers(3 * 5), bank, {5, 2});
        check(found.pack == FLAWSCOPE_NOT_FINITE && found.status == FLAWSCOPE_OK, "a bank that is not finite");
        for (const int64_t row : found.rows) check(row == -1, "a row of a bank that is not finite");
        for (const float x : found.squared) check(std::isnan(x), "a distance to a bank that is not finite");
    }
}

void test_rows_that_changed_since_they_were_packed() {
    const Found found = search({0.0f}, {3.0f, 1.0f, 2.0f}, {1, 3}, 1);
    check(found.rows == std::vector<int64_t>({2, 0, -1}) && std::isnan(found.squared[2]), "a row that became NaN");
}

// The point that is taken off all rows: their mean, rounded as pack.cu says.
Rows centre_of(const Rows& bank, int64_t d) {
    Rows centre(static_cast<size_t>(d));
    const int64_t m = static_cast<int64_t>(bank.size()) / d;
    for (int64_t i = 0; i < d; ++i) {
        double sum = 0.0;
        float peak = 0.0f;
        for (int64_t row = 0; row < m; ++row) {
            sum += bank[row * d + i];
            peak = std::max(peak, std::fabs(bank[row * d + i]));
        }
        const double unit = std::ldexp(1.0, std::ilogb(peak) - 6);
        centre[i] = static_cast<float>(std::rint(sum / double(m) / unit) * unit);
    }
    return centre;
}

// The bound of the header, distances of the rows that are named, and their order.
void test_floats_stay_within_the_bound() {
    for (const int64_t d : {7, 96}) {
        for (const float offset : {0.0f, 20.0f, -300.0f}) {
            for (const int k : {1, 5, 20}) {
                const int64_t n = 20, m = 600;
                Rows queries = normals(n * d), bank = normals(m * d);
                for (float& x : queries) x += offset;
                for (float& x : bank) x += offset;
                const Found found = search(queries, bank, {d, k});
                const Rows centre = centre_of(bank, d);
                double largest = 0.0;
                for (int64_t i = 0; i < m; ++i) largest = std::max(largest, squared_distance(centre, 0, bank, i, d));
                for (int64_t q = 0; q < n; ++q) {
                    const auto wanted = ranked(queries, q, bank, d);
                    const double scale = std::sqrt(squared_distance(centre, 0, queries, q, d)) + std::sqrt(largest);
                    const double slack = scale * (std::ldexp(1.0, -10) + std::ldexp(1.0, -18) +
                                                  std::ldexp(std::sqrt(double(d + 4)), -11));
                    for (int j = 0; j < k; ++j) {
                        const float got = found.squared[q * k + j];
                        const double own = squared_distance(queries, q, bank, found.rows[q * k + j], d);
                        check(std::fabs(got - own) <= 1e-5 * own, "the distance of the row that is named");
                        check(std::sqrt(own) <= std::sqrt(wanted[j].first) + slack, "the bound");
                        check(j == 0 || got >= found.squared[q * k + j - 1], "nearest first");
                    }
                }
            }
        }
    }
}

// Far from the origin float16 would keep nothing of the differences between rows.
void test_rows_far_from_the_origin_are_told_apart() {
    const int64_t n = 40, m = 900, d = 16;
    Rows queries = normals(n * d), bank = normals(m * d);
    for (float& x : queries) x += 4000.0f;
    for (float& x : bank) x += 4000.0f;
    for (const int k : {1, 3}) {
        const Found found = search(queries, bank, {d, k});
        for (int64_t q = 0; q < n; ++q) {
            check(found.rows[q * k] == ranked(queries, q, bank, d)[0].second, "a row far from the origin");
        }
    }
}

// Splits, the order of blocks and threads, and what fits into shared memory change no bit of the result.
void test_the_cut_changes_nothing() {
    for (const int k : {1, 2, 9, 30, 64}) {
        for (const int64_t d : {24, 40}) {
            const Rows queries = normals(5 * d), bank = normals(900 * d);
            const Found first = search(queries, bank, {d, k, 0, false, kFloats, 1});
            for (const int processors : {1, 3, 64}) {
                const Found again = search(queries, bank, {d, k, 0, false, kFloats, processors});
                check(again.rows == first.rows && again.squared == first.squared,
                      "k " + std::to_string(k) + " on " + std::to_string(processors) + " processors");
            }
        }
    }
}

void test_every_k() {
    const Rows queries = integers(3 * 6, 2), bank = integers(300 * 6, 2);
    for (int k = 1; k <= 64; ++k) {
        expect_exact("k " + std::to_string(k), queries, bank, {6, k, k % 2 * k, false, kFloats, 1 + k % 3});
    }
    for (int rerank = 1; rerank <= 64; rerank += rerank < 20 ? 1 : 11) {
        expect_exact("rerank " + std::to_string(rerank), queries, bank, {6, 1, rerank, false, kFloats, 1 + rerank % 3});
    }
}

void test_sizes_by_chance() {
    const auto any = [](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(random_engine);
    };
    for (int i = 0; i < 40; ++i) {
        const int64_t n = any(1, i % 8 == 0 ? 140 : 12), m = any(1, 800), d = any(1, i % 5 == 0 ? 500 : 70);
        const int k = static_cast<int>(i % 2 == 0 ? 1 : any(1, std::min<int64_t>(m, 64)));
        const Search s{d, k, 0, any(0, 1) == 1, static_cast<RowsFrom>(any(0, 2)), static_cast<int>(any(1, 9))};
        expect_exact("by chance: n " + std::to_string(n) + ", m " + std::to_string(m) + ", d " + std::to_string(d) +
                         ", k " + std::to_string(k),
                     integers(n * d, d > 100 ? 1 : 3), integers(m * d, d > 100 ? 1 : 3), s);
    }
}

// Of a captured graph there is one workspace for all batches: what is enough for many queries is enough for fewer.
void test_a_workspace_is_enough_for_fewer_queries() {
    emulation::settings.major = architecture / 100;
    for (const int processors : {1, 3, 8, 16, 37, 58, 70, 108, 132, 142}) {
        emulation::settings.processors = processors;
        emulation::settings.shared = (processors % 2 == 0 ? 163 : 99) * 1024;
        for (const int64_t positions : {1, 196, 784, 1024, 3136}) {
            for (const int64_t m : {1, 700, 16384, 300000}) {
                for (const int64_t d : {1, 128, 384, 1536}) {
                    for (const int k : {1, 9, 64}) {
                        if (k > m) continue;
                        int64_t most = 0;
                        for (int64_t batch = 1; batch <= 24; ++batch) {
                            int64_t bytes = 0;
                            flawscope_cuda_nearest_bytes(batch * positions, m, d, k, 0, &bytes);
                            flawscope::cuda::Plan plan;
                            flawscope::cuda::make_plan(batch * positions, m, d, k, 0, plan);
                            const int64_t blocks = plan.query_tiles * plan.splits;
                            const int64_t needed = flawscope::cuda::workspace_at(nullptr, plan, blocks).bytes;
                            check(bytes >= most && bytes >= needed, "a workspace, " + std::to_string(processors) +
                                                                        " processors, n " +
                                                                        std::to_string(batch * positions));
                            most = bytes;
                        }
                    }
                }
            }
        }
    }
}

}  // namespace

int main(int, char** arguments) {
    architecture = std::atoi(arguments[1]);
    test_sizes_on_tile_edges();
    test_ties_take_the_lower_rows();
    test_the_worst_order_of_rows();
    test_scales();
    test_queries_without_a_distance();
    test_a_bank_that_is_not_finite();
    test_rows_that_changed_since_they_were_packed();
    test_floats_stay_within_the_bound();
    test_rows_far_from_the_origin_are_told_apart();
    test_the_cut_changes_nothing();
    test_every_k();
    test_sizes_by_chance();
    test_a_workspace_is_enough_for_fewer_queries();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
