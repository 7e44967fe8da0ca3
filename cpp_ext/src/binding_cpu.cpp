// The CPU functions for Python: arrays are checked here, the GIL is released while a kernel works.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "binding.h"
#include "binding_arrays.h"

using namespace nb::literals;

namespace flawscope_binding {
namespace {

// As raise_status, and in words where it is FLAWSCOPE_SIMD that fits no level of this processor.
void raise_for(int status, const std::string& what) {
    if (status == FLAWSCOPE_BAD_ARGUMENT && flawscope_simd_level() == nullptr) {
        const char* wanted = std::getenv("FLAWSCOPE_SIMD");
        std::string levels;
        for (int i = 0; const char* name = flawscope_simd_level_at(i); ++i) {
            levels += (i ? ", " : "") + std::string(name);
        }
        throw ArgumentError("FLAWSCOPE_SIMD: expected a level that this processor has (" + levels + "), got " +
                            (wanted == nullptr ? "another" : wanted) + ".");
    }
    raise_status(status, what, flawscope_status_text(status));
}

// As raise_for, for a block that is not of what it should be.
void raise_for_block(int status, const std::string& wanted, const std::string& what, const char* level) {
    if (status == FLAWSCOPE_OTHER_BLOCK || status == FLAWSCOPE_DAMAGED_BLOCK) {
        throw ArgumentError("block: expected one that " + wanted + " wrote with this version and level " +
                            std::string(level) + ", got another: " + flawscope_status_text(status) + ". Pack the " + what + " again.");
    }
    raise_for(status, "block");
}

flawscope_storage storage_of(const std::string& name) {
    return name == "float32"   ? FLAWSCOPE_STORE_FLOAT32
           : name == "float16" ? FLAWSCOPE_STORE_FLOAT16
                               : FLAWSCOPE_STORE_INT8;
}

// A bank that keeps the array it was made of alive: the rows, or the block, are read where they lie.
class Bank {
public:
    Bank(Array rows, const std::string& storage, bool keep_rows, int screen, int threads) : storage_(storage) {
        check(rows, "bank", {-1, -1}, "MD");
        const flawscope_storage kind = storage_of(storage);
        rows_ = static_cast<int64_t>(rows.shape(0));
        channels_ = static_cast<int64_t>(rows.shape(1));
        kept_ = keep_rows || kind == FLAWSCOPE_STORE_FLOAT32;
        flawscope_bank* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_bank_create(static_cast<const float*>(rows.data()), rows_, channels_, kind, kept_,
                                           screen, threads, &made);
        }
        if (status == FLAWSCOPE_NOT_FINITE) {
            throw ArgumentError("bank: expected finite rows with squared norms below 2^126" +
                                std::string(kind == FLAWSCOPE_STORE_FLOAT16 ? " and values within float16" : "") +
                                ", got NaN, infinite or larger values. Is the bank damaged?");
        }
        raise_for(status, "bank");
        bank_.reset(made);
        if (kept_) source_ = rows;
    }

    // `block` was checked in Python: uint8, aligned, and small enough for what it says.
    static Bank of_block(nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig> block, Array rows,
                         const std::string& storage, int screen) {
        check(rows, "bank", {-1, -1}, "MD");
        Bank self;
        self.storage_ = storage;
        self.rows_ = static_cast<int64_t>(rows.shape(0));
        self.channels_ = static_cast<int64_t>(rows.shape(1));
        self.kept_ = true;
        flawscope_bank* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_bank_open_block(block.data(), static_cast<int64_t>(block.size()),
                                               static_cast<const float*>(rows.data()), self.rows_, self.channels_,
                                               storage_of(storage), screen, &made);
        }
        raise_for_block(status, "a bank of these rows", "rows", flawscope_simd_level());
        self.bank_.reset(made);
        self.source_ = Array(block);
        return self;
    }

