#pragma once

#include <cstdint>
#include <functional>

#include "kernels.h"

namespace flawscope {

// Returns false where `progress` asked to stop. Throws NotFinite for a feature without a finite squared norm.
bool kcenter_greedy(const Kernels& kernels, const float* features, int64_t n, int64_t d, int64_t count, int64_t first,
                    int threads, const std::function<bool(int64_t)>& progress, int64_t* chosen, int64_t* computed);

}  // namespace flawscope
