// What the checks of the emulated kernels share: memory, random rows, and distances by loops in float64.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "flawscope/patch_distance.h"
#include "launches.h"
#include "status.h"

#if defined(FLAWSCOPE_EMULATION)
constexpr bool kEmulated = true;
namespace card {
// In emulation the memory of the checks is the device's.
inline void made(void*, size_t) {}
inline void gone(void*) {}
}  // namespace card
#else
#include "cuda_on_card.h"
#endif

namespace {

namespace emulation = flawscope::emulation;
using emulation::Order;
using Rows = std::vector<float>;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
inline int checks = 0, failures = 0;

void check(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// Memory of exactly this size, so that the address sanitizer sees what goes beyond, and full of rubbish.
template <class Value>
class Device {
public:
    explicit Device(size_t count) : data_(static_cast<Value*>(std::malloc(count * sizeof(Value) + (count == 0)))) {
        std::memset(static_cast<void*>(data_), 0xa5, count * sizeof(Value));
        card::made(data_, count * sizeof(Value));
    }
    explicit Device(const std::vector<Value>& values) : Device(values.size()) {
        std::memcpy(data_, values.data(), values.size() * sizeof(Value));
    }
    Device(const Device&) = delete;
    ~Device() {
        card::gone(data_);
        std::free(data_);
    }
    Value* get() const { return data_; }
    Value& operator[](size_t i) const { return data_[i]; }

private:
    Value* data_;
};

std::mt19937 random_engine(7);

Rows integers(int64_t count, int high = 4) {
    std::uniform_int_distribution<int> value(-high, high);
    Rows rows(static_cast<size_t>(count));
    for (float& x : rows) x = static_cast<float>(value(random_engine));
    return rows;
}

inline Rows normals(int64_t count) {
    std::normal_distribution<float> value;
    Rows rows(static_cast<size_t>(count));
    for (float& x : rows) x = value(random_engine);
    return rows;
}

inline Rows scaled(Rows rows, float by) {
    for (float& x : rows) x *= by;
    return rows;
}

std::vector<uint16_t> halves(const Rows& rows) {
    std::vector<uint16_t> bits;
    for (const float x : rows) bits.push_back(flawscope::float_to_half(x));
    return bits;
}

double squared_distance(const Rows& queries, int64_t q, const Rows& bank, int64_t m, int64_t d) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) {
        const double difference = double(queries[q * d + i]) - bank[m * d + i];
        sum += difference * difference;
    }
    return sum;
}

// A call that may only put work on the stream.
template <class Call>
int without_waiting(const Call& call) {
    emulation::settings.waits = 0;
    const int status = call();
    check(emulation::settings.waits == 0, "a function waited for the stream");
    return status;
}

}  // namespace
