#include "memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flawscope {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;

// A search asks for the same blocks at every call. Given back to the system they would come again as pages that are not
// there, and for a small bank these faults took as long as the search. A thread keeps the last few blocks of medium size.
constexpr size_t kLeastKept = 32 << 10, kMostKept = 4 << 20, kKeptInAll = 16 << 20;
constexpr int kSlots = 32;

struct Block {
    void* data;
    size_t bytes;
};

thread_local bool shelf_is_gone = false;  // outlives the shelf at the end of a thread

class Shelf {
public:
    ~Shelf() {
        for (int i = 0; i < count_; ++i) std::free(blocks_[i].data);
        shelf_is_gone = true;
    }

    void* take(size_t bytes) {
        for (int i = count_ - 1; i >= 0; --i) {
            if (blocks_[i].bytes != bytes) continue;
            void* const data = blocks_[i].data;
            remove(i);
            return data;
        }
        return nullptr;
    }

    void put(void* data, size_t bytes) {
        while (count_ > 0 && (count_ == kSlots || all_ + bytes > kKeptInAll)) {  // the oldest goes
            std::free(blocks_[0].data);
            remove(0);
        }
        blocks_[count_++] = {data, bytes};
        all_ += bytes;
    }

private:
    void remove(int i) {
        all_ -= blocks_[i].bytes;
        for (--count_; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    }

    Block blocks_[kSlots];
    int count_ = 0;
    size_t all_ = 0;
};

thread_local Shelf shelf;

bool is_kept(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    static_cast<void>(bytes);
    return false;  // the sanitizer sees a block that is used after it was freed only if it was
#else
    return bytes >= kLeastKept && bytes <= kMostKept && !shelf_is_gone;
#endif
}

}  // namespace

void* allocate(size_t wanted, size_t* bytes) {
    // aligned_alloc takes only sizes that are multiples of the alignment.
    const size_t step = wanted >= 2 * kLargePage ? kLargePage : 64;
    *bytes = wanted == 0 ? step : (wanted + step - 1) / step * step;
    if (is_kept(*bytes)) {
        if (void* const kept = shelf.take(*bytes)) return kept;
    }
    void* const data = std::aligned_alloc(step, *bytes);
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (step == kLargePage) madvise(data, *bytes, MADV_HUGEPAGE);  // a wish: nothing depends on the answer
#endif
    return data;
}

void release(void* data, size_t bytes) {
    if (data != nullptr && is_kept(bytes)) {
        shelf.put(data, bytes);
    } else {
        std::free(data);
    }
}

}  // namespace flawscope
