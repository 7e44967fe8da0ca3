// A few threads that wait for work, shared by all calls of the process.
#pragma once

#include <cstdint>
#include <functional>

namespace flawscope {

// Number of threads that `threads` means: itself, or for 0 the processors this process may run on.
int thread_count(int threads);

// Run work(0) … work(threads − 1) at the same time, work(0) on the calling thread; returns when all have returned.
// `work` must not throw. A second caller at the same time gets threads of its own.
void run_on_threads(int threads, const std::function<void(int)>& work);

// Run work(i) for 0 ≤ i < count on up to `threads` threads, each taking the next i when it is free.
void run_tasks(int threads, int64_t count, const std::function<void(int64_t)>& work);

}  // namespace flawscope
