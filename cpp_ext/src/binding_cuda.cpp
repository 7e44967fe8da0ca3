// The Python face of the CUDA functions. Arrays are of any library that speaks DLPack, on one CUDA device, and the caller's:
// nothing is copied or allocated here, and a call returns when its work is on the stream. Compiled, not run.
#include "binding.h"

namespace flawscope_binding {
namespace {

using namespace nb::literals;

constexpr int kCuda = nb::device::cuda::value;

// Arrays on different devices cannot meet in one kernel.
class OneDevice {
public:
    template <class AnyArray>
    void add(const AnyArray& array, const char* name) {
        if (device_ < 0) {
            device_ = array.device_id();
            first_ = name;
        } else if (array.device_id() != device_) {
            throw ArgumentError(std::string(name) + ": expected an array on CUDA device " + std::to_string(device_) +
                                " as " + first_ + " is, got one on device " + std::to_string(array.device_id()) +
                                ". Copy it there.");
        }
    }

private:
    int device_ = -1;
    const char* first_ = "";
};

void check_input(OneDevice& place, const Array& array, const char* name, const std::vector<int64_t>& sizes,
                 const char* letters, bool half_too = false, bool empty_too = false) {
    check(array, name, sizes, letters, half_too, empty_too, kCuda);
    place.add(array, name);
}

// Memory that a function writes to.
using Output = nb::ndarray<>;

template <class Element>
void check_writable(OneDevice& place, const Output& array, const char* name) {
    if (array.dtype() != nb::dtype<Element>()) {
        throw ArgumentError(std::string(name) + ": expected " + dtype_name(nb::dtype<Element>()) + ", got " +
                            dtype_name(array.dtype()) + ".");
    }
    if (array.device_type() != kCuda) {
        throw ArgumentError(std::string(name) + ": expected an array on a CUDA device, got one on device " +
                            std::to_string(array.device_type()) + ":" + std::to_string(array.device_id()) +
                            " (DLPack). All arrays of a call must be in one place: copy it there.");
    }
    int64_t step = 1;
    for (size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) > 1 && array.stride(i) != step) {
            throw ArgumentError(std::string(name) + ": expected contiguous memory to write to, got strides.");
        }
        step *= static_cast<int64_t>(array.shape(i));
    }
    place.add(array, name);
}

template <class Element>
void check_output(OneDevice& place, const Output& array, int64_t elements, const char* name) {
    check_writable<Element>(place, array, name);
    check_room(array, elements, name);
}

void check_bytes(OneDevice& place, const Output& memory, int64_t needed, const char* name) {
    check_writable<uint8_t>(place, memory, name);
    if (static_cast<int64_t>(memory.size()) < needed) {
        throw ArgumentError(std::string(name) + ": expected at least " + std::to_string(needed) + " bytes, got " +
                            std::to_string(memory.size()) + ". Ask for the size first.");
    }
    if (reinterpret_cast<uintptr_t>(memory.data()) % 16 != 0) {
        throw ArgumentError(std::string(name) + ": expected memory aligned to 16 bytes, got other.");
    }
}

int64_t size(const Array& array, int axis) { return static_cast<int64_t>(array.shape(axis)); }
int dtype_of(const Array& array) { return is_half(array) ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32; }
void* stream_of(uintptr_t stream) { return reinterpret_cast<void*>(stream); }

int64_t bank_bytes(int64_t m, int64_t d) {
    int64_t bytes = 0;
    raise_for(flawscope_cuda_bank_bytes(m, d, &bytes), "cuda_bank_bytes");
    return bytes;
}

int64_t nearest_bytes(int64_t n, int64_t m, int64_t d, int k, int rerank) {
    int64_t bytes = 0;
    raise_for(flawscope_cuda_nearest_bytes(n, m, d, k, rerank, &bytes), "cuda_nearest_bytes");
    return bytes;
}

int64_t kcenter_bytes(int64_t n, int64_t count) {
    int64_t bytes = 0;
    raise_for(flawscope_cuda_kcenter_bytes(n, count, &bytes), "cuda_kcenter_bytes");
    return bytes;
}

void bank_pack(Array rows, Output packed, uintptr_t stream) {
    OneDevice place;
    check_input(place, rows, "bank", {-1, -1}, "MD", true);
    check_bytes(place, packed, bank_bytes(size(rows, 0), size(rows, 1)), "packed");
    raise_for(flawscope_cuda_bank_pack(rows.data(), dtype_of(rows), size(rows, 0), size(rows, 1), static_cast<void*>(packed.data()),
                                       stream_of(stream)),
              "cuda_bank_pack");
}

