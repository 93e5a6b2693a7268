// Exporting records to runtimes, and reading back what was exported.
#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;

std::optional<amct::DType> dtype_named(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  for (const amct::DType dtype :
       {amct::DType::kFloat32, amct::DType::kFloat16, amct::DType::kBFloat16}) {
    if (amct::name_of(dtype) == *name) return dtype;
  }
  throw amct::ValueError("model_dtype must be 'float32', 'float16' or 'bfloat16', not '" + *name +
                         "'");
}

/// The names of a list of things that have one.
template <typename List>
std::vector<std::string> names_of(const List& list) {
  std::vector<std::string> names;
  for (const auto& item : list) names.emplace_back(item.name);
  return names;
}

void bind_runtimes(nb::module_& module) {
  using amct::Runtime;
  nb::class_<Runtime>(module, "Runtime", "A runtime that records can be exported to.")
      .def_prop_ro("name", [](const Runtime& runtime) { return std::string(runtime.name); })
      .def_prop_ro("summary", [](const Runtime& runtime) { return std::string(runtime.summary); })
      .def_prop_ro(
          "readers", [](const Runtime& runtime) { return std::string(runtime.readers); },
          "The versions whose rules are followed.")
      .def_prop_ro(
          "writes_folder",
          [](const Runtime& runtime) { return runtime.output == amct::OutputKind::kFolder; })
      .def_prop_ro("dst_types",
                   [](const Runtime& runtime) { return names_of(runtime.capability.grids); })
      .def_prop_ro("granularities",
                   [](const Runtime& runtime) {
                     std::vector<std::string> names;
                     for (const amct::Granularity granularity : runtime.capability.granularities) {
                       names.emplace_back(amct::name_of(granularity));
                     }
                     return names;
                   })
      .def_prop_ro("with_offset",
                   [](const Runtime& runtime) { return runtime.capability.with_offset; });
  module.def(
      "runtimes",
      [] {
        const auto all = amct::runtimes();
        return std::vector<Runtime>(all.begin(), all.end());
      },
      "All of them.");
}

void bind_export(nb::module_& module) {
  using amct::ExportOptions;
  using amct::ExportReport;
  nb::class_<amct::WrittenFile>(module, "WrittenFile", "A file that an export wrote.")
      .def_ro("path", &amct::WrittenFile::path)
      .def_ro("what", &amct::WrittenFile::what, "What is in it.");
  nb::class_<ExportReport>(module, "ExportReport",
                           "What an export wrote, and what the user has to know.")
      .def_ro("runtime", &ExportReport::runtime)
      .def_ro("files", &ExportReport::files)
      .def_ro("notes", &ExportReport::notes, "How to go on.")
      .def_ro("warnings", &ExportReport::warnings, "What will not be as it should.")
      .def("to_text", &ExportReport::to_text)
      .def("to_json", &ExportReport::to_json)
      .def("__str__", &ExportReport::to_text);
  module.def(
      "export_record",
      [](const std::string& record_file, const std::string& runtime, std::string output,
         std::string model_folder, std::optional<std::int64_t> heads,
         std::optional<std::int64_t> head_dim, const std::optional<std::string>& model_dtype,
         std::string model_type, std::int64_t ranks, bool allow_linear_tap) {
        ExportOptions options;
        options.output = std::move(output);
        options.model_folder = std::move(model_folder);
        options.heads = heads;
        options.head_dim = head_dim;
        options.model_dtype = dtype_named(model_dtype);
        options.model_type = std::move(model_type);
        options.ranks = ranks;
        options.allow_linear_tap = allow_linear_tap;
        const nb::gil_scoped_release release;
        return amct::export_record(record_file, runtime, options);
      },
      "record_file"_a, "runtime"_a, nb::kw_only(), "output"_a, "model_folder"_a, "heads"_a.none(),
      "head_dim"_a.none(), "model_dtype"_a.none(), "model_type"_a, "ranks"_a, "allow_linear_tap"_a,
      "Write a record for a runtime.");
}

void bind_verify(nb::module_& module) {
  using amct::EffectiveFactors;
  using amct::Finding;
  using amct::VerifyReport;
  nb::class_<Finding>(module, "Finding", "What a runtime makes of a key.")
      .def_prop_ro(
          "verdict",
          [](const Finding& finding) { return std::string(amct::name_of(finding.verdict)); })
      .def_ro("key", &Finding::key)
      .def_ro("value", &Finding::value)
      .def_ro("why", &Finding::why);
  nb::class_<EffectiveFactors>(module, "EffectiveFactors",
                               "What a runtime reads a layer's keys or values back with.")
      .def_ro("layer", &EffectiveFactors::layer)
      .def_prop_ro("role",
                   [](const EffectiveFactors& f) { return std::string(amct::name_of(f.role)); })
      .def_ro("source", &EffectiveFactors::source, "The key they come from.")
      .def_prop_ro("dst_type", [](const EffectiveFactors& f) { return std::string(f.grid.name); })
      .def_ro("scale", &EffectiveFactors::scale)
      .def_ro("offset", &EffectiveFactors::offset, "x' = (q - offset) * scale.")
      .def_prop_ro("match",
                   [](const EffectiveFactors& f) { return std::string(amct::name_of(f.match)); })
      .def_ro("difference", &EffectiveFactors::difference);
  nb::class_<VerifyReport>(module, "VerifyReport", "What a runtime makes of an export.")
      .def_ro("runtime", &VerifyReport::runtime)
      .def_ro("readers", &VerifyReport::readers, "The versions whose rules were followed.")
      .def_ro("path", &VerifyReport::path)
      .def_ro("findings", &VerifyReport::findings)
      .def_ro("layers", &VerifyReport::layers)
      .def_ro("notes", &VerifyReport::notes)
      .def_prop_ro("ok", &VerifyReport::ok)
      .def("to_text", &VerifyReport::to_text)
      .def("to_json", &VerifyReport::to_json)
      .def("__str__", &VerifyReport::to_text);
  module.def(
      "verify_export",
      [](const std::string& path, const std::string& runtime,
         const std::optional<std::string>& record_file, std::string model_folder,
         std::optional<std::int64_t> layers, std::optional<std::int64_t> heads,
         std::optional<std::int64_t> head_dim, const std::optional<std::string>& model_dtype,
         std::int64_t ranks) {
        amct::VerifyOptions options;
        options.model_folder = std::move(model_folder);
        options.layers = layers;
        options.heads = heads;
        options.head_dim = head_dim;
        options.model_dtype = dtype_named(model_dtype);
        options.ranks = ranks;
        const nb::gil_scoped_release release;
        if (record_file) options.record = amct::read_record(*record_file);
        return amct::verify_export(path, runtime, options);
      },
      "path"_a, "runtime"_a, nb::kw_only(), "record_file"_a.none(), "model_folder"_a,
      "layers"_a.none(), "heads"_a.none(), "head_dim"_a.none(), "model_dtype"_a.none(), "ranks"_a,
      "Read an export as a runtime would.");
}

}  // namespace

void bind_exporters(nb::module_& module) {
  bind_runtimes(module);
  bind_export(module);
  bind_verify(module);
}

}  // namespace amct_python
