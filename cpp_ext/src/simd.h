// One vector type for every SIMD level. A kernel is written once against these names and compiled once per level; the
// compiler flags of the level decide which branch below it sees. Everything lies in a namespace named after the level
// and is `static inline`: code for a newer processor must not be merged by the linker with code for an older one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FLAWSCOPE_INLINE static inline __attribute__((always_inline))

namespace flawscope {
namespace FLAWSCOPE_LEVEL {

#if defined(FLAWSCOPE_FORCE_SCALAR)

constexpr int kLanes = 1;
constexpr int kTileRows = 4;  // query rows of a register tile
constexpr bool kBiasedQueries = false;
constexpr int kByteSpeed = 1;
typedef float Vec;
typedef bool Mask;
typedef int32_t IVec;

FLAWSCOPE_INLINE Vec zero() { return 0.0f; }
FLAWSCOPE_INLINE Vec broadcast(float x) { return x; }
FLAWSCOPE_INLINE Vec load(const float* p) { return *p; }
FLAWSCOPE_INLINE Vec load_first(const float* p, int n) { return n > 0 ? *p : 0.0f; }
FLAWSCOPE_INLINE void store(float* p, Vec a) { *p = a; }
FLAWSCOPE_INLINE Vec add(Vec a, Vec b) { return a + b; }
FLAWSCOPE_INLINE Vec sub(Vec a, Vec b) { return a - b; }
FLAWSCOPE_INLINE Vec mul(Vec a, Vec b) { return a * b; }
// Two roundings: fmaf() without the instruction is a function that computes in integers. The bounds hold for both.
FLAWSCOPE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
FLAWSCOPE_INLINE Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
FLAWSCOPE_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
FLAWSCOPE_INLINE Vec absolute(Vec a) { return __builtin_fabsf(a); }
FLAWSCOPE_INLINE Vec divide(Vec a, Vec b) { return a / b; }
// To the nearest integer, ties to even, for |a| < 2²²: the sum has no bit left below one.
FLAWSCOPE_INLINE IVec round_to_int(Vec a) { return static_cast<int32_t>((a + 12582912.0f) - 12582912.0f); }
FLAWSCOPE_INLINE Mask less(Vec a, Vec b) { return a < b; }
FLAWSCOPE_INLINE uint32_t bits(Mask m) { return m; }
FLAWSCOPE_INLINE Mask lanes_of(uint32_t bits) { return (bits & 1u) != 0; }  // the opposite of `bits`
FLAWSCOPE_INLINE Vec select(Mask m, Vec yes, Vec no) { return m ? yes : no; }
FLAWSCOPE_INLINE IVec load_i(const int32_t* p) { return *p; }
FLAWSCOPE_INLINE void store_i(int32_t* p, IVec a) { *p = a; }
FLAWSCOPE_INLINE IVec broadcast_i(int32_t x) { return x; }
FLAWSCOPE_INLINE IVec select_i(Mask m, IVec yes, IVec no) { return m ? yes : no; }
FLAWSCOPE_INLINE Vec to_float(IVec a) { return static_cast<float>(a); }
// The bits of a where `keep` is set, and those of `tag`.
FLAWSCOPE_INLINE Vec tagged(Vec a, IVec keep, IVec tag) {
    int32_t whole;
    __builtin_memcpy(&whole, &a, 4);
    whole = (whole & keep) | tag;
    __builtin_memcpy(&a, &whole, 4);
    return a;
}
FLAWSCOPE_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}
FLAWSCOPE_INLINE float sum(Vec a) { return a; }

FLAWSCOPE_INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u, fraction = h & 1023u;
    union {
        uint32_t bits;
        float value;
    } out;
    if (exponent == 0) {  // zero and subnormal: fraction · 2⁻²⁴
        out.value = static_cast<float>(fraction) * (1.0f / 16777216.0f);
        out.bits |= sign;
    } else {
        out.bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | (fraction << 13);
    }
    return out.value;
}
FLAWSCOPE_INLINE Vec load_half(const uint16_t* p) { return half_to_float(*p); }
// Four signed bytes of one bank row times four of a query, added to 32-bit sums.
typedef int32_t Bytes;
FLAWSCOPE_INLINE Bytes load_bytes(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return four;
}
FLAWSCOPE_INLINE Bytes broadcast_bytes(int32_t four) { return four; }
FLAWSCOPE_INLINE IVec dot4(IVec sum, Bytes query, Bytes bank) {
    for (int shift = 0; shift < 32; shift += 8) {
        sum += static_cast<int8_t>(query >> shift) * static_cast<int8_t>(bank >> shift);
    }
    return sum;
}

