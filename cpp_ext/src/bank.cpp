// Packing a bank: panels, norms, and the narrower storages with their measured error.
#include "bank.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"
#include "threads.h"

namespace flawscope {

Panels::Panels(const Kernels& kernels, Storage storage, int64_t d)
    : storage(storage),
      d(d),
      depth(storage == Storage::kInt8 ? byte_depth(kernels, d) : d),
      panel_bytes(kernels.panel * (storage == Storage::kFloat32   ? 4 * depth
                                   : storage == Storage::kFloat16 ? 2 * depth
                                                                  : 4 * depth)) {}

Panels::Panels(const Kernels& kernels, Storage storage, int64_t d, int64_t panels) : Panels(kernels, storage, d) {
    data = Buffer<char>(panels * panel_bytes);
    norms = Buffer<float>(panels * kernels.panel);
    if (storage == Storage::kInt8) {
        factors = Buffer<float>(panels * kernels.panel);
        sums = Buffer<int32_t>(panels * kernels.panel);
    }
}

Panels::Panels(const Kernels& kernels, Storage storage, int64_t d, int64_t panels, const char* block)
    : Panels(kernels, storage, d) {
    const std::array<int64_t, 4> bytes = parts(kernels, storage, d, panels);
    data = Buffer<char>::view(block, panels * panel_bytes);
    norms = Buffer<float>::view(block += bytes[0], panels * kernels.panel);
    if (storage == Storage::kInt8) {
        factors = Buffer<float>::view(block += bytes[1], panels * kernels.panel);
        sums = Buffer<int32_t>::view(block += bytes[2], panels * kernels.panel);
    }
}

std::array<int64_t, 4> Panels::parts(const Kernels& kernels, Storage storage, int64_t d, int64_t panels) {
    const auto lines = [](int64_t bytes) { return divide_up(bytes, 64) * 64; };
    const int64_t each = lines(4 * panels * kernels.panel), narrow = storage == Storage::kInt8 ? each : 0;
    return {lines(panels * Panels(kernels, storage, d).panel_bytes), each, narrow, narrow};
}

namespace {

// Norms are summed in float64: their rounding is then one half unit of float32, whatever the number of channels.
template <class Value>
float norm_of(int64_t d, Value value) {
    // Four sums, always the same four: equal rows must have equal norms to the bit, or the lower row would not win.
    double total[4] = {0.0, 0.0, 0.0, 0.0};
    for (int64_t i = 0; i < d; ++i) {
        const double x = value(i);
        total[i & 3] += x * x;
    }
    return static_cast<float>((total[0] + total[1]) + (total[2] + total[3]));
}

}  // namespace

double Panels::pack(const Kernels& kernels, int64_t panel, const float* rows, int64_t count, float* scratch) {
    const int width = kernels.panel;
    const int64_t first = panel * width;
    char* out = data.data() + panel * panel_bytes;
    double largest = 0.0;
    for (int64_t r = 0; r < width; ++r) {
        if (r >= count) {  // beyond the last row: never the nearest
            norms[first + r] = std::numeric_limits<float>::infinity();
            if (storage == Storage::kInt8) {
                factors[first + r] = 0.0f;
                sums[first + r] = 0;
            }
        }
    }
    if (storage == Storage::kFloat32) {
        kernels.pack_panel(rows, d, count, d, reinterpret_cast<float*>(out));
        for (int64_t r = 0; r < count; ++r) {
            const float* row = rows + r * d;
            norms[first + r] = norm_of(d, [row](int64_t i) { return row[i]; });
            if (!within_range(norms[first + r])) return std::numeric_limits<double>::quiet_NaN();
        }
        return 0.0;
    }
    for (int64_t r = 0; r < count; ++r) {
        const float* row = rows + r * d;
        if (!within_range(norm_of(d, [row](int64_t i) { return row[i]; }))) {
            return std::numeric_limits<double>::quiet_NaN();
        }
        double lost = 0.0;
        if (storage == Storage::kFloat16) {
            uint16_t* halves = reinterpret_cast<uint16_t*>(out);
            for (int64_t i = 0; i < d; ++i) halves[i * width + r] = float_to_half(row[i]);
        } else {
            int8_t* bytes = reinterpret_cast<int8_t*>(scratch + d);
            std::memset(bytes, 0, static_cast<size_t>(4 * depth));
            float lost_squared, norm;
            // Its `lost` and norm are float32, good enough for queries. Those of the bank are summed in float64 below.
            kernels.quantize(row, d, bytes, &factors[first + r], &lost_squared, &norm);
            int32_t sum = 0;
            for (int64_t g = 0; g < depth; ++g) {
                std::memcpy(out + (g * width + r) * 4, bytes + 4 * g, 4);
                for (int64_t i = 4 * g; i < 4 * g + 4; ++i) sum += bytes[i];
            }
            sums[first + r] = sum;
        }
        unpack(kernels, first + r, scratch);
        for (int64_t i = 0; i < d; ++i) lost += (double(row[i]) - scratch[i]) * (double(row[i]) - scratch[i]);
        norms[first + r] = norm_of(d, [scratch](int64_t i) { return scratch[i]; });
        if (!within_range(norms[first + r])) return std::numeric_limits<double>::quiet_NaN();
        largest = std::max(largest, std::sqrt(lost));
    }
    if (storage == Storage::kFloat16 && count < width) {
        uint16_t* halves = reinterpret_cast<uint16_t*>(out);
        // Lanes beyond the last row are multiplied like others. Rubbish there could be NaN, which no infinite norm
        // outweighs: a minimum of NaN and a number is either, by the processor and the order of the operands.
        for (int64_t i = 0; i < d; ++i) std::fill(halves + i * width + count, halves + (i + 1) * width, uint16_t{0});
    } else if (storage == Storage::kInt8) {
        for (int64_t r = count; r < width; ++r) {
            for (int64_t g = 0; g < depth; ++g) std::memset(out + (g * width + r) * 4, 0, 4);
        }
    }
    return largest;
}

void Panels::unpack(const Kernels& kernels, int64_t row, float* out) const {
    const int width = kernels.panel;
    const char* panel = data.data() + row / width * panel_bytes;
    const int64_t r = row % width;
    if (storage == Storage::kFloat32) {
        for (int64_t i = 0; i < d; ++i) out[i] = reinterpret_cast<const float*>(panel)[i * width + r];
    } else if (storage == Storage::kFloat16) {
        // In place: the halves are gathered into the upper half of `out`, and read before they are written over.
        uint16_t* halves = reinterpret_cast<uint16_t*>(out) + d;
        for (int64_t i = 0; i < d; ++i) halves[i] = reinterpret_cast<const uint16_t*>(panel)[i * width + r];
        kernels.halves_to_floats(halves, d, out);
    } else {
        const float factor = factors[row];
        const int8_t* bytes = reinterpret_cast<const int8_t*>(panel);
        for (int64_t i = 0; i < d; ++i) out[i] = factor * bytes[(i / 4 * width + r) * 4 + i % 4];
    }
}

double Bank::pack(Panels& into, const float* source, int threads) const {
    const int64_t count = divide_up(m, kernels.panel), share = 8, tasks = divide_up(count, share);
    Buffer<double> errors(count);
    const int64_t room = into.storage == Storage::kFloat32 ? 0 : d + byte_depth(kernels, d);
    Buffer<float> scratch(tasks * room);
    run_tasks(thread_count(threads), tasks, [&](int64_t task) {
        float* own = scratch.data() + task * room;
        for (int64_t p = task * share; p < std::min(count, (task + 1) * share); ++p) {
            const int64_t first = p * kernels.panel;
            errors[p] = into.pack(kernels, p, source + first * d, std::min<int64_t>(kernels.panel, m - first), own);
        }
    });
    double largest = 0.0;
    for (int64_t p = 0; p < count; ++p) {
        if (std::isnan(errors[p])) throw NotFinite{};
        largest = std::max(largest, errors[p]);
    }
    return largest;
}

bool takes_screen(const Kernels& kernels, Storage storage, int64_t m, int64_t d, Screen wanted) {
    // Below a few panels the epilogue and the proof cost more than the products save.
    const bool worthwhile = kernels.byte_speed > 1 && m >= 8 * kernels.panel && d >= 32;
    return storage == Storage::kFloat32 && d <= kMaxInt8Channels &&
           (wanted == Screen::kOn || (wanted == Screen::kAuto && worthwhile));
}

Bank::Bank(const Kernels& kernels, const float* rows, int64_t m, int64_t d, Storage storage, bool keep_rows,
           Screen wanted, int threads)
    : kernels(kernels),
      m(m),
      d(d),
      rows(keep_rows || storage == Storage::kFloat32 ? rows : nullptr),
      panels(kernels, storage, d, divide_up(m, kernels.panel)) {
    error_bound = pack(panels, rows, threads);
    has_screen = takes_screen(kernels, storage, m, d, wanted);
    if (has_screen) {
        screen = Panels(kernels, Storage::kInt8, d, divide_up(m, kernels.panel));
        screen_error = pack(screen, rows, threads);
        // Beyond the last row; infinity with a tag would be no number.
        for (int64_t i = m; i < divide_up(m, kernels.panel) * kernels.panel; ++i) {
            screen.norms[i] = std::numeric_limits<float>::max();
        }
        for (int64_t i = 0; i < m; ++i) screen_norm = std::max(screen_norm, double{screen.norms[i]});
    }
}

}  // namespace flawscope
