// The module flawscope.cpp_ext._native: its exceptions, and what the binding files put into it.
#include "binding.h"

namespace {

// Exceptions of flawscope.errors. Plain pointers that are never given back: an nb::object would be released by its
// destructor after the interpreter has gone, which crashes at exit.
struct Errors {
    PyObject* argument = nullptr;
    PyObject* backend = nullptr;
    PyObject* device = nullptr;
} errors;

void translate(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const flawscope_binding::ArgumentError& error) {
        PyErr_SetString(errors.argument, error.what());
    } catch (const flawscope_binding::NoCuda& error) {
        PyErr_SetString(errors.backend, error.what());
    } catch (const flawscope_binding::DeviceFailure& error) {
        PyErr_SetString(errors.device, error.what());
    }
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The kernels; see flawscope.cpp_ext for the functions to use.";
    // The library is a file of its own. One that is older or newer than this module could take other arguments, and
    // would write to wherever they point: so before anything else is called.
    if (flawscope_patch_distance_version() != FLAWSCOPE_PATCH_DISTANCE_VERSION) {
        const std::string text = "libflawscope_kernels: expected version " +
                                 std::to_string(FLAWSCOPE_PATCH_DISTANCE_VERSION) + " of its interface, got " +
                                 std::to_string(flawscope_patch_distance_version());
        throw nb::import_error(text.c_str());
    }
    const nb::module_ tree = nb::module_::import_("flawscope.errors");
    errors.argument = nb::object(tree.attr("ArgumentError")).release().ptr();
    errors.backend = nb::object(tree.attr("BackendError")).release().ptr();
    errors.device = nb::object(tree.attr("DeviceError")).release().ptr();
    nb::register_exception_translator(translate, nullptr);
    flawscope_binding::bind_cpu(m);
    flawscope_binding::bind_cuda(m);
}
