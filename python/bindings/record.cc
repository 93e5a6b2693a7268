// Record files and the number formats of what they say.
#include "amct/core/file_lock.h"
#include "amct/core/grid.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;
using amct::Grid;
using amct::LayerRecord;

struct HeldLock {
  std::optional<amct::FileLock> lock;
};

void bind_grid(nb::module_& module) {
  nb::class_<Grid>(module, "Grid", "A number format of the cache.")
      .def_prop_ro("name", [](const Grid& grid) { return std::string(grid.name); })
      .def_ro("bits", &Grid::bits, "Bits of a stored code.")
      .def_ro("qmin", &Grid::qmin, "Smallest code of an integer format.")
      .def_ro("qmax", &Grid::qmax, "Largest code of an integer format.")
      .def_prop_ro("is_float", &Grid::is_float, "Whether it is a float format: without offsets.")
      .def_prop_ro(
          "magnitudes",
          [](const Grid& grid) {
            std::vector<float> values;
            if (!grid.is_float()) return values;
            const auto magnitudes = grid.format().magnitudes();
            values.assign(magnitudes.begin(), magnitudes.end());
            return values;
          },
          "The values of a float format that are not negative, ascending; else empty.")
      .def_prop_ro(
          "values",
          [](const Grid& grid) {
            std::vector<float> values;
            if (!grid.is_float()) return values;
            for (int code = 0; code < 256; ++code)
              values.push_back(grid.format().decode(static_cast<std::uint8_t>(code)));
            return values;
          },
          "The value of each code of a float format; else empty.")
      .def("store", &Grid::store, "x"_a, "params"_a, "What is read back.");
  module.def(
      "find_grid", [](const std::string& name) { return amct::grid_named(name, "dst_type"); },
      "name"_a, "The number format of that name; ValueError for another one.");
  module.def(
      "grid_names",
      [] {
        std::vector<std::string> names;
        for (const Grid& grid : amct::grids()) names.emplace_back(grid.name);
        return names;
      },
      "The number formats.");
}

}  // namespace

void bind_record(nb::module_& module) {
  nb::class_<amct::QuantParams>(module, "QuantParams", "The factors of one group.")
      .def(
          "__init__",
          [](amct::QuantParams* self, float scale, std::int32_t offset) {
            new (self) amct::QuantParams{scale, offset};
          },
          "scale"_a, "offset"_a = 0)
      .def_ro("scale", &amct::QuantParams::scale)
      .def_ro("offset", &amct::QuantParams::offset);
  bind_grid(module);
  nb::class_<LayerRecord>(module, "LayerRecord", "The factors of one layer.")
      .def_ro("name", &LayerRecord::name)
      .def_prop_ro("scales",
                   [](const LayerRecord& layer) {
                     std::vector<float> scales;
                     for (const amct::QuantParams& params : layer.params)
                       scales.push_back(params.scale);
                     return scales;
                   })
      .def_prop_ro("offsets",
                   [](const LayerRecord& layer) {
                     std::vector<std::int32_t> offsets;
                     for (const amct::QuantParams& params : layer.params)
                       offsets.push_back(params.offset);
                     return offsets;
                   })
      .def_ro("per_head", &LayerRecord::per_head)
      .def_prop_ro("dst_type",
                   [](const LayerRecord& layer) { return std::string(layer.grid.name); })
      .def_ro("sink_tokens", &LayerRecord::sink_tokens)
      .def_prop_ro("tap",
                   [](const LayerRecord& layer) { return std::string(amct::name_of(layer.tap)); })
      .def_prop_ro("role", [](const LayerRecord& layer) -> std::optional<std::string> {
        const auto role = layer.known_role();
        if (!role) return std::nullopt;
        return std::string(amct::name_of(*role));
      });
  module.def("read_record", &amct::read_record, "path"_a, "The layers of a record file.");
  nb::class_<HeldLock>(module, "FileLock",
                       "Keeps other processes from a file until it is released.")
      .def(
          "__init__",
          [](HeldLock* self, const std::string& path) {
            new (self) HeldLock{amct::FileLock(path)};
          },
          "path"_a)
      .def("release", [](HeldLock& self) { self.lock.reset(); });
  module.def("write_empty_record", &amct::write_empty_record, "path"_a,
             "Replace the record file by an empty one.");
}

}  // namespace amct_python