#elif defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr int kTileRows = 14;  // 14 × 2 sums, 2 bank vectors and 1 query of 32 registers
typedef __m512 Vec;
typedef __mmask16 Mask;
typedef int32_t IVec __attribute__((vector_size(64)));  // not __m512i: arrays of that stay in memory

FLAWSCOPE_INLINE Vec zero() { return _mm512_setzero_ps(); }
FLAWSCOPE_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
FLAWSCOPE_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
FLAWSCOPE_INLINE Vec load_first(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u), p);
}
FLAWSCOPE_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
FLAWSCOPE_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
FLAWSCOPE_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
FLAWSCOPE_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
FLAWSCOPE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// Of NaN and a number x86 takes b, Arm NaN. No lane that counts is NaN: see Panels::pack and Tiles::usable.
FLAWSCOPE_INLINE Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
FLAWSCOPE_INLINE Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
FLAWSCOPE_INLINE Vec absolute(Vec a) { return _mm512_abs_ps(a); }
FLAWSCOPE_INLINE Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
FLAWSCOPE_INLINE IVec round_to_int(Vec a) { return (IVec)_mm512_cvtps_epi32(a); }
FLAWSCOPE_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
FLAWSCOPE_INLINE uint32_t bits(Mask m) { return m; }
FLAWSCOPE_INLINE Mask lanes_of(uint32_t bits) { return static_cast<__mmask16>(bits); }
FLAWSCOPE_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_mov_ps(no, m, yes); }
FLAWSCOPE_INLINE IVec load_i(const int32_t* p) { return (IVec)_mm512_loadu_si512(p); }
FLAWSCOPE_INLINE void store_i(int32_t* p, IVec a) { _mm512_storeu_si512(p, (__m512i)a); }
FLAWSCOPE_INLINE IVec broadcast_i(int32_t x) { return (IVec)_mm512_set1_epi32(x); }
FLAWSCOPE_INLINE IVec select_i(Mask m, IVec yes, IVec no) {
    return (IVec)_mm512_mask_mov_epi32((__m512i)no, m, (__m512i)yes);
}
FLAWSCOPE_INLINE Vec to_float(IVec a) { return _mm512_cvtepi32_ps((__m512i)a); }
FLAWSCOPE_INLINE Vec tagged(Vec a, IVec keep, IVec tag) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(a), (__m512i)keep, (__m512i)tag, 0xea));
}
FLAWSCOPE_INLINE __m128 quarter(Vec a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
FLAWSCOPE_INLINE Vec load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FLAWSCOPE_INLINE void store_bytes(int8_t* p, IVec a, int n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u), (__m512i)a);
}
typedef __m512i Bytes;
FLAWSCOPE_INLINE Bytes load_bytes(const int8_t* p) { return _mm512_loadu_si512(p); }
FLAWSCOPE_INLINE Bytes broadcast_bytes(int32_t four) { return _mm512_set1_epi32(four); }
#if defined(__AVX512VNNI__)
// The instruction takes unsigned times signed bytes: queries are stored with 128 added, and 128·Σ(bank) is taken off.
constexpr bool kBiasedQueries = true;
#if defined(__AMX_INT8__)
constexpr int kByteSpeed = 16;
#else
constexpr int kByteSpeed = 4;
#endif
FLAWSCOPE_INLINE IVec dot4(IVec sum, Bytes query, Bytes bank) {
    return (IVec)_mm512_dpbusd_epi32((__m512i)sum, query, bank);
}
#else
constexpr bool kBiasedQueries = false;
constexpr int kByteSpeed = 1;
FLAWSCOPE_INLINE __m256i dot4_half(__m256i q, __m256i b) {
    // |q| ≤ 127 and |b| ≤ 127: a pair of products is at most 32,258 and cannot saturate 16 bits.
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(b, q)), _mm256_set1_epi16(1));
}
FLAWSCOPE_INLINE IVec dot4(IVec sum, Bytes query, Bytes bank) {
    const __m256i q = _mm512_castsi512_si256(query);  // the same four bytes everywhere
    const __m256i low = dot4_half(q, _mm512_castsi512_si256(bank));
    const __m256i high = dot4_half(q, _mm512_extracti64x4_epi64(bank, 1));
    return sum + (IVec)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#endif

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 6 × 2 sums, 2 bank vectors and 1 query of 16 registers
constexpr bool kBiasedQueries = false;
constexpr int kByteSpeed = 1;
typedef __m256 Vec;
typedef __m256 Mask;
typedef int32_t IVec __attribute__((vector_size(32)));  // not __m256i: arrays of that stay in memory

FLAWSCOPE_INLINE Vec zero() { return _mm256_setzero_ps(); }
FLAWSCOPE_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
FLAWSCOPE_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
FLAWSCOPE_INLINE Vec load_first(const float* p, int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
FLAWSCOPE_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
FLAWSCOPE_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
FLAWSCOPE_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
FLAWSCOPE_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
FLAWSCOPE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
FLAWSCOPE_INLINE Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
FLAWSCOPE_INLINE Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
FLAWSCOPE_INLINE Vec absolute(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FLAWSCOPE_INLINE Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
FLAWSCOPE_INLINE IVec round_to_int(Vec a) { return (IVec)_mm256_cvtps_epi32(a); }
FLAWSCOPE_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
FLAWSCOPE_INLINE uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
FLAWSCOPE_INLINE Mask lanes_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i here = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), lane);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(here, lane));
}
FLAWSCOPE_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
FLAWSCOPE_INLINE IVec load_i(const int32_t* p) {
    return (IVec)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
FLAWSCOPE_INLINE void store_i(int32_t* p, IVec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)a); }
FLAWSCOPE_INLINE IVec broadcast_i(int32_t x) { return (IVec)_mm256_set1_epi32(x); }
FLAWSCOPE_INLINE IVec select_i(Mask m, IVec yes, IVec no) {
    return (IVec)_mm256_blendv_ps((__m256)no, (__m256)yes, m);
}
FLAWSCOPE_INLINE Vec to_float(IVec a) { return _mm256_cvtepi32_ps((__m256i)a); }
FLAWSCOPE_INLINE Vec tagged(Vec a, IVec keep, IVec tag) { return (Vec)(((IVec)a & keep) | tag); }
FLAWSCOPE_INLINE __m128 quarter(Vec a) {
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
FLAWSCOPE_INLINE Vec load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
typedef __m256i Bytes;
FLAWSCOPE_INLINE Bytes load_bytes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
FLAWSCOPE_INLINE Bytes broadcast_bytes(int32_t four) { return _mm256_set1_epi32(four); }
FLAWSCOPE_INLINE IVec dot4(IVec sum, Bytes query, Bytes bank) {
    // |q| ≤ 127 and |b| ≤ 127: a pair of products is at most 32,258 and cannot saturate 16 bits.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(query), _mm256_sign_epi8(bank, query));
    return sum + (IVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#elif defined(__aarch64__)

constexpr int kLanes = 4;
constexpr int kTileRows = 14;
constexpr bool kBiasedQueries = false;
constexpr int kByteSpeed = 1;
typedef float32x4_t Vec;
typedef uint32x4_t Mask;
typedef int32x4_t IVec;

FLAWSCOPE_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
FLAWSCOPE_INLINE Vec broadcast(float x) { return vdupq_n_f32(x); }
FLAWSCOPE_INLINE Vec load(const float* p) { return vld1q_f32(p); }
FLAWSCOPE_INLINE Vec load_first(const float* p, int n) {
    if (n >= 4) return vld1q_f32(p);
    float lanes[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
}
FLAWSCOPE_INLINE void store(float* p, Vec a) { vst1q_f32(p, a); }
FLAWSCOPE_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
FLAWSCOPE_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
FLAWSCOPE_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
FLAWSCOPE_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
FLAWSCOPE_INLINE Vec minimum(Vec a, Vec b) { return vminq_f32(a, b); }
FLAWSCOPE_INLINE Vec maximum(Vec a, Vec b) { return vmaxq_f32(a, b); }
FLAWSCOPE_INLINE Vec absolute(Vec a) { return vabsq_f32(a); }
FLAWSCOPE_INLINE Vec divide(Vec a, Vec b) { return vdivq_f32(a, b); }
FLAWSCOPE_INLINE IVec round_to_int(Vec a) { return vcvtnq_s32_f32(a); }
FLAWSCOPE_INLINE Mask less(Vec a, Vec b) { return vcltq_f32(a, b); }
FLAWSCOPE_INLINE uint32_t bits(Mask m) {
    const uint32x4_t place = {1u, 2u, 4u, 8u};
    return vaddvq_u32(vandq_u32(m, place));
}
FLAWSCOPE_INLINE Mask lanes_of(uint32_t bits) {
    const uint32x4_t place = {1u, 2u, 4u, 8u};
    return vtstq_u32(vdupq_n_u32(bits), place);
}
FLAWSCOPE_INLINE Vec select(Mask m, Vec yes, Vec no) { return vbslq_f32(m, yes, no); }
FLAWSCOPE_INLINE IVec load_i(const int32_t* p) { return vld1q_s32(p); }
FLAWSCOPE_INLINE void store_i(int32_t* p, IVec a) { vst1q_s32(p, a); }
FLAWSCOPE_INLINE IVec broadcast_i(int32_t x) { return vdupq_n_s32(x); }
FLAWSCOPE_INLINE IVec select_i(Mask m, IVec yes, IVec no) { return vbslq_s32(m, yes, no); }
FLAWSCOPE_INLINE Vec to_float(IVec a) { return vcvtq_f32_s32(a); }
FLAWSCOPE_INLINE Vec tagged(Vec a, IVec keep, IVec tag) {
    return vreinterpretq_f32_s32(vorrq_s32(vandq_s32(vreinterpretq_s32_f32(a), keep), tag));
}
FLAWSCOPE_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
FLAWSCOPE_INLINE float sum(Vec a) {
    const Vec pairs = vpaddq_f32(a, a);
    return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}
FLAWSCOPE_INLINE Vec load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
typedef int8x16_t Bytes;
FLAWSCOPE_INLINE Bytes load_bytes(const int8_t* p) { return vld1q_s8(p); }
FLAWSCOPE_INLINE Bytes broadcast_bytes(int32_t four) { return vreinterpretq_s8_s32(vdupq_n_s32(four)); }
FLAWSCOPE_INLINE IVec dot4(IVec sum, Bytes query, Bytes bank) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(bank), vget_low_s8(query)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(bank), vget_low_s8(query)));
    return vaddq_s32(sum, vpaddq_s32(low, high));
}

#else
#error "no SIMD level fits the compiler flags of this file"
#endif

#if defined(__AVX2__) && !defined(FLAWSCOPE_FORCE_SCALAR)
FLAWSCOPE_INLINE void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m128 ab = _mm_hadd_ps(quarter(a), quarter(b)), cd = _mm_hadd_ps(quarter(c), quarter(d));
    _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}
