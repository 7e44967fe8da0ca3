// The CUDA kernels on the CPU, against loops in float64: exact on small integers, bounded on floats, refused where
// there is no result. Built and run by test_cuda_emulated.py with cpp_ext/cuda/emulation.h in the place of CUDA.
#include "cuda_emulated.h"

namespace {

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

// On an 8.0 the kernel of wide tiles that was compiled for 7.5 would do nothing, and what is found would be rubbish.
void test_code_of_before_8_0_is_refused_on_later_devices() {
    if (!kEmulated) return;
    const Device<float> floats(integers(20 * 4));
    const Device<int64_t> found(20);
    const Device<char> packed(65536), workspace(1 << 20);
    int64_t size = 0;
    const auto bytes = [&] { return flawscope_cuda_nearest_bytes(2, 20, 4, 1, 0, &size); };
    const auto nearest = [&] {
        return flawscope_cuda_nearest(packed.get(), floats.get(), FLAWSCOPE_FLOAT32, 20, 4, floats.get(),
                                      FLAWSCOPE_FLOAT32, 2, 1, 0, workspace.get(), 1 << 20, floats.get(), found.get(),
                                      nullptr);
    };
    check(flawscope_cuda_bank_pack(floats.get(), FLAWSCOPE_FLOAT32, 20, 4, packed.get(), nullptr) == FLAWSCOPE_OK, "pack");
    emulation::settings.ptx = 75;
    check(bytes() == FLAWSCOPE_CUDA + cudaErrorNoKernelImageForDevice, "bytes of a search without code");
    check(nearest() == FLAWSCOPE_CUDA + cudaErrorNoKernelImageForDevice, "a search without code");
    for (const int later : {80, 90}) {
        emulation::settings.ptx = later;
        check(bytes() == FLAWSCOPE_OK, "code of the device or of before it");
    }
    emulation::settings.ptx = 0;
}

// A kernel that was never launched cannot be loaded within a capture. Whoever captures has asked for the bytes before.
void test_a_search_may_be_captured_once_its_bytes_are_known() {
    if (!kEmulated) return;
    const int64_t n = 3, m = 20, d = 4;
    const Device<float> rows(integers(m * d)), queries(integers(n * d)), squared(n * 9);
    const Device<int64_t> found(n * 9);
    const Device<char> packed(65536), workspace(1 << 20);
    emulation::Settings& settings = emulation::settings;
    for (const int k : {1, 9}) {
        for (const int rows_dtype : {FLAWSCOPE_FLOAT32, FLAWSCOPE_FLOAT16}) {
            for (const int dtype : {FLAWSCOPE_FLOAT32, FLAWSCOPE_FLOAT16}) {
                check(flawscope_cuda_bank_pack(rows.get(), rows_dtype, m, d, packed.get(), nullptr) == FLAWSCOPE_OK,
                      "pack");
                const auto captured = [&] {
                    settings.capturing = true;
                    const int status =
                        flawscope_cuda_nearest(packed.get(), rows.get(), rows_dtype, m, d, queries.get(), dtype, n, k,
                                               0, workspace.get(), 1 << 20, squared.get(), found.get(), nullptr);
                    settings.capturing = false;
                    return status;
                };
                int64_t size = 0;
                settings.loaded.clear();
                check(flawscope_cuda_nearest_bytes(n, m, d, k, 0, &size) == FLAWSCOPE_OK, "bytes before a capture");
                check(captured() == FLAWSCOPE_OK, "a first search in a capture");
                settings.loaded.clear();
                check(captured() == FLAWSCOPE_CUDA + cudaErrorEmulated, "a search in a capture, without its kernels");
            }
        }
    }
}

void test_arrays_on_another_device_are_refused() {
    if (!kEmulated) return;
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
    test_refusals_and_failures_of_nearest();
    test_code_of_before_8_0_is_refused_on_later_devices();
    test_a_search_may_be_captured_once_its_bytes_are_known();
    test_arrays_on_another_device_are_refused();
    test_mahalanobis_on_integers();
    test_mahalanobis_that_is_not_finite();
    test_kcenter_on_integers();
    test_kcenter_refuses();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
