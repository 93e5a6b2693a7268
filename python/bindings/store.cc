// Codes of a quantized cache.
#include "amct/core/error.h"
#include "amct/store/codes.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;
using amct::Codec;

amct::Granularity granularity_of(const std::string& name) {
  for (const auto granularity : {amct::Granularity::kPerTensor, amct::Granularity::kPerChannel,
                                 amct::Granularity::kPerHead}) {
    if (name == amct::name_of(granularity)) return granularity;
  }
  throw amct::ValueError("granularity must be 'per_tensor', 'per_channel' or 'per_head', not '" +
                         name + "'");
}

/// The bytes of an array of them.
template <typename Byte, typename Any>
amct::BasicCodesView<Byte> codes_of(const Any& array) {
  if (array.device_type() != nb::device::cpu::value)
    throw amct::TypeError("the codes are not in CPU memory; move them there first");
  if (array.itemsize() != 1)
    throw amct::TypeError("codes must have a type of one byte, as int8 and uint8 have");
  amct::BasicCodesView<Byte> view;
  view.data = static_cast<Byte*>(array.data());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    view.shape.push_back(static_cast<std::int64_t>(array.shape(i)));
    view.strides.push_back(array.stride(i));
  }
  return view;
}

}  // namespace

void bind_store(nb::module_& module) {
  nb::class_<Codec>(module, "Codec",
                    "A number format with the factors of a layer: makes codes of tensors [..., "
                    "heads, tokens, head_dim] in CPU memory, and tensors of codes.")
      .def(
          "__init__",
          [](Codec* self, const std::string& dst_type, const std::vector<float>& scales,
             const std::vector<std::int32_t>& offsets, const std::string& granularity) {
            if (scales.size() != offsets.size())
              throw amct::ValueError("there must be as many offsets as scales");
            std::vector<amct::QuantParams> params;
            for (std::size_t i = 0; i < scales.size(); ++i)
              params.push_back({scales[i], offsets[i]});
            new (self) Codec(amct::grid_named(dst_type, "dst_type"), params,
                             granularity_of(granularity), amct::HeadLayout::kOwnDimension);
          },
          "dst_type"_a, "scales"_a, "offsets"_a, "granularity"_a)
      .def("row_bytes", &Codec::row_bytes, "channels"_a,
           "Bytes of the codes of so many channels of a head.")
      .def(
          "quantize",
          [](const Codec& self, const Array& x, const nb::ndarray<>& codes) {
            const amct::TensorView view = view_of(x);
            const auto to = codes_of<std::uint8_t>(codes);
            const nb::gil_scoped_release release;
            self.quantize(view, to);
          },
          "x"_a, "codes"_a, nb::sig("def quantize(self, x: typing.Any, codes: typing.Any) -> None"),
          "Write the codes of x, float32, float16 or bfloat16, to an int8 or uint8 array: [..., "
          "heads, tokens, row_bytes(head_dim)].")
      .def(
          "dequantize",
          [](const Codec& self, const Array& codes, const nb::ndarray<>& out) {
            const amct::TensorView view = view_of(Array(out));
            const auto from = codes_of<const std::uint8_t>(codes);
            const nb::gil_scoped_release release;
            self.dequantize(from, {out.data(), view.dtype, view.shape, view.strides});
          },
          "codes"_a, "out"_a,
          nb::sig("def dequantize(self, codes: typing.Any, out: typing.Any) -> None"),
          "Write what codes stand for to a float32, float16 or bfloat16 array.");
}

}  // namespace amct_python
