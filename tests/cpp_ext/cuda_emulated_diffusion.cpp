// A step of a sampling on the CPU, against a loop written down again: every rule and flag alone and with the others,
// sizes that no block divides, memory of exactly the size that is promised, and what is refused. Built and run by
// test_cuda_emulated.py.
#include "cuda_emulated.h"

namespace {

struct Sizes {
    int64_t n, c, cells, arrays;
    bool guided, masked;
};

float rounded(double x) { return static_cast<float>(x); }
float both(float a, float x, float b, float y) { return rounded(double(rounded(double(x) * a)) + rounded(double(y) * b)); }

struct Step {
    std::vector<float> predicted, clean, hidden, keep, masked, noise, x, past;
};

Step random_step(const Sizes& s) {
    const int64_t size = s.n * s.c * s.cells, arrays = s.arrays == 0 ? 3 : s.n * s.arrays;
    Step step{normals(size * (1 + s.guided)), normals(size), normals(size), integers(s.n * s.cells, 1), normals(size),
              normals(arrays * s.c * s.cells), normals(size), normals(size)};
    for (float& k : step.keep) k = k > 0 ? 1.0f : 0.0f;
    return step;
}

flawscope_diffusion_row random_row(int rule, int flags, int added, int around) {
    const Rows v = normals(17);
    return {7, rule, flags, added, around, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8],
            v[9], v[10], v[11], v[12], v[13], v[14], v[15], v[16]};
}

// x and past after the step, number e.
std::pair<float, float> wanted(const Sizes& s, const Step& d, const flawscope_diffusion_row& r, int64_t e) {
    const int64_t size = s.c * s.cells, image = e / size, inside = e % size;
    const auto noise = [&](int array) { return d.noise[(image * s.arrays + array) * size + inside]; };
    const float keep = d.keep[image * s.cells + inside % s.cells], clean = d.clean[e];
    float x = d.x[e], past = d.past[e];
    if (r.rule == FLAWSCOPE_DIFFUSION_START) {
        x = r.flags & FLAWSCOPE_DIFFUSION_MIXED ? both(r.next_clean, d.hidden[e], r.next_noise, noise(0)) : noise(0);
    } else {
        float p = d.predicted[e];
        if (s.guided) p = p + rounded(double(rounded(double(d.predicted[s.n * size + e]) - p)) * r.guidance);
        if (r.flags & FLAWSCOPE_DIFFUSION_AIM) {
            const float away = both(r.aim_clean, clean, r.aim_noise, p) - x;
            p = p - rounded(double(away) * r.aim);
        }
        const float rest = x - rounded(double(p) * r.noise_part);
        float part = rounded(double(rest) * r.inverse_signal);
        if (r.flags & FLAWSCOPE_DIFFUSION_CLIP) part = std::min(std::max(part, -1.0f), 1.0f);
        if (r.rule == FLAWSCOPE_DIFFUSION_DDIM) {
            x = both(r.next_clean, part, r.next_noise, p);
        } else {
            const float change = rounded(double(part - past) * r.change);
            x = both(r.next_x, x, r.next_clean, r.flags & FLAWSCOPE_DIFFUSION_SECOND ? part + change : part);
            past = part;
        }
    }
    if (r.flags & FLAWSCOPE_DIFFUSION_MIX) x = both(r.mix_x, x, r.mix_clean, clean);
    if (r.added >= 0) x = x + rounded(double(noise(r.added)) * r.sigma);
    if (r.flags & FLAWSCOPE_DIFFUSION_RESTORE && keep > 0) {
        x = r.flags & FLAWSCOPE_DIFFUSION_CLEAN ? clean : both(r.known_clean, clean, r.known_noise, noise(0));
    }
    if (r.around >= 0) {
        const float around = both(r.around_clean, clean, r.around_noise, noise(r.around));
        x = rounded(double(keep) * around) + rounded(double(1.0f - keep) * x);
    }
    if (r.flags & FLAWSCOPE_DIFFUSION_BOUND) x = std::min(std::max(x, -1.0f), 1.0f);
    return {x, past};
}

