// Bank rows packed for search.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace flawscope {

constexpr int64_t kMaxInt8Channels = 65536;  // 255 · 127 · 65,536 < 2³¹: sums of products fit 32 bits

// Squared norms for which no product, sum or distance can overflow: ‖q − m‖² ≤ 4·max(‖q‖², ‖m‖²). False for NaN.
inline bool within_range(float squared_norm) { return 4.0f * squared_norm <= 3.402823466e+38f; }

struct NotFinite {};  // thrown where a row has no finite squared norm

// Panels of consecutive bank rows: the whole bank, or the few rows that are searched next.
struct Panels {
    Storage storage = Storage::kFloat32;
    int64_t d = 0, depth = 0, panel_bytes = 0;
    Buffer<char> data;
    Buffer<float> norms, factors;
    Buffer<int32_t> sums;

    Panels() = default;
    Panels(const Kernels& kernels, Storage storage, int64_t d, int64_t panels);
    // Panels that were packed before and lie in a block; see block.h.
    Panels(const Kernels& kernels, Storage storage, int64_t d, int64_t panels, const char* block);

    // Bytes of `data`, `norms`, `factors` and `sums` in a block, each filled up to whole cache lines.
    static std::array<int64_t, 4> parts(const Kernels& kernels, Storage storage, int64_t d, int64_t panels);

    // Pack `count` rows as the panel number `panel`; returns the largest distance of a row to what is stored of it,
    // or NaN where a row has no finite squared norm.
    // `scratch` holds d floats and `byte_depth` times four bytes, and is used by the narrower storages alone.
    double pack(const Kernels& kernels, int64_t panel, const float* rows, int64_t count, float* scratch);

    int64_t bytes() const { return data.bytes() + norms.bytes() + factors.bytes() + sums.bytes(); }

    // What is stored of a row, as float32 [d].
    void unpack(const Kernels& kernels, int64_t row, float* out) const;

private:
    Panels(const Kernels& kernels, Storage storage, int64_t d);
};

enum class Screen : int { kAuto = -1, kOff = 0, kOn = 1 };

// Whether a bank gets a screen.
bool takes_screen(const Kernels& kernels, Storage storage, int64_t m, int64_t d, Screen wanted);

struct BlockHeader;

class Bank {
public:
    Bank(const Kernels& kernels, const float* rows, int64_t m, int64_t d, Storage storage, bool keep_rows,
         Screen screen, int threads);
    // A bank that lies packed in a block, which was checked and must outlive it; see block.h.
    Bank(const Kernels& kernels, const BlockHeader& header, const char* block);

    const Kernels& kernels;
    const int64_t m, d;
    const float* const rows;  // null where they are not kept
    Panels panels;
    double error_bound = 0.0;

    // An int8 copy in which the nearest rows are looked for before they are proved in float32; see screen.h.
    bool has_screen = false;
    Panels screen;
    double screen_error = 0.0;   // largest distance of a row to its int8 copy
    double screen_norm = 0.0;    // largest squared norm of an int8 copy
    // How the screen did so far; where it mostly fails it is left out. Affects speed alone.
    mutable std::atomic<int64_t> screened{0}, unproved{0};

    int64_t bytes() const { return panels.bytes() + screen.bytes(); }

private:
    double pack(Panels& panels, const float* rows, int threads) const;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace flawscope
