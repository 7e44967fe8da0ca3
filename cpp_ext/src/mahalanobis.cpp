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

// The strips of an upper triangle in their order: visit(first column, columns).
template <class Visit>
void each_strip(int64_t lanes, int64_t d, const Visit& visit) {
    for (int64_t first = 0, width = first_strip_width(lanes, d); first < d; first += width, width = lanes) {
        visit(first, width);
    }
}

// What lies one after the other in the strips of a triangle, row(r) being its row r from the diagonal on:
// visit(factors, count, strips), and with null for zeros at the end of a strip.
template <class T, class Row, class Visit>
void each_run(int64_t lanes, int64_t d, const Row& row, T* strips, const Visit& visit) {
    each_strip(lanes, d, [&](int64_t first, int64_t width) {
        T* const end = strips + triangle_strip(lanes, first, width);
        for (int64_t r = 0; r < first + width; ++r) {
            const int64_t column = std::max(first, r), count = first + width - column;
            visit(row(r) + (column - r), count, strips);
            strips += count;
        }
        visit(static_cast<decltype(row(0))>(nullptr), end - strips, strips);
        strips = end;
    });
}

// Factors that the strips of a triangle take.
int64_t triangle_stride(int64_t lanes, int64_t d) {
    int64_t stride = 0;
    each_strip(lanes, d, [&](int64_t first, int64_t width) { stride += triangle_strip(lanes, first, width); });
    return stride;
}

// Calls with the factors as what they are.
template <class Call>
auto typed(Storage storage, const void* factors, const Call& call) {
    return storage == Storage::kFloat16 ? call(static_cast<const uint16_t*>(factors))
                                        : call(static_cast<const float*>(factors));
}

int64_t factor_bytes(Storage storage) { return storage == Storage::kFloat16 ? sizeof(uint16_t) : sizeof(float); }

void check_finite(const float* mean, const void* triangles, Storage storage, int64_t p, int64_t d, int workers) {
    if (!std::all_of(mean, mean + p * d, [](float x) { return is_finite(x); })) throw NotFinite{};
    const int64_t size = d * (d + 1) / 2;
    std::atomic<bool> finite{true};
    typed(storage, triangles, [&](const auto* factors) {
        run_tasks(workers, p, [&](int64_t i) {
            const auto* triangle = factors + i * size;
            if (!std::all_of(triangle, triangle + size, [](auto x) { return is_finite(x); })) finite = false;
        });
    });
    if (!finite) throw NotFinite{};
}

// Packs triangles; row(i, r): the factors of row r of matrix i from the diagonal on.
template <class T, class Row>
void pack_triangles(int64_t lanes, int64_t p, int64_t d, int workers, const Row& row, T* strips) {
    const int64_t stride = triangle_stride(lanes, d);
    // The kernel reads whole vectors, also the last one.
    std::fill(strips + p * stride, strips + p * stride + lanes, T{});
    run_tasks(workers, p, [&](int64_t i) {
        each_run(lanes, d, [&](int64_t r) { return row(i, r); }, strips + i * stride,
                 [](const T* from, int64_t count, T* to) {
                     from == nullptr ? std::fill(to, to + count, T{}) : void(std::copy(from, from + count, to));
                 });
    });
}

template <class T>
void pack_triangles(const Kernels& kernels, int64_t p, int64_t d, int workers, const T* factors, char* strips) {
    const int64_t size = d * (d + 1) / 2;
    pack_triangles<T>(kernels.lanes, p, d, workers,
                      [&](int64_t i, int64_t r) { return factors + i * size + row_start(d, r); },
                      reinterpret_cast<T*>(strips));
}

// Whether strips are to the last bit what packing the factors gives, zeros included.
template <class T>
bool are_packed(const Kernels& kernels, int64_t p, int64_t d, int workers, const T* factors, const char* from) {
    constexpr T zeros[64] = {};  // more than a strip is filled up with
    const int64_t size = d * (d + 1) / 2, lanes = kernels.lanes, stride = triangle_stride(lanes, d);
    const T* const strips = reinterpret_cast<const T*>(from);
    const auto same = [](const T* one, const T* other, int64_t count) {
        return std::memcmp(one, other, static_cast<size_t>(count) * sizeof(T)) == 0;
    };
    std::atomic<bool> all{same(strips + p * stride, zeros, lanes)};
    run_tasks(workers, p, [&](int64_t i) {
        each_run(lanes, d, [&](int64_t r) { return factors + i * size + row_start(d, r); }, strips + i * stride,
                 [&](const T* wanted, int64_t count, const T* got) {
                     if (!same(got, wanted == nullptr ? zeros : wanted, count)) all = false;
                 });
    });
    return all;
}