void compare(const Sizes& s, const flawscope_diffusion_row& row, const std::string& what) {
    static int turn = 0;
    emulation::settings.order = static_cast<Order>(turn++ % emulation::kOrders);
    const Step d = random_step(s);
    const int64_t size = s.c * s.cells, wide = s.masked ? 2 * s.c + 1 : s.c, batch = s.n * (1 + s.guided);
    const Device<flawscope_diffusion_row> rows(std::vector<flawscope_diffusion_row>{row});
    const Device<float> predicted(d.predicted), clean(d.clean), hidden(d.hidden), keep(d.keep), masked(d.masked),
        noise(d.noise), x(d.x), past(d.past), input(Rows(batch * wide * s.cells, -77.0f));
    const Device<int64_t> timesteps(std::vector<int64_t>(batch, -77));
    const int status = without_waiting([&] {
        return flawscope_cuda_diffusion_step(rows.get(), s.n, s.c, s.cells, s.guided, predicted.get(), clean.get(),
                                             hidden.get(), keep.get(), s.masked ? masked.get() : nullptr, noise.get(),
                                             s.arrays, x.get(), past.get(), input.get(), timesteps.get(), nullptr);
    });
    check(status == FLAWSCOPE_OK, what + ": status");
    const bool is_last = row.flags & FLAWSCOPE_DIFFUSION_LAST, starts = row.rule == FLAWSCOPE_DIFFUSION_START;
    for (int64_t e = 0; e < s.n * size; ++e) {
        const auto [number, kept] = wanted(s, d, row, e);
        check(x[e] == number && past[e] == kept, what + ": x");
        const int64_t image = e / size, inside = e % size;
        for (int64_t half = 0; half <= s.guided; ++half) {
            const float* const given = input.get() + (half * s.n + image) * wide * s.cells;
            check(given[inside] == (is_last ? -77.0f : number), what + ": the network's x");
            if (!s.masked) continue;
            const bool written = starts && !is_last;
            const float mask = 1.0f - d.keep[image * s.cells + inside % s.cells];
            check(given[size + inside % s.cells] == (written ? mask : -77.0f), what + ": the mask");
            check(given[size + s.cells + inside] == (written ? d.masked[e] : -77.0f), what + ": the masked image");
        }
    }
    for (int64_t i = 0; i < batch; ++i) check(timesteps[i] == (is_last ? -77 : 7), what + ": timesteps");
}

void test_every_rule_and_flag() {
    const Sizes sizes[] = {{1, 1, 1, 1, false, false}, {2, 3, 35, 3, true, true}, {3, 4, 63, 0, false, false},
                           {1, 4, 64, 3, true, false}, {2, 5, 129, 2, false, true}};
    for (const Sizes& s : sizes) {
        const int most = s.arrays == 0 ? 3 : static_cast<int>(s.arrays);
        for (int rule = 0; rule < 3; ++rule) {
            for (int flags = 0; flags < 512; flags += flags < 16 ? 1 : 37) {
                for (const int noise : {-1, most - 1}) {
                    compare(s, random_row(rule, flags, noise, flags % 3 == 0 ? noise : -1),
                            "rule " + std::to_string(rule) + ", flags " + std::to_string(flags));
                }
            }
        }
    }
}

void test_more_numbers_than_threads() {
    compare({1, 1, 4096 * 256 + 300, 0, false, false},
            random_row(FLAWSCOPE_DIFFUSION_DDIM, FLAWSCOPE_DIFFUSION_CLIP, 2, -1), "more numbers than threads");
}

void test_failures_are_told() {
    if (!kEmulated) return;
    const Device<flawscope_diffusion_row> row(std::vector<flawscope_diffusion_row>{random_row(0, 0, -1, -1)});
    const Device<float> all(Rows(8, 1.0f));
    const Device<int64_t> timesteps(1);
    emulation::settings.calls = 0;
    emulation::settings.fail_at = 1;
    const int status = flawscope_cuda_diffusion_step(row.get(), 1, 1, 4, 0, all.get(), all.get(), nullptr, nullptr,
                                                     nullptr, all.get(), 0, all.get(), all.get(), all.get(),
                                                     timesteps.get(), nullptr);
    emulation::settings.fail_at = 0;
    check(status == FLAWSCOPE_CUDA + cudaErrorEmulated, "a failure of CUDA is told");
}

void test_arrays_on_another_device_are_refused() {
    if (!kEmulated) return;
    const Device<flawscope_diffusion_row> row(std::vector<flawscope_diffusion_row>{random_row(0, 0, -1, -1)});
    const Rows four(4, 1.0f);
    const Device<float> predicted(four), clean(four), hidden(four), keep(four), masked(four), noise(four), x(four),
        past(four), input(Rows(12, 1.0f));
    const Device<int64_t> timesteps(1);
    const auto step = [&] {
        return flawscope_cuda_diffusion_step(row.get(), 1, 1, 4, 0, predicted.get(), clean.get(), hidden.get(),
                                             keep.get(), masked.get(), noise.get(), 0, x.get(), past.get(),
                                             input.get(), timesteps.get(), nullptr);
    };
    check(step() == FLAWSCOPE_OK, "arrays of the current device");
    for (const void* array : {static_cast<const void*>(row.get()), static_cast<const void*>(timesteps.get()),
                              static_cast<const void*>(predicted.get()), static_cast<const void*>(clean.get()),
                              static_cast<const void*>(hidden.get()), static_cast<const void*>(keep.get()),
                              static_cast<const void*>(masked.get()), static_cast<const void*>(noise.get()),
                              static_cast<const void*>(x.get()), static_cast<const void*>(past.get()),
                              static_cast<const void*>(input.get())}) {
        emulation::settings.elsewhere = array;
        emulation::settings.kind = {cudaMemoryTypeDevice, 1};
        check(step() == FLAWSCOPE_OTHER_DEVICE, "an array of another device");
        emulation::settings.elsewhere = nullptr;
    }
}

}  // namespace

int main() {
    test_every_rule_and_flag();
    test_more_numbers_than_threads();
    test_failures_are_told();
    test_arrays_on_another_device_are_refused();
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
