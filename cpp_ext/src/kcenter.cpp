// Greedy k-centre selection without looking at most rows.
//
// The distance of a row to its nearest centre only falls as centres are added. The value a row had when it was last
// looked at is therefore an upper bound, and a row can be the farthest only if its bound is at least the largest exact
// value known. So a new centre is compared with nobody at first: it waits in a list, and a row catches up with the
// list when its bound comes to the top (lazy evaluation, Minoux 1978). A row catches up with many centres at once,
// which makes the work a matrix product instead of one pass over all memory per centre; and a row that stays below the
// radius to the end is never looked at again. Catching up ends early where the row falls below the best known value.
//
// Every distance is computed by the same operations in the same order, whatever the tile, the thread or the time: the
// selection does not depend on them.
#include "kcenter.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "bank.h"
#include "memory.h"
#include "threads.h"

namespace flawscope {
namespace {

constexpr int64_t kBlock = 128;       // rows that share one bound
constexpr int64_t kCentreStep = 32;   // centres between two looks at whether a row is out already
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// All threads meet; spins for a moment because the steps are short, then yields.
class Barrier {
public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        const uint32_t round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            // Before the round: whoever sees the new round may arrive at the next one at once.
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            if (spins > 2000) std::this_thread::yield();
        }
    }

private:
    const int threads_;
    std::atomic<int> arrived_{0};
    std::atomic<uint32_t> round_{0};
};

struct Best {
    float value = -kInfinity;
    int64_t row = -1;
    bool operator<(const Best& other) const {
        return value < other.value || (value == other.value && row > other.row);
    }
};

class Selection {
public:
    Selection(const Kernels& kernels, const float* features, int64_t n, int64_t d, int64_t count, int threads)
        : kernels_(kernels),
          features_(features),
          n_(n),
          d_(d),
          stride_(divide_up(d, kernels.lanes) * kernels.lanes),
          norms_(n),
          closest_(n),
          seen_(n),
          bounds_(divide_up(n, kBlock)),
          centres_(divide_up(count, 4) * 4 * stride_),
          centre_norms_(divide_up(count, 4) * 4) {
        std::memset(centres_.data(), 0, static_cast<size_t>(divide_up(count, 4) * 4 * stride_) * sizeof(float));
        std::fill_n(centre_norms_.data(), divide_up(count, 4) * 4, kInfinity);
        std::fill_n(bounds_.data(), divide_up(n, kBlock), kInfinity);
        std::atomic<bool> finite{true};
        run_tasks(threads, divide_up(n, kBlock), [&](int64_t block) {
            for (int64_t i = block * kBlock; i < std::min(n_, (block + 1) * kBlock); ++i) {
                norms_[i] = kernels_.norm_as_product(features_ + i * d_, d_);
                closest_[i] = kInfinity;
                seen_[i] = 0;
                if (!within_range(norms_[i])) finite = false;
            }
        });
        if (!finite) throw NotFinite{};
    }

    void add_centre(int64_t row) {
        std::memcpy(centres_.data() + centre_count_ * stride_, features_ + row * d_,
                    static_cast<size_t>(d_) * sizeof(float));
        centre_norms_[centre_count_] = norms_[row];
        ++centre_count_;
        closest_[row] = -kInfinity;  // out, also where rounding would leave it a little distance
    }

    // The farthest row of blocks [begin, end); `shared` is a value that some row is known to reach.
    Best farthest(int64_t begin, int64_t end, std::atomic<float>& shared, int64_t& computed) {
        Best best;
        if (begin == end) return best;
        // The highest bound first: the better the first value, the fewer rows have to catch up.
        // What other threads put into `shared` is read without order. An old value lets rows catch up that need not,
        // and never loses one: time depends on it, the selection does not.
        const int64_t top = std::max_element(bounds_.data() + begin, bounds_.data() + end) - bounds_.data();
        look_into(top, best, shared, computed);
        for (int64_t block = begin; block < end; ++block) {
            if (block != top && bounds_[block] >= shared.load(std::memory_order_relaxed)) {
                look_into(block, best, shared, computed);
            }
        }
        return best;
    }

private:
    // Bring the rows of a block up to date that could be the farthest, and lower the bound of the block.
    void look_into(int64_t block, Best& best, std::atomic<float>& shared, int64_t& computed) {
        int64_t waiting[kBlock];
        int count = 0;
        const int64_t begin = block * kBlock, end = std::min(n_, begin + kBlock);
        const float least = shared.load(std::memory_order_relaxed);
        for (int64_t i = begin; i < end; ++i) {
            if (closest_[i] >= least && seen_[i] < centre_count_ && closest_[i] > -kInfinity) waiting[count++] = i;
        }
        // Rows that wait for the same centres go together.
        std::sort(waiting, waiting + count, [this](int64_t a, int64_t b) {
            return seen_[a] != seen_[b] ? seen_[a] < seen_[b] : a < b;
        });
        for (int i = 0; i < count; i += 4) {
            // The rows lie apart: the next four are asked for while these are at work.
            for (int next = i + 4; next < std::min(count, i + 8); ++next) prefetch(features_ + waiting[next] * d_);
            catch_up(waiting + i, std::min(4, count - i), shared, computed);
        }
        float bound = -kInfinity;
        for (int64_t i = begin; i < end; ++i) {
            bound = std::max(bound, closest_[i]);
            if (seen_[i] == centre_count_ && closest_[i] > -kInfinity) best = std::max(best, Best{closest_[i], i});
        }
        bounds_[block] = bound;
        raise(shared, best.value);
    }

