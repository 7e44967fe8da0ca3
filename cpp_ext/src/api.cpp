// The C interface: checks sizes, turns exceptions into statuses.
#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "../cuda/status.h"
#include "bank.h"
#include "block.h"
#include "flawscope/patch_distance.h"
#include "kcenter.h"
#include "mahalanobis.h"
#include "memory.h"
#include "nearest.h"
#include "threads.h"
#include "window.h"

struct flawscope_bank {
    flawscope::Bank bank;
};
struct flawscope_windows {
    flawscope::Windows windows;
};
struct flawscope_gaussians {
    flawscope::Gaussians gaussians;
};

namespace {

constexpr int64_t kMaxRows = INT64_C(0x7fffff00);  // rows are counted in 32 bits while a search runs
constexpr int64_t kMaxElements = INT64_C(1) << 48;  // with padding and candidates, bytes stay within 64 bits
constexpr int kMaxNeighbours = 64;

bool sizes_ok(int64_t rows, int64_t columns) { return rows > 0 && columns > 0 && columns <= kMaxElements / rows; }

bool bank_ok(const float* rows, int64_t m, int64_t d, int storage, int screen) {
    return rows != nullptr && sizes_ok(m, d) && m <= kMaxRows && storage >= FLAWSCOPE_STORE_FLOAT32 &&
           storage <= FLAWSCOPE_STORE_INT8 && (storage != FLAWSCOPE_STORE_INT8 || d <= flawscope::kMaxInt8Channels) &&
           screen >= -1 && screen <= 1 &&
           (screen != 1 || (storage == FLAWSCOPE_STORE_FLOAT32 && d <= flawscope::kMaxInt8Channels));
}

bool gaussians_ok(int64_t p, int64_t d) {
    // In this order: p · d cannot overflow once sizes_ok(p, d) has said yes.
    return sizes_ok(p, d) && sizes_ok(p * d, d) && p * d <= kMaxRows;
}

bool dtype_ok(int dtype) { return dtype == FLAWSCOPE_FLOAT32 || dtype == FLAWSCOPE_FLOAT16; }

flawscope::Storage triangle_storage(int dtype) {
    return dtype == FLAWSCOPE_FLOAT16 ? flawscope::Storage::kFloat16 : flawscope::Storage::kFloat32;
}

template <class Work>
int guarded(const Work& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return FLAWSCOPE_NO_MEMORY;
    } catch (const flawscope::NotFinite&) {
        return FLAWSCOPE_NOT_FINITE;
    } catch (...) {  // std::system_error: no thread to be had. Nothing may pass: the caller may be C
        return FLAWSCOPE_NO_MEMORY;
    }
}

// Whether a block is that of a bank; its header is read.
int bank_block_status(const flawscope::Kernels& kernels, const char* block, int64_t bytes, const float* rows, int64_t m,
                      int64_t d, flawscope::Storage storage, flawscope::Screen screen, flawscope::BlockHeader* header) {
    if (!flawscope::read_header(block, bytes, header)) return FLAWSCOPE_DAMAGED_BLOCK;
    if (!flawscope::is_block_of(*header, kernels, m, d, storage, screen)) return FLAWSCOPE_OTHER_BLOCK;
    if (flawscope::block_checksum(*header, block) != header->checksum) return FLAWSCOPE_DAMAGED_BLOCK;
    return flawscope::has_rows(*header, block, rows) ? FLAWSCOPE_OK : FLAWSCOPE_OTHER_BLOCK;
}

bool windows_ok(const float* rows, int64_t m, int64_t d, const int64_t* starts, int64_t height, int64_t width,
                const int32_t* reach) {
    if (rows == nullptr || starts == nullptr || reach == nullptr || !sizes_ok(m, d) || m > kMaxRows ||
        !sizes_ok(height, width) || height * width > kMaxRows) {
        return false;
    }
    const int64_t places = height * width;
    return starts[0] == 0 && starts[places] == m && std::is_sorted(starts, starts + places + 1) &&
           std::all_of(reach, reach + places, [](int32_t cells) { return cells >= 0; });
}

}  // namespace

