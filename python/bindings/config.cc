// Configuration, definition and record files.
#include "amct/config/calibration_config.h"
#include "amct/config/definition.h"
#include "amct/config/layer_patterns.h"
#include "amct/core/file.h"
#include "amct/search/search.h"

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;
using amct::algorithm_catalog;

std::vector<std::string> layer_names(const amct::CalibrationConfig& config) {
  std::vector<std::string> names;
  for (const amct::LayerConfig& layer : config.layers) names.push_back(layer.name);
  return names;
}

/// (begin, end, groups)
using SliceTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
/// (name, tap, role, slice, max_position, sink_tokens, query_weighted)
using Place =
    std::tuple<std::string, std::string, std::optional<std::string>, std::optional<SliceTuple>,
               std::optional<std::int64_t>, std::int64_t, bool>;

std::vector<Place> places(const amct::CalibrationConfig& config) {
  std::vector<Place> result;
  for (const amct::LayerConfig& layer : config.layers) {
    std::optional<std::string> role;
    if (layer.role) role = std::string(amct::name_of(*layer.role));
    std::optional<SliceTuple> slice;
    if (layer.slice) slice.emplace(layer.slice->begin, layer.slice->end, layer.slice->groups);
    result.emplace_back(layer.name, std::string(amct::name_of(layer.tap)), role, slice,
                        layer.max_position, layer.sink_tokens, layer.query_weighted);
  }
  return result;
}

void place(amct::CalibrationConfig& config, const std::string& name,
           const std::optional<std::string>& role, const std::optional<SliceTuple>& slice,
           const std::optional<std::string>& tap, std::optional<std::int64_t> max_position) {
  for (amct::LayerConfig& layer : config.layers) {
    if (layer.name != name) continue;
    if (role) layer.role = *role == "key" ? amct::KVRole::kKey : amct::KVRole::kValue;
    if (slice) layer.slice = {std::get<0>(*slice), std::get<1>(*slice), std::get<2>(*slice)};
    if (tap) layer.tap = *tap == "cache" ? amct::Tap::kCache : amct::Tap::kLinear;
    if (max_position) layer.max_position = max_position;
  }
}

std::vector<std::string> layers_without_heads(const amct::CalibrationConfig& config) {
  std::vector<std::string> names;
  for (const amct::LayerConfig& layer : config.layers) {
    if (layer.granularity == amct::Granularity::kPerHead && layer.head_num == 0)
      names.push_back(layer.name);
  }
  return names;
}

void set_heads(amct::CalibrationConfig& config, const std::string& name, std::int64_t heads) {
  for (amct::LayerConfig& layer : config.layers) {
    if (layer.name == name) layer.head_num = heads;
  }
}

/// (name, type, whether it can be calibrated)
using LayerTuples = std::vector<std::tuple<std::string, std::string, bool>>;

std::vector<amct::ModelLayer> layers_of(const LayerTuples& model) {
  std::vector<amct::ModelLayer> layers;
  layers.reserve(model.size());
  for (const auto& [name, type, supported] : model) layers.push_back({name, type, supported});
  return layers;
}

}  // namespace

void bind_config(nb::module_& module) {
  nb::class_<amct::CalibrationConfig>(module, "CalibrationConfig",
                                      "Which layers to calibrate, and how.")
      .def_ro("batch_num", &amct::CalibrationConfig::batch_num, "Batches a layer observes.")
      .def_prop_ro("layer_names", &layer_names, "Names of the layers, in order.")
      .def("places", &places,
           "Where and how each layer is observed: (name, tap, role, slice, max_position, "
           "sink_tokens, query_weighted), in order; a slice is (begin, end, groups).")
      .def("layers_without_heads", &layers_without_heads,
           "The layers whose granularity is per head, and of which the heads are not known.")
      .def(
          "set_query_weighted",
          [](amct::CalibrationConfig& config, bool weighted) {
            for (amct::LayerConfig& layer : config.layers) layer.query_weighted = weighted;
          },
          "weighted"_a, "Weigh the channels of keys by queries, in all layers.")
      .def(
          "set_sink_tokens",
          [](amct::CalibrationConfig& config, std::int64_t tokens) {
            for (amct::LayerConfig& layer : config.layers) layer.sink_tokens = tokens;
          },
          "tokens"_a, "Leave the first tokens of each sequence out in all layers.")
      .def("set_heads", &set_heads, "name"_a, "heads"_a, "Say how many heads layer `name` has.")
      .def("place", &place, "name"_a, "role"_a, "slice"_a, "tap"_a, "max_position"_a,
           "Say what layer `name` is and where it is observed. None for tap and max_position "
           "leaves them as they are.")
      .def(
          "to_json",
          [](const amct::CalibrationConfig& config) {
            return amct::to_json(config, algorithm_catalog());
          },
          "The text of the configuration file.")
      .def(
          "write",
          [](const amct::CalibrationConfig& config, const std::string& path) {
            amct::write_file_atomically(path, amct::to_json(config, algorithm_catalog()));
          },
          "path"_a, "Write the configuration file, atomically.");

  nb::class_<amct::Definition>(module, "Definition",
                               "A parsed simplified definition (protobuf text).")
      .def_static(
          "read",
          [](const std::string& path) { return amct::Definition::read(path, algorithm_catalog()); },
          "path"_a)
      .def("layers", &amct::Definition::layers, "The layers it names.")
      .def(
          "configure",
          [](const amct::Definition& definition, const std::vector<std::string>& names) {
            return definition.configure(names);
          },
          "names"_a, "The configuration of the named layers.");

  module.def(
      "default_config",
      [](const std::vector<std::string>& names) {
        return amct::default_config(names, algorithm_catalog());
      },
      "names"_a, "The configuration of the named layers at their defaults.");
  module.def(
      "read_config",
      [](const std::string& path) { return amct::read_config(path, algorithm_catalog()); },
      "path"_a, "Read a configuration file.");
  module.def(
      "expand_layers",
      [](const std::vector<std::string>& names, const LayerTuples& model,
         const std::string& source) {
        return amct::expand_layers(names, layers_of(model), source);
      },
      "names"_a, "model"_a, "source"_a,
      "The names, with glob patterns replaced by the layers of the model that they match.");
  module.def(
      "check_layers",
      [](const std::vector<std::string>& names, const LayerTuples& model,
         const std::string& source) { amct::check_layers(names, layers_of(model), source); },
      "names"_a, "model"_a, "source"_a,
      "Raise ValueError unless every name is a layer (name, type, supported) of the model that can "
      "be calibrated, named once.");
  module.def(
      "write_file",
      [](const std::string& path, const nb::bytes& content) {
        amct::write_file_atomically(path, {content.c_str(), content.size()});
      },
      "path"_a, "content"_a, "Write a file, atomically.");
  module.def("check_output_path", &amct::check_output_path, "path"_a,
             "Raise ValueError where the path cannot name an output file.");
}

}  // namespace amct_python
