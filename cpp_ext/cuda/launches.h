// Launches of the kernels: asynchronous on a stream, each returning the first error. Sizes have been checked.
#pragma once

#include <cstdint>

#include "flawscope/patch_distance.h"
#include "layout.h"

namespace flawscope::cuda {

// Rows or queries as the caller has them.
struct Matrix {
    const void* data;
    bool halves;
};

// pack.cu
cudaError_t pack_bank_launch(Matrix rows, int64_t m, int64_t d, void* packed, cudaStream_t stream);
cudaError_t pack_queries_launch(const Bank& bank, Matrix queries, const Plan& plan, const Workspace& workspace,
                                cudaStream_t stream);

cudaError_t pack_queries_load();

// search.cu. search_prepare loads the kernel and lets it take shared memory; a search does it by itself, but a first one
// within a capture would have to load it there.
cudaError_t search_prepare(const Plan& plan);
cudaError_t search_launch(const Bank& bank, const Plan& plan, const Workspace& workspace, cudaStream_t stream);

// finish.cu. rows.data may be null: distances are then those to the packed rows.
cudaError_t finish_launch(const Bank& bank, Matrix rows, Matrix queries, const Plan& plan, const Workspace& workspace,
                          int k, float* squared, int64_t* found, cudaStream_t stream);
cudaError_t finish_load();

// window.cu
struct Windows {
    const int64_t* starts;  // [height · width + 1]: first row of every place
    const int32_t* reach;   // [height · width]: cells that a patch of the place looks in each direction
    int64_t height, width;
};
cudaError_t windows_launch(const float* rows, int64_t d, const Windows& windows, Matrix queries, int64_t images,
                           float* squared, int64_t* found, cudaStream_t stream);

// mahalanobis.cu
cudaError_t mahalanobis_launch(const float* mean, const float* whitening, int64_t p, int64_t d, const float* features,
                               int64_t n, float* squared, cudaStream_t stream);
cudaError_t mahalanobis_triangles_launch(const float* mean, Matrix triangles, int64_t p, int64_t d,
                                         const float* features, int64_t n, float* squared, cudaStream_t stream);

// kcenter.cu
int64_t kcenter_bytes(int64_t n, int64_t count);
cudaError_t kcenter_launch(const float* features, int64_t n, int64_t d, int64_t count, int64_t first, void* workspace,
                           int64_t* chosen, cudaStream_t stream);

// diffusion.cu
struct DiffusionStep {
    const flawscope_diffusion_row* row;
    int64_t n, c, cells;
    int guided;
    const float *predicted, *clean, *hidden, *keep, *masked, *noise;
    int64_t arrays;
    float *x, *past, *input;
    int64_t* timesteps;
};
cudaError_t diffusion_launch(const DiffusionStep& step, cudaStream_t stream);

}  // namespace flawscope::cuda