extern "C" {

const char* flawscope_status_text(int status) {
    switch (status) {
        case FLAWSCOPE_OK: return "done";
        case FLAWSCOPE_BAD_ARGUMENT: return "a size, a pointer or an option is out of range";
        case FLAWSCOPE_NO_MEMORY: return "not enough memory, or no thread to be had";
        case FLAWSCOPE_CANCELLED: return "the progress callback asked to stop";
        case FLAWSCOPE_NOT_FINITE: return "a value is NaN or infinite, or its square is beyond the number format";
        case FLAWSCOPE_NO_CUDA: return "this library was built without CUDA";
        case FLAWSCOPE_OTHER_DEVICE: return "an array is on another device than the current one, or on none";
        case FLAWSCOPE_OTHER_BLOCK:
            return "a block is of another version, SIMD level or storage, or of other rows or factors";
        case FLAWSCOPE_DAMAGED_BLOCK: return "a block is none of a bank, is cut off, or was changed";
        default: return status >= FLAWSCOPE_CUDA ? flawscope::cuda_status_text(status) : "unknown status";
    }
}

int flawscope_patch_distance_version(void) { return FLAWSCOPE_PATCH_DISTANCE_VERSION; }

const char* flawscope_simd_level(void) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    return kernels == nullptr ? nullptr : kernels->name;
}

int flawscope_set_simd_level(const char* name) {
    flawscope::active_kernels();
    return name != nullptr && flawscope::choose_kernels(name) ? FLAWSCOPE_OK : FLAWSCOPE_BAD_ARGUMENT;
}

const char* flawscope_simd_level_at(int i) {
    const flawscope::Kernels* kernels = flawscope::kernels_at(i);
    return kernels == nullptr ? nullptr : kernels->name;
}

int flawscope_bank_create(const float* rows, int64_t m, int64_t d, int storage, int keep_rows,
                          int screen, int threads, flawscope_bank** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || out == nullptr || threads < 0 || !bank_ok(rows, m, d, storage, screen)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        *out = new flawscope_bank{flawscope::Bank(*kernels, rows, m, d, static_cast<flawscope::Storage>(storage),
                                                  keep_rows != 0, static_cast<flawscope::Screen>(screen), threads)};
        return FLAWSCOPE_OK;
    });
}

void flawscope_bank_destroy(flawscope_bank* bank) { delete bank; }

double flawscope_bank_error_bound(const flawscope_bank* bank) { return bank->bank.error_bound; }
int64_t flawscope_bank_bytes(const flawscope_bank* bank) { return bank->bank.bytes(); }
double flawscope_bank_unproved_share(const flawscope_bank* bank) {
    const int64_t seen = bank->bank.screened;
    return !bank->bank.has_screen ? -1.0 : seen == 0 ? 0.0 : double(bank->bank.unproved) / double(seen);
}
const char* flawscope_bank_simd_level(const flawscope_bank* bank) { return bank->bank.kernels.name; }

static_assert(flawscope::kBlockRows == FLAWSCOPE_BLOCK_ROWS, "one layout");

int64_t flawscope_bank_block_bytes(const flawscope_bank* bank) { return flawscope::block_bytes(bank->bank); }

int flawscope_bank_write_block(const flawscope_bank* bank, void* block, int64_t bytes) {
    if (bank == nullptr || block == nullptr || bank->bank.rows == nullptr ||
        bytes != flawscope::block_bytes(bank->bank)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    flawscope::write_block(bank->bank, static_cast<char*>(block));
    return FLAWSCOPE_OK;
}

int flawscope_bank_open_block(const void* block, int64_t bytes, const float* rows, int64_t m, int64_t d, int storage,
                              int screen, flawscope_bank** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || block == nullptr || reinterpret_cast<uintptr_t>(block) % 64 != 0 || bytes < 0 ||
        out == nullptr || !bank_ok(rows, m, d, storage, screen)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        const char* from = static_cast<const char*>(block);
        flawscope::BlockHeader header;
        const int status =
            bank_block_status(*kernels, from, bytes, rows, m, d, static_cast<flawscope::Storage>(storage),
                              static_cast<flawscope::Screen>(screen), &header);
        if (status == FLAWSCOPE_OK) *out = new flawscope_bank{flawscope::Bank(*kernels, header, from)};
        return status;
    });
}

