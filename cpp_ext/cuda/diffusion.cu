// One step of a diffusion sampling, in one pass over the latents: guidance, the solver's step, noise, what is put back
// of the normal image, and the network's next input.
//
// A thread has one number of one image and needs nothing of the others, so that x is changed in its place. Every
// operation is rounded by itself, never fused, in the order of the loops in NumPy: with the same predictions x is the
// same, bit for bit. That costs nothing: the kernel waits for memory.
//
// State: compiled, not run (run in emulation on the CPU).
#include "launches.h"

namespace flawscope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;  // enough for any device; what is beyond goes round

__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float sub(float a, float b) { return __fsub_rn(a, b); }

// a · x + b · y
__device__ inline float mixed(float a, float x, float b, float y) { return add(mul(x, a), mul(y, b)); }

// Within [−1, 1]; NaN stays NaN.
__device__ inline float bounded(float x) { return x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x; }

// The clean part of x; NumPy's loops bound it where the sampling is of images.
__device__ inline float clean_part(const flawscope_diffusion_row& row, float x, float predicted) {
    const float clean = mul(sub(x, mul(predicted, row.noise_part)), row.inverse_signal);
    return row.flags & FLAWSCOPE_DIFFUSION_CLIP ? bounded(clean) : clean;
}

__device__ inline float prediction(const DiffusionStep& s, const flawscope_diffusion_row& row, int64_t e, float x) {
    float predicted = s.predicted[e];
    if (s.guided) {  // the first half of the batch is without the text
        const float conditional = s.predicted[s.n * s.c * s.cells + e];
        predicted = add(predicted, mul(sub(conditional, predicted), row.guidance));
    }
    if (row.flags & FLAWSCOPE_DIFFUSION_AIM) {
        const float aimed = mixed(row.aim_clean, s.clean[e], row.aim_noise, predicted);
        predicted = sub(predicted, mul(sub(aimed, x), row.aim));
    }
    return predicted;
}

__device__ inline float stepped(const DiffusionStep& s, const flawscope_diffusion_row& row, int64_t e, float x) {
    const float predicted = prediction(s, row, e, x);
    const float clean = clean_part(row, x, predicted);
    if (row.rule == FLAWSCOPE_DIFFUSION_DDIM) return mixed(row.next_clean, clean, row.next_noise, predicted);
    float corrected = clean;
    if (row.flags & FLAWSCOPE_DIFFUSION_SECOND) corrected = add(clean, mul(sub(clean, s.past[e]), row.change));
    s.past[e] = clean;
    return mixed(row.next_x, x, row.next_clean, corrected);
}

// The network's input: x, in mode `inpaint` the mask and the masked image behind it, once for each half of the batch.
// Those two stay as they are from the first launch on.
__device__ inline void give(const DiffusionStep& s, const flawscope_diffusion_row& row, int64_t e, float x) {
    const int64_t size = s.c * s.cells, image = e / size, inside = e % size, cell = inside % s.cells;
    const int64_t channels = s.masked == nullptr ? s.c : 2 * s.c + 1;
    for (int half = 0; half <= s.guided; ++half) {
        float* const input = s.input + (half * s.n + image) * channels * s.cells;
        input[inside] = x;
        if (s.masked == nullptr || row.rule != FLAWSCOPE_DIFFUSION_START) continue;
        if (inside < s.cells) input[size + cell] = sub(1.0f, s.keep[image * s.cells + cell]);
        input[size + s.cells + inside] = s.masked[e];
    }
}

__global__ void __launch_bounds__(kThreads) diffusion_kernel(DiffusionStep s) {
    const flawscope_diffusion_row row = *s.row;
    const int64_t size = s.c * s.cells, count = s.n * size, stride = int64_t{kThreads} * gridDim.x;
    const int64_t begin = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const bool is_last = row.flags & FLAWSCOPE_DIFFUSION_LAST;
    for (int64_t e = begin; e < count; e += stride) {
        const int64_t image = e / size, inside = e % size;
        // The start's noise comes first. Without arrays of their own all images have the same noise.
        const float* const noise = s.noise + image * s.arrays * size + inside;
        const float keep = s.keep == nullptr ? 0.0f : s.keep[image * s.cells + inside % s.cells];
        float x;
        if (row.rule != FLAWSCOPE_DIFFUSION_START) {
            x = stepped(s, row, e, s.x[e]);
        } else if (row.flags & FLAWSCOPE_DIFFUSION_MIXED) {
            x = mixed(row.next_clean, (s.hidden == nullptr ? s.clean : s.hidden)[e], row.next_noise, noise[0]);
        } else {
            x = noise[0];
        }
        if (row.flags & FLAWSCOPE_DIFFUSION_MIX) x = mixed(row.mix_x, x, row.mix_clean, s.clean[e]);
        if (row.added >= 0) x = add(x, mul(noise[row.added * size], row.sigma));
        if (row.flags & FLAWSCOPE_DIFFUSION_RESTORE && keep > 0.0f) {  // chosen: NaN times 0 would be NaN
            x = row.flags & FLAWSCOPE_DIFFUSION_CLEAN ? s.clean[e]
                                                      : mixed(row.known_clean, s.clean[e], row.known_noise, noise[0]);
        }
        if (row.around >= 0) {
            const float around = mixed(row.around_clean, s.clean[e], row.around_noise, noise[row.around * size]);
            x = add(mul(keep, around), mul(sub(1.0f, keep), x));
        }
        if (row.flags & FLAWSCOPE_DIFFUSION_BOUND) x = bounded(x);
        s.x[e] = x;
        if (!is_last) give(s, row, e, x);
    }
    if (is_last) return;
    for (int64_t i = begin; i < s.n * (1 + s.guided); i += stride) s.timesteps[i] = row.timestep;
}

}  // namespace

cudaError_t diffusion_launch(const DiffusionStep& step, cudaStream_t stream) {
    const int64_t blocks = divide_up(step.n * step.c * step.cells, kThreads);
    return launch(diffusion_kernel, dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks)), kThreads,
                  stream, step);
}

}  // namespace flawscope::cuda
