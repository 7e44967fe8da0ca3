// Score the patches of an image against a memory bank from C++, without Python.
//
//   g++ -std=c++17 nearest.cpp -I INCLUDE -L LIB -lflawscope_kernels -Wl,-rpath,LIB -o nearest
//
// INCLUDE and LIB are the folders `include` and `lib` of the installed package flawscope/cpp_ext:
//   python -c "import flawscope.cpp_ext as c; print(c.__path__[0])"
#include <flawscope/patch_distance.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

bool failed(int status, const char* what) {
    if (status != FLAWSCOPE_OK) std::fprintf(stderr, "%s: %s\n", what, flawscope_status_text(status));
    return status != FLAWSCOPE_OK;
}

}  // namespace

int main() {
    const int64_t rows = 1000, channels = 128, patches = 28 * 28;
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> bank_rows(rows * channels), queries(patches * channels);
    for (float& value : bank_rows) value = normal(generator);
    for (float& value : queries) value = normal(generator);
    for (int64_t i = 0; i < channels; ++i) queries[300 * channels + i] += 3.0f;  // the defect

    // Once: pack the bank. It reads bank_rows where they lie, so they must outlive it.
    flawscope_bank* bank = nullptr;
    int status = flawscope_bank_create(bank_rows.data(), rows, channels, FLAWSCOPE_STORE_FLOAT32, 1, -1, 0, &bank);
    if (failed(status, "bank")) return 1;

    // For every image: the distance of each patch to its nearest row.
    std::vector<float> squared(patches);
    std::vector<int64_t> nearest(patches);
    status = flawscope_nearest(bank, queries.data(), FLAWSCOPE_FLOAT32, patches, 1, 0, 0, squared.data(),
                               nearest.data());
    flawscope_bank_destroy(bank);
    if (failed(status, "nearest")) return 1;

    int64_t worst = 0;
    for (int64_t i = 0; i < patches; ++i) {
        if (std::isnan(squared[i])) {
            std::fprintf(stderr, "patch %lld has no distance: treat the image as a fault\n", static_cast<long long>(i));
            return 1;
        }
        if (squared[i] > squared[worst]) worst = i;
    }
    std::printf("%s: most anomalous patch %lld, distance %.3f to row %lld\n", flawscope_simd_level(),
                static_cast<long long>(worst), std::sqrt(squared[worst]), static_cast<long long>(nearest[worst]));
    return 0;
}
