// The C interface to the CUDA kernels: checks arguments, lays out the workspace, launches, and returns every status.
//
// State: compiled, not run (run in emulation on the CPU).
#include "arrays.h"
#include "flawscope/patch_distance.h"
#include "launches.h"
#include "plan.h"
#include "status.h"

namespace flawscope::cuda {
namespace {

constexpr int64_t kMaxRows = INT64_C(0x7fffff00);    // rows are counted in 32 bits, and are blocks of a grid
constexpr int64_t kMaxChannels = 65536;              // the bound on the rounding is given up to there
constexpr int64_t kMaxElements = INT64_MAX / 16;     // bytes of an array stay within 64 bits
constexpr int64_t kMaxBlocks = INT64_C(0x7fffffff);  // of a grid

int status_of(cudaError_t error) { return error == cudaSuccess ? FLAWSCOPE_OK : FLAWSCOPE_CUDA + error; }

bool sizes_ok(int64_t rows, int64_t columns) { return rows > 0 && columns > 0 && columns <= kMaxElements / rows; }

bool bank_ok(int64_t m, int64_t d) { return m > 0 && m <= kMaxRows && d > 0 && d <= kMaxChannels; }

bool dtype_ok(int dtype) { return dtype == FLAWSCOPE_FLOAT32 || dtype == FLAWSCOPE_FLOAT16; }

// Copies are of 16 bytes.
bool aligned(const void* pointer) { return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool search_ok(int64_t n, int64_t m, int64_t d, int k, int rerank) {
    return bank_ok(m, d) && n >= 0 && n <= kMaxRows && k >= 1 && k <= kMaxCandidates && k <= m &&
           (rerank == 0 || (rerank >= k && rerank <= kMaxCandidates));
}

bool mahalanobis_ok(const float* mean, const void* factors, int64_t p, int64_t d, const float* features, int64_t n,
                    const float* squared) {
    // In this order: p · d cannot overflow once sizes_ok(p, d) has said yes.
    if (mean == nullptr || factors == nullptr || !sizes_ok(p, d) || !sizes_ok(p * d, d) || n < 0) return false;
    return n == 0 || (features != nullptr && squared != nullptr && sizes_ok(n, p * d) && n <= kMaxBlocks / p);
}

cudaError_t search(const Bank& bank, Matrix rows, Matrix queries, const Plan& plan, int k, void* memory,
                   float* squared, int64_t* found, cudaStream_t stream) {
    const Workspace workspace = workspace_at(memory, plan, plan.query_tiles * plan.splits);
    cudaError_t status = pack_queries_launch(bank, queries, plan, workspace, stream);
    if (status != cudaSuccess) return status;
    status = search_launch(bank, plan, workspace, stream);
    if (status != cudaSuccess) return status;
    return finish_launch(bank, rows, queries, plan, workspace, k, squared, found, stream);
}

}  // namespace
}  // namespace flawscope::cuda

namespace flawscope {

const char* cuda_status_text(int status) {
    return cudaGetErrorString(static_cast<cudaError_t>(status - FLAWSCOPE_CUDA));
}

}  // namespace flawscope

extern "C" {

using namespace flawscope::cuda;

int flawscope_has_cuda(void) { return 1; }

int flawscope_cuda_device_count(int* count) {
    if (count == nullptr) return FLAWSCOPE_BAD_ARGUMENT;
    return status_of(cudaGetDeviceCount(count));
}

int flawscope_cuda_bank_bytes(int64_t m, int64_t d, int64_t* bytes) {
    if (!bank_ok(m, d) || bytes == nullptr) return FLAWSCOPE_BAD_ARGUMENT;
    *bytes = bank_bytes(m, d);
    return FLAWSCOPE_OK;
}

int flawscope_cuda_bank_pack(const void* rows, int dtype, int64_t m, int64_t d, void* packed, void* stream) {
    if (rows == nullptr || !dtype_ok(dtype) || !bank_ok(m, d) || !aligned(packed)) return FLAWSCOPE_BAD_ARGUMENT;
    const int arrays = arrays_status({rows, packed});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(
        pack_bank_launch({rows, dtype == FLAWSCOPE_FLOAT16}, m, d, packed, static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_bank_check(const void* packed, void* stream) {
    if (packed == nullptr) return FLAWSCOPE_BAD_ARGUMENT;
    const int arrays = arrays_status({packed});
    if (arrays != FLAWSCOPE_OK) return arrays;
    BankHeader header;
    cudaError_t status =
        cudaMemcpyAsync(&header, packed, sizeof header, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) return status_of(status);
    status = cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) return status_of(status);
    return header.refused != 0 ? FLAWSCOPE_NOT_FINITE : FLAWSCOPE_OK;
}

int flawscope_cuda_nearest_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank, int64_t* bytes) {
    if (!search_ok(n, m, d, k, rerank) || bytes == nullptr) return FLAWSCOPE_BAD_ARGUMENT;
    *bytes = 0;
    if (n == 0) return FLAWSCOPE_OK;
    Plan plan;
    cudaError_t status = make_plan(n, m, d, k, rerank, plan);
    if (status == cudaSuccess) status = reserved_bytes(plan, *bytes);
    if (status == cudaSuccess) status = pack_queries_load();
    if (status == cudaSuccess) status = search_prepare(plan);
    if (status == cudaSuccess) status = finish_load();
    return status_of(status);
}

int flawscope_cuda_nearest(const void* packed, const void* rows, int rows_dtype, int64_t m, int64_t d,
                           const void* queries, int dtype, int64_t n, int k, int rerank, void* workspace,
                           int64_t workspace_bytes, float* squared, int64_t* found, void* stream) {
    if (!search_ok(n, m, d, k, rerank) || !aligned(packed) || !dtype_ok(dtype) || !dtype_ok(rows_dtype)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    if (n == 0) return FLAWSCOPE_OK;
    if (queries == nullptr || !aligned(workspace) || squared == nullptr || found == nullptr) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    Plan plan;
    const cudaError_t status = make_plan(n, m, d, k, rerank, plan);
    if (status != cudaSuccess) return status_of(status);
    if (workspace_bytes < workspace_at(nullptr, plan, plan.query_tiles * plan.splits).bytes) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    const int arrays = arrays_status({packed, rows, queries, workspace, squared, found});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(search(bank_at(packed, m, d), {rows, rows_dtype == FLAWSCOPE_FLOAT16},
                            {queries, dtype == FLAWSCOPE_FLOAT16}, plan, k, workspace, squared, found,
                            static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_windows_nearest(const float* rows, int64_t m, int64_t d, const int64_t* starts, int64_t height,
                                   int64_t width, const int32_t* reach, const void* queries, int dtype, int64_t n,
                                   float* squared, int64_t* found, void* stream) {
    // In this order: height · width cannot overflow once sizes_ok has said yes.
    if (rows == nullptr || !sizes_ok(m, d) || m > kMaxRows || starts == nullptr || reach == nullptr ||
        !sizes_ok(height, width) || height * width > kMaxRows || !dtype_ok(dtype) || n < 0) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    if (n == 0) return FLAWSCOPE_OK;
    const int64_t places = height * width;
    if (queries == nullptr || squared == nullptr || found == nullptr || !sizes_ok(places, d) ||
        !sizes_ok(n, places * d) || n > kMaxBlocks / places) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    const int arrays = arrays_status({rows, starts, reach, queries, squared, found});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(windows_launch(rows, d, {starts, reach, height, width}, {queries, dtype == FLAWSCOPE_FLOAT16}, n,
                                    squared, found, static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_mahalanobis(const float* mean, const float* whitening, int64_t p, int64_t d, const float* features,
                               int64_t n, float* squared, void* stream) {
    if (!mahalanobis_ok(mean, whitening, p, d, features, n, squared)) return FLAWSCOPE_BAD_ARGUMENT;
    if (n == 0) return FLAWSCOPE_OK;
    const int arrays = arrays_status({mean, whitening, features, squared});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(
        mahalanobis_launch(mean, whitening, p, d, features, n, squared, static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_mahalanobis_triangles(const float* mean, const void* triangles, int dtype, int64_t p, int64_t d,
                                         const float* features, int64_t n, float* squared, void* stream) {
    if (!dtype_ok(dtype) || !mahalanobis_ok(mean, triangles, p, d, features, n, squared)) return FLAWSCOPE_BAD_ARGUMENT;
    if (n == 0) return FLAWSCOPE_OK;
    const int arrays = arrays_status({mean, triangles, features, squared});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(mahalanobis_triangles_launch(mean, {triangles, dtype == FLAWSCOPE_FLOAT16}, p, d, features, n,
                                                  squared, static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_kcenter_bytes(int64_t n, int64_t count, int64_t* bytes) {
    if (n < 1 || n > kMaxRows || count < 1 || count > n || bytes == nullptr) return FLAWSCOPE_BAD_ARGUMENT;
    *bytes = kcenter_bytes(n, count);
    return FLAWSCOPE_OK;
}

int flawscope_cuda_kcenter_greedy(const float* features, int64_t n, int64_t d, int64_t count, int64_t first,
                                  void* workspace, int64_t workspace_bytes, int64_t* chosen, void* stream) {
    if (features == nullptr || !sizes_ok(n, d) || n > kMaxRows || count < 1 || count > n || first < 0 || first >= n ||
        !aligned(workspace) || workspace_bytes < kcenter_bytes(n, count) || chosen == nullptr) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    const int arrays = arrays_status({features, workspace, chosen});
    if (arrays != FLAWSCOPE_OK) return arrays;
    return status_of(
        kcenter_launch(features, n, d, count, first, workspace, chosen, static_cast<cudaStream_t>(stream)));
}

int flawscope_cuda_diffusion_step(const flawscope_diffusion_row* row, int64_t n, int64_t c, int64_t cells, int guided,
                                  const float* predicted, const float* clean, const float* hidden, const float* keep,
                                  const float* masked, const float* noise, int64_t arrays, float* x, float* past,
                                  float* input, int64_t* timesteps, void* stream) {
    // In this order: c · cells cannot overflow once sizes_ok has said yes. 6 at most: two halves of the batch with 2 c + 1
    // channels.
    if (row == nullptr || n < 0 || !sizes_ok(c, cells) || !sizes_ok(6 * c, cells) || guided < 0 || guided > 1 ||
        arrays < 0) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    if (n == 0) return FLAWSCOPE_OK;
    if (predicted == nullptr || clean == nullptr || (masked != nullptr && keep == nullptr) || noise == nullptr ||
        x == nullptr || past == nullptr || input == nullptr || timesteps == nullptr || !sizes_ok(n, 6 * c * cells) ||
        !sizes_ok(n * c * cells, arrays == 0 ? 1 : arrays)) {
        return FLAWSCOPE_BAD_ARGUMENT;
    }
    const int arrays_where =
        arrays_status({row, predicted, clean, hidden, keep, masked, noise, x, past, input, timesteps});
    if (arrays_where != FLAWSCOPE_OK) return arrays_where;
    return status_of(diffusion_launch({row, n, c, cells, guided, predicted, clean, hidden, keep, masked, noise, arrays, x,
                                       past, input, timesteps},
                                      static_cast<cudaStream_t>(stream)));
}

}  // extern "C"
