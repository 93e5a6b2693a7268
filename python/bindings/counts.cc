// What a counts file says of its layers.
#include "amct/config/calibration_config.h"
#include "amct/core/granularity.h"
#include "amct/core/kv_layer.h"
#include "amct/observe/observer.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;

/// A layer of a counts file, without its values.
struct CountedLayer {
  amct::LayerConfig config;
  std::uint64_t index = 0;
  amct::Granularity granularity = amct::Granularity::kPerTensor;
  std::int64_t batches = 0;
  std::int64_t rows = 0;
  std::int64_t channels = 0;
  std::int64_t non_finite = 0;
  bool is_sketch = false;
};

struct CountsFile {
  amct::CountsHeader header;
  std::vector<CountedLayer> layers;
};

CountsFile inspect_counts(const std::string& path) {
  amct::CountsReader reader(path);
  CountsFile file{.header = reader.header(), .layers = {}};
  while (std::optional<amct::LayerCounts> layer = reader.next()) {
    const amct::Observer& seen = layer->observer;
    file.layers.push_back({.config = std::move(layer->config),
                           .index = layer->index,
                           .granularity = seen.granularity(),
                           .batches = seen.batches(),
                           .rows = seen.rows(),
                           .channels = seen.channels(),
                           .non_finite = seen.non_finite_count(),
                           .is_sketch = seen.is_sketch()});
  }
  std::ranges::stable_sort(file.layers, {}, &CountedLayer::index);
  return file;
}

}  // namespace

void bind_counts(nb::module_& module) {
  nb::class_<CountedLayer>(module, "CountedLayer", "A layer of a counts file, without its values.")
      .def_prop_ro("name", [](const CountedLayer& l) { return l.config.name; })
      .def_ro("index", &CountedLayer::index, "Its place in the configuration.")
      .def_prop_ro(
          "algorithm", [](const CountedLayer& l) { return l.config.algorithm; },
          "The search it was calibrated with.")
      .def_prop_ro(
          "tap", [](const CountedLayer& l) { return std::string(name_of(l.config.tap)); },
          "Where it was observed: 'linear' or 'cache'.")
      .def_prop_ro(
          "role",
          [](const CountedLayer& l) -> std::optional<std::string> {
            const std::optional<amct::KVRole> role =
                l.config.role ? l.config.role : amct::role_in_name(l.config.name);
            if (!role) return std::nullopt;
            return std::string(name_of(*role));
          },
          "'key' or 'value', where the configuration or its name says it.")
      .def_prop_ro(
          "granularity", [](const CountedLayer& l) { return std::string(name_of(l.granularity)); },
          "How it was observed: 'per_tensor', 'per_channel' or 'per_head'.")
      .def_ro("batches", &CountedLayer::batches, "Batches observed.")
      .def_ro("rows", &CountedLayer::rows, "Rows observed; turned keys count again.")
      .def_ro("channels", &CountedLayer::channels, "Size of the last dimension.")
      .def_ro("non_finite", &CountedLayer::non_finite, "NaN and infinite values left out.")
      .def_ro("is_sketch", &CountedLayer::is_sketch,
              "Whether float32 values went beyond the memory budget and were sketched.");
  nb::class_<CountsFile>(module, "CountsFile", "What a counts file says of its layers.")
      .def_prop_ro(
          "batch_num", [](const CountsFile& f) { return f.header.batch_num; },
          "Batches that were asked for.")
      .def_prop_ro(
          "written_by", [](const CountsFile& f) { return f.header.written_by; },
          "Name and version of the program.")
      .def_ro("layers", &CountsFile::layers, "In the order of the configuration.");
  module.def("inspect_counts", &inspect_counts, nb::call_guard<nb::gil_scoped_release>(), "path"_a,
             "What a counts file says of its layers, without their values.");
}

}  // namespace amct_python
