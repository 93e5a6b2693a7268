// C++ errors as the Python exceptions that the interface promises.
#include "amct/core/error.h"
#include "amct/export/exporter.h"

#include <exception>
#include <system_error>

#include <nanobind/stl/string.h>

#include "bindings.h"

namespace amct_python {
namespace {

/// Raises OSError(code, text, path); Python picks the subclass (PermissionError, ...) by the code.
void set_os_error(const amct::IoError& error) {
  const nb::object exception = nb::borrow(PyExc_OSError)(
      error.code(), std::generic_category().message(error.code()), error.path());
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
}

/// Raises NonFiniteError with its attributes count and first_index.
void set_non_finite_error(const amct::NonFiniteError& error, PyObject* type) {
  nb::object exception = nb::borrow(type)(error.what());
  exception.attr("count") = error.count();
  exception.attr("first_index") = error.first_index();
  PyErr_SetObject(type, exception.ptr());
}

/// Raises Unrepresentable with the nearest setting as its attributes.
void set_unrepresentable(const amct::Unrepresentable& error, PyObject* type) {
  const amct::Setting& nearest = error.nearest();
  nb::object exception = nb::borrow(type)(error.what());
  exception.attr("dst_type") = std::string(nearest.grid.name);
  exception.attr("granularity") = std::string(amct::name_of(nearest.granularity));
  exception.attr("with_offset") = nearest.with_offset;
  exception.attr("tap") = std::string(amct::name_of(nearest.tap));
  exception.attr("command") = nearest.command();
  PyErr_SetObject(type, exception.ptr());
}

/// A subclass of `base` that the module owns.
nb::object make_error(nb::module_& module, const char* name, const char* doc, PyObject* base) {
  const std::string qualified = std::string("amct_pytorch._core.") + name;
  nb::object type = nb::steal(PyErr_NewExceptionWithDoc(qualified.c_str(), doc, base, nullptr));
  module.attr(name) = type;
  return type;
}

}  // namespace

void bind_errors(nb::module_& module) {
  const nb::object non_finite =
      make_error(module, "NonFiniteError",
                 "A batch holds NaN or infinite values; nothing of it was added.\n\n"
                 "Attributes\n----------\ncount : int\n    Values that are not finite.\n"
                 "first_index : int\n    Flat row-major index of the first.",
                 PyExc_RuntimeError);
  const nb::object unrepresentable = make_error(
      module, "Unrepresentable",
      "A runtime cannot be told what a record says; the attributes are the nearest that it can.\n\n"
      "Attributes\n----------\ndst_type : str\n    What the cache stores: 'INT8', ...\n"
      "granularity : str\n    'per_tensor', 'per_head' or 'per_channel'.\n"
      "with_offset : bool\n    Whether offsets may differ from 0.\n"
      "tap : str\n    'linear' or 'cache': where to observe.\n"
      "command : str\n    The amct command that gives such factors.",
      PyExc_ValueError);
  nb::register_exception_translator(
      [](const std::exception_ptr& pointer, void* type) {
        try {
          std::rethrow_exception(pointer);
        } catch (const amct::NonFiniteError& error) {
          set_non_finite_error(error, static_cast<PyObject*>(type));
        } catch (const amct::ValueError& error) {
          PyErr_SetString(PyExc_ValueError, error.what());
        } catch (const amct::TypeError& error) {
          PyErr_SetString(PyExc_TypeError, error.what());
        } catch (const amct::IoError& error) {
          set_os_error(error);
        } catch (const amct::Error& error) {
          PyErr_SetString(PyExc_RuntimeError, error.what());
        }
      },
      non_finite.ptr());
  nb::register_exception_translator(
      [](const std::exception_ptr& pointer, void* type) {
        try {
          std::rethrow_exception(pointer);
        } catch (const amct::Unrepresentable& error) {
          set_unrepresentable(error, static_cast<PyObject*>(type));
        }
      },
      unrepresentable.ptr());  // asked before the one above; what it does not catch goes on
}

}  // namespace amct_python
