// What all bindings share: one wording for arrays that do not fit, and statuses as exceptions.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "flawscope/patch_distance.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace flawscope_binding {

struct ArgumentError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct NoCuda : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct DeviceFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

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
                  bool half_too = false, bool empty_too = false, int device = nb::device::cpu::value) {
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
    if (array.device_type() != device) {
        const char* wanted = device == nb::device::cpu::value ? "in the memory of the CPU" : "on a CUDA device";
        throw ArgumentError(std::string(name) + ": expected an array " + wanted + ", got one on device " +
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

inline void raise_for(int status, const std::string& what) {
    if (status == FLAWSCOPE_OK) return;
    const std::string text = what + ": " + flawscope_status_text(status) + ".";
    if (status == FLAWSCOPE_NO_MEMORY) throw std::bad_alloc();
    if (status == FLAWSCOPE_BAD_ARGUMENT && flawscope_simd_level() == nullptr) {
        const char* wanted = std::getenv("FLAWSCOPE_SIMD");
        std::string levels;
        for (int i = 0; const char* name = flawscope_simd_level_at(i); ++i) levels += (i ? ", " : "") + std::string(name);
        throw ArgumentError("FLAWSCOPE_SIMD: expected a level that this processor has (" + levels + "), got " +
                            (wanted == nullptr ? "another" : wanted) + ".");
    }
    if (status == FLAWSCOPE_BAD_ARGUMENT || status == FLAWSCOPE_NOT_FINITE) throw ArgumentError(text);
    if (status == FLAWSCOPE_NO_CUDA) {
        throw NoCuda(what + ": expected an installation with CUDA kernels, got one without. Put nvcc on the PATH and "
                     "install flawscope again.");
    }
    if (status >= FLAWSCOPE_CUDA) throw DeviceFailure(text);
    throw Failure(text);
}

// What a kernel writes to must have room for all of it.
template <class Output>
void check_room(const Output& array, int64_t elements, const char* name) {
    if (static_cast<int64_t>(array.size()) != elements) {
        throw ArgumentError(std::string(name) + ": expected room for " + std::to_string(elements) + " results, got " +
                            std::to_string(array.size()) + ".");
    }
}

void bind_cuda(nb::module_& m);

}  // namespace flawscope_binding