    void write_block(nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> block) const {
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_bank_write_block(bank_.get(), block.data(), static_cast<int64_t>(block.size()));
        }
        raise_for(status, "block");
    }

    int64_t block_bytes() const { return flawscope_bank_block_bytes(bank_.get()); }

    void nearest(Array queries, int k, int rerank, int threads, nb::ndarray<float, nb::c_contig> squared,
                 nb::ndarray<int64_t, nb::c_contig> rows) const {
        check(queries, "queries", {-1, channels_}, "ND", true, true);
        const int64_t n = static_cast<int64_t>(queries.shape(0));
        check_room(squared, n * k, "squared");
        check_room(rows, n * k, "rows");
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_nearest(bank_.get(), queries.data(),
                                       is_half(queries) ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, n, k, rerank,
                                       threads, squared.data(), rows.data());
        }
        raise_for(status, "nearest");
    }

    int64_t rows() const { return rows_; }
    int64_t channels() const { return channels_; }
    double error_bound() const { return flawscope_bank_error_bound(bank_.get()); }
    double unproved_share() const { return flawscope_bank_unproved_share(bank_.get()); }
    int64_t bytes() const { return flawscope_bank_bytes(bank_.get()); }
    const char* simd_level() const { return flawscope_bank_simd_level(bank_.get()); }
    const std::string& storage() const { return storage_; }
    bool keeps_rows() const { return kept_; }

private:
    Bank() = default;

    struct Destroy {
        void operator()(flawscope_bank* bank) const { flawscope_bank_destroy(bank); }
    };
    std::string storage_;
    Array source_;  // before bank_, which reads it: members are destroyed in the opposite order
    std::unique_ptr<flawscope_bank, Destroy> bank_;
    int64_t rows_ = 0, channels_ = 0;
    bool kept_ = false;
};

// A bank with windows; it keeps the array of its rows alive, as `Bank` does. `starts` and `reach` were checked in Python.
class Windows {
public:
    Windows(Array rows, nb::ndarray<const int64_t, nb::c_contig> starts,
            nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig> reach, int threads) {
        check(rows, "rows", {-1, -1}, "MD");
        channels_ = static_cast<int64_t>(rows.shape(1));
        const int64_t height = static_cast<int64_t>(reach.shape(0)), width = static_cast<int64_t>(reach.shape(1));
        places_ = height * width;
        check_room(starts, places_ + 1, "starts");
        flawscope_windows* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_windows_create(static_cast<const float*>(rows.data()),
                                              static_cast<int64_t>(rows.shape(0)), channels_, starts.data(), height,
                                              width, reach.data(), threads, &made);
        }
        if (status == FLAWSCOPE_NOT_FINITE) {
            throw ArgumentError("rows: expected finite rows with squared norms below 2^126, got NaN, infinite or larger "
                                "values. Is the bank damaged?");
        }
        raise_for(status, "windows");
        windows_.reset(made);
        source_ = rows;
    }

    // `block` was checked in Python: uint8 and aligned.
    static Windows of_block(nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig> block, Array rows,
                            nb::ndarray<const int64_t, nb::c_contig> starts,
                            nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig> reach) {
        check(rows, "rows", {-1, -1}, "MD");
        Windows self;
        self.channels_ = static_cast<int64_t>(rows.shape(1));
        const int64_t height = static_cast<int64_t>(reach.shape(0)), width = static_cast<int64_t>(reach.shape(1));
        self.places_ = height * width;
        check_room(starts, self.places_ + 1, "starts");
        flawscope_windows* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_windows_open_block(block.data(), static_cast<int64_t>(block.size()),
                                                  static_cast<const float*>(rows.data()),
                                                  static_cast<int64_t>(rows.shape(0)), self.channels_, starts.data(),
                                                  height, width, reach.data(), &made);
        }
        raise_for_block(status, "a bank of these rows", "rows", flawscope_windows_simd_level());
        self.windows_.reset(made);
        self.source_ = Array(block);
        return self;
    }

    void write_block(nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> block) const {
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_windows_write_block(windows_.get(), block.data(), static_cast<int64_t>(block.size()));
        }
        raise_for(status, "block");
    }

    int64_t block_bytes() const { return flawscope_windows_block_bytes(windows_.get()); }

    void nearest(Array queries, int threads, nb::ndarray<float, nb::c_contig> squared,
                 nb::ndarray<int64_t, nb::c_contig> rows) const {
        check(queries, "queries", {-1, channels_}, "ND", true, true);
        const int64_t n = static_cast<int64_t>(queries.shape(0));
        if (n % places_ != 0) {
            throw ArgumentError("queries: expected whole images of " + std::to_string(places_) + " patches, got " +
                                std::to_string(n) + " patches.");
        }
        check_room(squared, n, "squared");
        check_room(rows, n, "rows");
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_windows_nearest(windows_.get(), queries.data(),
                                               is_half(queries) ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, n / places_,
                                               threads, squared.data(), rows.data());
        }
        raise_for(status, "nearest");
    }

    int64_t bytes() const { return flawscope_windows_bytes(windows_.get()); }
    int64_t computed() const { return flawscope_windows_computed(windows_.get()); }