int flawscope_nearest(const flawscope_bank* bank, const void* queries, int dtype, int64_t n, int k,
                      int rerank, int threads, float* squared, int64_t* rows) {
    if (bank == nullptr || n < 0 || threads < 0) return FLAWSCOPE_BAD_ARGUMENT;
    const flawscope::Bank& b = bank->bank;
    if (n == 0) return FLAWSCOPE_OK;
    if (queries == nullptr || squared == nullptr || rows == nullptr || !sizes_ok(n, b.d) || !sizes_ok(n, kMaxNeighbours) ||
        (dtype != FLAWSCOPE_FLOAT32 && dtype != FLAWSCOPE_FLOAT16) || k < 1 || k > kMaxNeighbours || k > b.m ||
        (rerank != 0 && (rerank < k || rerank > kMaxNeighbours || b.rows == nullptr))) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        flawscope::search_bank(b, {queries, dtype == FLAWSCOPE_FLOAT16, n, b.d}, k, rerank, threads, squared, rows);
        return FLAWSCOPE_OK;
    });
}

int flawscope_nearest_rows(const float* bank, int64_t m, int64_t d, const void* queries, int dtype,
                           int64_t n, int k, int threads, float* squared, int64_t* rows) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || bank == nullptr || !sizes_ok(m, d) || m > kMaxRows || n < 0 || threads < 0) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    if (n == 0) return FLAWSCOPE_OK;
    if (queries == nullptr || squared == nullptr || rows == nullptr || !sizes_ok(n, d) || !sizes_ok(n, kMaxNeighbours) ||
        (dtype != FLAWSCOPE_FLOAT32 && dtype != FLAWSCOPE_FLOAT16) || k < 1 || k > kMaxNeighbours || k > m) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        flawscope::search_rows(*kernels, bank, m, {queries, dtype == FLAWSCOPE_FLOAT16, n, d}, k, threads, squared,
                               rows);
        return FLAWSCOPE_OK;
    });
}

int flawscope_windows_create(const float* rows, int64_t m, int64_t d, const int64_t* starts, int64_t height,
                             int64_t width, const int32_t* reach, int threads, flawscope_windows** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || out == nullptr || threads < 0 || !windows_ok(rows, m, d, starts, height, width, reach)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        *out = new flawscope_windows{flawscope::Windows(*flawscope::kernels_for_windows(kernels), rows, m, d, starts,
                                                        height, width, reach, threads)};
        return FLAWSCOPE_OK;
    });
}

const char* flawscope_windows_simd_level(void) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    return kernels == nullptr ? nullptr : flawscope::kernels_for_windows(kernels)->name;
}

int64_t flawscope_windows_block_bytes(const flawscope_windows* windows) {
    return flawscope::block_bytes(windows->windows.bank);
}

int flawscope_windows_write_block(const flawscope_windows* windows, void* block, int64_t bytes) {
    if (windows == nullptr || block == nullptr || bytes != flawscope_windows_block_bytes(windows)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    flawscope::write_block(windows->windows.bank, static_cast<char*>(block));
    return FLAWSCOPE_OK;
}

int flawscope_windows_open_block(const void* block, int64_t bytes, const float* rows, int64_t m, int64_t d,
                                 const int64_t* starts, int64_t height, int64_t width, const int32_t* reach,
                                 flawscope_windows** out) {
    const flawscope::Kernels* active = flawscope::active_kernels();
    if (active == nullptr || block == nullptr || reinterpret_cast<uintptr_t>(block) % 64 != 0 || bytes < 0 ||
        out == nullptr || !windows_ok(rows, m, d, starts, height, width, reach)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        const flawscope::Kernels& kernels = *flawscope::kernels_for_windows(active);
        const char* from = static_cast<const char*>(block);
        flawscope::BlockHeader header;
        const int status = bank_block_status(kernels, from, bytes, rows, m, d, flawscope::Storage::kFloat32,
                                             flawscope::Screen::kAuto, &header);
        if (status == FLAWSCOPE_OK) {
            *out = new flawscope_windows{flawscope::Windows(kernels, header, from, starts, height, width, reach)};
        }
        return status;
    });
}