    void prefetch(const float* row) const {
        const int64_t floats = std::min<int64_t>(d_, 512);
        for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(row + i);
    }

    void catch_up(const int64_t* rows, int count, std::atomic<float>& shared, int64_t& computed) {
        const float* data[4];
        float norms[4], closest[4];
        int64_t first = centre_count_;
        for (int r = 0; r < 4; ++r) {
            const int64_t row = rows[std::min(r, count - 1)];
            data[r] = features_ + row * d_;
            norms[r] = norms_[row];
            closest[r] = closest_[row];
            first = std::min<int64_t>(first, seen_[row]);
        }
        // Down to a whole group. Centres that a row has met already change nothing: their distance comes out the same
        // to the bit, and the minimum stays.
        first = first / 4 * 4;
        while (first < centre_count_) {
            const int64_t last = std::min(divide_up(centre_count_, 4) * 4, first + kCentreStep);
            kernels_.lower_closest(data, norms, centres_.data(), centre_norms_.data(), first, last, d_, stride_,
                                   closest);
            computed += 4 * (last - first);
            first = last;
            if (std::max(std::max(closest[0], closest[1]), std::max(closest[2], closest[3])) <
                shared.load(std::memory_order_relaxed)) {
                break;
            }
        }
        const int32_t seen = static_cast<int32_t>(std::min(first, centre_count_));
        for (int r = 0; r < count; ++r) {
            closest_[rows[r]] = closest[r];
            seen_[rows[r]] = std::max(seen_[rows[r]], seen);
            if (seen == centre_count_) raise(shared, closest[r]);
        }
    }

    static void raise(std::atomic<float>& shared, float value) {
        float old = shared.load(std::memory_order_relaxed);
        while (value > old && !shared.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
        }
    }

    const Kernels& kernels_;
    const float* const features_;
    const int64_t n_, d_, stride_;
    Buffer<float> norms_, closest_;  // closest_: an upper bound of the distance to the nearest centre
    Buffer<int32_t> seen_;           // number of centres that closest_ takes into account
    Buffer<float> bounds_;           // the largest closest_ of a block
    Buffer<float> centres_, centre_norms_;
    int64_t centre_count_ = 0;
};

}  // namespace

bool kcenter_greedy(const Kernels& kernels, const float* features, int64_t n, int64_t d, int64_t count, int64_t first,
                    int threads, const std::function<bool(int64_t)>& progress, int64_t* chosen, int64_t* computed) {
    const int64_t blocks = divide_up(n, kBlock);
    const int workers = static_cast<int>(std::min<int64_t>(thread_count(threads), blocks));
    Selection selection(kernels, features, n, d, count, workers);
    struct alignas(64) Slot {
        Best best;
        int64_t computed = 0;
    };
    Buffer<Slot> slots(workers);
    for (int t = 0; t < workers; ++t) slots[t] = Slot{};
    Barrier barrier(workers);
    std::atomic<float> shared{-kInfinity};
    int64_t done = 1;
    bool going = progress(1) && count > 1;

    chosen[0] = first;
    selection.add_centre(first);
    // All at the same time, as run_on_threads promises: tasks that wait for a free thread would never meet at the
    // barrier.
    run_on_threads(workers, [&](int thread) {
        const int64_t begin = blocks * thread / workers, end = blocks * (thread + 1) / workers;
        for (;;) {
            barrier.wait();  // the new centre is in
            if (!going) return;
            slots[thread].best = selection.farthest(begin, end, shared, slots[thread].computed);
            barrier.wait();  // every thread has its farthest row
            if (thread != 0) continue;
            Best best;
            for (int t = 0; t < workers; ++t) best = std::max(best, slots[t].best);
            chosen[done] = best.row;
            selection.add_centre(best.row);
            shared.store(-kInfinity, std::memory_order_relaxed);
            ++done;
            going = progress(done) && done < count;
        }
    });
    if (computed != nullptr) {
        *computed = 0;
        for (int t = 0; t < workers; ++t) *computed += slots[t].computed;
    }
    return done == count;
}

}  // namespace flawscope
