// An address of another device, or of the host, would end the process' use of the device: the kernel fails later, and
// that error stays. So addresses are asked for before anything is put on the stream; asking does not touch the stream,
// which may be under capture.
//
// State: compiled, not run (run in emulation on the CPU).
#include "arrays.h"

#include "flawscope/patch_distance.h"
#include "platform.h"

namespace flawscope::cuda {

int arrays_status(std::initializer_list<const void*> arrays) {
    int device = 0, pageable = 0;
    cudaError_t status = cudaGetDevice(&device);
    for (const void* array : arrays) {
        if (status != cudaSuccess) return FLAWSCOPE_CUDA + status;
        if (array == nullptr) continue;
        cudaPointerAttributes attributes;
        status = cudaPointerGetAttributes(&attributes, array);
        if (status != cudaSuccess) continue;
        // Pinned and managed memory every device reaches.
        if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) return FLAWSCOPE_OTHER_DEVICE;
        if (attributes.type != cudaMemoryTypeUnregistered) continue;
        // Plain host memory: some devices read that, too.
        status = cudaDeviceGetAttribute(&pageable, cudaDevAttrPageableMemoryAccess, device);
        if (status == cudaSuccess && pageable == 0) return FLAWSCOPE_OTHER_DEVICE;
    }
    return status == cudaSuccess ? FLAWSCOPE_OK : FLAWSCOPE_CUDA + status;
}

}  // namespace flawscope::cuda
