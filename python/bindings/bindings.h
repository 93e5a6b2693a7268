// The parts of the extension module; each adds its functions and classes. They convert, release the
// GIL and translate errors, and hold no logic.
#pragma once

#include "amct/core/options.h"
#include "amct/core/tensor_view.h"

#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace amct_python {

namespace nb = nanobind;

void bind_errors(nb::module_& module);
void bind_config(nb::module_& module);
void bind_exporters(nb::module_& module);
void bind_observe(nb::module_& module);
void bind_record(nb::module_& module);
void bind_session(nb::module_& module);
void bind_store(nb::module_& module);
void bind_counts(nb::module_& module);

/// Any array with the DLPack or buffer protocol; kept alive by the caller while a view is in use.
using Array = nb::ndarray<nb::ro>;

/// A view of `array`. Throws amct::TypeError for a dtype that cannot be observed and for memory of
/// another device than the CPU.
amct::TensorView view_of(const Array& array);

/// A Python bool, int, float, str or list of numbers as a setting. Throws amct::TypeError
/// otherwise, amct::StateError for an int beyond 64 bits.
amct::OptionValue option_of(const std::string& key, nb::handle value);

}  // namespace amct_python
