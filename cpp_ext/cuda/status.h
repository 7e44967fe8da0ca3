// Words for a status of CUDA.
#pragma once

namespace flawscope {

// Text for FLAWSCOPE_CUDA + a cudaError_t; lives as long as the program. Without CUDA: that there is none.
const char* cuda_status_text(int status);

}  // namespace flawscope
