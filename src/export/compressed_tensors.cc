// vLLM by compressed-tensors: an FP8 cache with a scale per tensor or per head.
#include "amct/core/error.h"

#include <algorithm>

#include "export/checkpoint_update.h"
#include "export/factors.h"
#include "export/runtimes.h"
#include "export/scale_tensors.h"
#include "export/verification.h"

namespace amct {
namespace {

constexpr const char* kMethod = "compressed-tensors";

Json scheme_of(bool per_head) {
  Json scheme = Json::object();
  scheme["num_bits"] = 8;
  scheme["type"] = "float";
  scheme["symmetric"] = true;
  scheme["strategy"] = per_head ? "attn_head" : "tensor";
  scheme["dynamic"] = false;
  return scheme;
}

/// Settings that quantize the cache and nothing else.
Json settings_of(bool per_head) {
  Json settings = Json::object();
  settings["quant_method"] = kMethod;
  settings["format"] = "dense";
  settings["quantization_status"] = "frozen";
  // Needed though it is empty: per head scales are only sliced where it is there.
  settings["config_groups"] = Json::object();
  settings["ignore"] = Json::array();
  settings["kv_cache_scheme"] = scheme_of(per_head);
  return settings;
}

bool is_ours(const Json& settings) {
  const Json& groups = member(settings, "config_groups");
  return member(settings, "quant_method") == kMethod && (groups.is_null() || groups.empty()) &&
         member(settings, "kv_cache_scheme").is_object();
}

/// vLLM from 0.27.1 on puts ".attn" before the scale's name unless it is there already, and the
/// modules of some models are called so.
std::string tensor_name(const std::string& attention, const char* scale) {
  const bool is_attn = attention.ends_with(".attn");
  return attention + (is_attn ? ".attn." : ".") + scale;
}

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = compressed_tensors_runtime();
  ExportJob job = start_export(runtime, layers, options);
  std::int64_t heads = 1;
  for (const AttentionLayer& layer : job.layers) {
    for (const LayerRecord* half : {&layer.key, &layer.value}) {
      heads = std::max(heads, static_cast<std::int64_t>(half->params.size()));
    }
  }
  const bool per_head = heads > 1;
  CheckpointUpdate update;
  const auto add = [&](const AttentionLayer& layer, const LayerRecord& half, const char* name) {
    NewTensor tensor{tensor_name(layer.attention, name), {1}, {}};
    if (per_head) tensor.shape = {heads, 1, 1};
    for (const QuantParams& params : spread(half, heads)) tensor.values.push_back(params.scale);
    update.tensors.push_back(std::move(tensor));
  };
  for (const AttentionLayer& layer : job.layers) {
    add(layer, layer.key, "k_scale");
    add(layer, layer.value, "v_scale");
  }
  update.quantization_config = settings_of(per_head);
  require_unquantized(runtime, job, Marker::kQuantizationConfig, update, is_ours);
  write_update(runtime, &job, options, update);
  job.report.notes.emplace_back(
      "vLLM quantizes the cache by itself then; --kv-cache-dtype bfloat16 turns it off");
  job.report.notes.emplace_back("SGLang reads the same checkpoint, where scales are per tensor");
  if (per_head) {
    job.report.notes.emplace_back(
        "scales per head need vLLM 0.18.1 or later with FlashAttention 3 (Hopper)");
  }
  job.report.notes.emplace_back(
      "transformers needs the package compressed-tensors to load the checkpoint now");
  return std::move(job.report);
}

/// The settings of the folder; nothing, and a finding, where vLLM would not have them.
std::optional<Json> read_settings(Verification& v, const std::string& folder) {
  const bool has_config = file_exists(path_in(folder, kConfigName));
  const char* file = has_config ? kConfigName : kConfigPieceName;
  try {
    const Json config = read_json_object(path_in(folder, file));
    const Json& settings = member(config, "quantization_config");
    if (!settings.is_object()) {
      v.fatal(file, "has no quantization_config: the scales' names are not known, loading fails");
      return std::nullopt;
    }
    if (!has_config) v.note(std::string(kConfigPieceName) + " is to be merged into config.json");
    return settings;
  } catch (const Error& error) {
    v.fatal(file, error.what());
    return std::nullopt;
  }
}

/// Whether the scheme is per head; nothing where vLLM refuses it.
std::optional<bool> check_scheme(Verification& v, const Json& settings) {
  const Json& method = member(settings, "quant_method");
  if (method != kMethod) {
    v.fatal("quant_method", "is not \"compressed-tensors\": " + method.dump());
    return std::nullopt;
  }
  const Json& scheme = member(settings, "kv_cache_scheme");
  if (!scheme.is_object()) {
    v.wrong("kv_cache_scheme", "", "is not there: the cache stays plain");
    return std::nullopt;
  }
  const bool is_float = member(scheme, "type") == "float";
  const bool is_8_bits = member(scheme, "num_bits") == 8;
  if (!is_float || !is_8_bits) {
    const bool passed_once = is_float || is_8_bits;
    v.fatal("kv_cache_scheme",
            std::string("only 8-bit float is read: NotImplementedError from 0.27.1 on") +
                (passed_once ? ", and before, it passes and is read as FP8: wrong values" : ""));
    return std::nullopt;
  }
  if (member(scheme, "symmetric") != true) {
    v.fatal("kv_cache_scheme", "is not symmetric: NotImplementedError");
    return std::nullopt;
  }
  if (member(scheme, "dynamic") != false && !member(scheme, "dynamic").is_null()) {
    v.wrong("kv_cache_scheme", member(scheme, "dynamic").dump(),
            "dynamic is not looked at: the scales are static all the same");
  }
  const Json& strategy = member(scheme, "strategy");
  if (strategy != "tensor" && strategy != "attn_head") {
    v.fatal("kv_cache_scheme", "strategy " + strategy.dump() + " is not known");
    return std::nullopt;
  }
  const bool per_head = strategy == "attn_head";
  if (per_head && !settings.contains("config_groups")) {
    v.fatal("config_groups", "must be there, empty if need be, for scales per head");
    return std::nullopt;
  }
  if (per_head) v.note("scales per head: vLLM 0.18.1 or later with FlashAttention 3");
  v.used("kv_cache_scheme", scheme.dump(), "the cache is FP8 E4M3");
  return per_head;
}

/// One half of a layer: a missing scale is 1, and nothing says so.
void read_half(Verification& v, const std::string& attention, KVRole role,
               const std::optional<ScaleTensor>& scale, bool per_head) {
  if (!scale) {
    v.wrong(attention, "1.0",
            "has no scale of " + std::string(name_of(role)) + "s: 1 is used, without a warning");
    add_factors(v, attention, role, kFp8E4M3, {1.0}, "default", 0);
    return;
  }
  const auto count = static_cast<std::int64_t>(scale->values.size());
  if (!per_head && count != 1) {
    v.fatal(scale->name, std::to_string(count) + " elements where one is expected");
    return;
  }
  if (per_head && v.model.heads && count != *v.model.heads) {
    if (count != 1) {
      v.fatal(scale->name,
              std::to_string(count) + " elements for " + std::to_string(*v.model.heads) + " heads");
      return;
    }
    v.wrong(scale->name, range_text(scale->values), "one element serves all heads, silently");
  }
  if (!check_scales(v, scale->name, scale->values)) return;
  v.used(scale->name, range_text(scale->values), "x' = q * scale");
  if (old_vllm_parameter(scale->name) != vllm_parameter(scale->name)) {
    v.note(scale->name + ": vLLM up to 0.18.1 passes it over with a warning, and uses 1");
  }
  add_factors(v, attention, role, kFp8E4M3, scale->values, scale->name, scale->precision);
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(compressed_tensors_runtime(), path, options);
  if (!folder_exists(path)) {
    v.fatal("", "vLLM reads a folder");
    return finish(std::move(v));
  }
  const std::optional<Json> settings = read_settings(v, path);
  const std::optional<bool> per_head = settings ? check_scheme(v, *settings) : std::nullopt;
  const FolderTensors tensors(path, options.model_folder, &v.report.findings);
  if (!per_head) return finish(std::move(v));
  const NameRule rule{vllm_parameter, /*unknown_is_fatal=*/true};
  for (const auto& [attention, scales] : scales_in(v, tensors, rule)) {
    read_half(v, attention, KVRole::kKey, scales.key, *per_head);
    read_half(v, attention, KVRole::kValue, scales.value, *per_head);
  }
  return finish(std::move(v));
}

}  // namespace

Runtime compressed_tensors_runtime() {
  return {.name = "vllm",
          .summary = "vLLM (compressed-tensors): FP8 E4M3, added to a checkpoint",
          .readers = "vLLM 0.27.1 to 0.33.0, differences of 0.18.1 and 0.10.2 noted",
          .output = OutputKind::kFolder,
          .capability = {.grids = {kFp8E4M3},
                         .granularities = {Granularity::kPerTensor, Granularity::kPerHead}},
          .write = write,
          .verify = verify};
}

}  // namespace amct
