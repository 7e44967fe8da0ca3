// What the bindings share: statuses as exceptions, which module.cpp turns into those of flawscope.errors.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "flawscope/patch_distance.h"

namespace nb = nanobind;

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

// `text`: what flawscope_status_text says, of the library that returned the status.
inline void raise_status(int status, const std::string& what, const char* text) {
    if (status == FLAWSCOPE_OK) return;
    const std::string message = what + ": " + text + ".";
    if (status == FLAWSCOPE_NO_MEMORY) throw std::bad_alloc();
    if (status == FLAWSCOPE_BAD_ARGUMENT || status == FLAWSCOPE_NOT_FINITE || status == FLAWSCOPE_OTHER_DEVICE) {
        throw ArgumentError(message);
    }
    if (status >= FLAWSCOPE_CUDA) throw DeviceFailure(message);
    throw Failure(message);
}

// One for each binding file; module.cpp calls them, and they call nothing of it.
void bind_cpu(nb::module_& m);
void bind_cuda(nb::module_& m);

}  // namespace flawscope_binding
