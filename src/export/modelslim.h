// What msModelSlim writes and vllm-ascend reads: quant_model_description.json beside the weights.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "export/checkpoint.h"
#include "export/checkpoint_update.h"
#include "export/factors.h"

namespace amct {

inline constexpr std::string_view kKeyScale = ".k_proj.kv_cache_scale";
inline constexpr std::string_view kKeyOffset = ".k_proj.kv_cache_offset";
inline constexpr std::string_view kValueScale = ".v_proj.kv_cache_scale";
inline constexpr std::string_view kValueOffset = ".v_proj.kv_cache_offset";

/// Writes the factors of every channel, per tensor and per head ones spread out, and the
/// description: that of the checkpoint with these entries, else one of a model whose weights are
/// plain.
ExportReport write_modelslim(const Runtime& runtime, ExportJob&& job, const ExportOptions& options);

/// The description and the tensors of a folder, as far as they can be read; the rest is a finding.
struct ModelSlimFolder {
  std::optional<Json> description;
  FolderTensors tensors;
  std::vector<std::string> attentions;  ///< modules that any tensor of factors belongs to
};
ModelSlimFolder read_modelslim(const std::string& folder, const std::string& model_folder,
                               std::vector<Finding>* findings);

/// Factors of one half of an attention module; an offset that is not there is zeros.
struct ModelSlimFactors {
  std::string scale_name;
  std::vector<double> scale;
  std::vector<double> offset;
};
/// Nothing, and a finding, where the scale is not there or the two do not fit.
std::optional<ModelSlimFactors> factors_in(const ModelSlimFolder& folder,
                                           const std::string& attention, KVRole role,
                                           std::vector<Finding>* findings);

}  // namespace amct
