#include "amct/export/exporter.h"

#include "amct/core/file.h"

#include <algorithm>
#include <array>

#include "export/json_file.h"
#include "export/runtimes.h"

namespace amct {

std::span<const Runtime> runtimes() {
  static const std::array kRuntimes{
      lmdeploy_runtime(),    vllm_ascend_runtime(),  compressed_tensors_runtime(),
      modelopt_runtime(),    tensorrt_llm_runtime(), sglang_runtime(),
      msmodelslim_runtime(), plain_json_runtime(),   numpy_archive_runtime(),
  };
  return kRuntimes;
}

const Runtime& runtime_named(std::string_view name) {
  const auto found = std::ranges::find(runtimes(), name, &Runtime::name);
  if (found != runtimes().end()) return *found;
  std::string known;
  for (const Runtime& runtime : runtimes()) {
    known += (known.empty() ? "" : ", ") + std::string(runtime.name);
  }
  throw ValueError("the runtime '" + std::string(name) + "' is not known; known are " + known);
}

ExportReport export_layers(std::span<const LayerRecord> layers, std::string_view runtime,
                           const ExportOptions& options) {
  const Runtime& wanted = runtime_named(runtime);
  if (layers.empty()) {
    throw ValueError(
        "the record has no layers; a run that was cut off leaves it so: calibrate to its end");
  }
  ExportReport report = wanted.write(layers, options);
  const auto with_sinks =
      std::ranges::find_if(layers, [](const LayerRecord& layer) { return layer.sink_tokens > 0; });
  if (with_sinks != layers.end()) {
    report.warnings.push_back(
        "layer '" + with_sinks->name + "' was calibrated without the first " +
        std::to_string(with_sinks->sink_tokens) +
        " tokens of each sequence; a runtime that quantizes these, too, clips "
        "them. Calibrate without sink_tokens for it");
  }
  return report;
}

ExportReport export_record(const std::string& record_file, std::string_view runtime,
                           const ExportOptions& options) {
  runtime_named(runtime);  // before the record is read
  check_different_files(std::array{record_file, options.output});
  return export_layers(read_record(record_file), runtime, options);
}

std::string ExportReport::to_text() const {
  std::string text;
  for (const WrittenFile& file : files) text += "wrote " + file.path + ": " + file.what + "\n";
  for (const std::string& warning : warnings) text += "warning: " + warning + "\n";
  for (const std::string& note : notes) text += "note: " + note + "\n";
  return text;
}

std::string ExportReport::to_json() const {
  Json json = Json::object();
  json["runtime"] = runtime;
  json["files"] = Json::array();
  for (const WrittenFile& file : files) {
    Json entry = Json::object();
    entry["path"] = file.path;
    entry["what"] = file.what;
    json["files"].push_back(std::move(entry));
  }
  json["notes"] = notes;
  json["warnings"] = warnings;
  return to_json_text(json);
}

}  // namespace amct