private:
    Windows() = default;

    struct Destroy {
        void operator()(flawscope_windows* windows) const { flawscope_windows_destroy(windows); }
    };
    Array source_;  // before windows_, which reads it
    std::unique_ptr<flawscope_windows, Destroy> windows_;
    int64_t channels_ = 0, places_ = 0;
};

void nearest_rows(Array queries, Array bank, int k, int threads, nb::ndarray<float, nb::c_contig> squared,
                  nb::ndarray<int64_t, nb::c_contig> rows) {
    check(bank, "bank", {-1, -1}, "MD");
    const int64_t m = static_cast<int64_t>(bank.shape(0)), d = static_cast<int64_t>(bank.shape(1));
    check(queries, "queries", {-1, d}, "ND", true, true);
    const int64_t n = static_cast<int64_t>(queries.shape(0));
    check_room(squared, n * k, "squared");
    check_room(rows, n * k, "rows");
    int status;
    {
        nb::gil_scoped_release release;
        status = flawscope_nearest_rows(static_cast<const float*>(bank.data()), m, d, queries.data(),
                                        is_half(queries) ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32, n, k, threads,
                                        squared.data(), rows.data());
    }
    if (status == FLAWSCOPE_NOT_FINITE) {
        throw ArgumentError("bank: expected finite rows with squared norms below 2^126, got NaN, infinite or larger "
                            "values. Is the bank damaged?");
    }
    raise_for(status, "nearest");
}

int64_t kcenter_greedy(Array features, int64_t count, int64_t first, int threads, nb::object progress,
                       nb::ndarray<int64_t, nb::c_contig> chosen) {
    check(features, "features", {-1, -1}, "ND");
    check_room(chosen, count, "chosen");
    struct Caller {
        nb::object progress;
        std::unique_ptr<nb::python_error> kept;
    } caller{progress, nullptr};
    const auto call = [](int64_t done, int64_t total, void* user) -> int {
        if (done % 64 != 0 && done != total) return 0;  // the GIL for each centre would cost more
        // Thread 0 calls, which is the caller's own: elsewhere Python would never see Ctrl-C.
        nb::gil_scoped_acquire acquire;
        Caller& c = *static_cast<Caller*>(user);
        try {
            if (PyErr_CheckSignals() != 0) throw nb::python_error();
            if (!c.progress.is_none()) c.progress(done, total);
            return 0;
        } catch (nb::python_error& error) {
            // Kept for later: an exception may not pass through the C interface.
            c.kept = std::make_unique<nb::python_error>(std::move(error));
            return 1;
        }
    };
    int64_t computed = 0;
    int status;
    {
        nb::gil_scoped_release release;
        status = flawscope_kcenter_greedy(static_cast<const float*>(features.data()),
                                          static_cast<int64_t>(features.shape(0)),
                                          static_cast<int64_t>(features.shape(1)), count, first, threads, call, &caller,
                                          chosen.data(), &computed);
    }
    if (caller.kept) throw nb::python_error(std::move(*caller.kept));
    if (status == FLAWSCOPE_NOT_FINITE) {
        throw ArgumentError("features: expected finite rows with squared norms below 2^126, got NaN, infinite or larger "
                            "values.");
    }
    raise_for(status, "kcenter_greedy");
    return computed;
}

