// The CUDA interface of a library that was built without CUDA: every function says so.
#include "flawscope/patch_distance.h"
#include "status.h"

namespace flawscope {

const char* cuda_status_text(int) { return "a CUDA error, in a library that was built without CUDA"; }

}  // namespace flawscope

extern "C" {

int flawscope_has_cuda(void) { return 0; }

int flawscope_cuda_device_count(int*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_bank_bytes(int64_t, int64_t, int64_t*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_bank_pack(const void*, int, int64_t, int64_t, void*, void*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_bank_check(const void*, void*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_nearest_bytes(int64_t, int64_t, int64_t, int, int, int64_t*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_nearest(const void*, const void*, int, int64_t, int64_t, const void*, int, int64_t, int, int, void*,
                           int64_t, float*, int64_t*, void*) {
    return FLAWSCOPE_NO_CUDA;
}

int flawscope_cuda_windows_nearest(const float*, int64_t, int64_t, const int64_t*, int64_t, int64_t, const int32_t*,
                                   const void*, int, int64_t, float*, int64_t*, void*) {
    return FLAWSCOPE_NO_CUDA;
}

int flawscope_cuda_mahalanobis(const float*, const float*, int64_t, int64_t, const float*, int64_t, float*, void*) {
    return FLAWSCOPE_NO_CUDA;
}

int flawscope_cuda_mahalanobis_triangles(const float*, const void*, int, int64_t, int64_t, const float*, int64_t, float*,
                                         void*) {
    return FLAWSCOPE_NO_CUDA;
}

int flawscope_cuda_kcenter_bytes(int64_t, int64_t, int64_t*) { return FLAWSCOPE_NO_CUDA; }

int flawscope_cuda_kcenter_greedy(const float*, int64_t, int64_t, int64_t, int64_t, void*, int64_t, int64_t*, void*) {
    return FLAWSCOPE_NO_CUDA;
}

int flawscope_cuda_diffusion_step(const flawscope_diffusion_row*, int64_t, int64_t, int64_t, int, const float*,
                                  const float*, const float*, const float*, const float*, const float*, int64_t, float*,
                                  float*, float*, int64_t*, void*) {
    return FLAWSCOPE_NO_CUDA;
}

}  // extern "C"
