// The CUDA functions for Python, over addresses as an engine and PyCUDA have them. Compiled, not run on a GPU; tests
// run this file with the emulated kernels.
//
// No type of the C interface is written a second time: members have the types of the header, addresses take the pointer
// type of the parameter that they are passed to, and the numbers of dtypes and statuses stay on this side. A function
// that changes in the header and not here does not compile.
#include <dlfcn.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "binding.h"

namespace flawscope_binding {
namespace {

#define FLAWSCOPE_EACH_FUNCTION(DO) \
    DO(status_text)                 \
    DO(patch_distance_version)      \
    DO(has_cuda)                    \
    DO(cuda_device_count)           \
    DO(cuda_bank_bytes)             \
    DO(cuda_bank_pack)              \
    DO(cuda_bank_check)             \
    DO(cuda_nearest_bytes)          \
    DO(cuda_nearest)                \
    DO(cuda_windows_nearest)        \
    DO(cuda_mahalanobis)            \
    DO(cuda_mahalanobis_triangles)  \
    DO(cuda_kcenter_bytes)          \
    DO(cuda_kcenter_greedy)         \
    DO(cuda_diffusion_step)

// Of the library that this module is linked to, unless others are put there.
struct Functions {
#define FLAWSCOPE_MEMBER(name) decltype(&flawscope_##name) name = &flawscope_##name;
    FLAWSCOPE_EACH_FUNCTION(FLAWSCOPE_MEMBER)
#undef FLAWSCOPE_MEMBER
};

// The same functions of a library at a path. It stays loaded: nobody knows when the last work on a stream is done.
Functions functions_of(const std::string& path) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw ArgumentError("CUDA kernels: expected a library that loads, got: " + std::string(dlerror()) + ".");
    }
    const auto symbol = [&](const char* name) {
        void* const function = dlsym(library, name);
        if (function == nullptr) {
            throw ArgumentError("CUDA kernels: expected " + std::string(name) + " in " + path +
                                ", got a library without.");
        }
        return function;
    };
    Functions functions;
#define FLAWSCOPE_LOAD(name) \
    functions.name = reinterpret_cast<decltype(functions.name)>(symbol("flawscope_" #name));
    FLAWSCOPE_EACH_FUNCTION(FLAWSCOPE_LOAD)
#undef FLAWSCOPE_LOAD
    // A symbol is a name without types: only the version tells that the arguments are those of our header.
    const int version = functions.patch_distance_version();
    if (version != FLAWSCOPE_PATCH_DISTANCE_VERSION) {
        throw ArgumentError("CUDA kernels: expected version " + std::to_string(FLAWSCOPE_PATCH_DISTANCE_VERSION) +
                            " of the interface in " + path + ", got " + std::to_string(version) + ".");
    }
    return functions;
}

// Becomes a pointer of any type and no integer: an address in the place of a size does not compile, nor the reverse.
struct Address {
    uintptr_t value;
    template <class T>
    operator T*() const {
        return reinterpret_cast<T*>(value);
    }
};

int dtype_of(const std::string& name) {
    if (name == "float32") return FLAWSCOPE_FLOAT32;
    if (name == "float16") return FLAWSCOPE_FLOAT16;
    throw ArgumentError("dtype: expected float32 or float16, got " + name + ".");
}

class CudaKernels {
public:
    CudaKernels() : CudaKernels(Functions{}) {}
    explicit CudaKernels(const std::string& path) : CudaKernels(functions_of(path)) {}

    int device_count() const {
        int count = 0;
        call("device_count", functions_.cuda_device_count, &count);
        return count;
    }

    int64_t bank_bytes(int64_t m, int64_t d) const {
        int64_t bytes = 0;
        call("bank_bytes", functions_.cuda_bank_bytes, m, d, &bytes);
        return bytes;
    }

    void bank_pack(uintptr_t rows, const std::string& dtype, int64_t m, int64_t d, uintptr_t packed,
                   uintptr_t stream) const {
        call("bank_pack", functions_.cuda_bank_pack, Address{rows}, dtype_of(dtype), m, d, Address{packed},
             Address{stream});
    }

    bool bank_check(uintptr_t packed, uintptr_t stream) const {
        const int status = released(functions_.cuda_bank_check, Address{packed}, Address{stream});
        if (status == FLAWSCOPE_NOT_FINITE) return false;
        raise_for("bank_check", status);
        return true;
    }

    int64_t nearest_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank) const {
        int64_t bytes = 0;
        call("nearest_bytes", functions_.cuda_nearest_bytes, n, m, d, k, rerank, &bytes);
        return bytes;
    }

    void nearest(uintptr_t packed, uintptr_t rows, const std::string& rows_dtype, int64_t m, int64_t d,
                 uintptr_t queries, const std::string& dtype, int64_t n, int k, int rerank, uintptr_t workspace,
                 int64_t workspace_bytes, uintptr_t squared, uintptr_t found, uintptr_t stream) const {
        call("nearest", functions_.cuda_nearest, Address{packed}, Address{rows}, dtype_of(rows_dtype), m, d,
             Address{queries}, dtype_of(dtype), n, k, rerank, Address{workspace}, workspace_bytes, Address{squared},
             Address{found}, Address{stream});
    }

    void windows_nearest(uintptr_t rows, int64_t m, int64_t d, uintptr_t starts, int64_t height, int64_t width,
                         uintptr_t reach, uintptr_t queries, const std::string& dtype, int64_t n, uintptr_t squared,
                         uintptr_t found, uintptr_t stream) const {
        call("windows_nearest", functions_.cuda_windows_nearest, Address{rows}, m, d, Address{starts}, height, width,
             Address{reach}, Address{queries}, dtype_of(dtype), n, Address{squared}, Address{found}, Address{stream});
    }

    void mahalanobis(uintptr_t mean, uintptr_t whitening, int64_t p, int64_t d, uintptr_t features, int64_t n,
                     uintptr_t squared, uintptr_t stream) const {
        call("mahalanobis", functions_.cuda_mahalanobis, Address{mean}, Address{whitening}, p, d, Address{features}, n,
             Address{squared}, Address{stream});
    }

    void mahalanobis_triangles(uintptr_t mean, uintptr_t triangles, const std::string& dtype, int64_t p, int64_t d,
                               uintptr_t features, int64_t n, uintptr_t squared, uintptr_t stream) const {
        call("mahalanobis_triangles", functions_.cuda_mahalanobis_triangles, Address{mean}, Address{triangles},
             dtype_of(dtype), p, d, Address{features}, n, Address{squared}, Address{stream});
    }

    int64_t kcenter_bytes(int64_t n, int64_t count) const {
        int64_t bytes = 0;
        call("kcenter_bytes", functions_.cuda_kcenter_bytes, n, count, &bytes);
        return bytes;
    }

    void kcenter_greedy(uintptr_t features, int64_t n, int64_t d, int64_t count, int64_t first, uintptr_t workspace,
                        int64_t workspace_bytes, uintptr_t chosen, uintptr_t stream) const {
        call("kcenter_greedy", functions_.cuda_kcenter_greedy, Address{features}, n, d, count, first,
             Address{workspace}, workspace_bytes, Address{chosen}, Address{stream});
    }

    void diffusion_step(uintptr_t row, int64_t n, int64_t c, int64_t cells, int guided, uintptr_t predicted,
                        uintptr_t clean, uintptr_t hidden, uintptr_t keep, uintptr_t masked, uintptr_t noise,
                        int64_t arrays, uintptr_t x, uintptr_t past, uintptr_t input, uintptr_t timesteps,
                        uintptr_t stream) const {
        call("diffusion_step", functions_.cuda_diffusion_step, Address{row}, n, c, cells, guided, Address{predicted},
             Address{clean}, Address{hidden}, Address{keep}, Address{masked}, Address{noise}, arrays, Address{x},
             Address{past}, Address{input}, Address{timesteps}, Address{stream});
    }

private:
    explicit CudaKernels(const Functions& functions) : functions_(functions) {
        if (functions_.has_cuda() == 0) {
            throw NoCuda("CUDA kernels: expected them in this installation, got none. Put nvcc on the PATH and install "
                         "flawscope again.");
        }
    }

    // Without the GIL: a launch waits too where the queue of the device is full.
    template <class... Parameters, class... Arguments>
    int released(int (*function)(Parameters...), Arguments... arguments) const {
        nb::gil_scoped_release release;
        return function(arguments...);
    }

    template <class... Parameters, class... Arguments>
    void call(const char* what, int (*function)(Parameters...), Arguments... arguments) const {
        raise_for(what, released(function, arguments...));
    }

    void raise_for(const char* what, int status) const {
        raise_status(status, std::string("CUDA kernels: ") + what, functions_.status_text(status));
    }

    const Functions functions_;
};

// Nothing is converted. Left to itself nanobind calls int() where a type does not fit, and "4096" would be an address.
auto operator""_exact(const char* name, size_t) { return nb::arg(name).noconvert(); }

}  // namespace