class Gaussians {
public:
    Gaussians() = default;
    Gaussians(Array mean, Array whitening, int threads) {
        check(mean, "mean", {-1, -1}, "PD");
        positions_ = static_cast<int64_t>(mean.shape(0));
        channels_ = static_cast<int64_t>(mean.shape(1));
        check(whitening, "whitening", {positions_, channels_, channels_}, "PDD");
        flawscope_gaussians* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_gaussians_create(static_cast<const float*>(mean.data()),
                                                static_cast<const float*>(whitening.data()), positions_, channels_,
                                                threads, &made);
        }
        raise_for(status, "mean, whitening");
        gaussians_.reset(made);
    }

    // Upper triangles alone, float32 or float16.
    static Gaussians of_triangles(Array mean, Array triangles, int threads) {
        Gaussians self = sized(mean, triangles);
        flawscope_gaussians* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_gaussians_create_triangles(
                static_cast<const float*>(mean.data()), triangles.data(), dtype_of(triangles), self.positions_,
                self.channels_, threads, &made);
        }
        raise_for(status, "mean, triangles");
        self.gaussians_.reset(made);
        return self;
    }

    static int64_t block_bytes(Array mean, Array triangles) {
        const Gaussians sizes = sized(mean, triangles);
        return flawscope_gaussians_block_bytes(dtype_of(triangles), sizes.positions_, sizes.channels_);
    }

    static void write_block(Array mean, Array triangles, int threads,
                            nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig> block) {
        const Gaussians sizes = sized(mean, triangles);
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_gaussians_write_block(
                static_cast<const float*>(mean.data()), triangles.data(), dtype_of(triangles), sizes.positions_,
                sizes.channels_, threads, block.data(), static_cast<int64_t>(block.size()));
        }
        raise_for(status, "mean, triangles");
    }

    // `block` was checked in Python: uint8 and aligned.
    static Gaussians of_block(nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig> block, Array mean,
                              Array triangles, int threads) {
        Gaussians self = sized(mean, triangles);
        flawscope_gaussians* made = nullptr;
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_gaussians_open_block(block.data(), static_cast<int64_t>(block.size()),
                                                    static_cast<const float*>(mean.data()), triangles.data(),
                                                    dtype_of(triangles), self.positions_, self.channels_, threads,
                                                    &made);
        }
        raise_for_block(status, "Gaussians of these numbers", "numbers", flawscope_simd_level());
        self.source_ = Array(block);
        self.gaussians_.reset(made);
        return self;
    }

    void mahalanobis(Array features, int threads, nb::ndarray<float, nb::c_contig> squared) const {
        check(features, "features", {-1, positions_, channels_}, "NPD", false, true);
        check_room(squared, static_cast<int64_t>(features.shape(0)) * positions_, "squared");
        int status;
        {
            nb::gil_scoped_release release;
            status = flawscope_mahalanobis(gaussians_.get(), static_cast<const float*>(features.data()),
                                           static_cast<int64_t>(features.shape(0)), threads, squared.data());
        }
        raise_for(status, "mahalanobis");
    }

    int64_t positions() const { return positions_; }
    int64_t channels() const { return channels_; }
    int64_t bytes() const { return flawscope_gaussians_bytes(gaussians_.get()); }

private:
    // No Gaussians yet, but how many there are; raises where the arrays do not fit.
    static Gaussians sized(const Array& mean, const Array& triangles) {
        check(mean, "mean", {-1, -1}, "PD");
        Gaussians self;
        self.positions_ = static_cast<int64_t>(mean.shape(0));
        self.channels_ = static_cast<int64_t>(mean.shape(1));
        check(triangles, "triangles", {self.positions_, self.channels_ * (self.channels_ + 1) / 2}, "PT", true);
        return self;
    }

    static flawscope_dtype dtype_of(const Array& triangles) {
        return is_half(triangles) ? FLAWSCOPE_FLOAT16 : FLAWSCOPE_FLOAT32;
    }

    struct Destroy {
        void operator()(flawscope_gaussians* gaussians) const { flawscope_gaussians_destroy(gaussians); }
    };
    Array source_;  // of a block; before gaussians_, which reads it
    std::unique_ptr<flawscope_gaussians, Destroy> gaussians_;
    int64_t positions_ = 0, channels_ = 0;
};

void separable_maps(Array grids, Array rows, Array columns, int threads, nb::ndarray<float, nb::c_contig> maps) {
    check(grids, "grids", {-1, -1, -1}, "Nhw", false, true);
    const int64_t h = static_cast<int64_t>(grids.shape(1)), w = static_cast<int64_t>(grids.shape(2));
    check(rows, "rows", {-1, h}, "Hh");
    check(columns, "columns", {w, -1}, "wW");
    check_room(maps, static_cast<int64_t>(grids.shape(0) * rows.shape(0) * columns.shape(1)), "maps");
    int status;
    {
        nb::gil_scoped_release release;
        status = flawscope_separable_maps(static_cast<const float*>(grids.data()),
                                          static_cast<int64_t>(grids.shape(0)), h, w,
                                          static_cast<const float*>(rows.data()), static_cast<int64_t>(rows.shape(0)),
                                          static_cast<const float*>(columns.data()),
                                          static_cast<int64_t>(columns.shape(1)), threads, maps.data());
    }
    raise_for(status, "separable_maps");
}

}  // namespace

