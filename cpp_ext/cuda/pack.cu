// Packing: m̂ = fl16(2ᵉ·(m − c)) with one e for the bank, q̂ = fl16(−2ᶠ·(q − c)) with an f for each query.
//
// c is the mean of the bank's rows. Taking it off changes no distance and makes the numbers smaller that are rounded to
// float16. It is itself rounded, to a 64th of the power of two below the channel's largest magnitude: what has few bits,
// such as small integers, keeps them, and equal distances stay equal.
//
// Queries are packed once, and not on the way into shared memory, because a block reads its queries again for every
// tile of the bank: converting there would repeat the work for each tile, and asynchronous copies cannot convert.
// The scales make use of float16's whole range, so values beyond 65,504 need no refusal and small ones lose no digits.
// The minus sign, and the factor 2^(f − e − 1) of a query, make the search one multiply-add a row and query:
//   factor·‖m̂‖² + q̂·m̂ = 2^(e + f − 1)·(‖m − c‖² − 2·(q − c)·(m − c)).
//
// State: compiled, not run (run in emulation on the CPU).
#include "launches.h"

namespace flawscope::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackRows = kPackThreads / kWarp;  // a warp packs a row

// A query more than 2⁶⁰ times smaller than the bank's largest component adds nothing that float32 could hold, and its
// factor would overflow.
constexpr int kLargestScaleGap = 60;

// Without the sign, floats are in the order of their bits; infinity and NaN come last and are refused later.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

struct CentreShared {
    double sums[kPackRows][kWarp];
    uint32_t peaks[kPackRows][kWarp];
};

// The mean of each channel, as c is rounded. A block has 32 channels and sums them in an order that is always the same.
template <class Value>
__global__ void __launch_bounds__(kPackThreads)
    centre_kernel(const Value* rows, int64_t m, int64_t d, float* centre) {
    FLAWSCOPE_SHARED(CentreShared, shared);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
    double sum = 0.0;
    uint32_t peak = 0;
    if (channel < d) {
#pragma unroll 8  // as many loads on their way
        for (int64_t row = warp; row < m; row += kPackRows) {
            const float x = to_float(rows[row * d + channel]);
            sum += x;
            const uint32_t bits = magnitude_bits(x);
            peak = bits > peak ? bits : peak;
        }
    }
    shared.sums[warp][lane] = sum;
    shared.peaks[warp][lane] = peak;
    __syncthreads();
    if (warp != 0 || channel >= d) return;
    for (int i = 1; i < kPackRows; ++i) {
        sum += shared.sums[i][lane];
        peak = shared.peaks[i][lane] > peak ? shared.peaks[i][lane] : peak;
    }
    const int exponent = static_cast<int>(peak >> 23) - 127;
    // What is not finite is refused later, and what is next to nothing needs no centre.
    if (exponent == 128 || exponent < -100) {
        centre[channel] = 0.0f;
        return;
    }
    const double unit = power_of_two(exponent - 6);
    centre[channel] = static_cast<float>(rint(sum / static_cast<double>(m) / unit) * unit);
}

template <class Value>
__global__ void __launch_bounds__(kPackThreads)
    peak_kernel(const Value* rows, int64_t m, int64_t d, const float* centre, BankHeader* header) {
    uint32_t peak = 0;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kPackRows;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + threadIdx.x / kWarp; row < m; row += stride) {
        for (int64_t i = threadIdx.x % kWarp; i < d; i += kWarp) {
            const uint32_t bits = magnitude_bits(to_float(rows[row * d + i]) - centre[i]);
            peak = bits > peak ? bits : peak;
        }
    }
    peak = warp_max(peak);
    if (threadIdx.x % kWarp == 0) atomicMax(&header->peak_bits, peak);
}

// Write a row, centred, scaled and filled up with zeros, and return the sum of squares of what this lane has written.
template <class Value>
__device__ inline double pack_row(const Value* row, const float* centre, int64_t d, float scale, int64_t depth, int lane,
                                  Half* out) {
    double total = 0.0;
    for (int64_t i = 2 * lane; i < depth; i += 2 * kWarp) {
        const Half low = float_to_half(i < d ? scale * (to_float(row[i]) - centre[i]) : 0.0f);
        const Half high = float_to_half(i + 1 < d ? scale * (to_float(row[i + 1]) - centre[i + 1]) : 0.0f);
        *reinterpret_cast<uint32_t*>(out + i) = low.bits | static_cast<uint32_t>(high.bits) << 16;
        const double a = half_to_float(low), b = half_to_float(high);
        total += a * a + b * b;
    }
    return total;
}