void flawscope_windows_destroy(flawscope_windows* windows) { delete windows; }
int64_t flawscope_windows_bytes(const flawscope_windows* windows) { return windows->windows.bytes(); }
int64_t flawscope_windows_computed(const flawscope_windows* windows) { return windows->windows.computed; }

int flawscope_windows_nearest(const flawscope_windows* windows, const void* queries, int dtype, int64_t images,
                              int threads, float* squared, int64_t* rows) {
    if (windows == nullptr || images < 0 || threads < 0) return FLAWSCOPE_BAD_ARGUMENT;
    const flawscope::Windows& w = windows->windows;
    if (images == 0) return FLAWSCOPE_OK;
    if (queries == nullptr || squared == nullptr || rows == nullptr ||
        (dtype != FLAWSCOPE_FLOAT32 && dtype != FLAWSCOPE_FLOAT16) || !sizes_ok(images, w.places()) ||
        !sizes_ok(images * w.places(), w.bank.d)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        flawscope::search_windows(w, {queries, dtype == FLAWSCOPE_FLOAT16, images * w.places(), w.bank.d}, threads,
                                  squared, rows);
        return FLAWSCOPE_OK;
    });
}

int flawscope_kcenter_greedy(const float* features, int64_t n, int64_t d, int64_t count, int64_t first, int threads,
                             flawscope_progress progress, void* user, int64_t* chosen, int64_t* computed) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || features == nullptr || chosen == nullptr || !sizes_ok(n, d) || n > kMaxRows ||
        count < 1 || count > n || first < 0 || first >= n || threads < 0) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        const bool whole = flawscope::kcenter_greedy(
            *kernels, features, n, d, count, first, threads,
            [&](int64_t done) { return progress == nullptr || progress(done, count, user) == 0; }, chosen, computed);
        return whole ? FLAWSCOPE_OK : FLAWSCOPE_CANCELLED;
    });
}

int flawscope_gaussians_create(const float* mean, const float* whitening, int64_t p, int64_t d, int threads,
                               flawscope_gaussians** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || mean == nullptr || whitening == nullptr || out == nullptr || !gaussians_ok(p, d) ||
        threads < 0) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        *out = new flawscope_gaussians{flawscope::Gaussians(*kernels, mean, whitening, p, d, threads)};
        return FLAWSCOPE_OK;
    });
}

int flawscope_gaussians_create_triangles(const float* mean, const void* triangles, int dtype, int64_t p, int64_t d,
                                         int threads, flawscope_gaussians** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || mean == nullptr || triangles == nullptr || out == nullptr || !gaussians_ok(p, d) ||
        threads < 0 || !dtype_ok(dtype)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        *out = new flawscope_gaussians{
            flawscope::Gaussians(*kernels, mean, triangles, triangle_storage(dtype), p, d, threads)};
        return FLAWSCOPE_OK;
    });
}

int64_t flawscope_gaussians_block_bytes(int dtype, int64_t p, int64_t d) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || !gaussians_ok(p, d) || !dtype_ok(dtype)) return 0;
    return flawscope::gaussians_block_bytes(*kernels, triangle_storage(dtype), p, d);
}

