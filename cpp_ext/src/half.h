// float32 to float16, to the nearest, ties to even (IEEE 754). The other way is in simd.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace flawscope {

inline uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65,520 and more round to infinity
    if (magnitude < 0x38800000u) {                                               // below 2⁻¹⁴: steps of 2⁻²⁴
        float small;
        std::memcpy(&small, &magnitude, sizeof small);
        small += 0.5f;  // the sum's last bit is 2⁻²⁴: the addition itself rounds to the nearest even
        uint32_t rounded;
        std::memcpy(&rounded, &small, sizeof rounded);
        return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace flawscope
