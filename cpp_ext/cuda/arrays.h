// Whether arrays are where the kernels can reach them.
#pragma once

#include <initializer_list>

namespace flawscope::cuda {

// FLAWSCOPE_OK, FLAWSCOPE_OTHER_DEVICE, or the status of a failure of CUDA. Null is skipped.
int arrays_status(std::initializer_list<const void*> arrays);

}  // namespace flawscope::cuda
