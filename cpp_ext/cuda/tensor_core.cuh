// The three instructions that the search is made of: asynchronous copy, matrix load, matrix product.
//
// They are written as PTX because the place of every accumulator in the warp is then known (PTX ISA, "Warp Level Matrix
// Instructions"), and the minimum can be taken in registers; nvcuda::wmma leaves the places open and would send all
// sums through shared memory. With g = lane / 4 and t = lane % 4, a product of 16 × 16 by 16 × 8 has
//   A[g][2t, 2t+1], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..] in a[0..3],
//   B[2t, 2t+1][g], B[2t+8..][g] in b0, b1, and C[g][2t, 2t+1], C[g+8][2t, 2t+1] in c[0..3].
// ldmatrix gives lane l of each 8 × 8 matrix the pair [l / 4][2 (l % 4)], which is just this.
#pragma once

#include "platform.h"

// Copies from global to shared memory that wait in no register exist from 8.0 on.
#define FLAWSCOPE_ASYNC_COPY (FLAWSCOPE_CUDA_ARCH >= 800)

namespace flawscope::cuda {

#if defined(FLAWSCOPE_EMULATION)

inline void copy_async(void* to, const void* from) { emulation::copy_async(to, from); }
inline void end_copies() { emulation::end_copies(); }
inline void wait_for_copies(int groups) { emulation::wait_for_copies(groups); }
inline void load_matrices(uint32_t (&out)[4], const Half* row) { emulation::load_matrices(out, row); }
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
#if FLAWSCOPE_CUDA_ARCH >= 800
    emulation::multiply<16>(emulation::kMultiply16, c, a, b);
#else
    emulation::multiply<8>(emulation::kMultiply8, c, a, b);
    emulation::multiply<8>(emulation::kMultiply8, c, a + 2, b + 1);
#endif
}

#else

// Copy 16 bytes. `to` is in shared memory; both are aligned to 16 bytes.
__device__ inline void copy_async(void* to, const void* from) {
#if FLAWSCOPE_ASYNC_COPY
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(place), "l"(from) : "memory");
#endif
}

// What this thread has begun to copy since the last call is a group.
__device__ inline void end_copies() {
#if FLAWSCOPE_ASYNC_COPY
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Wait for the copies of this thread but those of the last `groups` groups, three at most; a barrier makes them visible
// to the others.
__device__ inline void wait_for_copies([[maybe_unused]] int groups) {
#if FLAWSCOPE_ASYNC_COPY
    if (groups >= 3) asm volatile("cp.async.wait_group 3;\n" ::: "memory");
    else if (groups == 2) asm volatile("cp.async.wait_group 2;\n" ::: "memory");
    else if (groups == 1) asm volatile("cp.async.wait_group 1;\n" ::: "memory");
    else asm volatile("cp.async.wait_group 0;\n" ::: "memory");
#endif
}

// Load four 8 × 8 matrices of float16; lanes 8i … 8i + 7 give the rows of matrix i, each 16 bytes.
__device__ inline void load_matrices(uint32_t (&out)[4], const Half* row) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(place)
                 : "memory");
}

// c += a · b, 16 × 8 by 16 channels.
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if FLAWSCOPE_CUDA_ARCH >= 800
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif FLAWSCOPE_CUDA_ARCH > 0
    // 7.5 multiplies 8 channels at a time: the first two registers of `a` are the first 8, the others the rest.
    asm(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#endif

}  // namespace flawscope::cuda
