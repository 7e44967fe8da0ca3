// Packing: m̂ = fl16(2ᵉ·m) with one e for the bank, q̂ = fl16(−2ᶠ·q) with an f for each query.
//
// Queries are packed once, and not on the way into shared memory, because a block reads its queries again for every
// tile of the bank: converting there would repeat the work for each tile, and asynchronous copies cannot convert.
// The scales make use of float16's whole range, so values beyond 65,504 need no refusal and small ones lose no digits.
// The minus sign, and the factor 2^(f − e − 1) of a query, make the search one multiply-add a row and query:
//   factor·‖m̂‖² + q̂·m̂ = 2^(e + f − 1)·(‖m‖² − 2·q·m).
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

template <class Value>
__global__ void __launch_bounds__(kPackThreads) peak_kernel(const Value* rows, int64_t count, BankHeader* header) {
    uint32_t peak = 0;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const uint32_t bits = __float_as_uint(to_float(rows[i])) & 0x7fffffffu;
        // Without the sign, floats are in the order of their bits; infinity and NaN come last and are refused later.
        peak = bits > peak ? bits : peak;
    }
    peak = warp_max(peak);
    if (threadIdx.x % kWarp == 0) atomicMax(&header->peak_bits, peak);
}

// Write a row, scaled and filled up with zeros, and return the sum of squares of what this lane has written.
template <class Value>
__device__ inline double pack_row(const Value* row, int64_t d, float scale, int64_t depth, int lane, Half* out) {
    double total = 0.0;
    for (int64_t i = 2 * lane; i < depth; i += 2 * kWarp) {
        const Half low = float_to_half(i < d ? scale * to_float(row[i]) : 0.0f);
        const Half high = float_to_half(i + 1 < d ? scale * to_float(row[i + 1]) : 0.0f);
        *reinterpret_cast<uint32_t*>(out + i) = low.bits | static_cast<uint32_t>(high.bits) << 16;
        const double a = half_to_float(low), b = half_to_float(high);
        total += a * a + b * b;
    }
    return total;
}

template <class Value>
__global__ void __launch_bounds__(kPackThreads)
    pack_bank_kernel(const Value* rows, int64_t m, int64_t d, BankHeader* header, float* norms, Half* halves) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + threadIdx.x / kWarp, depth = packed_depth(d);
    const Value* source = rows + (row < m ? row : 0) * d;
    const int64_t channels = row < m ? d : 0;
    const float scale = power_of_two(scale_exponent(header->peak_bits));
    // Norms are summed in float64, as on the CPU: it happens once a bank, and a norm takes part in every distance.
    const double packed_norm = warp_sum(pack_row(source, channels, scale, depth, lane, halves + row * depth));
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
    pack_queries_kernel(const BankHeader* header, const Value* queries, int64_t n, int64_t d, Workspace workspace) {
    const int lane = threadIdx.x % kWarp;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + threadIdx.x / kWarp, depth = packed_depth(d);
    const Value* source = queries + (row < n ? row : 0) * d;
    const int64_t channels = row < n ? d : 0;
    uint32_t peak = 0;
    float norm = 0.0f;
    for (int64_t i = lane; i < channels; i += kWarp) {
        const float x = to_float(source[i]);
        const uint32_t bits = __float_as_uint(x) & 0x7fffffffu;
        peak = bits > peak ? bits : peak;
        norm += x * x;
    }
    peak = warp_max(peak);
    const bool usable = within_range(warp_sum(norm));
    const int bank_exponent = scale_exponent(header->peak_bits);
    int exponent = scale_exponent(peak);
    if (exponent > bank_exponent + kLargestScaleGap) exponent = bank_exponent + kLargestScaleGap;
    pack_row(source, usable ? channels : 0, -power_of_two(exponent), depth, lane, workspace.queries + row * depth);
    if (lane != 0) return;
    const int factor = exponent - bank_exponent - 1;
    // Below 2⁻¹²⁶ the norm is lost beside the product in any case; zero times the infinite norm would be NaN.
    workspace.factors[row] = power_of_two(factor < -126 ? -126 : factor);
    workspace.usable[row] = usable && row < n ? 1 : 0;
}

template <class Value>
cudaError_t pack_bank(const Value* rows, int64_t m, int64_t d, void* packed, cudaStream_t stream) {
    const Bank bank = bank_at(packed, m, d);
    BankHeader* header = const_cast<BankHeader*>(bank.header);
    cudaError_t status = cudaMemsetAsync(header, 0, sizeof(BankHeader), stream);
    if (status != cudaSuccess) return status;
    const int64_t blocks = divide_up(m * d, 8 * kPackThreads), most = 1024;
    status = launch(peak_kernel<Value>, dim3(static_cast<unsigned>(blocks < most ? blocks : most)), kPackThreads,
                    stream, rows, m * d, header);
    if (status != cudaSuccess) return status;
    return launch(pack_bank_kernel<Value>, dim3(static_cast<unsigned>(padded_rows(m) / kPackRows)), kPackThreads,
                  stream, rows, m, d, header, const_cast<float*>(bank.norms), const_cast<Half*>(bank.halves));
}

}  // namespace

cudaError_t pack_bank_launch(Matrix rows, int64_t m, int64_t d, void* packed, cudaStream_t stream) {
    return rows.halves ? pack_bank(static_cast<const Half*>(rows.data), m, d, packed, stream)
                       : pack_bank(static_cast<const float*>(rows.data), m, d, packed, stream);
}

cudaError_t pack_queries_launch(const Bank& bank, Matrix queries, const Plan& plan, const Workspace& workspace,
                                cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(plan.query_tiles * (kTileQueries / kPackRows)));
    return queries.halves
               ? launch(pack_queries_kernel<Half>, blocks, kPackThreads, stream, bank.header,
                        static_cast<const Half*>(queries.data), plan.n, plan.d, workspace)
               : launch(pack_queries_kernel<float>, blocks, kPackThreads, stream, bank.header,
                        static_cast<const float*>(queries.data), plan.n, plan.d, workspace);
}

}  // namespace flawscope::cuda
