#pragma once

#include <cstdint>

#include "bank.h"

namespace flawscope {

// Queries [n, d]: float32, or float16 as its 16-bit patterns.
struct Queries {
    const void* data;
    bool halves;
    int64_t n, d;
};

void search_bank(const Bank& bank, const Queries& queries, int k, int rerank, int threads, float* squared,
                 int64_t* rows);
void search_rows(const Kernels& kernels, const float* bank, int64_t m, const Queries& queries, int k, int threads,
                 float* squared, int64_t* rows);

}  // namespace flawscope