void bank_check(Output packed, uintptr_t stream) {
    OneDevice place;
    check_bytes(place, packed, 1, "packed");
    int status;
    {
        nb::gil_scoped_release release;  // waits for the stream
        status = flawscope_cuda_bank_check(packed.data(), stream_of(stream));
    }
    raise_for(status, "bank");
}

void nearest(Output packed, Array rows, Array queries, int k, int rerank, Output workspace, Output squared,
             Output found, uintptr_t stream) {
    OneDevice place;
    check_input(place, rows, "bank", {-1, -1}, "MD", true);
    const int64_t m = size(rows, 0), d = size(rows, 1);
    check_input(place, queries, "queries", {-1, d}, "ND", true, true);
    const int64_t n = size(queries, 0);
    check_output<float>(place, squared, n * k, "squared");
    check_output<int64_t>(place, found, n * k, "found");
    if (n == 0) return;
    check_bytes(place, packed, bank_bytes(m, d), "packed");
    check_bytes(place, workspace, nearest_bytes(n, m, d, k, rerank), "workspace");
    raise_for(flawscope_cuda_nearest(packed.data(), rows.data(), dtype_of(rows), m, d, queries.data(),
                                     dtype_of(queries), n, k, rerank, workspace.data(),
                                     static_cast<int64_t>(workspace.size()), static_cast<float*>(squared.data()), static_cast<int64_t*>(found.data()),
                                     stream_of(stream)),
              "cuda_nearest");
}

void mahalanobis(Array mean, Array whitening, Array features, Output squared, uintptr_t stream) {
    OneDevice place;
    check_input(place, mean, "mean", {-1, -1}, "PD");
    const int64_t p = size(mean, 0), d = size(mean, 1);
    check_input(place, whitening, "whitening", {p, d, d}, "PDD");
    check_input(place, features, "features", {-1, p, d}, "NPD", false, true);
    check_output<float>(place, squared, size(features, 0) * p, "squared");
    if (size(features, 0) == 0) return;
    raise_for(flawscope_cuda_mahalanobis(static_cast<const float*>(mean.data()),
                                         static_cast<const float*>(whitening.data()), p, d,
                                         static_cast<const float*>(features.data()), size(features, 0),
                                         static_cast<float*>(squared.data()), stream_of(stream)),
              "cuda_mahalanobis");
}

void kcenter(Array features, int64_t count, int64_t first, Output workspace, Output chosen, uintptr_t stream) {
    OneDevice place;
    check_input(place, features, "features", {-1, -1}, "ND");
    check_output<int64_t>(place, chosen, count, "chosen");
    check_bytes(place, workspace, kcenter_bytes(size(features, 0), count), "workspace");
    raise_for(flawscope_cuda_kcenter_greedy(static_cast<const float*>(features.data()), size(features, 0),
                                            size(features, 1), count, first, workspace.data(),
                                            static_cast<int64_t>(workspace.size()),
                                            static_cast<int64_t*>(chosen.data()), stream_of(stream)),
              "cuda_kcenter_greedy");
}

}  // namespace

void bind_cuda(nb::module_& m) {
    m.def("has_cuda", [] { return flawscope_has_cuda() != 0; });
    m.def("cuda_device_count", [] {
        int count = 0;
        raise_for(flawscope_cuda_device_count(&count), "cuda_device_count");
        return count;
    });
    m.def("cuda_bank_bytes", &bank_bytes, "m"_a, "d"_a);
    m.def("cuda_bank_pack", &bank_pack, "rows"_a, "packed"_a, "stream"_a);
    m.def("cuda_bank_check", &bank_check, "packed"_a, "stream"_a);
    m.def("cuda_nearest_bytes", &nearest_bytes, "n"_a, "m"_a, "d"_a, "k"_a, "rerank"_a);
    m.def("cuda_nearest", &nearest, "packed"_a, "rows"_a, "queries"_a, "k"_a, "rerank"_a, "workspace"_a, "squared"_a,
          "found"_a, "stream"_a);
    m.def("cuda_mahalanobis", &mahalanobis, "mean"_a, "whitening"_a, "features"_a, "squared"_a, "stream"_a);
    m.def("cuda_kcenter_bytes", &kcenter_bytes, "n"_a, "count"_a);
    m.def("cuda_kcenter_greedy", &kcenter, "features"_a, "count"_a, "first"_a, "workspace"_a, "chosen"_a, "stream"_a);
}

}  // namespace flawscope_binding
