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

constexpr int64_t kSamples = 64;       // samples centred at a time
constexpr int64_t kCentred = 1 << 16;  // their components at a time, of all positions: they stay in the second-level cache
constexpr int64_t kPositions = 16;     // of a task, at most

bool is_finite(float x) { return std::isfinite(x); }
bool is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }
bool is_zero(float x) { return x == 0.0f; }

// Where row r of an upper triangle begins in it, stored row after row.
int64_t row_start(int64_t d, int64_t r) { return r * d - r * (r - 1) / 2; }

}  // namespace

Gaussians::Gaussians(const Kernels& kernels, const float* mean, const float* whitening, int64_t p, int64_t d,
                     int threads)
    : kernels(kernels), p(p), d(d), strip_count_(divide_up(d, kernels.lanes)), mean_(p * d) {
    const int workers = thread_count(threads);
    take_mean(mean);
    std::atomic<bool> finite{true}, upper{true};
    run_tasks(workers, p, [&](int64_t i) {
        const float* matrix = whitening + i * d * d;
        for (int64_t r = 0; r < d; ++r) {
            for (int64_t j = 0; j < d; ++j) {
                if (!is_finite(matrix[r * d + j])) finite = false;
                if (j < r && !is_zero(matrix[r * d + j])) upper = false;
            }
        }
    });
    if (!finite) throw NotFinite{};
    if (upper) {
        pack_triangles<float>(workers, [&](int64_t i, int64_t r) { return whitening + (i * d + r) * d + r; });
    } else {
        pack_strips(whitening, workers);
    }
}

Gaussians::Gaussians(const Kernels& kernels, const float* mean, const void* triangles, Storage storage, int64_t p,
                     int64_t d, int threads)
    : kernels(kernels), p(p), d(d), storage_(storage), strip_count_(divide_up(d, kernels.lanes)), mean_(p * d) {
    const int workers = thread_count(threads);
    take_mean(mean);
    const int64_t size = d * (d + 1) / 2;
    const auto pack = [&](const auto* factors) {
        std::atomic<bool> finite{true};
        run_tasks(workers, p, [&](int64_t i) {
            const auto* triangle = factors + i * size;
            if (!std::all_of(triangle, triangle + size, [](auto x) { return is_finite(x); })) finite = false;
        });
        if (!finite) throw NotFinite{};
        using T = std::decay_t<decltype(*factors)>;
        pack_triangles<T>(workers, [&](int64_t i, int64_t r) { return factors + i * size + row_start(d, r); });
    };
    if (storage == Storage::kFloat16) {
        pack(static_cast<const uint16_t*>(triangles));
    } else {
        pack(static_cast<const float*>(triangles));
    }
}

void Gaussians::take_mean(const float* mean) {
    if (!std::all_of(mean, mean + p * d, [](float x) { return is_finite(x); })) throw NotFinite{};
    std::memcpy(mean_.data(), mean, static_cast<size_t>(p * d) * sizeof(float));
}

template <class T, class Row>
void Gaussians::pack_triangles(int workers, const Row& row) {
    const int64_t lanes = kernels.lanes;
    triangles_ = true;
    const auto each_strip = [this, lanes](const auto& visit) {
        for (int64_t first = 0, width = first_strip_width(lanes, d); first < d; first += width, width = lanes) {
            visit(first, width);
        }
    };
    each_strip([&](int64_t first, int64_t width) { stride_ += triangle_strip(lanes, first, width); });
    // The kernel reads whole vectors, also the last one.
    strips_ = Buffer<char>((p * stride_ + lanes) * static_cast<int64_t>(sizeof(T)));
    T* const strips = reinterpret_cast<T*>(strips_.data());
    std::fill(strips + p * stride_, strips + p * stride_ + lanes, T{});
    run_tasks(workers, p, [&](int64_t i) {
        T* out = strips + i * stride_;
        each_strip([&](int64_t first, int64_t width) {
            T* const end = out + triangle_strip(lanes, first, width);
            for (int64_t r = 0; r < first + width; ++r) {
                const int64_t column = std::max(first, r);
                const T* from = row(i, r) + (column - r);
                out = std::copy(from, from + (first + width - column), out);
            }
            std::fill(out, end, T{});
            out = end;
        });
    });
}

