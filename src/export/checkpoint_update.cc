#include "export/checkpoint_update.h"

#include "amct/core/error.h"
#include "amct/core/file.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <sys/stat.h>

namespace amct {
namespace {

namespace fs = std::filesystem;

constexpr const char* kQuantizationConfig = "quantization_config";

bool same_folder(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return fs::equivalent(a, b, ignored);
}

bool in_place(const ExportJob& job, const std::string& folder) {
  return job.checkpoint && same_folder(job.checkpoint->folder(), folder);
}

/// Writes a file of a checkpoint, with the permissions of its config.json: whoever reads the one
/// reads the other.
void write_in(const std::string& folder, const std::string& name, std::string_view content,
              const std::string& what, ExportReport* report) {
  struct stat config{};
  const bool has_config = ::stat(path_in(folder, kConfigName).c_str(), &config) == 0;
  const std::string path = path_in(folder, name);
  write_reported(path, content, what, report);
  if (has_config) ::chmod(path.c_str(), config.st_mode & 0777);  // if not ours: as it was written
}

/// The settings that a marker's file holds, or null.
Json settings_of(const Checkpoint& checkpoint, Marker marker) {
  if (marker == Marker::kQuantizationConfig)
    return member(checkpoint.config(), kQuantizationConfig);
  const std::string path =
      path_in(checkpoint.folder(),
              marker == Marker::kHfQuantConfig ? kHfQuantConfigName : kDescriptionName);
  return file_exists(path) ? read_json_object(path) : Json();
}

std::string_view file_of(Marker marker) {
  if (marker == Marker::kQuantizationConfig) return "quantization_config in config.json";
  return marker == Marker::kHfQuantConfig ? kHfQuantConfigName : kDescriptionName;
}

}  // namespace

std::string output_folder(const Runtime& runtime, const ExportJob& job,
                          const ExportOptions& options) {
  if (options.output.empty()) {
    if (job.checkpoint) return job.checkpoint->folder();
    throw ValueError(std::string(runtime.name) +
                     " reads a folder: give one to write to, or the checkpoint to add to");
  }
  if (file_exists(options.output)) {
    throw ValueError("'" + options.output + "' is a file; " + std::string(runtime.name) +
                     " reads a folder");
  }
  if (in_place(job, options.output) || !folder_exists(options.output)) return options.output;
  for (const std::string& name : shards_in(options.output)) {
    if (name == kShardName) continue;
    throw ValueError(
        "'" + options.output +
        "' is a checkpoint of its own; give it as the model, without an output, to add "
        "the factors to it");
  }
  return options.output;
}

void require_unquantized(const Runtime& runtime, const ExportJob& job, Marker own,
                         const CheckpointUpdate& update, bool (*is_ours)(const Json& settings)) {
  if (!job.checkpoint) return;
  const std::string where = "'" + job.checkpoint->folder() + "'";
  for (const Marker marker :
       {Marker::kQuantizationConfig, Marker::kHfQuantConfig, Marker::kDescription}) {
    const Json settings = settings_of(*job.checkpoint, marker);
    if (settings.is_null() || (marker == own && is_ours(settings))) continue;
    const Json& method = member(settings, "quant_method");
    throw ValueError(where + " is quantized already: it has " + std::string(file_of(marker)) +
                     (method.is_string() ? " (" + method.get<std::string>() + ")" : "") + "; " +
                     std::string(runtime.name) +
                     " would read one of the two alone; export into a copy of the plain "
                     "checkpoint, or write to a folder of its own");
  }
  for (const NewTensor& tensor : update.tensors) {
    if (job.checkpoint->weights().contains(tensor.name)) {
      throw ValueError(where + " has a tensor '" + tensor.name +
                       "' that this export did not write; remove it first");
    }
  }
}

void write_update(const Runtime& runtime, ExportJob* job, const ExportOptions& options,
                  const CheckpointUpdate& update) {
  const std::string folder = output_folder(runtime, *job, options);
  ExportReport* report = &job->report;
  const bool inside = in_place(*job, folder);
  // Made before anything is written, since this may fail.
  std::optional<Json> index;
  if (job->checkpoint) index = job->checkpoint->index_with(update.tensors);
  write_in(folder, kShardName, to_safetensors(update.tensors),
           std::to_string(update.tensors.size()) + " tensors of factors", report);
  if (index && job->checkpoint) {
    const bool had_one = job->checkpoint->has_index();
    write_in(folder, job->checkpoint->index_name(), to_json_text(*index),
             had_one ? "the index, with these tensors" : "an index of all tensors", report);
  }
  for (const auto& [name, json] : update.files) {
    write_in(folder, name, to_json_text(json), "what is quantized, and how", report);
  }
  if (update.quantization_config && job->checkpoint) {
    Json config = job->checkpoint->config();
    config[kQuantizationConfig] = *update.quantization_config;
    write_in(folder, kConfigName, to_json_text(config), "the model's, with quantization_config",
             report);
  } else if (update.quantization_config) {
    Json piece = Json::object();
    piece[kQuantizationConfig] = *update.quantization_config;
    write_in(folder, kConfigPieceName, to_json_text(piece), "to merge into config.json", report);
  }
  if (!job->checkpoint) {
    report->notes.push_back(
        std::string("put ") + kShardName + " beside the checkpoint's weights" +
        (update.quantization_config ? " and quantization_config into its config.json" : "") +
        "; where there is an index, it must name the tensors");
  } else if (!inside) {
    report->notes.push_back("copy these files into a copy of '" + job->checkpoint->folder() + "'");
  }
  if (job->checkpoint &&
      std::ranges::any_of(shards_in(job->checkpoint->folder()), is_consolidated)) {
    report->warnings.emplace_back(
        "the checkpoint has files named consolidated..., which vLLM reads alone: start it with "
        "--load-format safetensors --config-format hf");
  }
  if (job->checkpoint && !job->checkpoint->has_index()) {
    report->notes.push_back("the checkpoint had no index: " + std::string(runtime.name) +
                            " reads the one made now, transformers prefers model.safetensors and "
                            "passes the factors over");
  }
}

}  // namespace amct
