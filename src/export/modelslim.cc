#include "export/modelslim.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

namespace amct {
namespace {

constexpr const char* kFloat = "FLOAT";
constexpr const char* kC8 = "C8";

constexpr std::array kSuffixes{kKeyScale, kKeyOffset, kValueScale, kValueOffset};

bool is_factor(std::string_view name) {
  return std::ranges::any_of(kSuffixes,
                             [&](std::string_view suffix) { return name.ends_with(suffix); });
}

std::int64_t channels_of(const LayerRecord& layer, const ExportJob& job) {
  if (granularity_of(layer) == Granularity::kPerChannel) {
    return static_cast<std::int64_t>(layer.params.size());
  }
  if (!job.heads || !job.head_dim) {
    throw ValueError(
        "layer '" + layer.name + "' has factors " + std::string(name_of(granularity_of(layer))) +
        ", to be written for each channel: give heads and head_dim, or the checkpoint");
  }
  return *job.heads * *job.head_dim;
}

void add_tensors(const ExportJob& job, const std::string& attention, const LayerRecord& layer,
                 std::string_view scale_name, std::string_view offset_name,
                 std::vector<NewTensor>* tensors) {
  const std::int64_t channels = channels_of(layer, job);
  if (job.heads && job.head_dim && channels != *job.heads * *job.head_dim) {
    throw ValueError("layer '" + layer.name + "' has factors of " + std::to_string(channels) +
                     " channels, and the model " + std::to_string(*job.heads) + " heads of " +
                     std::to_string(*job.head_dim));
  }
  NewTensor scale{attention + std::string(scale_name), {channels}, {}};
  NewTensor offset{attention + std::string(offset_name), {channels}, {}};
  for (const QuantParams& params : spread(layer, channels)) {
    scale.values.push_back(params.scale);
    offset.values.push_back(static_cast<float>(params.offset));
  }
  tensors->push_back(std::move(scale));
  tensors->push_back(std::move(offset));
}

/// The description that is there, or one of a model whose weights are plain.
Json base_description(const ExportJob& job) {
  Json description = Json::object();
  if (job.checkpoint) {
    const std::string path = path_in(job.checkpoint->folder(), kDescriptionName);
    if (file_exists(path)) {
      const Json there = read_json_object(path);
      for (const auto& [key, value] : there.items()) {
        if (!is_factor(key)) description[key] = value;
      }
      return description;
    }
  }
  description["model_quant_type"] = kFloat;
  description["version"] = "1.0.0";
  description["group_size"] = 0;
  description["metadata"] = Json::object();
  description["optional"] = Json::object();
  if (!job.checkpoint) return description;
  for (const std::string& weight : job.checkpoint->weights()) description[weight] = kFloat;
  // It may be looked up where the checkpoint has the embedding in its place.
  if (job.checkpoint->model().tied_embeddings) description["lm_head.weight"] = kFloat;
  return description;
}

}  // namespace

ExportReport write_modelslim(const Runtime& runtime, ExportJob&& job,
                             const ExportOptions& options) {
  CheckpointUpdate update;
  for (const AttentionLayer& layer : job.layers) {
    add_tensors(job, layer.attention, layer.key, kKeyScale, kKeyOffset, &update.tensors);
    add_tensors(job, layer.attention, layer.value, kValueScale, kValueOffset, &update.tensors);
  }
  Json description = base_description(job);
  description["kv_cache_type"] = kC8;
  description["kv_quant_type"] = kC8;
  for (const NewTensor& tensor : update.tensors) description[tensor.name] = kC8;
  update.files.emplace_back(kDescriptionName, std::move(description));
  // Of weights that msModelSlim quantized, the description stays and gets the cache's entries.
  require_unquantized(runtime, job, Marker::kDescription, update, [](const Json&) { return true; });
  write_update(runtime, &job, options, update);
  if (!job.checkpoint) {
    job.report.warnings.push_back(
        std::string(kDescriptionName) +
        " names no weights, and a runtime wants an entry for each: give the checkpoint, or merge "
        "this into its description");
  }
  return std::move(job.report);
}

ModelSlimFolder read_modelslim(const std::string& folder, const std::string& model_folder,
                               std::vector<Finding>* findings) {
  ModelSlimFolder result{std::nullopt, FolderTensors(folder, model_folder, findings), {}};
  const std::string path = path_in(folder, kDescriptionName);
  try {
    result.description = read_json_object(path);
  } catch (const Error& error) {
    findings->push_back({Verdict::kFatal, kDescriptionName, "", error.what()});
  }
  std::set<std::string> attentions;
  for (const auto& [name, place] : result.tensors.tensors()) {
    for (const std::string_view suffix : kSuffixes) {
      if (name.ends_with(suffix)) attentions.insert(name.substr(0, name.size() - suffix.size()));
    }
  }
  result.attentions.assign(attentions.begin(), attentions.end());
  return result;
}

std::optional<ModelSlimFactors> factors_in(const ModelSlimFolder& folder,
                                           const std::string& attention, KVRole role,
                                           std::vector<Finding>* findings) {
  const bool is_key = role == KVRole::kKey;
  const std::string scale_name = attention + std::string(is_key ? kKeyScale : kValueScale);
  const std::string offset_name = attention + std::string(is_key ? kKeyOffset : kValueOffset);
  const auto& tensors = folder.tensors.tensors();
  if (!tensors.contains(scale_name)) {
    findings->push_back({Verdict::kFatal, scale_name, "", "there is no such tensor"});
    return std::nullopt;
  }
  const auto scale = folder.tensors.read(scale_name, findings);
  if (!scale) return std::nullopt;
  ModelSlimFactors factors{scale_name, *scale, std::vector<double>(scale->size(), 0.0)};
  if (tensors.contains(offset_name)) {
    const auto offset = folder.tensors.read(offset_name, findings);
    if (!offset) return std::nullopt;
    if (offset->size() != scale->size()) {
      findings->push_back({Verdict::kFatal, offset_name, "",
                           std::to_string(offset->size()) + " offsets for " +
                               std::to_string(scale->size()) + " scales"});
      return std::nullopt;
    }
    factors.offset = *offset;
  }
  return factors;
}

}  // namespace amct
