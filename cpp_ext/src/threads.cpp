#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace flawscope {
namespace {

#if defined(__x86_64__)
inline void pause() { __builtin_ia32_pause(); }
#else
inline void pause() {}
#endif

// A thread that is put to sleep takes some 50 µs to come back, as long as a small search. So it looks a little longer
// itself; not for long, because others may want the processor.
template <class Condition>
bool soon(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    do {
        for (int i = 0; i < 16; ++i) {
            if (condition()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return condition();
}

// Never destroyed: its threads wait until the process ends.
class Pool {
public:
    // False where another call holds the pool.
    bool run(int threads, const std::function<void(int)>& work) {
        std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
        if (!busy.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            while (static_cast<int>(workers_.size()) < threads - 1) {
                const int index = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, index, round = round_.load()] { serve(index, round); });
            }
            // The round last: a worker that sees it must find the rest of the call.
            work_ = &work;
            threads_ = threads;
            running_.store(threads - 1);
            round_.store(round_ + 1);
        }
        start_.notify_all();
        // Must not throw: the others would go on with what the caller has destroyed.
        work(0);
        const auto finished = [this] { return running_ == 0; };
        soon(finished);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, finished);
        work_ = nullptr;
        return true;
    }

private:
    void serve(int index, uint64_t seen) {
        const auto called = [&] { return round_ != seen; };
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, called);
            seen = round_;
            if (index >= threads_) continue;
            const std::function<void(int)>* work = work_;
            lock.unlock();
            (*work)(index);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
            lock.unlock();
            soon(called);
            lock.lock();
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* work_ = nullptr;
    int threads_ = 0;
    std::atomic<int> running_{0};
    std::atomic<uint64_t> round_{0};
};

// Threads do not survive fork(): the child starts with a pool of its own and leaves the parent's alone.
Pool*& pool_slot() {
    static Pool* slot = nullptr;
    return slot;
}

std::mutex& slot_mutex() {
    static std::mutex* mutex = new std::mutex;
    return *mutex;
}

Pool& pool() {
    static std::once_flag once;
    std::call_once(once, [] {
#if defined(__linux__) || defined(__APPLE__)
        pthread_atfork([] { slot_mutex().lock(); }, [] { slot_mutex().unlock(); },
                       [] {
                           pool_slot() = nullptr;
                           slot_mutex().unlock();
                       });
#endif
    });
    std::lock_guard<std::mutex> guard(slot_mutex());
    if (pool_slot() == nullptr) pool_slot() = new Pool;
    return *pool_slot();
}

}  // namespace

int thread_count(int threads) {
    if (threads > 0) return std::min(threads, 1024);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

void run_on_threads(int threads, const std::function<void(int)>& work) {
    if (threads <= 1) {
        work(0);
        return;
    }
    if (pool().run(threads, work)) return;
    // Threads of this call alone. None begins before all are there: where the system refuses one, none has begun.
    enum { kWaiting, kGo, kNever } state = kWaiting;
    std::mutex mutex;
    std::condition_variable changed;
    const auto decide = [&](decltype(state) next) {
        {
            std::lock_guard<std::mutex> guard(mutex);
            state = next;
        }
        changed.notify_all();
    };
    std::vector<std::thread> own;
    const auto join = [&] {
        for (std::thread& thread : own) thread.join();
    };
    try {
        own.reserve(static_cast<size_t>(threads) - 1);
        for (int i = 1; i < threads; ++i) {
            own.emplace_back([&, i] {
                {
                    std::unique_lock<std::mutex> lock(mutex);
                    changed.wait(lock, [&] { return state != kWaiting; });
                    if (state == kNever) return;
                }
                work(i);
            });
        }
    } catch (...) {
        decide(kNever);
        join();
        throw;
    }
    decide(kGo);
    work(0);
    join();
}

void run_tasks(int threads, int64_t count, const std::function<void(int64_t)>& work) {
    std::atomic<int64_t> next{0};
    const int64_t useful = std::min<int64_t>(threads, count);
    run_on_threads(static_cast<int>(std::max<int64_t>(useful, 1)), [&](int) {
        for (int64_t i = next++; i < count; i = next++) work(i);
    });
}

}  // namespace flawscope
