// Arrays of any library that speaks DLPack or the buffer protocol, as the bindings take them: what fits, and the words for
// what does not.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <vector>

#include "binding.h"

namespace flawscope_binding {

using Array = nb::ndarray<nb::ro>;

inline std::string dtype_name(nb::dlpack::dtype type) {
    const char* kind = "unknown";
    switch (static_cast<nb::dlpack::dtype_code>(type.code)) {
        case nb::dlpack::dtype_code::Int: kind = "int"; break;
        case nb::dlpack::dtype_code::UInt: kind = "uint"; break;
        case nb::dlpack::dtype_code::Float: kind = "float"; break;
        case nb::dlpack::dtype_code::Bfloat: kind = "bfloat"; break;
        case nb::dlpack::dtype_code::Complex: kind = "complex"; break;
        case nb::dlpack::dtype_code::Bool: return "bool";
        default: break;
    }
    return kind + std::to_string(type.bits);
}

inline std::string shape_text(const Array& array) {
    std::string text = "[";
    for (size_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + "]";
}

inline bool is_half(const Array& array) { return array.dtype() == nb::dtype<float>() ? false : array.dtype().bits == 16; }

// One wording for arrays that do not fit: name, expected, got, what to do. A size of −1 is free; `letters` names it.
inline void check(const Array& array, const char* name, const std::vector<int64_t>& sizes, const char* letters,
           bool half_too = false, bool empty_too = false) {
    const bool is_float = static_cast<nb::dlpack::dtype_code>(array.dtype().code) == nb::dlpack::dtype_code::Float &&
                          array.dtype().lanes == 1;
    const bool type_fits = is_float && (array.dtype().bits == 32 || (half_too && array.dtype().bits == 16));
    bool shape_fits = array.ndim() == sizes.size();
    std::string wanted = half_too ? "float32 or float16 [" : "float32 [";
    for (size_t i = 0; i < sizes.size(); ++i) {
        if (shape_fits) {
            const int64_t size = static_cast<int64_t>(array.shape(i));
            shape_fits = sizes[i] < 0 ? size > 0 || (empty_too && i == 0) : size == sizes[i];
        }
        wanted += (i ? ", " : "") + (sizes[i] < 0 ? std::string(1, letters[i]) : std::to_string(sizes[i]));
    }
    wanted += "]";
    if (!type_fits || !shape_fits) {
        throw ArgumentError(std::string(name) + ": expected " + wanted +
                            (empty_too ? "" : " with no empty axis") + ", got " + dtype_name(array.dtype()) + " " +
                            shape_text(array) + ".");
    }
    // Before the memory is looked at: an address of another device means nothing here.
    if (array.device_type() != nb::device::cpu::value) {
        throw ArgumentError(std::string(name) + ": expected an array in the memory of the CPU, got one on device " +
                            std::to_string(array.device_type()) + ":" + std::to_string(array.device_id()) +
                            " (DLPack). All arrays of a call must be in one place: copy it there.");
    }
    if (reinterpret_cast<uintptr_t>(array.data()) % (array.dtype().bits / 8) != 0) {
        throw ArgumentError(std::string(name) + ": expected elements at multiples of their size in memory, got an "
                            "array that is not aligned. Copy it first.");
    }
    if (array.size() == 0) return;  // strides of nothing mean nothing
    int64_t step = 1;
    for (size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) != 1 && array.stride(i) != step) {
            throw ArgumentError(std::string(name) + ": expected a contiguous row-major array " + wanted +
                                ", got strides that skip or turn elements. Copy it first, for example with "
                                "numpy.ascontiguousarray.");
        }
        step *= static_cast<int64_t>(array.shape(i));
    }
}

// What a kernel writes to must have room for all of it.
template <class Output>
void check_room(const Output& array, int64_t elements, const char* name) {
    if (static_cast<int64_t>(array.size()) != elements) {
        throw ArgumentError(std::string(name) + ": expected room for " + std::to_string(elements) + " results, got " +
                            std::to_string(array.size()) + ".");
    }
}

}  // namespace flawscope_binding
