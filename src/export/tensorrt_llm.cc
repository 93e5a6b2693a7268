// TensorRT-LLM: one scale for a layer's keys and values, the larger of the two.
#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "export/checkpoint_update.h"
#include "export/factors.h"
#include "export/runtimes.h"
#include "export/verification.h"

namespace amct {
namespace {

constexpr std::string_view kEngineScale = ".kv_cache_scaling_factor";
constexpr std::string_view kEngineKey = ".k_cache_scaling_factor";
constexpr std::string_view kEngineValue = ".v_cache_scaling_factor";

Json settings(const Grid& grid) {
  Json json = Json::object();
  json["producer"]["name"] = "modelopt";
  json["producer"]["version"] = "0.47.0";  // of the form
  Json& quantization = json["quantization"];
  quantization["quant_algo"] = nullptr;
  quantization["kv_cache_quant_algo"] = grid == kInt8 ? "INT8" : "FP8";
  quantization["group_size"] = nullptr;
  quantization["exclude_modules"] = Json::array();
  quantization["quantized_layers"] = Json::object();
  return json;
}

bool is_ours(const Json& json) {
  const Json& quantization = member(json, "quantization");
  return quantization.is_object() && member(quantization, "quant_algo").is_null();
}

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = tensorrt_llm_runtime();
  ExportJob job = start_export(runtime, layers, options);
  CheckpointUpdate update;
  for (const AttentionLayer& layer : job.layers) {
    const float scale = merged_scale(layer, &job.report);
    update.tensors.push_back({layer.attention + ".k_proj.k_scale", {}, {scale}});
    update.tensors.push_back({layer.attention + ".v_proj.v_scale", {}, {scale}});
  }
  const Grid grid = job.layers.front().key.grid;
  update.files.emplace_back(kHfQuantConfigName, settings(grid));
  require_unquantized(runtime, job, Marker::kHfQuantConfig, update, is_ours);
  write_update(runtime, &job, options, update);
  if (grid == kInt8) {
    job.report.notes.emplace_back(
        "read by the conversion to an engine, and by the PyTorch backend from pull request 18953 "
        "on");
  } else {
    job.report.warnings.emplace_back(
        "read by the conversion to an engine alone: the PyTorch backend takes 1 for every scale of "
        "an FP8 cache, and values beyond 448 saturate");
  }
  return std::move(job.report);
}

/// The scales of one attention module, under whatever names.
struct Found {
  std::string source;
  std::vector<double> keys;  // of the shards of a fused projection
  std::vector<double> values;
  std::optional<double> both;  // merged already
  double precision = 0;
};

/// Sorts a tensor in, if its name is one of a cache's scale.
void sort_in(Verification& v, const FolderTensors& tensors, const std::string& name,
             std::map<std::string, Found>* found) {
  const std::string_view view = name;
  std::string module;
  int kind = -1;  // 0: key, 1: value, 2: both
  const auto take = [&](std::string_view suffix, int which) {
    if (kind >= 0 || !view.ends_with(suffix)) return;
    module = view.substr(0, view.size() - suffix.size());
    kind = which;
  };
  for (const std::string_view projection : {".q_proj", ".k_proj", ".v_proj", ".qkv_proj"}) {
    take(std::string(projection) + ".k_scale", 0);
    take(std::string(projection) + ".v_scale", 1);
  }
  take(kEngineKey, 0);
  take(kEngineValue, 1);
  take(kEngineScale, 2);
  if (kind < 0) {
    if (view.ends_with("k_scale") || view.ends_with("v_scale") ||
        view.ends_with("kv_cache_scale")) {
      v.wrong(name, "", "is not a name that is looked for: it is passed over");
    }
    return;
  }
  const auto values = tensors.read(name, &v.report.findings);
  if (!values) return;
  if (values->size() != 1) {
    v.fatal(name, "has " + std::to_string(values->size()) + " elements; it must be a scalar");
    return;
  }
  const double value = values->front();
  const auto inverse = 1.0F / static_cast<float>(value);
  if (!check_scales(v, name, *values)) return;
  if (!std::isfinite(inverse)) {
    v.fatal(name, "its reciprocal is not finite");
    return;
  }
  Found& entry = (*found)[module];
  entry.source = entry.source.empty() ? name : entry.source + ", " + name;
  const std::string& dtype = tensors.tensors().at(name).second.dtype;
  if (dtype == "BF16") entry.precision = precision_of(DType::kBFloat16);
  if (dtype == "F16") entry.precision = precision_of(DType::kFloat16);
  if (kind == 0) entry.keys.push_back(value);
  if (kind == 1) entry.values.push_back(value);
  if (kind == 2) entry.both = value;
}

/// What the cache is by the settings of the folder, or nothing and a finding.
std::optional<Grid> read_grid(Verification& v, const std::string& folder) {
  Json algo;
  try {
    if (file_exists(path_in(folder, kHfQuantConfigName))) {
      const Json config = read_json_object(path_in(folder, kHfQuantConfigName));
      algo = member(member(config, "quantization"), "kv_cache_quant_algo");
    } else {
      const Json config = read_json_object(path_in(folder, kConfigName));
      algo = member(member(config, "quantization"), "kv_cache_quant_algo");
      const Json& scheme = member(member(config, "quantization_config"), "kv_cache_scheme");
      if (member(scheme, "type") == "float" && member(scheme, "num_bits") == 8) algo = "FP8";
    }
  } catch (const Error& error) {
    v.fatal("", error.what());
    return std::nullopt;
  }
  v.used("kv_cache_quant_algo", algo.dump(), "what the cache stores");
  if (algo == "INT8") return kInt8;
  if (algo == "FP8") return kFp8E4M3;
  const std::string name = algo.is_string() ? algo.get<std::string>() : algo.dump();
  if (name.empty() || name == "none" || name == "null") {
    v.wrong("kv_cache_quant_algo", algo.dump(), "the cache stays plain");
  } else {
    v.fatal("kv_cache_quant_algo", algo.dump() + " is not INT8 or FP8");
  }
  return std::nullopt;
}

void add_layer(Verification& v, const std::string& module, const Found& found, const Grid& grid) {
  double scale = found.both.value_or(0);
  if (!found.both) {
    if (found.keys.empty() || found.values.empty()) {
      v.fatal(module, "has a scale of keys or of values alone; both must be there");
      return;
    }
    const double keys = *std::ranges::max_element(found.keys);
    const double values = *std::ranges::max_element(found.values);
    scale = std::max(keys, values);
    if (scale > 2 * std::min(keys, values)) {
      v.note(module + ": keys and values share the larger scale, " + range_text({keys, values}));
    }
  }
  const LayerName name = parse_layer_name(module);
  if (name.numbers.empty()) {
    v.fatal(module, "holds no number of a layer");
    return;
  }
  for (const KVRole role : {KVRole::kKey, KVRole::kValue}) {
    EffectiveFactors factors;
    factors.layer = name.numbers.front();
    factors.role = role;
    factors.source = found.source;
    factors.grid = grid;
    factors.scale = {scale};
    factors.offset = {0};
    factors.precision = found.precision;
    v.report.layers.push_back(std::move(factors));
  }
  v.used(found.source, range_text({scale}), "x' = q * scale, for keys and values");
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(tensorrt_llm_runtime(), path, options);
  if (!folder_exists(path)) {
    v.fatal("", "a checkpoint is a folder");
    return finish(std::move(v));
  }
  const std::optional<Grid> grid = read_grid(v, path);
  const FolderTensors tensors(path, options.model_folder, &v.report.findings);
  if (!grid) return finish(std::move(v));
  std::map<std::string, Found> found;
  for (const std::string& name : tensors.names()) sort_in(v, tensors, name, &found);
  for (const auto& [module, scales] : found) add_layer(v, module, scales, *grid);
  if (found.empty()) v.wrong("", "", "no scale is there: 1 is used");
  v.note(*grid == kInt8 ? "the PyTorch backend reads INT8 factors from pull request 18953 on"
                        : "the PyTorch backend takes 1 for every scale of an FP8 cache");
  return finish(std::move(v), /*may_merge=*/true);
}

}  // namespace

Runtime tensorrt_llm_runtime() {
  return {.name = "tensorrt-llm",
          .summary = "TensorRT-LLM: INT8 or FP8 E4M3, one scale a layer, added to a checkpoint",
          .readers = "TensorRT-LLM, stored files of 2025 and 2026; pull request 18953",
          .output = OutputKind::kFolder,
          .capability = {.grids = {kInt8, kFp8E4M3}, .granularities = {Granularity::kPerTensor}},
          .write = write,
          .verify = verify};
}

}  // namespace amct