void bind_cuda(nb::module_& m) {
    m.def("has_cuda", [] { return flawscope_has_cuda() != 0; });
    nb::class_<CudaKernels>(m, "CudaKernels")
        .def(nb::init<>())
        .def(nb::init<const std::string&>(), "library"_exact)
        .def("device_count", &CudaKernels::device_count)
        .def("bank_bytes", &CudaKernels::bank_bytes, "m"_exact, "d"_exact)
        .def("bank_pack", &CudaKernels::bank_pack, "rows"_exact, "dtype"_exact, "m"_exact, "d"_exact, "packed"_exact,
             "stream"_exact)
        .def("bank_check", &CudaKernels::bank_check, "packed"_exact, "stream"_exact)
        .def("nearest_bytes", &CudaKernels::nearest_bytes, "n"_exact, "m"_exact, "d"_exact, "k"_exact, "rerank"_exact)
        .def("nearest", &CudaKernels::nearest, "packed"_exact, "rows"_exact, "rows_dtype"_exact, "m"_exact, "d"_exact,
             "queries"_exact, "dtype"_exact, "n"_exact, "k"_exact, "rerank"_exact, "workspace"_exact,
             "workspace_bytes"_exact, "squared"_exact, "found"_exact, "stream"_exact)
        .def("windows_nearest", &CudaKernels::windows_nearest, "rows"_exact, "m"_exact, "d"_exact, "starts"_exact,
             "height"_exact, "width"_exact, "reach"_exact, "queries"_exact, "dtype"_exact, "n"_exact, "squared"_exact,
             "found"_exact, "stream"_exact)
        .def("mahalanobis", &CudaKernels::mahalanobis, "mean"_exact, "whitening"_exact, "p"_exact, "d"_exact,
             "features"_exact, "n"_exact, "squared"_exact, "stream"_exact)
        .def("mahalanobis_triangles", &CudaKernels::mahalanobis_triangles, "mean"_exact, "triangles"_exact, "dtype"_exact,
             "p"_exact, "d"_exact, "features"_exact, "n"_exact, "squared"_exact, "stream"_exact)
        .def("kcenter_bytes", &CudaKernels::kcenter_bytes, "n"_exact, "count"_exact)
        .def("kcenter_greedy", &CudaKernels::kcenter_greedy, "features"_exact, "n"_exact, "d"_exact, "count"_exact,
             "first"_exact, "workspace"_exact, "workspace_bytes"_exact, "chosen"_exact, "stream"_exact)
        .def("diffusion_step", &CudaKernels::diffusion_step, "row"_exact, "n"_exact, "c"_exact, "cells"_exact,
             "guided"_exact, "predicted"_exact, "clean"_exact, "hidden"_exact, "keep"_exact, "masked"_exact,
             "noise"_exact, "arrays"_exact, "x"_exact, "past"_exact, "input"_exact, "timesteps"_exact, "stream"_exact);
}

}  // namespace flawscope_binding
