// Memory for vectors: aligned to a cache line, not initialised. Large blocks ask for large pages: a bank is read from
// end to end again and again, and with small pages the address translation would be the slowest part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flawscope {

template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t count) {
        if (count < 0 || static_cast<uint64_t>(count) > (SIZE_MAX - 64) / sizeof(T)) throw std::bad_alloc();
        const size_t wanted = static_cast<size_t>(count) * sizeof(T);
        const size_t step = wanted >= 2 * kLargePage ? kLargePage : 64;
        const size_t bytes = wanted == 0 ? step : (wanted + step - 1) / step * step;
        data_ = static_cast<T*>(std::aligned_alloc(step, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (step == kLargePage) madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: nothing depends on the answer
#endif
        bytes_ = static_cast<int64_t>(bytes);
    }
    ~Buffer() { std::free(data_); }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    int64_t bytes() const { return bytes_; }

private:
    static constexpr size_t kLargePage = size_t{2} << 20;

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    T* data_ = nullptr;
    int64_t bytes_ = 0;
};

}  // namespace flawscope