// In the order of sum4 and sum_tile to the last addition: k-centre compares sums of the two, see lower_closest.
FLAWSCOPE_INLINE float sum(Vec a) {
    const __m128 pairs = _mm_hadd_ps(quarter(a), quarter(a));
    return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
}
#endif

// The sums over the lanes of four times four vectors, out[4·column + row], each in the order of `sum`.
#if defined(__AVX512F__) && !defined(FLAWSCOPE_FORCE_SCALAR)
// Half the lanes are added to the other half, four times; after each time two vectors share one.
FLAWSCOPE_INLINE Vec join_halves(Vec a, Vec b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
FLAWSCOPE_INLINE Vec join_quarters(Vec a, Vec b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
FLAWSCOPE_INLINE Vec join_pairs(Vec a, Vec b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
FLAWSCOPE_INLINE void sum_tile(const Vec (&x)[4][4], float* out) {
    const Vec a = join_quarters(join_halves(x[0][0], x[0][1]), join_halves(x[0][2], x[0][3]));
    const Vec b = join_quarters(join_halves(x[1][0], x[1][1]), join_halves(x[1][2], x[1][3]));
    const Vec c = join_quarters(join_halves(x[2][0], x[2][1]), join_halves(x[2][2], x[2][3]));
    const Vec d = join_quarters(join_halves(x[3][0], x[3][1]), join_halves(x[3][2], x[3][3]));
    store(out, join_pairs(join_pairs(a, b), join_pairs(c, d)));
}
#else
FLAWSCOPE_INLINE void sum_tile(const Vec (&x)[4][4], float* out) {
    for (int j = 0; j < 4; ++j) sum4(x[0][j], x[1][j], x[2][j], x[3][j], out + 4 * j);
}
#endif

#if !defined(__AVX512F__) || defined(FLAWSCOPE_FORCE_SCALAR)
// The first n integers, each of which fits a byte.
FLAWSCOPE_INLINE void store_bytes(int8_t* p, IVec a, int n) {
    int32_t wide[kLanes];
    store_i(wide, a);
    for (int i = 0; i < n; ++i) p[i] = static_cast<int8_t>(wide[i]);
}
#endif

constexpr int kPanel = 2 * kLanes;  // bank rows of a register tile

// A loop whose index is a constant in every round. An array of vectors that is only reached through such indices stays
// in registers; with `#pragma GCC unroll` the compiler sees the constants too late and keeps the array in memory.
template <int I>
struct Index {
    constexpr operator int() const { return I; }
};
template <int I, int N, class Body>
FLAWSCOPE_INLINE void unrolled_from(const Body& body) {
    if constexpr (I < N) {
        body(Index<I>{});
        unrolled_from<I + 1, N>(body);
    }
}
template <int N, class Body>
FLAWSCOPE_INLINE void unrolled(const Body& body) {
    unrolled_from<0, N>(body);
}
#define FLAWSCOPE_EACH(index) [&](auto index) __attribute__((always_inline))

}  // namespace FLAWSCOPE_LEVEL
}  // namespace flawscope
