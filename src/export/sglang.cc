// SGLang's file of factors, one a layer for keys and values together; and its reading of a
// checkpoint.
#include "amct/core/error.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "export/factors.h"
#include "export/json_file.h"
#include "export/runtimes.h"
#include "export/scale_tensors.h"
#include "export/verification.h"

namespace amct {
namespace {

constexpr const char* kDType = "float8_e4m3fn";
constexpr const char* kBroken =
    "SGLang 0.5.23 divides by these factors in writing and leaves them off in reading, or stops, "
    "depending on the attention backend; 0.4 read them. Export for vllm and give SGLang that "
    "checkpoint instead";

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = sglang_runtime();
  require_output_file(runtime, options);
  ExportJob job = start_export(runtime, layers, options);
  std::string model_type = options.model_type;
  if (model_type.empty() && job.checkpoint) model_type = job.checkpoint->model().model_type;
  if (model_type.empty()) {
    throw ValueError("SGLang compares the file's model_type: give it, or the checkpoint");
  }
  // Any file with another number of layers is thrown away as a whole.
  const auto count = static_cast<std::int64_t>(job.layers.size());
  if (job.layers.back().index != count - 1 ||
      (job.checkpoint && job.checkpoint->model().layers.value_or(count) != count)) {
    throw ValueError("SGLang wants a factor for each layer of the model, and the record has " +
                     std::to_string(count) + " layers up to number " +
                     std::to_string(job.layers.back().index));
  }
  Json factors = Json::object();
  for (const AttentionLayer& layer : job.layers) {
    factors[std::to_string(layer.index)] = json_number(merged_scale(layer, &job.report));
  }
  Json json = Json::object();
  json["model_type"] = model_type;
  json["kv_cache"]["dtype"] = kDType;
  for (std::int64_t rank = 0; rank < options.ranks; ++rank) {
    json["kv_cache"]["scaling_factor"][std::to_string(rank)] = factors;
  }
  write_reported(options.output, to_json_text(json),
                 "the larger scale of each layer, for " + std::to_string(options.ranks) + " rank" +
                     (options.ranks == 1 ? "" : "s"),
                 &job.report);
  job.report.notes.push_back(
      "start SGLang with --kv-cache-dtype fp8_e4m3 --quantization-param-path " + options.output);
  job.report.warnings.emplace_back(kBroken);
  return std::move(job.report);
}

/// Every error in the file has the same end.
void unread(Verification& v, const std::string& key, const std::string& why) {
  v.wrong(key, "1.0", why + ": the whole file is thrown away with a warning, and every scale is 1");
}

std::optional<std::int64_t> key_number(const std::string& key) {
  std::int64_t number = 0;
  const char* end = key.data() + key.size();
  const auto result = std::from_chars(key.data(), end, number);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return number;
}

/// The factors of one rank, or nothing and a finding.
std::optional<std::map<std::int64_t, double>> factors_of(Verification& v, const Json& rank) {
  std::map<std::int64_t, double> factors;
  for (const auto& [key, value] : rank.items()) {
    const auto layer = key_number(key);
    if (!layer || !value.is_number()) {
      unread(v, key, "is no layer with a number");
      return std::nullopt;
    }
    factors[*layer] = value.get<double>();
  }
  const std::int64_t layers =
      v.model.layers.value_or(v.record.empty() ? static_cast<std::int64_t>(factors.size())
                                               : static_cast<std::int64_t>(v.record.size()));
  if (std::cmp_not_equal(factors.size(), layers) || factors.empty() ||
      factors.begin()->first != 0 || factors.rbegin()->first != layers - 1) {
    unread(v, "scaling_factor",
           std::to_string(factors.size()) + " layers, the model has " + std::to_string(layers));
    return std::nullopt;
  }
  return factors;
}

void read_file(Verification& v, const std::string& path, const VerifyOptions& options) {
  Json json;
  try {
    json = read_json_object(path);
  } catch (const ValueError& error) {
    unread(v, "", error.what());
    return;
  }
  const Json& type = member(json, "model_type");
  if (!json.contains("model_type")) {
    unread(v, "model_type", "is missing");
    return;
  }
  if (!v.model.model_type.empty() && type != v.model.model_type) {
    unread(v, "model_type", "is not " + v.model.model_type);
    return;
  }
  const Json& cache = member(json, "kv_cache");
  if (member(cache, "dtype") != kDType) {
    unread(v, "dtype", "is not float8_e4m3fn");
    return;
  }
  const Json& ranks = member(cache, "scaling_factor");
  if (!ranks.is_object() || std::cmp_not_equal(ranks.size(), options.ranks)) {
    unread(v, "scaling_factor", "does not hold " + std::to_string(options.ranks) + " ranks");
    return;
  }
  std::optional<std::map<std::int64_t, double>> first;
  for (std::int64_t rank = 0; rank < options.ranks; ++rank) {
    const Json& of_rank = member(ranks, std::to_string(rank));
    if (!of_rank.is_object()) {
      unread(v, "scaling_factor", "lacks a rank");
      return;
    }
    const auto factors = factors_of(v, of_rank);
    if (!factors) return;
    if (first && *first != *factors) v.wrong("scaling_factor", "", "the ranks differ");
    if (!first) first = factors;
  }
  if (!first) return;
  for (const auto& [layer, factor] : *first) {
    const std::string key = "scaling_factor." + std::to_string(layer);
    check_scales(v, key, {factor});
    v.used(key, range_text({factor}), "for keys and values");
    for (const KVRole role : {KVRole::kKey, KVRole::kValue}) {
      EffectiveFactors factors;
      factors.layer = layer;
      factors.role = role;
      factors.source = key;
      factors.grid = kFp8E4M3;
      factors.scale = {factor};
      factors.offset = {0};
      factors.precision = 0x1p-24;  // a decimal, not always of all the digits of a float32
      v.report.layers.push_back(std::move(factors));
    }
  }
  v.note(kBroken);
}

/// Whether SGLang takes the checkpoint's cache for FP8.
bool check_config(Verification& v, const std::string& folder) {
  try {
    const char* name = file_exists(path_in(folder, kConfigName)) ? kConfigName : kConfigPieceName;
    const Json config = read_json_object(path_in(folder, name));
    const Json& settings = member(config, "quantization_config");
    const Json& scheme = member(settings, "kv_cache_scheme");
    const bool is_fp8 = member(scheme, "type") == "float" && member(scheme, "num_bits") == 8;
    if (member(settings, "quant_method") == "modelopt") {
      if (is_fp8 && member(settings, "quant_algo") == "FP8") return true;
    } else if (member(settings, "quant_method") == "compressed-tensors") {
      const Json& symmetric = member(scheme, "symmetric");
      const Json& dynamic = member(scheme, "dynamic");
      if (is_fp8 && member(scheme, "strategy") == "tensor" && symmetric != false &&
          dynamic != true) {
        return true;
      }
    }
    v.wrong(name, scheme.dump(), "the scheme is passed over with a warning: the cache stays plain");
  } catch (const Error& error) {
    v.fatal("", error.what());
  }
  return false;
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(sglang_runtime(), path, options);
  if (!folder_exists(path)) {
    read_file(v, path, options);
    return finish(std::move(v), /*may_merge=*/true);
  }
  const FolderTensors tensors(path, options.model_folder, &v.report.findings);
  if (!check_config(v, path)) return finish(std::move(v));
  for (const auto& [attention, scales] : scales_in(v, tensors, {sglang_parameter})) {
    add_scalar_pair(v, attention, scales);
  }
  return finish(std::move(v));
}

}  // namespace

Runtime sglang_runtime() {
  return {.name = "sglang",
          .summary = "SGLang's file of factors: FP8 E4M3, one scale a layer",
          .readers = "SGLang 0.5.23",
          .output = OutputKind::kFile,
          .capability = {.grids = {kFp8E4M3}, .granularities = {Granularity::kPerTensor}},
          .write = write,
          .verify = verify};
}

}  // namespace amct
