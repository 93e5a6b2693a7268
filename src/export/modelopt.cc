// ModelOpt's unified checkpoint: FP8 scales by the projections' names, read by vLLM, SGLang and
// TensorRT-LLM.
#include "amct/core/error.h"

#include <algorithm>

#include "export/checkpoint_update.h"
#include "export/factors.h"
#include "export/runtimes.h"
#include "export/scale_tensors.h"
#include "export/verification.h"

namespace amct {
namespace {

/// vLLM asks for a quant_algo that it knows, so that of FP8 weights is given, and every layer is
/// excluded from it.
Json settings() {
  Json scheme = Json::object();
  scheme["dynamic"] = false;
  scheme["num_bits"] = 8;
  scheme["type"] = "float";
  Json json = Json::object();
  json["quant_method"] = "modelopt";
  json["quant_algo"] = "FP8";
  json["kv_cache_scheme"] = std::move(scheme);
  json["ignore"] = Json::array({"*"});
  return json;
}

bool is_ours(const Json& json) {
  return member(json, "quant_method") == "modelopt" && member(json, "ignore") == Json::array({"*"});
}

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = modelopt_runtime();
  ExportJob job = start_export(runtime, layers, options);
  CheckpointUpdate update;
  for (const AttentionLayer& layer : job.layers) {
    const std::string key = layer.attention + ".k_proj.k_scale";
    if (vllm_parameter(key) != layer.attention + ".attn.k_scale") {
      throw ValueError("vLLM does not know the name '" + key +
                       "': the module must be called self_attn or mixer; export for vllm instead");
    }
    // Scalars: of no dimensions.
    update.tensors.push_back({key, {}, {layer.key.params.front().scale}});
    update.tensors.push_back(
        {layer.attention + ".v_proj.v_scale", {}, {layer.value.params.front().scale}});
  }
  update.quantization_config = settings();
  require_unquantized(runtime, job, Marker::kQuantizationConfig, update, is_ours);
  write_update(runtime, &job, options, update);
  job.report.notes.emplace_back(
      "vLLM quantizes the cache by itself then; export for vllm (compressed-tensors) is the "
      "simpler "
      "form for it");
  job.report.warnings.emplace_back(
      "TensorRT-LLM's PyTorch backend takes 1 for every scale of an FP8 cache, whatever the "
      "checkpoint says: values beyond 448 saturate");
  return std::move(job.report);
}

/// The settings that vLLM finds: in config.json, else in hf_quant_config.json.
std::optional<Json> find_settings(Verification& v, const std::string& folder) {
  try {
    for (const char* name : {kConfigName, kConfigPieceName}) {
      if (!file_exists(path_in(folder, name))) continue;
      const Json config = read_json_object(path_in(folder, name));
      if (const Json& found = member(config, "quantization_config"); found.is_object()) {
        if (std::string_view(name) == kConfigPieceName) {
          v.note(std::string(kConfigPieceName) + " is to be merged into config.json");
        }
        return found;
      }
    }
    if (file_exists(path_in(folder, kHfQuantConfigName))) {
      const Json config = read_json_object(path_in(folder, kHfQuantConfigName));
      if (member(config, "quantization").is_object()) return member(config, "quantization");
    }
    v.fatal(kConfigName,
            "has no quantization_config: the scales' names are not known, loading fails");
  } catch (const Error& error) {
    v.fatal("", error.what());
  }
  return std::nullopt;
}

/// Whether the cache is FP8 by these settings.
bool check_settings(Verification& v, const Json& found) {
  const Json& method = member(found, "quant_method");
  if (method.is_string() && method != "modelopt") {
    v.fatal("quant_method", "is not \"modelopt\": " + method.dump());
    return false;
  }
  const Json& algo = member(found, "quant_algo");
  if (!algo.is_string() || algo.get<std::string>().empty()) {
    v.fatal("quant_algo",
            "is missing: vLLM stops, or takes the checkpoint for a plain one and "
            "fails at the scales");
    return false;
  }
  const Json& scheme = member(found, "kv_cache_scheme");
  const Json& cache_algo = member(found, "kv_cache_quant_algo");
  const bool by_scheme = scheme.is_object() && member(scheme, "dynamic") == false &&
                         member(scheme, "num_bits") == 8 && member(scheme, "type") == "float";
  const Json& name = scheme.is_null() ? cache_algo : scheme;
  const bool by_name = name.is_string() && (name == "FP8" || name == "fp8");
  if (!by_scheme && !by_name) {
    v.wrong("kv_cache_scheme", name.dump(), "is not FP8: the cache stays plain, with a warning");
    return false;
  }
  v.used("kv_cache_scheme", name.dump(), "the cache is FP8 E4M3");
  return true;
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(modelopt_runtime(), path, options);
  if (!folder_exists(path)) {
    v.fatal("", "a checkpoint is a folder");
    return finish(std::move(v));
  }
  const std::optional<Json> found = find_settings(v, path);
  const FolderTensors tensors(path, options.model_folder, &v.report.findings);
  if (!found || !check_settings(v, *found)) return finish(std::move(v));
  for (const auto& [attention, scales] :
       scales_in(v, tensors, {vllm_parameter, /*unknown_is_fatal=*/true})) {
    add_scalar_pair(v, attention, scales);
  }
  v.note(
      "by vLLM's rule; TensorRT-LLM's PyTorch backend takes 1 for every scale of an FP8 cache, and "
      "values beyond 448 saturate");
  return finish(std::move(v));
}

}  // namespace

Runtime modelopt_runtime() {
  return {.name = "modelopt",
          .summary = "ModelOpt unified checkpoint: FP8 E4M3 per tensor, added to a checkpoint",
          .readers =
              "vLLM 0.27.1 to 0.33.0, TensorRT-LLM as noted; written as Model-Optimizer "
              "a2fbac7b does",
          .output = OutputKind::kFolder,
          .capability = {.grids = {kFp8E4M3}, .granularities = {Granularity::kPerTensor}},
          .write = write,
          .verify = verify};
}

}  // namespace amct