void Gaussians::pack_strips(const float* whitening, int workers) {
    const int64_t lanes = kernels.lanes;
    ranges_ = Buffer<int32_t>(p * strip_count_ * 2);
    starts_ = Buffer<int64_t>(p + 1);
    run_tasks(workers, p, [&](int64_t i) {
        const float* matrix = whitening + i * d * d;
        int32_t* ranges = ranges_.data() + i * strip_count_ * 2;
        for (int64_t s = 0; s < strip_count_; ++s) {
            ranges[2 * s] = static_cast<int32_t>(d);
            ranges[2 * s + 1] = 0;
        }
        for (int32_t row = 0; row < d; ++row) {
            for (int64_t s = 0; s < strip_count_; ++s) {
                const float *from = matrix + row * d + s * lanes, *to = matrix + row * d + std::min(d, (s + 1) * lanes);
                if (std::all_of(from, to, [](float x) { return is_zero(x); })) continue;
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
    starts_[0] = 0;
    for (int64_t i = 0; i < p; ++i) starts_[i + 1] += starts_[i];
    strips_ = Buffer<char>(starts_[p] * static_cast<int64_t>(sizeof(float)));
    float* const strips = reinterpret_cast<float*>(strips_.data());
    run_tasks(workers, p, [&](int64_t i) {
        const float* matrix = whitening + i * d * d;
        const int32_t* ranges = ranges_.data() + i * strip_count_ * 2;
        float* out = strips + starts_[i];
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

void Gaussians::distances_of_group(int64_t i, const float* centred, int group, float* found) const {
    if (triangles_) {
        const int64_t size = storage_ == Storage::kFloat16 ? sizeof(uint16_t) : sizeof(float);
        kernels.mahalanobis_triangle[static_cast<int>(storage_)](strips_.data() + i * stride_ * size, d, centred, group,
                                                                 found);
        return;
    }
    kernels.mahalanobis(reinterpret_cast<const float*>(strips_.data()) + starts_[i],
                        ranges_.data() + i * strip_count_ * 2, d, centred, group, found);
}

void Gaussians::squared_distances(const float* features, int64_t n, int threads, float* squared) const {
    const int workers = thread_count(threads);
    const int64_t share = std::max<int64_t>(1, std::min(kPositions, p / (4 * workers)));
    const int64_t batch = std::min(n, kSamples), tasks = divide_up(p, share);
    // Some positions of an image at a time, which lie side by side: of one position alone every image would be another
    // jump through memory.
    const int64_t block = std::clamp<int64_t>(kCentred / (batch * d), 1, share);
    Buffer<float> scratch(tasks * block * batch * d);
    run_tasks(workers, tasks, [&](int64_t task) {
        float* const centred = scratch.data() + task * block * batch * d;
        const int64_t end = std::min(p, (task + 1) * share);
        float found[kSamples];
        bool finite[kPositions * kSamples];
        for (int64_t i = task * share, last; i < end; i = last) {
            last = std::min(end, i + block);
            for (int64_t first = 0; first < n; first += batch) {
                const int64_t count = std::min(batch, n - first);
                for (int64_t s = 0; s < count; ++s) {
                    const float* x = features + ((first + s) * p + i) * d;
                    for (int64_t j = 0; j < last - i; ++j) {
                        finite[j * batch + s] = kernels.centre(x + j * d, mean_.data() + (i + j) * d, d,
                                                               centred + (j * batch + s) * d);
                    }
                }
                for (int64_t j = 0; j < last - i; ++j) {
                    for (int64_t s = 0, group; s < count; s += group) {
                        group = sample_group(kernels, count - s);
                        distances_of_group(i + j, centred + (j * batch + s) * d, static_cast<int>(group), found + s);
                    }
                    for (int64_t s = 0; s < count; ++s) {
                        // A feature that meets only zeros that are not stored would go unseen: NaN must not.
                        const bool there = std::isfinite(found[s]) && finite[j * batch + s];
                        squared[(first + s) * p + i + j] = there ? found[s] : std::numeric_limits<float>::quiet_NaN();
                    }
                }
            }
        }
    });
}

}  // namespace flawscope
