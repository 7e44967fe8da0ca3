// Where things lie: the packed bank, the packed queries and the candidates between the kernels.
//
// Operands are float16 [rows rounded up to a tile, channels rounded up to 32], filled up with zeros, so that the search
// kernel loads whole tiles and checks no bound. A row that fills up the bank has the norm +infinity and is never near.
#pragma once

#include <cstdint>

#include "plan.h"
#include "platform.h"

namespace flawscope::cuda {

struct BankHeader {
    uint32_t peak_bits;  // largest |component| of all centred rows, as the bits of a float32; NaN is above infinity
    uint32_t refused;    // not 0: a row is NaN, infinite, or too large to have distances
};

inline __host__ __device__ int64_t packed_depth(int64_t d) { return round_up(d, kStepDepth); }
inline __host__ __device__ int64_t padded_rows(int64_t m) { return round_up(m, kMostTileRows); }
inline __host__ __device__ int64_t centre_offset() { return kAlignment; }
inline __host__ __device__ int64_t norms_offset(int64_t d) { return centre_offset() + round_up(d * 4, kAlignment); }
inline __host__ __device__ int64_t halves_offset(int64_t m, int64_t d) { return norms_offset(d) + padded_rows(m) * 4; }
inline __host__ __device__ int64_t bank_bytes(int64_t m, int64_t d) {
    return halves_offset(m, d) + padded_rows(m) * packed_depth(d) * 2;
}

// The parts of a packed bank.
struct Bank {
    const BankHeader* header;
    const float* centre;  // [d], taken off all rows and queries
    const float* norms;   // ‖m̂‖² of the centred, scaled and rounded rows
    const Half* halves;
    int64_t m, d;
};

inline Bank bank_at(const void* packed, int64_t m, int64_t d) {
    const char* base = static_cast<const char*>(packed);
    return {reinterpret_cast<const BankHeader*>(base), reinterpret_cast<const float*>(base + centre_offset()),
            reinterpret_cast<const float*>(base + norms_offset(d)),
            reinterpret_cast<const Half*>(base + halves_offset(m, d)), m, d};
}

// The parts of the workspace. Candidates: keys [query][split][stride], so that those of a query are merged from one
// piece of memory.
struct Workspace {
    Half* queries;                // [query tiles × 128][packed depth], the negative of the scaled queries
    float* factors;               // [query tiles × 128]: what brings ‖m̂‖² to the scale of the product
    uint32_t* usable;             // [query tiles × 128]
    unsigned long long* limits;   // [query tiles × 128]: a key that is not before this one is none of the best
    uint64_t* partial;
    int64_t bytes;
};

// `blocks`: pairs of a tile of queries and a split that the candidates have room for.
inline Workspace workspace_at(void* memory, const Plan& plan, int64_t blocks) {
    char* base = static_cast<char*>(memory);
    const int64_t rows = plan.query_tiles * kTileQueries;
    int64_t offset = 0;
    const auto take = [&](int64_t bytes) {
        char* part = base == nullptr ? nullptr : base + offset;
        offset += round_up(bytes, kAlignment);
        return part;
    };
    Workspace workspace;
    workspace.queries = reinterpret_cast<Half*>(take(rows * packed_depth(plan.d) * 2));
    workspace.factors = reinterpret_cast<float*>(take(rows * 4));
    workspace.usable = reinterpret_cast<uint32_t*>(take(rows * 4));
    workspace.limits = reinterpret_cast<unsigned long long*>(take(rows * 8));
    workspace.partial = reinterpret_cast<uint64_t*>(take(blocks * kTileQueries * plan.stride * 8));
    workspace.bytes = offset;
    return workspace;
}

// Power of two that brings a largest component to [2¹⁴, 2¹⁵): float16 ends at 65,504, and the room below is what small
// components need. Subnormal peaks stay small, since a scale beyond 2¹²⁶ is no float32; their squares are none either.
__device__ inline int scale_exponent(uint32_t peak_bits) {
    const int exponent = 14 + 127 - static_cast<int>(peak_bits >> 23);
    return exponent > 126 ? 126 : exponent;
}

}  // namespace flawscope::cuda
