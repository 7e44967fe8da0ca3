// Memory for vectors: aligned to a cache line, not initialised. Large blocks ask for large pages: a bank is read from
// end to end again and again, and with small pages the address translation would be the slowest part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace flawscope {

// At least `wanted` bytes; `bytes` is how many they are. What was taken is given back with that number.
void* allocate(size_t wanted, size_t* bytes);
void release(void* data, size_t bytes);

// Elements are neither constructed nor destroyed: what is read must have been written.
template <class T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>, "no constructor runs");

public:
    Buffer() = default;
    explicit Buffer(int64_t count) {
        if (count < 0 || static_cast<uint64_t>(count) > (SIZE_MAX - kMargin) / sizeof(T)) throw std::bad_alloc();
        data_ = static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T), &bytes_));
    }
    // Memory of somebody else, who keeps it for as long as the buffer is used and alone may write to it.
    static Buffer view(const void* data, int64_t count) {
        Buffer buffer;
        buffer.data_ = static_cast<T*>(const_cast<void*>(data));
        buffer.bytes_ = static_cast<size_t>(count) * sizeof(T);
        buffer.is_view_ = true;
        return buffer;
    }
    ~Buffer() {
        if (!is_view_) release(data_, bytes_);
    }
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
    int64_t bytes() const { return static_cast<int64_t>(bytes_); }

private:
    static constexpr size_t kMargin = size_t{4} << 20;  // for rounding up to whole pages

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(is_view_, other.is_view_);
    }

    T* data_ = nullptr;
    size_t bytes_ = 0;
    bool is_view_ = false;
};

}  // namespace flawscope