int flawscope_gaussians_write_block(const float* mean, const void* triangles, int dtype, int64_t p, int64_t d,
                                    int threads, void* block, int64_t bytes) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || mean == nullptr || triangles == nullptr || block == nullptr || threads < 0 ||
        reinterpret_cast<uintptr_t>(block) % 4 != 0 || bytes <= 0 ||
        bytes != flawscope_gaussians_block_bytes(dtype, p, d)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        flawscope::write_gaussians_block(*kernels, mean, triangles, triangle_storage(dtype), p, d, threads,
                                         static_cast<char*>(block));
        return FLAWSCOPE_OK;
    });
}

int flawscope_gaussians_open_block(const void* block, int64_t bytes, const float* mean, const void* triangles,
                                   int dtype, int64_t p, int64_t d, int threads, flawscope_gaussians** out) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || block == nullptr || reinterpret_cast<uintptr_t>(block) % 64 != 0 || bytes < 0 ||
        mean == nullptr || triangles == nullptr || out == nullptr || !gaussians_ok(p, d) || threads < 0 ||
        !dtype_ok(dtype)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        const auto storage = triangle_storage(dtype);
        const char* from = static_cast<const char*>(block);
        switch (flawscope::gaussians_block_state(*kernels, from, bytes, mean, triangles, storage, p, d, threads)) {
            case flawscope::BlockState::kDamaged: return FLAWSCOPE_DAMAGED_BLOCK;
            case flawscope::BlockState::kOther: return FLAWSCOPE_OTHER_BLOCK;
            case flawscope::BlockState::kSame: break;
        }
        *out = new flawscope_gaussians{flawscope::Gaussians(*kernels, storage, p, d, from)};
        return FLAWSCOPE_OK;
    });
}

void flawscope_gaussians_destroy(flawscope_gaussians* gaussians) { delete gaussians; }
int64_t flawscope_gaussians_bytes(const flawscope_gaussians* gaussians) { return gaussians->gaussians.bytes(); }

int flawscope_mahalanobis(const flawscope_gaussians* gaussians, const float* features, int64_t n, int threads,
                          float* squared) {
    if (gaussians == nullptr || n < 0 || threads < 0) return FLAWSCOPE_BAD_ARGUMENT;
    const flawscope::Gaussians& g = gaussians->gaussians;
    if (n == 0) return FLAWSCOPE_OK;
    if (features == nullptr || squared == nullptr || !sizes_ok(n, g.p * g.d)) return FLAWSCOPE_BAD_ARGUMENT;
    return guarded([&] {
        g.squared_distances(features, n, threads, squared);
        return FLAWSCOPE_OK;
    });
}

int flawscope_separable_maps(const float* grids, int64_t n, int64_t h, int64_t w, const float* rows, int64_t out_h,
                             const float* columns, int64_t out_w, int threads, float* maps) {
    const flawscope::Kernels* kernels = flawscope::active_kernels();
    if (kernels == nullptr || n < 0 || threads < 0) return FLAWSCOPE_BAD_ARGUMENT;
    if (n == 0) return FLAWSCOPE_OK;
    // Each product is checked before it stands in another one: h · w and out_h · out_w cannot overflow below.
    if (grids == nullptr || rows == nullptr || columns == nullptr || maps == nullptr || !sizes_ok(h, w) ||
        !sizes_ok(out_h, out_w) || !sizes_ok(out_h, h) || !sizes_ok(w, out_w) || !sizes_ok(h, out_w) ||
        !sizes_ok(n, h * w) || !sizes_ok(n, out_h * out_w)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    return guarded([&] {
        flawscope::Buffer<float> wide(n * h * out_w);
        flawscope::run_tasks(flawscope::thread_count(threads), n, [&](int64_t i) {
            float* between = wide.data() + i * h * out_w;
            for (int64_t a = 0; a < h; ++a) {
                kernels->weighted_sum(grids + (i * h + a) * w, columns, w, out_w, between + a * out_w);
            }
            for (int64_t y = 0; y < out_h; ++y) {
                kernels->weighted_sum(rows + y * h, between, h, out_w, maps + (i * out_h + y) * out_w);
            }
        });
        return FLAWSCOPE_OK;
    });
}

}  // extern "C"
