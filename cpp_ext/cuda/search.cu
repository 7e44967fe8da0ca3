// Search: for each query the rows with the least ‖m̂‖²·factor + q̂·m̂ of a part of the bank, on tensor cores.
//
// A block has 128 queries and goes through its part of the bank by 256 rows at a time (128 before 8.0). Its eight warps,
// 2 × 4, compute the products in registers, 64 × 64 each, from steps of 32 channels that lie in a ring of three or four
// stages in shared memory (stages.cuh). A step has one barrier, in its middle: by then the second half of the step is in
// registers and the stage is free for what comes, and the first half of the next step is loaded while the second half of
// this one is multiplied. So the tensor cores wait neither for shared memory nor for the barrier of a step.
//
// The products of a tile never leave the registers: keep.cuh has what is kept of them.
//
// State: compiled, not run (run in emulation on the CPU).
#include "keep.cuh"

namespace flawscope::cuda {
namespace {

template <class Shape, class Keeper>
__device__ inline void search(const SearchArguments& a, unsigned char* memory) {
    const Parts parts(memory, Shape::kTileRows, a);
    const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kTileQueries;
    const int begin = static_cast<int>(int64_t{a.row_tiles} * blockIdx.y / a.splits);
    const int end = static_cast<int>(int64_t{a.row_tiles} * (blockIdx.y + 1) / a.splits);
    const int steps = a.depth / kStepDepth;
    int64_t to_start = int64_t{end - begin} * steps;
    Loader<Shape> loader(a, parts, first_query, int64_t{begin} * Shape::kTileRows);
    for (int i = 0; i < a.stages; ++i) {
        if (to_start > 0) {
            loader.start();
            loader.finish();
            --to_start;
        }
        end_copies();  // a group for each step, also one without copies: they are counted when they are waited for
    }
    if (threadIdx.x < kTileQueries) parts.factors[threadIdx.x] = a.workspace.factors[first_query + threadIdx.x];
    Keeper keeper(a, parts, first_query);
    wait_for_copies(a.stages - 1);
    __syncthreads();
    Operands<Shape> first, second;
    first.load(parts.queries, parts.rows, 0);
    int stage = 0, norm_slot = 0;
    for (int tile = begin; tile < end; ++tile) {
        Sums<Shape> sums = {};
        for (int step = 0; step < steps; ++step) {
            second.load(parts.queries + (a.resident ? step : stage) * kQueryStep, parts.rows + stage * Shape::kRowStep, 1);
            first.multiply(sums);
            wait_for_copies(a.stages - 2);
            __syncthreads();  // the next stage is filled, and nobody reads this one any more
            const bool more = to_start > 0;
            if (more) loader.start();
            end_copies();
            stage = stage + 1 == a.stages ? 0 : stage + 1;
            const int next = step + 1 == steps ? 0 : step + 1;
            if (next != 0 || tile + 1 < end) {
                first.load(parts.queries + (a.resident ? next : stage) * kQueryStep, parts.rows + stage * Shape::kRowStep,
                           0);
            }
            second.multiply(sums);
            if (more) {
                loader.finish();
                --to_start;
            }
        }
        keeper.keep(parts, sums, parts.norms + norm_slot * Shape::kTileRows,
                    static_cast<uint32_t>(tile) * Shape::kTileRows);
        norm_slot = norm_slot == a.stages ? 0 : norm_slot + 1;
    }
    keeper.end(a, parts, first_query);
}

// 64 × 64 sums take 128 registers of a thread, and two sets of operands 64: one block fills a multiprocessor.
template <class Shape, class Keeper>
__global__ void __launch_bounds__(kSearchThreads, 1) search_kernel(SearchArguments a) {
    FLAWSCOPE_DYNAMIC_SHARED(memory);
    // Of the two shapes the launch takes that of the device; the code of the other one is left out.
    if constexpr (Shape::kAsynchronous == FLAWSCOPE_ASYNC_COPY) search<Shape, Keeper>(a, memory);
}

using Kernel = void (*)(SearchArguments);

Kernel kernel_of(const Plan& plan) {
    if (plan.tile_rows == Wide::kTileRows) {
        return plan.slots ? search_kernel<Wide, NearestOfSlots<Wide>> : search_kernel<Wide, Survivors<Wide>>;
    }
    return plan.slots ? search_kernel<Narrow, NearestOfSlots<Narrow>> : search_kernel<Narrow, Survivors<Narrow>>;
}

}  // namespace

cudaError_t search_prepare(const Plan& plan) {
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel_of(plan));
    if (status != cudaSuccess) return status;
    // The plan is of the device, the code of what was compiled for. PTX of before 8.0 also loads on later devices, where
    // the kernel of wide tiles would be one that does nothing.
    if (plan.tile_rows == Wide::kTileRows && attributes.ptxVersion < 80) return cudaErrorNoKernelImageForDevice;
    // As much as the device has, not as much as this plan takes: another thread may set it for another plan meanwhile.
    return cudaFuncSetAttribute(kernel_of(plan), cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared);
}

cudaError_t search_launch(const Bank& bank, const Plan& plan, const Workspace& workspace, cudaStream_t stream) {
    const cudaError_t status = search_prepare(plan);
    if (status != cudaSuccess) return status;
    const SearchArguments arguments{bank,
                                    workspace,
                                    static_cast<int>(packed_depth(plan.d)),
                                    static_cast<int>(plan.row_tiles),
                                    plan.splits,
                                    plan.stages,
                                    plan.stride,
                                    plan.capacity,
                                    plan.resident};
    const dim3 blocks(static_cast<unsigned>(plan.query_tiles), static_cast<unsigned>(plan.splits));
    return launch_with_shared(kernel_of(plan), blocks, kSearchThreads, plan.memory().bytes, stream, arguments);
}

}  // namespace flawscope::cuda