template <class Value>
__global__ void __launch_bounds__(kPackThreads)
    pack_bank_kernel(const Value* rows, int64_t m, int64_t d, const float* centre, BankHeader* header, float* norms,
                     Half* halves) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + threadIdx.x / kWarp, depth = packed_depth(d);
    const Value* source = rows + (row < m ? row : 0) * d;
    const int64_t channels = row < m ? d : 0;
    const float scale = power_of_two(scale_exponent(header->peak_bits));
    // Norms are summed in float64, as on the CPU: it happens once a bank, and a norm takes part in every distance.
    const double packed_norm = warp_sum(pack_row(source, centre, channels, scale, depth, lane, halves + row * depth));
    double norm = 0.0;
    for (int64_t i = lane; i < channels; i += kWarp) {
        const double x = to_float(source[i]);
        norm += x * x;
    }
    norm = warp_sum(norm);
    if (lane != 0) return;
    norms[row] = row < m ? static_cast<float>(packed_norm) : __uint_as_float(0x7f800000u);
    if (!within_range(static_cast<float>(norm))) header->refused = 1;  // all that write, write the same
}

template <class Value>
__global__ void __launch_bounds__(kPackThreads)
    pack_queries_kernel(const BankHeader* header, const float* centre, const Value* queries, int64_t n, int64_t d,
                        Workspace workspace) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + threadIdx.x / kWarp, depth = packed_depth(d);
    const Value* source = queries + (row < n ? row : 0) * d;
    const int64_t channels = row < n ? d : 0;
    uint32_t peak = 0;
    float norm = 0.0f;
    for (int64_t i = lane; i < channels; i += kWarp) {
        const float x = to_float(source[i]);
        const uint32_t bits = magnitude_bits(x - centre[i]);
        peak = bits > peak ? bits : peak;
        norm += x * x;
    }
    peak = warp_max(peak);
    const bool usable = within_range(warp_sum(norm));
    const int bank_exponent = scale_exponent(header->peak_bits);
    int exponent = scale_exponent(peak);
    if (exponent > bank_exponent + kLargestScaleGap) exponent = bank_exponent + kLargestScaleGap;
    pack_row(source, centre, usable ? channels : 0, -power_of_two(exponent), depth, lane,
             workspace.queries + row * depth);
    if (lane != 0) return;
    const int factor = exponent - bank_exponent - 1;
    // Below 2⁻¹²⁶ the norm is lost beside the product in any case; zero times the infinite norm would be NaN.
    workspace.factors[row] = power_of_two(factor < -126 ? -126 : factor);
    workspace.usable[row] = usable && row < n ? 1 : 0;
    workspace.limits[row] = kNoCandidate;
}

template <class Value>
cudaError_t pack_bank(const Value* rows, int64_t m, int64_t d, void* packed, cudaStream_t stream) {
    const Bank bank = bank_at(packed, m, d);
    BankHeader* header = const_cast<BankHeader*>(bank.header);
    cudaError_t status = cudaMemsetAsync(header, 0, sizeof(BankHeader), stream);
    if (status != cudaSuccess) return status;
    float* centre = const_cast<float*>(bank.centre);
    status = launch(centre_kernel<Value>, dim3(static_cast<unsigned>(divide_up(d, kWarp))), kPackThreads, stream, rows,
                    m, d, centre);
    if (status != cudaSuccess) return status;
    const int64_t blocks = divide_up(m, kPackRows), most = 1024;
    status = launch(peak_kernel<Value>, dim3(static_cast<unsigned>(blocks < most ? blocks : most)), kPackThreads,
                    stream, rows, m, d, centre, header);
    if (status != cudaSuccess) return status;
    return launch(pack_bank_kernel<Value>, dim3(static_cast<unsigned>(padded_rows(m) / kPackRows)), kPackThreads,
                  stream, rows, m, d, centre, header, const_cast<float*>(bank.norms), const_cast<Half*>(bank.halves));
}

}  // namespace

cudaError_t pack_bank_launch(Matrix rows, int64_t m, int64_t d, void* packed, cudaStream_t stream) {
    return rows.halves ? pack_bank(static_cast<const Half*>(rows.data), m, d, packed, stream)
                       : pack_bank(static_cast<const float*>(rows.data), m, d, packed, stream);
}

cudaError_t pack_queries_load() {
    const cudaError_t status = load(pack_queries_kernel<Half>);
    return status != cudaSuccess ? status : load(pack_queries_kernel<float>);
}

cudaError_t pack_queries_launch(const Bank& bank, Matrix queries, const Plan& plan, const Workspace& workspace,
                                cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(plan.query_tiles * (kTileQueries / kPackRows)));
    return queries.halves
               ? launch(pack_queries_kernel<Half>, blocks, kPackThreads, stream, bank.header, bank.centre,
                        static_cast<const Half*>(queries.data), plan.n, plan.d, workspace)
               : launch(pack_queries_kernel<float>, blocks, kPackThreads, stream, bank.header, bank.centre,
                        static_cast<const float*>(queries.data), plan.n, plan.d, workspace);
}

}  // namespace flawscope::cuda
