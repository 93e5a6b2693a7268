// A model's checkpoint in the layout of transformers: config.json, *.safetensors and their index.
#pragma once

#include "amct/core/dtype.h"
#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "export/json_file.h"
#include "export/model_layers.h"
#include "export/safetensors.h"

namespace amct {

inline constexpr const char* kConfigName = "config.json";
inline constexpr const char* kIndexName = "model.safetensors.index.json";
inline constexpr const char* kModelSlimIndexName = "quant_model_weights.safetensors.index.json";
/// What exporters call the file of their tensors.
inline constexpr const char* kShardName = "kv_cache_factors.safetensors";
/// quantization_config alone, for a user who has no checkpoint at hand.
inline constexpr const char* kConfigPieceName = "quantization_config.json";
inline constexpr const char* kHfQuantConfigName = "hf_quant_config.json";
inline constexpr const char* kDescriptionName = "quant_model_description.json";

/// `folder`/`name`.
std::string path_in(const std::string& folder, std::string_view name);
bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);

/// Names of the *.safetensors in a folder, sorted. Throws IoError.
std::vector<std::string> shards_in(const std::string& folder);
/// Whether a file is of the form that vLLM loads alone where it finds one: "consolidated...".
bool is_consolidated(std::string_view name);

/// What config.json says of a model; for a multimodal one its text_config does.
struct ModelConfig {
  std::string model_type;
  std::optional<std::int64_t> layers;
  std::optional<std::int64_t> heads;  ///< key/value heads
  std::optional<std::int64_t> head_dim;
  std::optional<DType> dtype;
  bool tied_embeddings = false;
};
ModelConfig model_config(const Json& config);

/// The attention modules that `weights` show: the parents of key or fused projections.
std::set<std::string> attention_modules(const std::set<std::string>& weights);

class Checkpoint {
 public:
  /// Throws ValueError where `folder` is not one: no config.json, no *.safetensors, a file that is
  /// broken; IoError.
  explicit Checkpoint(std::string folder);

  const std::string& folder() const { return folder_; }
  const Json& config() const { return config_; }
  const ModelConfig& model() const { return model_; }
  /// Names of all tensors but those that exporters wrote.
  const std::set<std::string>& weights() const { return weights_; }
  bool has_index() const { return index_.has_value(); }
  const std::string& index_name() const { return index_name_; }
  /// The index with the tensors of a shard put in place of those it had of it; made where the
  /// checkpoint has none.
  Json index_with(std::span<const NewTensor> tensors) const;

  /// Gives the layers the names that the checkpoint has for them: models are wrapped, and the
  /// modules of a multimodal one are called otherwise than its weights. Throws ValueError where a
  /// layer has no weight, or several that fit as well.
  void rename(std::vector<AttentionLayer>& layers) const;
  /// Whether the attention module normalizes its keys after projecting them.
  bool normalizes_keys(const AttentionLayer& layer) const;

 private:
  void read_index();
  void read_shards();
  std::string checkpoint_name(const std::string& projection) const;

  std::string folder_;
  Json config_;
  ModelConfig model_;
  std::optional<Json> index_;
  std::string index_name_ = kIndexName;
  std::map<std::string, std::string> files_;  // of each tensor, where there is no index
  std::uint64_t size_ = 0;                    // bytes of all of them
  std::set<std::string> weights_;
};

/// The tensors of a folder that a runtime sees, by the rule that vLLM and its relatives share: with
/// an index only the files it names, all *.safetensors without.
class FolderTensors {
 public:
  /// What is missing or broken goes into `findings`. Files that the index names are looked for in
  /// `model_folder`, too, where it is not empty: a folder of what was exported is to be put into a
  /// copy of the checkpoint.
  FolderTensors(const std::string& folder, const std::string& model_folder,
                std::vector<Finding>* findings);

  const std::map<std::string, std::pair<std::size_t, TensorInfo>>& tensors() const {
    return tensors_;
  }
  std::set<std::string> names() const;
  /// The elements, or nothing and a finding. `name` must be one of them.
  std::optional<std::vector<double>> read(const std::string& name,
                                          std::vector<Finding>* findings) const;

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::pair<std::size_t, TensorInfo>> tensors_;
};

}  // namespace amct
