// The CUDA kernels on the CPU, against loops in float64: exact on small integers, bounded on floats, refused where
// there is no result. Built and run by test_cuda_emulated.py with cpp_ext/cuda/emulation.h in the place of CUDA.
#include "cuda_emulated.h"

namespace {

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

// The bound of the header, distances of the rows that are named, and their order.
void test_floats_stay_within_the_bound() {
    for (const int64_t d : {7, 96}) {
        for (const float offset : {0.0f, 20.0f}) {
            const int64_t n = 20, m = 400;
            Rows queries = normals(n * d), bank = normals(m * d);
            for (float& x : queries) x += offset;
            for (float& x : bank) x += offset;
            const Search s{d, 5};
            const Found found = search(queries, bank, s);
            double largest = 0.0;
            const Rows zero(d, 0.0f);
            for (int64_t i = 0; i < m; ++i) largest = std::max(largest, squared_distance(zero, 0, bank, i, d));
            for (int64_t q = 0; q < n; ++q) {
                const auto wanted = ranked(queries, q, bank, d);
                const double scale = std::sqrt(squared_distance(zero, 0, queries, q, d)) + std::sqrt(largest);
                const double slack = scale * (std::ldexp(1.0, -10) + std::ldexp(1.0, -19) +
                                              std::ldexp(std::sqrt(double(d + 4)), -11));
                for (int j = 0; j < s.k; ++j) {
                    const float got = found.squared[q * s.k + j];
                    const double own = squared_distance(queries, q, bank, found.rows[q * s.k + j], d);
                    check(std::fabs(got - own) <= 1e-5 * own, "the distance of the row that is named");
                    check(std::sqrt(own) <= std::sqrt(wanted[j].first) + slack, "the bound");
                    check(j == 0 || got >= found.squared[q * s.k + j - 1], "nearest first");
                }
            }
        }
    }
}

void test_refusals_and_failures_of_nearest() {
    const int64_t n = 3, m = 20, d = 4;
    const Device<float> rows(integers(m * d)), queries(integers(n * d)), squared(n * 2);
    const Device<int64_t> found(n * 2);
    int64_t bank_size = 0, size = 0;
    flawscope_cuda_bank_bytes(m, d, &bank_size);
    const Device<char> packed(bank_size);
    const auto pack = [&] {
        return flawscope_cuda_bank_pack(rows.get(), FLAWSCOPE_FLOAT32, m, d, packed.get(), nullptr);
    };
    flawscope_cuda_nearest_bytes(n, m, d, 2, 0, &size);
    const Device<char> workspace(size);
    const auto nearest = [&](int64_t count, int64_t bank_rows, int k, int rerank, void* work, int64_t bytes) {
        return flawscope_cuda_nearest(packed.get(), rows.get(), FLAWSCOPE_FLOAT32, bank_rows, d, queries.get(),
                                      FLAWSCOPE_FLOAT32, count, k, rerank, work, bytes, squared.get(), found.get(),
                                      nullptr);
    };
    check(pack() == FLAWSCOPE_OK && nearest(n, m, 2, 0, workspace.get(), size) == FLAWSCOPE_OK, "a good call");
    check(nearest(0, m, 2, 0, nullptr, 0) == FLAWSCOPE_OK, "no queries");
    const int refused[] = {
        nearest(n, m, 0, 0, workspace.get(), size),       nearest(n, m, 65, 0, workspace.get(), size),
        nearest(n, m, 21, 0, workspace.get(), size),      nearest(n, m, 2, 1, workspace.get(), size),
        nearest(n, m, 2, 65, workspace.get(), size),      nearest(-1, m, 2, 0, workspace.get(), size),
        nearest(n, 0, 2, 0, workspace.get(), size),       nearest(n, m, 2, 0, nullptr, size),
        nearest(n, m, 2, 0, workspace.get() + 8, size),   nearest(n, m, 2, 0, workspace.get(), size - 1),
        flawscope_cuda_bank_bytes(0, d, &size),           flawscope_cuda_bank_bytes(m, 65537, &size),
        flawscope_cuda_bank_bytes(m, d, nullptr),         flawscope_cuda_nearest_bytes(n, m, d, 2, 1, &size),
        flawscope_cuda_bank_check(nullptr, nullptr),      flawscope_cuda_device_count(nullptr),
        flawscope_cuda_bank_pack(rows.get(), 2, m, d, packed.get(), nullptr),
        flawscope_cuda_bank_pack(nullptr, FLAWSCOPE_FLOAT32, m, d, packed.get(), nullptr),
        flawscope_cuda_bank_pack(rows.get(), FLAWSCOPE_FLOAT32, m, d, packed.get() + 4, nullptr),
    };
    for (const int status : refused) check(status == FLAWSCOPE_BAD_ARGUMENT, "a bad argument");
    const std::function<int()> calls[] = {
        pack,
        [&] { return nearest(n, m, 2, 0, workspace.get(), size); },
        [&] { return flawscope_cuda_nearest_bytes(n, m, d, 2, 0, &size); },
        [&] { return flawscope_cuda_bank_check(packed.get(), nullptr); },
        [&] {
            int count = 0;
            return flawscope_cuda_device_count(&count);
        },
        [&] {
            return flawscope_cuda_mahalanobis(rows.get(), rows.get(), 1, 4, queries.get(), n, squared.get(), nullptr);
        },
        [&] {
            return flawscope_cuda_mahalanobis_triangles(rows.get(), rows.get(), FLAWSCOPE_FLOAT16, 1, 4, queries.get(),
                                                        n, squared.get(), nullptr);
        },
        [&] {
            return flawscope_cuda_kcenter_greedy(queries.get(), n, d, 3, 0, packed.get(), bank_size, found.get(),
                                                 nullptr);
        },
    };
    for (const auto& call : calls) {
        emulation::settings.calls = 0;
        check(call() == FLAWSCOPE_OK, "a call that does not fail");
        const int made = emulation::settings.calls;
        for (int i = 1; i <= made; ++i) {
            emulation::settings.calls = 0;
            emulation::settings.fail_at = i;
            const int status = call();
            emulation::settings.fail_at = 0;
            check(status == FLAWSCOPE_CUDA + cudaErrorEmulated, "a failure of CUDA is told");
            check(std::string(flawscope::cuda_status_text(status)) == "an emulated failure", "in its own words");
            check(emulation::settings.calls == i, "nothing is started after a failure");
        }
    }
}

// Of a captured graph there is one workspace for all batches: what is enough for many queries is enough for fewer.
void test_a_workspace_is_enough_for_fewer_queries() {
    for (const int processors : {1, 3, 8, 16, 37, 58, 70, 108, 132, 142}) {
        emulation::settings.processors = processors;
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

void test_arrays_on_another_device_are_refused() {
    const Device<float> rows(integers(20 * 4)), squared(64), floats(4096);
    const Device<int64_t> found(64);
    const Device<char> packed(65536), workspace(1 << 20);
    const Device<int32_t> reach(std::vector<int32_t>(1, 0));
    const Device<int64_t> starts(std::vector<int64_t>{0, 20});
    int64_t size = 0;
    flawscope_cuda_nearest_bytes(2, 20, 4, 1, 0, &size);
    const struct {
        std::function<int()> call;
        std::vector<const void*> arrays;
    } cases[] = {
        {[&] { return flawscope_cuda_bank_pack(rows.get(), FLAWSCOPE_FLOAT32, 20, 4, packed.get(), nullptr); },
         {rows.get(), packed.get()}},
        {[&] { return flawscope_cuda_bank_check(packed.get(), nullptr); }, {packed.get()}},
        {[&] {
             return flawscope_cuda_nearest(packed.get(), rows.get(), FLAWSCOPE_FLOAT32, 20, 4, floats.get(),
                                           FLAWSCOPE_FLOAT32, 2, 1, 0, workspace.get(), size, squared.get(),
                                           found.get(), nullptr);
         },
         {packed.get(), rows.get(), floats.get(), workspace.get(), squared.get(), found.get()}},
        {[&] {
             return flawscope_cuda_windows_nearest(rows.get(), 20, 4, starts.get(), 1, 1, reach.get(), floats.get(),
                                                   FLAWSCOPE_FLOAT32, 1, squared.get(), found.get(), nullptr);
         },
         {rows.get(), starts.get(), reach.get(), floats.get(), squared.get(), found.get()}},
        {[&] {
             return flawscope_cuda_mahalanobis(rows.get(), floats.get(), 1, 4, floats.get() + 64, 2, squared.get(),
                                               nullptr);
         },
         {rows.get(), floats.get(), floats.get() + 64, squared.get()}},
        {[&] {
             return flawscope_cuda_mahalanobis_triangles(rows.get(), floats.get(), FLAWSCOPE_FLOAT32, 1, 4,
                                                         floats.get() + 64, 2, squared.get(), nullptr);
         },
         {rows.get(), floats.get(), floats.get() + 64, squared.get()}},
        {[&] {
             return flawscope_cuda_kcenter_greedy(rows.get(), 20, 4, 3, 0, workspace.get(), 1 << 20, found.get(),
                                                  nullptr);
         },
         {rows.get(), workspace.get(), found.get()}},
    };
    std::memset(floats.get(), 0, 4096 * sizeof(float));
    emulation::Settings& settings = emulation::settings;
    for (const auto& c : cases) {
        check(c.call() == FLAWSCOPE_OK, "arrays of the current device");
        for (const void* array : c.arrays) {
            settings.elsewhere = array;
            settings.kind = {cudaMemoryTypeDevice, 1};
            check(c.call() == FLAWSCOPE_OTHER_DEVICE, "an array of another device");
            settings.kind = {cudaMemoryTypeUnregistered, 0};
            check(c.call() == FLAWSCOPE_OTHER_DEVICE, "plain memory of the host");
            settings.reads_host_memory = 1;
            check(c.call() == FLAWSCOPE_OK, "plain memory of the host, on a device that reads it");
            settings.reads_host_memory = 0;
            for (const cudaMemoryType kind : {cudaMemoryTypeHost, cudaMemoryTypeManaged}) {
                settings.kind = {kind, 1};
                check(c.call() == FLAWSCOPE_OK, "pinned or managed memory");
            }
            settings.elsewhere = nullptr;
        }
    }
}

// ---- Mahalanobis distance -------------------------------------------------------------------------------------------

std::vector<float> mahalanobis(const Rows& features, const Rows& mean, const Rows& whitening, int64_t n, int64_t p) {
    const Device<float> x(features), mu(mean), w(whitening), squared(static_cast<size_t>(n * p));
    const int64_t d = static_cast<int64_t>(mean.size()) / p;
    const int status = without_waiting([&] {
        return flawscope_cuda_mahalanobis(mu.get(), w.get(), p, d, x.get(), n, squared.get(), nullptr);
    });
    check(status == FLAWSCOPE_OK, "mahalanobis: status");
    return {squared.get(), squared.get() + n * p};
}

// The same by the upper triangle of each matrix alone, stored in either type.
std::vector<float> by_triangles(const Rows& features, const Rows& mean, const Rows& whitening, int64_t n, int64_t p,
                                int dtype) {
    const int64_t d = static_cast<int64_t>(mean.size()) / p;
    Rows packed;
    for (int64_t row = 0; row < p * d; ++row) {
        for (int64_t column = row % d; column < d; ++column) packed.push_back(whitening[row * d + column]);
    }
    const Device<float> x(features), mu(mean), floats(packed), squared(static_cast<size_t>(n * p));
    const Device<uint16_t> half_floats(halves(packed));
    const void* triangles = dtype == FLAWSCOPE_FLOAT16 ? static_cast<const void*>(half_floats.get()) : floats.get();
    const int status = without_waiting([&] {
        return flawscope_cuda_mahalanobis_triangles(mu.get(), triangles, dtype, p, d, x.get(), n, squared.get(),
                                                    nullptr);
    });
    check(status == FLAWSCOPE_OK, "mahalanobis_triangles: status");
    return {squared.get(), squared.get() + n * p};
}

void test_mahalanobis_on_integers() {
    const int64_t cases[][3] = {{1, 3, 1},  {1, 2, 65},   {2, 2, 64},   {4, 3, 63},  {5, 2, 129},
                                {16, 1, 7}, {17, 3, 100}, {33, 1, 257}, {1, 1, 300}, {3, 1, 128}};
    int turn = 0;
    for (const auto& c : cases) {
        const int64_t n = c[0], p = c[1], d = c[2];
        emulation::settings.order = static_cast<Order>(turn++ % emulation::kOrders);
        const Rows features = integers(n * p * d, 2), mean = integers(p * d, 1), whitening = integers(p * d * d, 1);
        const std::vector<float> got = mahalanobis(features, mean, whitening, n, p);
        for (int64_t s = 0; s < n; ++s) {
            for (int64_t i = 0; i < p; ++i) {
                double wanted = 0.0;
                for (int64_t j = 0; j < d; ++j) {
                    double sum = 0.0;
                    for (int64_t r = 0; r < d; ++r) {
                        const double centred = double(features[(s * p + i) * d + r]) - mean[i * d + r];
                        sum += centred * whitening[(i * d + r) * d + j];
                    }
                    wanted += sum * sum;
                }
                check(wanted < (1 << 24) && got[s * p + i] == wanted, "mahalanobis, d " + std::to_string(d));
            }
        }
        Rows upper = whitening;
        for (int64_t i = 0; i < p * d * d; ++i) {
            if (i % d < i / d % d) upper[i] = 0.0f;
        }
        const std::vector<float> whole = mahalanobis(features, mean, upper, n, p);
        for (const int dtype : {FLAWSCOPE_FLOAT32, FLAWSCOPE_FLOAT16}) {
            check(by_triangles(features, mean, upper, n, p, dtype) == whole, "triangles, d " + std::to_string(d));
        }
    }
}

void test_mahalanobis_that_is_not_finite() {
    for (const int64_t n : {1, 3, 6}) {
        for (const float bad : {kNaN, kInf, -kInf, 1e30f}) {
            const int64_t p = 2, d = 5;
            Rows features = integers(n * p * d), whitening(p * d * d, 0.0f);
            for (int64_t i = 0; i < p * d; ++i) whitening[i * d + i % d] = 1.0f;
            if (!(std::fabs(bad) == 1e30f)) whitening[4 * d + 4] = 0.0f;  // what is no number meets only zeros
            features[4] = bad;                                             // of the first sample and position
            const std::vector<float> got = mahalanobis(features, Rows(p * d, 0.0f), whitening, n, p);
            check(std::isnan(got[0]), "a feature that is not finite");
            for (size_t i = 1; i < got.size(); ++i) check(std::isfinite(got[i]), "its neighbours");
            const Rows zero(p * d, 0.0f);
            for (const int dtype : {FLAWSCOPE_FLOAT32, FLAWSCOPE_FLOAT16}) {
                const std::vector<float> packed = by_triangles(features, zero, whitening, n, p, dtype);
                check(std::isnan(packed[0]), "a feature that is not finite, by triangles");
                for (size_t i = 1; i < packed.size(); ++i) check(std::isfinite(packed[i]), "neighbours, by triangles");
            }
        }
    }
    Rows mean(4, 0.0f);
    mean[1] = kInf;
    check(std::isnan(mahalanobis(Rows(4, 1.0f), mean, Rows(8, 1.0f), 1, 2)[0]), "a mean that is not finite");
}

// ---- Greedy k-centre ------------------------------------------------------------------------------------------------

std::vector<int64_t> kcenter(const Rows& features, int64_t d, int64_t count, int64_t first, bool aligned = true) {
    const int64_t n = static_cast<int64_t>(features.size()) / d;
    static int turn = 0;
    emulation::settings.order = static_cast<Order>(turn++ % emulation::kOrders);
    Rows shifted(aligned ? 0 : 1);  // rows that begin 4 bytes past a boundary
    shifted.insert(shifted.end(), features.begin(), features.end());
    const Device<float> memory(shifted);
    int64_t bytes = 0;
    check(flawscope_cuda_kcenter_bytes(n, count, &bytes) == FLAWSCOPE_OK, "kcenter_bytes");
    const Device<char> workspace(bytes);
    const Device<int64_t> chosen(count);
    const int status = without_waiting([&] {
        return flawscope_cuda_kcenter_greedy(memory.get() + (aligned ? 0 : 1), n, d, count, first, workspace.get(),
                                             bytes, chosen.get(), nullptr);
    });
    check(status == FLAWSCOPE_OK, "kcenter: status");
    return {chosen.get(), chosen.get() + count};
}

void test_kcenter_on_integers() {
    const struct {
        int64_t n, d, count, first;
        int high;
    } cases[] = {{1, 1, 1, 0, 4}, {5, 3, 5, 2, 4},   {63, 4, 20, 62, 1}, {64, 8, 9, 0, 4},
                 {65, 5, 65, 7, 1}, {200, 36, 12, 3, 4}, {300, 1, 40, 9, 9}, {130, 132, 6, 129, 2}};
    for (const auto& c : cases) {
        const Rows features = integers(c.n * c.d, c.high);
        std::vector<double> closest(c.n, std::numeric_limits<double>::infinity());
        std::vector<int64_t> wanted{c.first};
        while (static_cast<int64_t>(wanted.size()) < c.count) {
            for (int64_t i = 0; i < c.n; ++i) {
                closest[i] = std::min(closest[i], squared_distance(features, i, features, wanted.back(), c.d));
            }
            closest[wanted.back()] = -1.0;
            wanted.push_back(std::max_element(closest.begin(), closest.end()) - closest.begin());
        }
        check(kcenter(features, c.d, c.count, c.first) == wanted, "kcenter, n " + std::to_string(c.n));
        check(kcenter(features, c.d, c.count, c.first, false) == wanted, "kcenter, n " + std::to_string(c.n) + ", off");
    }
    check(kcenter(Rows(6, 2.0f), 2, 3, 1) == std::vector<int64_t>({1, 0, 2}), "rows that are all equal");
}

void test_kcenter_refuses() {
    for (const float bad : {kNaN, kInf, 1e19f}) {
        Rows features = integers(70 * 4);
        features[69 * 4 + 3] = bad;
        check(kcenter(features, 4, 3, 0) == std::vector<int64_t>(3, -1), "features that are not finite");
    }
    const Device<float> features(integers(8));
    const Device<char> workspace(4096);
    const Device<int64_t> chosen(8);
    int64_t bytes = 0;
    flawscope_cuda_kcenter_bytes(4, 2, &bytes);
    const auto call = [&](int64_t n, int64_t count, int64_t first, int64_t size) {
        return flawscope_cuda_kcenter_greedy(features.get(), n, 2, count, first, workspace.get(), size, chosen.get(),
                                             nullptr);
    };
    for (const int status : {call(0, 1, 0, 4096), call(4, 5, 0, 4096), call(4, 0, 0, 4096), call(4, 2, 4, 4096),
                             call(4, 2, -1, 4096), call(4, 2, 0, bytes - 1), flawscope_cuda_kcenter_bytes(4, 5, &bytes),
                             flawscope_cuda_mahalanobis(features.get(), features.get(), 0, 2, features.get(), 1,
                                                        features.get(), nullptr),
                             flawscope_cuda_mahalanobis(features.get(), features.get(), 1, 2, nullptr, 1,
                                                        features.get(), nullptr),
                             flawscope_cuda_mahalanobis_triangles(features.get(), features.get(), 2, 1, 2,
                                                                  features.get(), 1, features.get(), nullptr),
                             flawscope_cuda_mahalanobis_triangles(features.get(), nullptr, FLAWSCOPE_FLOAT32, 1, 2,
                                                                  features.get(), 1, features.get(), nullptr)}) {
        check(status == FLAWSCOPE_BAD_ARGUMENT, "a bad argument of kcenter or mahalanobis");
    }
}

}  // namespace

int main() {
    check(flawscope_has_cuda() == 1, "has_cuda");
    test_sizes_on_tile_edges();
    test_ties_take_the_lower_rows();
    test_the_worst_order_of_rows();
    test_scales();
    test_queries_without_a_distance();
    test_a_bank_that_is_not_finite();
    test_rows_that_changed_since_they_were_packed();
    test_floats_stay_within_the_bound();
    test_refusals_and_failures_of_nearest();
    test_a_workspace_is_enough_for_fewer_queries();
    test_arrays_on_another_device_are_refused();
    test_mahalanobis_on_integers();
    test_mahalanobis_that_is_not_finite();
    test_kcenter_on_integers();
    test_kcenter_refuses();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
