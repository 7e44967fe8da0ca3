#include "mahalanobis.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "bank.h"
#include "threads.h"

namespace flawscope {
namespace {

constexpr int64_t kSamples = 64;  // samples centred at a time: their vectors stay in the first-level cache

}  // namespace

Gaussians::Gaussians(const Kernels& kernels, const float* mean, const float* whitening, int64_t p, int64_t d,
                     int threads)
    : kernels(kernels),
      p(p),
      d(d),
      strip_count_(divide_up(d, kernels.lanes)),
      mean_(p * d),
      ranges_(p * strip_count_ * 2),
      starts_(p + 1) {
    const int workers = thread_count(threads), lanes = kernels.lanes;
    std::memcpy(mean_.data(), mean, static_cast<size_t>(p * d) * sizeof(float));
    std::atomic<bool> finite{std::all_of(mean, mean + p * d, [](float x) { return std::isfinite(x); })};
    run_tasks(workers, p, [&](int64_t i) {
        const float* matrix = whitening + i * d * d;
        int32_t* ranges = ranges_.data() + i * strip_count_ * 2;
        for (int64_t s = 0; s < strip_count_; ++s) {
            ranges[2 * s] = static_cast<int32_t>(d);
            ranges[2 * s + 1] = 0;
        }
        for (int32_t row = 0; row < d; ++row) {
            for (int64_t s = 0; s < strip_count_; ++s) {
                bool used = false;
                for (int64_t j = s * lanes; j < std::min(d, (s + 1) * lanes); ++j) {
                    const float value = matrix[row * d + j];
                    used |= value != 0.0f;
                    if (!std::isfinite(value)) finite = false;
                }
                if (!used) continue;
                ranges[2 * s] = std::min(ranges[2 * s], row);
                ranges[2 * s + 1] = row + 1;
            }
        }
        int64_t kept = 0;
        for (int64_t s = 0; s < strip_count_; ++s) {
            ranges[2 * s] = std::min(ranges[2 * s], ranges[2 * s + 1]);  // a strip of zeros keeps no row
            kept += ranges[2 * s + 1] - ranges[2 * s];
        }
        starts_[i + 1] = kept * lanes;
    });
    if (!finite) throw NotFinite{};
    starts_[0] = 0;
    for (int64_t i = 0; i < p; ++i) starts_[i + 1] += starts_[i];
    strips_ = Buffer<float>(starts_[p]);
    run_tasks(workers, p, [&](int64_t i) {
        const float* matrix = whitening + i * d * d;
        const int32_t* ranges = ranges_.data() + i * strip_count_ * 2;
        float* out = strips_.data() + starts_[i];
        for (int64_t s = 0; s < strip_count_; ++s) {
            const int64_t width = std::min<int64_t>(lanes, d - s * lanes);
            for (int64_t row = ranges[2 * s]; row < ranges[2 * s + 1]; ++row) {
                std::memcpy(out, matrix + row * d + s * lanes, static_cast<size_t>(width) * sizeof(float));
                std::fill(out + width, out + lanes, 0.0f);
                out += lanes;
            }
        }
    });
}

void Gaussians::squared_distances(const float* features, int64_t n, int threads, float* squared) const {
    const int workers = thread_count(threads);
    const int64_t share = std::max<int64_t>(1, std::min<int64_t>(16, p / (4 * workers)));
    const int64_t batch = std::min(n, kSamples), tasks = divide_up(p, share);
    Buffer<float> scratch(tasks * batch * d);
    run_tasks(workers, tasks, [&](int64_t task) {
        float* centred = scratch.data() + task * batch * d;
        float found[kSamples];
        for (int64_t i = task * share; i < std::min(p, (task + 1) * share); ++i) {
            const float* mean = mean_.data() + i * d;
            for (int64_t first = 0; first < n; first += batch) {
                const int64_t count = std::min(batch, n - first);
                for (int64_t s = 0; s < count; ++s) {
                    const float* x = features + ((first + s) * p + i) * d;
                    float* z = centred + s * d;
                    // Before the product: x·W − μ·W would lose its digits where a patch is near its mean.
                    for (int64_t c = 0; c < d; ++c) z[c] = x[c] - mean[c];
                }
                kernels.mahalanobis(strips_.data() + starts_[i], ranges_.data() + i * strip_count_ * 2, strip_count_,
                                    centred, count, d, found);
                for (int64_t s = 0; s < count; ++s) {
                    // A feature that meets only zeros that are not stored would go unseen: NaN must not.
                    float sum = 0.0f;
                    for (int64_t c = 0; c < d; ++c) sum += centred[s * d + c] * 0.0f;
                    const bool there = std::isfinite(found[s]) && sum == 0.0f;
                    squared[(first + s) * p + i] = there ? found[s] : std::numeric_limits<float>::quiet_NaN();
                }
            }
        }
    });
}

}  // namespace flawscope
