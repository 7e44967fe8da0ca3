// A bank for fixed cameras: a patch is compared only with the rows that come from places near its own.
#pragma once

#include <atomic>
#include <cstdint>

#include "bank.h"
#include "nearest.h"

namespace flawscope {

// Rows sorted by their place on the patch grid, row by row of it. `starts` [height·width + 1] has the first row of every
// place, `reach` [height·width] how many cells a patch of the place looks in each direction.
struct Windows {
    Windows(const Kernels& kernels, const float* rows, int64_t m, int64_t d, const int64_t* starts, int64_t height,
            int64_t width, const int32_t* reach, int threads);
    // With a bank that lies packed in a block, which was checked and must outlive it; see block.h.
    Windows(const Kernels& kernels, const BlockHeader& header, const char* block, const int64_t* starts, int64_t height,
            int64_t width, const int32_t* reach);

    Bank bank;
    const int64_t height, width;
    Buffer<int64_t> starts;
    Buffer<int32_t> reach;
    // Products of a patch and a row so far, those included whose result a window masks.
    mutable std::atomic<int64_t> computed{0};

    int64_t places() const { return height * width; }
    int64_t bytes() const { return bank.bytes() + starts.bytes() + reach.bytes(); }

private:
    void take(const int64_t* first_rows, const int32_t* cells);
};

// The nearest row within the window of every patch; queries are those of whole images, place after place.
void search_windows(const Windows& windows, const Queries& queries, int threads, float* squared, int64_t* rows);

}  // namespace flawscope
