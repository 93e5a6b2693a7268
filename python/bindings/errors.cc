// C++ errors as the Python exceptions that the interface promises.
#include "amct/core/error.h"

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

}  // namespace

void bind_errors(nb::module_& module) {
  const nb::object non_finite = nb::steal(PyErr_NewExceptionWithDoc(
      "amct_pytorch._core.NonFiniteError",
      "A batch holds NaN or infinite values; nothing of it was added.\n\n"
      "Attributes\n----------\ncount : int\n    Values that are not finite.\n"
      "first_index : int\n    Flat row-major index of the first.",
      PyExc_RuntimeError, nullptr));
  module.attr("NonFiniteError") = non_finite;
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
}

}  // namespace amct_python