constexpr uint64_t kMagic = UINT64_C(0x53534147'57414c46);  // "FLAWGASS" in little-endian order
constexpr int64_t kPage = 4096, kLine = 64;

struct Header {
    uint64_t magic;  // a number: in the other byte order it is another one
    uint32_t version, storage;
    char level[16];  // of `Kernels::name`, filled up with zeros
    int64_t lanes, p, d, bytes;
};

// Where mean and strips are in a block, and its end.
struct Layout {
    Layout(const Kernels& kernels, Storage storage, int64_t p, int64_t d)
        : strips(kPage + divide_up(4 * p * d, kLine) * kLine),
          used((p * triangle_stride(kernels.lanes, d) + kernels.lanes) * factor_bytes(storage)),
          end(divide_up(strips + used, kLine) * kLine) {}

    int64_t strips, used, end;
};

// The first page of a block.
void write_header(const Kernels& kernels, Storage storage, int64_t p, int64_t d, char* page) {
    Header header{};
    header.magic = kMagic;
    header.version = kGaussiansBlockVersion;
    header.storage = static_cast<uint32_t>(storage);
    std::strncpy(header.level, kernels.name, sizeof header.level - 1);
    header.lanes = kernels.lanes;
    header.p = p;
    header.d = d;
    header.bytes = Layout(kernels, storage, p, d).end;
    std::memset(page, 0, kPage);
    std::memcpy(page, &header, sizeof header);
}

bool is_zero_filled(const char* from, const char* to) {
    return std::all_of(from, to, [](char byte) { return byte == 0; });
}

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
        make_room();
        pack_triangles<float>(kernels.lanes, p, d, workers,
                              [&](int64_t i, int64_t r) { return whitening + (i * d + r) * d + r; },
                              reinterpret_cast<float*>(strips_.data()));
    } else {
        pack_strips(whitening, workers);
    }
}

Gaussians::Gaussians(const Kernels& kernels, const float* mean, const void* triangles, Storage storage, int64_t p,
                     int64_t d, int threads)
    : kernels(kernels), p(p), d(d), storage_(storage), strip_count_(divide_up(d, kernels.lanes)), mean_(p * d) {
    const int workers = thread_count(threads);
    check_finite(mean, triangles, storage, p, d, workers);
    take_mean(mean);
    make_room();
    typed(storage, triangles,
          [&](const auto* factors) { pack_triangles(kernels, p, d, workers, factors, strips_.data()); });
}

Gaussians::Gaussians(const Kernels& kernels, Storage storage, int64_t p, int64_t d, const char* block)
    : kernels(kernels),
      p(p),
      d(d),
      triangles_(true),
      storage_(storage),
      strip_count_(divide_up(d, kernels.lanes)),
      stride_(triangle_stride(kernels.lanes, d)),
      mean_(Buffer<float>::view(block + kPage, p * d)) {
    const Layout layout(kernels, storage, p, d);
    strips_ = Buffer<char>::view(block + layout.strips, layout.used);
}

int64_t gaussians_block_bytes(const Kernels& kernels, Storage storage, int64_t p, int64_t d) {
    return Layout(kernels, storage, p, d).end;
}

void write_gaussians_block(const Kernels& kernels, const float* mean, const void* triangles, Storage storage, int64_t p,
                           int64_t d, int threads, char* block) {
    const int workers = thread_count(threads);
    const Layout layout(kernels, storage, p, d);
    check_finite(mean, triangles, storage, p, d, workers);
    write_header(kernels, storage, p, d, block);
    char* const mean_end = std::copy_n(reinterpret_cast<const char*>(mean), 4 * p * d, block + kPage);
    std::fill(mean_end, block + layout.strips, char{0});
    typed(storage, triangles,
          [&](const auto* factors) { pack_triangles(kernels, p, d, workers, factors, block + layout.strips); });
    std::fill(block + layout.strips + layout.used, block + layout.end, char{0});
}

BlockState gaussians_block_state(const Kernels& kernels, const char* block, int64_t bytes, const float* mean,
                                 const void* triangles, Storage storage, int64_t p, int64_t d, int threads) {
    if (bytes < kPage) return BlockState::kDamaged;
    Header header;
    std::memcpy(&header, block, sizeof header);
    if (header.magic != kMagic || header.bytes != bytes) return BlockState::kDamaged;
    const Layout layout(kernels, storage, p, d);
    char page[kPage];
    write_header(kernels, storage, p, d, page);
    if (std::memcmp(page, block, kPage) != 0 || bytes != layout.end) return BlockState::kOther;
    const int workers = thread_count(threads);
    check_finite(mean, triangles, storage, p, d, workers);
    const char* const mean_end = block + kPage + 4 * p * d;
    const bool same =
        std::memcmp(block + kPage, mean, static_cast<size_t>(4 * p * d)) == 0 &&
        is_zero_filled(mean_end, block + layout.strips) &&
        is_zero_filled(block + layout.strips + layout.used, block + layout.end) &&
        typed(storage, triangles,
              [&](const auto* factors) { return are_packed(kernels, p, d, workers, factors, block + layout.strips); });
    return same ? BlockState::kSame : BlockState::kOther;
}

void Gaussians::take_mean(const float* mean) {
    if (!std::all_of(mean, mean + p * d, [](float x) { return is_finite(x); })) throw NotFinite{};
    std::memcpy(mean_.data(), mean, static_cast<size_t>(p * d) * sizeof(float));
}

void Gaussians::make_room() {
    triangles_ = true;
    stride_ = triangle_stride(kernels.lanes, d);
    strips_ = Buffer<char>((p * stride_ + kernels.lanes) * factor_bytes(storage_));
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
        const char* const strips = strips_.data() + i * stride_ * factor_bytes(storage_);
        kernels.mahalanobis_triangle[static_cast<int>(storage_)](strips, d, centred, group, found);
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
