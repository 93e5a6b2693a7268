// Python values as views and settings.
#include "amct/core/error.h"

#include <string>
#include <vector>

#include <nanobind/stl/string.h>

#include "bindings.h"

namespace amct_python {
namespace {

amct::DType dtype_of(const nb::dlpack::dtype& dtype) {
  using Code = nb::dlpack::dtype_code;
  if (dtype.lanes == 1) {
    if (dtype.code == static_cast<std::uint8_t>(Code::Float) && dtype.bits == 32)
      return amct::DType::kFloat32;
    if (dtype.code == static_cast<std::uint8_t>(Code::Float) && dtype.bits == 16)
      return amct::DType::kFloat16;
    if (dtype.code == static_cast<std::uint8_t>(Code::Bfloat) && dtype.bits == 16)
      return amct::DType::kBFloat16;
  }
  std::string name;
  switch (static_cast<Code>(dtype.code)) {
    case Code::Int:
      name = "int";
      break;
    case Code::UInt:
      name = "uint";
      break;
    case Code::Float:
      name = "float";
      break;
    case Code::Complex:
      name = "complex";
      break;
    case Code::Bool:
      throw amct::TypeError(
          "a tensor of bool cannot be calibrated; float32, float16 or bfloat16 is needed");
    default:
      name = "type-" + std::to_string(dtype.code) + "-";
  }
  throw amct::TypeError("a tensor of " + name + std::to_string(dtype.bits) +
                        " cannot be calibrated; float32, float16 or bfloat16 is needed");
}

}  // namespace

amct::TensorView view_of(const Array& array) {
  if (array.device_type() != nb::device::cpu::value) {
    throw amct::TypeError("the tensor is not in CPU memory; move it there first");
  }
  amct::TensorView view;
  view.data = array.data();
  view.dtype = dtype_of(array.dtype());
  view.shape.reserve(array.ndim());
  view.strides.reserve(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    view.shape.push_back(static_cast<std::int64_t>(array.shape(i)));
    view.strides.push_back(array.stride(i));
  }
  return view;
}

amct::OptionValue option_of(const std::string& key, nb::handle value) {
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
  if (nb::isinstance<nb::int_>(value)) {
    std::int64_t number = 0;
    if (!nb::try_cast(value, number))
      throw amct::StateError(key + " is out of the range of 64-bit integers");
    return number;
  }
  if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
  if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
  if (nb::isinstance<nb::list>(value) || nb::isinstance<nb::tuple>(value)) {
    std::vector<double> numbers;
    for (const nb::handle element : value) {
      const bool number =
          nb::isinstance<nb::float_>(element) ||
          (nb::isinstance<nb::int_>(element) && !nb::isinstance<nb::bool_>(element));
      if (!number)
        throw amct::TypeError(key + " must be a list of numbers, not " + nb::repr(value).c_str());
      numbers.push_back(nb::cast<double>(element));
    }
    return numbers;
  }
  throw amct::TypeError(key + " must be a bool, an int, a float, a str or a list of numbers, not " +
                        nb::repr(nb::borrow(value).type()).c_str());
}

}  // namespace amct_python
