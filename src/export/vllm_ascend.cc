// vllm-ascend's "C8": an INT8 cache with a scale for each channel.
#include "amct/core/error.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "export/modelslim.h"
#include "export/runtimes.h"
#include "export/verification.h"

namespace amct {
namespace {

/// The layer that the reader takes a name to be of: all that stands between points as digits, put
/// together, where no point serves two numbers. Nothing where that is no number it can take.
std::optional<std::int64_t> layer_by_digits(std::string_view name) {
  std::string digits;
  for (std::size_t at = name.find('.'); at != std::string_view::npos;) {
    const std::size_t end = name.find_first_not_of("0123456789", at + 1);
    if (end != std::string_view::npos && end > at + 1 && name[end] == '.') {
      digits += name.substr(at + 1, end - at - 1);
      at = name.find('.', end + 1);
    } else {
      at = name.find('.', at + 1);
    }
  }
  std::int64_t layer = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
  if (digits.empty() || result.ec != std::errc()) return std::nullopt;
  return layer;
}

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = vllm_ascend_runtime();
  if (options.model_folder.empty()) {
    throw ValueError(
        "vllm-ascend wants every weight described: give the checkpoint folder as the model");
  }
  ExportJob job = start_export(runtime, layers, options);
  warn_of_rounding(options, &job);
  for (const AttentionLayer& layer : job.layers) {
    if (layer_by_digits(layer.attention + std::string(kKeyScale)) != layer.index) {
      throw ValueError("vllm-ascend would not take '" + layer.attention + "' for layer " +
                       std::to_string(layer.index) +
                       ": it reads all numbers in the name as one; the model cannot be served so");
    }
  }
  ExportReport report = write_modelslim(runtime, std::move(job), options);
  report.notes.emplace_back(
      "vllm-ascend takes the folder as quantized by itself; do not add a quantization_config");
  report.notes.emplace_back("it needs a block size and a head size that 32 divides");
  return report;
}

/// What the description switches on; false where the cache is not quantized.
bool check_description(Verification& v, const ModelSlimFolder& folder,
                       std::set<std::int64_t>* layers) {
  if (!folder.description) return false;
  const Json& type = member(*folder.description, "kv_cache_type");
  if (type != "C8") {
    v.fatal("kv_cache_type", "is not \"C8\": the factors' names are not known then");
    return false;
  }
  v.used("kv_cache_type", "C8", "the cache is INT8");
  for (const auto& [key, value] : folder.description->items()) {
    if (key.find(kKeyScale.substr(1)) == std::string::npos) continue;
    if (const auto layer = layer_by_digits(key)) {
      layers->insert(*layer);
    } else {
      v.fatal(key, "holds no number of a layer: ValueError");
    }
  }
  return true;
}

/// Every linear layer must be described; what has two dimensions is one, or an embedding.
void check_weights(Verification& v, const ModelSlimFolder& folder) {
  if (!folder.description) return;
  std::size_t missing = 0;
  std::string first;
  for (const auto& [name, place] : folder.tensors.tensors()) {
    if (!name.ends_with(".weight") || place.second.shape.size() != 2) continue;
    if (folder.description->contains(name)) continue;
    if (missing++ == 0) first = name;
  }
  if (missing > 0) {
    v.fatal(first,
            "and " + std::to_string(missing - 1) + " more weights are not described: KeyError");
  }
}

void read_half(Verification& v, const ModelSlimFolder& folder, const std::string& attention,
               std::int64_t layer, KVRole role) {
  const auto factors = factors_in(folder, attention, role, &v.report.findings);
  if (!factors) return;
  const std::string& name = factors->scale_name;
  const std::size_t count = factors->scale.size();
  const bool is_known = v.model.heads && v.model.head_dim;
  const std::int64_t channels = is_known ? *v.model.heads * *v.model.head_dim : 0;
  if (count == 1 && channels != 1) {
    v.fatal(name, "one element fails at the first forward; every channel needs its own");
    return;
  }
  if (is_known && std::cmp_not_equal(count, channels)) {
    v.fatal(name, std::to_string(count) + " factors for " + std::to_string(*v.model.heads) +
                      " heads of " + std::to_string(*v.model.head_dim));
    return;
  }
  if (!check_scales(v, name, factors->scale)) return;
  if (std::ranges::any_of(factors->offset, [](double offset) { return offset != 0; })) {
    v.wrong(attention + std::string(role == KVRole::kKey ? kKeyOffset : kValueOffset),
            range_text(factors->offset),
            "is added in writing and not taken off in reading: x' = x + offset * scale");
  }
  EffectiveFactors effective;
  effective.layer = layer;
  effective.role = role;
  effective.source = name;
  effective.scale = rounded_scales(v, name, factors->scale);
  effective.offset.assign(count, 0.0);
  effective.precision = precision_of(v.dtype);
  v.used(name, range_text(effective.scale), "x' = q * scale");
  v.report.layers.push_back(std::move(effective));
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(vllm_ascend_runtime(), path, options);
  if (!folder_exists(path)) {
    v.fatal("", "vllm-ascend reads a folder");
    return finish(std::move(v));
  }
  const ModelSlimFolder folder = read_modelslim(path, options.model_folder, &v.report.findings);
  std::set<std::int64_t> layers;
  if (!check_description(v, folder, &layers)) return finish(std::move(v));
  check_weights(v, folder);
  std::set<std::int64_t> found;
  for (const std::string& attention : folder.attentions) {
    const auto layer = layer_by_digits(attention + ".attn.");
    if (!layer || !layers.contains(*layer)) {
      v.wrong(attention, "", "no k_proj.kv_cache_scale of it is described: its cache stays plain");
      continue;
    }
    found.insert(*layer);
    read_half(v, folder, attention, *layer, KVRole::kKey);
    read_half(v, folder, attention, *layer, KVRole::kValue);
  }
  for (const std::int64_t layer : layers) {
    if (found.contains(layer)) continue;
    v.fatal("layer " + std::to_string(layer),
            "is described, and no tensor is there: fails at the "
            "first forward");
  }
  v.note("scales are kept in " + std::string(name_of(v.dtype)) +
         (v.model.dtype ? "" : ", as far as is known"));
  return finish(std::move(v));
}

}  // namespace

Runtime vllm_ascend_runtime() {
  return {.name = "vllm-ascend",
          .summary = "vllm-ascend C8: INT8 without offsets, added to a checkpoint",
          .readers = "vllm-ascend 0.23.0",
          .output = OutputKind::kFolder,
          .capability = {.grids = {kInt8},
                         .granularities = {Granularity::kPerTensor, Granularity::kPerHead,
                                           Granularity::kPerChannel}},
          .write = write,
          .verify = verify};
}

}  // namespace amct