void bind_cpu(nb::module_& m) {
    m.def("simd_level", [] {
        const char* name = flawscope_simd_level();
        raise_for(name == nullptr ? FLAWSCOPE_BAD_ARGUMENT : FLAWSCOPE_OK, "FLAWSCOPE_SIMD");
        return name;
    });
    m.def("windows_simd_level", [] {
        const char* name = flawscope_windows_simd_level();
        raise_for(name == nullptr ? FLAWSCOPE_BAD_ARGUMENT : FLAWSCOPE_OK, "FLAWSCOPE_SIMD");
        return name;
    });
    m.attr("BLOCK_ROWS") = FLAWSCOPE_BLOCK_ROWS;
    m.def("set_simd_level", [](const std::string& name) {
        raise_for(flawscope_set_simd_level(name.c_str()), "level " + name);
    }, "name"_a);
    m.def("simd_levels", [] {
        nb::list names;
        for (int i = 0; const char* name = flawscope_simd_level_at(i); ++i) names.append(name);
        return names;
    });
    nb::class_<Bank>(m, "Bank")
        .def(nb::init<Array, const std::string&, bool, int, int>(), "rows"_a, "storage"_a, "keep_rows"_a, "screen"_a,
             "threads"_a)
        .def_static("of_block", &Bank::of_block, "block"_a, "rows"_a, "storage"_a, "screen"_a)
        .def("write_block", &Bank::write_block, "block"_a)
        .def_prop_ro("block_bytes", &Bank::block_bytes)
        .def("nearest", &Bank::nearest, "queries"_a, "k"_a, "rerank"_a, "threads"_a, "squared"_a, "rows"_a)
        .def_prop_ro("rows", &Bank::rows)
        .def_prop_ro("channels", &Bank::channels)
        .def_prop_ro("storage", &Bank::storage)
        .def_prop_ro("keeps_rows", &Bank::keeps_rows)
        .def_prop_ro("error_bound", &Bank::error_bound)
        .def_prop_ro("unproved_share", &Bank::unproved_share)
        .def_prop_ro("nbytes", &Bank::bytes)
        .def_prop_ro("simd_level", &Bank::simd_level);
    nb::class_<Windows>(m, "Windows")
        .def(nb::init<Array, nb::ndarray<const int64_t, nb::c_contig>,
                      nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig>, int>(),
             "rows"_a, "starts"_a, "reach"_a, "threads"_a)
        .def_static("of_block", &Windows::of_block, "block"_a, "rows"_a, "starts"_a, "reach"_a)
        .def("write_block", &Windows::write_block, "block"_a)
        .def_prop_ro("block_bytes", &Windows::block_bytes)
        .def("nearest", &Windows::nearest, "queries"_a, "threads"_a, "squared"_a, "rows"_a)
        .def_prop_ro("nbytes", &Windows::bytes)
        .def_prop_ro("computed", &Windows::computed);
    m.def("nearest_rows", &nearest_rows, "queries"_a, "bank"_a, "k"_a, "threads"_a, "squared"_a, "rows"_a);
    m.def("kcenter_greedy", &kcenter_greedy, "features"_a, "count"_a, "first"_a, "threads"_a, "progress"_a.none(),
          "chosen"_a);
    m.def("separable_maps", &separable_maps, "grids"_a, "rows"_a, "columns"_a, "threads"_a, "maps"_a);
    nb::class_<Gaussians>(m, "Gaussians")
        .def(nb::init<Array, Array, int>(), "mean"_a, "whitening"_a, "threads"_a)
        .def_static("of_triangles", &Gaussians::of_triangles, "mean"_a, "triangles"_a, "threads"_a)
        .def_static("of_block", &Gaussians::of_block, "block"_a, "mean"_a, "triangles"_a, "threads"_a)
        .def_static("block_bytes", &Gaussians::block_bytes, "mean"_a, "triangles"_a)
        .def_static("write_block", &Gaussians::write_block, "mean"_a, "triangles"_a, "threads"_a, "block"_a)
        .def("mahalanobis", &Gaussians::mahalanobis, "features"_a, "threads"_a, "squared"_a)
        .def_prop_ro("positions", &Gaussians::positions)
        .def_prop_ro("channels", &Gaussians::channels)
        .def_prop_ro("nbytes", &Gaussians::bytes);
}

}  // namespace flawscope_binding
