#include "export/checkpoint.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <tuple>

namespace amct {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeight = ".weight";

std::optional<std::int64_t> positive(const Json& json) {
  if (!json.is_number_integer()) return std::nullopt;
  const auto value = json.get<std::int64_t>();
  if (value <= 0 || value > kMaxModelSize)  // so products do not overflow
    return std::nullopt;
  return value;
}

std::vector<std::string_view> parts_of(std::string_view path) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('.', at), path.size());
    parts.push_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

/// How many components two names share at their ends.
std::size_t common_end(const std::vector<std::string_view>& a,
                       const std::vector<std::string_view>& b) {
  std::size_t n = 0;
  while (n < a.size() && n < b.size() && a[a.size() - 1 - n] == b[b.size() - 1 - n]) ++n;
  return n;
}

/// How many components of `a` stand in `b`, anywhere.
std::size_t shared(const std::vector<std::string_view>& a, const std::vector<std::string_view>& b) {
  return static_cast<std::size_t>(std::ranges::count_if(
      a, [&](std::string_view part) { return std::ranges::find(b, part) != b.end(); }));
}

/// A file name that an index gives: in the folder itself.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

}  // namespace

std::string path_in(const std::string& folder, std::string_view name) {
  return (fs::path(folder) / name).string();
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  // No pipe either, whose reader would wait for somebody to write.
  return fs::is_regular_file(path, ignored);
}

bool folder_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::vector<std::string> shards_in(const std::string& folder) {
  std::error_code failure;
  std::vector<std::string> names;
  for (fs::directory_iterator at(folder, failure), end; !failure && at != end;
       at.increment(failure)) {
    std::string name = at->path().filename().string();
    if (name.ends_with(".safetensors")) names.push_back(std::move(name));
  }
  if (failure) throw IoError(failure.value(), "read", folder);
  std::ranges::sort(names);
  return names;
}

bool is_consolidated(std::string_view name) { return name.starts_with("consolidated"); }

ModelConfig model_config(const Json& config) {
  ModelConfig model;
  const Json& text = member(config, "text_config");
  const auto look_up = [&](std::string_view key) -> const Json& {
    const Json& inner = member(text, key);
    return inner.is_null() ? member(config, key) : inner;
  };
  if (const Json& type = member(config, "model_type"); type.is_string()) {
    model.model_type = type.get<std::string>();
  }
  model.layers = positive(look_up("num_hidden_layers"));
  if (!model.layers) model.layers = positive(look_up("n_layer"));
  const std::optional<std::int64_t> query_heads = positive(look_up("num_attention_heads"));
  model.heads = positive(look_up("num_key_value_heads"));
  model.head_dim = positive(look_up("head_dim"));
  const std::optional<std::int64_t> hidden = positive(look_up("hidden_size"));
  if (!model.head_dim && hidden && query_heads && *hidden % *query_heads == 0) {
    model.head_dim = *hidden / *query_heads;
  }
  for (const std::string_view key : {"dtype", "torch_dtype"}) {
    const Json& dtype = look_up(key);
    for (const DType known : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      if (dtype.is_string() && dtype.get<std::string>() == name_of(known)) model.dtype = known;
    }
  }
  const Json& tied = look_up("tie_word_embeddings");
  model.tied_embeddings = tied.is_boolean() && tied.get<bool>();
  return model;
}

std::set<std::string> attention_modules(const std::set<std::string>& weights) {
  std::set<std::string> modules;
  for (const std::string& weight : weights) {
    if (!weight.ends_with(kWeight)) continue;
    const std::string module = weight.substr(0, weight.size() - kWeight.size());
    const LayerName separate = parse_layer_name(module);
    if (separate.numbers.empty()) continue;
    if (separate.role) modules.insert(separate.attention);
    // A fused projection is known by what its halves would be called.
    const LayerName fused = parse_layer_name(module + ".key");
    if (fused.projection == module) modules.insert(fused.attention);
  }
  return modules;
}

Checkpoint::Checkpoint(std::string folder) : folder_(std::move(folder)) {
  if (!folder_exists(folder_)) throw IoError(ENOENT, "read", folder_);
  const std::string config = path_in(folder_, kConfigName);
  if (!file_exists(config)) {
    throw ValueError("'" + folder_ + "' is not a checkpoint: it has no " + kConfigName);
  }
  config_ = read_json_object(config);
  model_ = model_config(config_);
  if (!file_exists(path_in(folder_, kIndexName)) &&
      file_exists(path_in(folder_, kModelSlimIndexName))) {
    index_name_ = kModelSlimIndexName;
  }
  if (file_exists(path_in(folder_, index_name_))) {
    read_index();
  } else {
    read_shards();
  }
  if (weights_.empty()) {
    // Of *.bin files beside it, runtimes would read none once there is a *.safetensors.
    throw ValueError("'" + folder_ + "' has no weights in *.safetensors; convert the checkpoint");
  }
}

void Checkpoint::read_index() {
  const std::string index = path_in(folder_, index_name_);
  index_ = read_json_object(index);
  const Json& map = member(*index_, "weight_map");
  if (!map.is_object()) throw ValueError(index + ": it has no weight_map");
  for (const auto& [name, file] : map.items()) {
    if (!file.is_string()) throw ValueError(index + ": weight_map does not name files");
    if (file.get_ref<const std::string&>() != kShardName) weights_.insert(name);
  }
}

void Checkpoint::read_shards() {
  for (const std::string& name : shards_in(folder_)) {
    if (name == kShardName || is_consolidated(name)) continue;
    const SafetensorsFile shard(path_in(folder_, name));
    for (const TensorInfo& tensor : shard.tensors()) {
      files_.emplace(tensor.name, name);
      weights_.insert(tensor.name);
    }
    size_ += shard.data_size();
  }
}

Json Checkpoint::index_with(std::span<const NewTensor> tensors) const {
  Json index = index_.value_or(Json::object());
  std::uint64_t size = size_;
  if (!index_) {
    index["metadata"] = Json::object();
    Json& map = index["weight_map"] = Json::object();
    for (const auto& [name, file] : files_) map[name] = file;
  }
  Json map = Json::object();
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (file != kShardName) map[name] = file;
  }
  const Json& total = member(member(index, "metadata"), "total_size");
  const bool has_total = !index_ || total.is_number_unsigned();
  if (index_ && has_total) {
    size = total.get<std::uint64_t>();
    const std::string old = path_in(folder_, kShardName);
    if (map.size() != index["weight_map"].size() && file_exists(old)) {
      size -= std::min(size, SafetensorsFile(old).data_size());
    }
  }
  for (const NewTensor& tensor : tensors) {
    map[tensor.name] = kShardName;
    size += tensor.values.size() * sizeof(float);
  }
  if (has_total) index["metadata"]["total_size"] = size;
  index["weight_map"] = std::move(map);
  return index;
}

std::string Checkpoint::checkpoint_name(const std::string& projection) const {
  if (weights_.contains(projection + std::string(kWeight))) return projection;
  const std::vector<std::string_view> parts = parts_of(projection);
  // What must agree: the number and all behind it, which tells the layer and the module in it.
  std::size_t needed = 1;
  while (needed <= parts.size() && parse_layer_name(parts[parts.size() - needed]).numbers.empty()) {
    ++needed;
  }
  using Score = std::tuple<std::size_t, std::size_t>;
  Score best{0, 0};
  std::vector<std::string> found;
  for (const std::string& weight : weights_) {
    if (!weight.ends_with(kWeight)) continue;
    const std::string module = weight.substr(0, weight.size() - kWeight.size());
    const std::vector<std::string_view> others = parts_of(module);
    const std::size_t same = common_end(parts, others);
    if (same < needed) continue;
    const Score score{same, shared(parts, others)};
    if (score > best) found.clear();
    if (score >= best) found.push_back(module);
    best = std::max(best, score);
  }
  if (found.size() == 1) return found.front();
  throw ValueError("layer '" + projection + "' of the record " +
                   (found.empty()
                        ? "has no weight in '" + folder_ + "': the record is of another model"
                        : "could be '" + found[0] + "' or '" + found[1] + "' of '" + folder_ +
                              "'; name it as the checkpoint does"));
}

void Checkpoint::rename(std::vector<AttentionLayer>& layers) const {
  for (AttentionLayer& layer : layers) {
    layer.key_projection = checkpoint_name(layer.key_projection);
    layer.value_projection = checkpoint_name(layer.value_projection);
    layer.attention = layer.key_projection.substr(0, layer.key_projection.rfind('.'));
  }
}

bool Checkpoint::normalizes_keys(const AttentionLayer& layer) const {
  return std::ranges::any_of(
      std::array{".k_norm.weight", ".k_layernorm.weight", ".key_norm.weight"},
      [&](const char* norm) { return weights_.contains(layer.attention + norm); });
}

namespace {

/// The files that the folder's index names.
std::set<std::string> files_in_index(const std::string& folder, std::vector<Finding>* findings) {
  std::set<std::string> listed;
  try {
    const Json json = read_json_object(path_in(folder, kIndexName));
    for (const auto& [name, file] : member(json, "weight_map").items()) {
      if (file.is_string()) listed.insert(file.get<std::string>());
    }
  } catch (const ValueError& error) {
    findings->push_back({Verdict::kFatal, kIndexName, "", error.what()});
  }
  return listed;
}

}  // namespace

FolderTensors::FolderTensors(const std::string& folder, const std::string& model_folder,
                             std::vector<Finding>* findings) {
  const auto broken = [&](const std::string& key, const std::string& why) {
    findings->push_back({Verdict::kFatal, key, "", why});
  };
  const bool has_index = file_exists(path_in(folder, kIndexName));
  const std::set<std::string> listed =
      has_index ? files_in_index(folder, findings) : std::set<std::string>();
  std::vector<std::string> paths;
  for (const std::string& name : shards_in(folder)) paths.push_back(path_in(folder, name));
  for (const std::string& name : listed) {
    const bool is_plain = is_plain_name(name);
    if (is_plain && file_exists(path_in(folder, name))) continue;
    if (is_plain && !model_folder.empty() && file_exists(path_in(model_folder, name))) {
      paths.push_back(path_in(model_folder, name));
      findings->push_back({Verdict::kUsed, name, "",
                           "of the checkpoint; the runtime wants a copy of it with these files"});
      continue;
    }
    broken(Json(name).dump(),
           "the index names this file, and it is not there; what was exported to a folder of its "
           "own belongs into a copy of the checkpoint");
  }
  for (const std::string& path : paths) {
    const std::string name = path.substr(path.rfind('/') + 1);
    if (is_consolidated(name)) {
      findings->push_back({Verdict::kIgnored, name, "",
                           "left out here; vLLM reads it alone unless told another load format"});
      continue;
    }
    if (has_index && !listed.contains(name)) {
      findings->push_back({Verdict::kIgnored, name, "", "the index does not name this file"});
      continue;
    }
    try {
      SafetensorsFile file(path);
      for (const TensorInfo& tensor : file.tensors()) {
        const auto [found, added] = tensors_.emplace(tensor.name, std::pair(files_.size(), tensor));
        if (!added) broken(tensor.name, "the tensor is in two files, " + name + " the second");
      }
      files_.push_back(std::move(file));
    } catch (const Error& error) {
      broken(name, error.what());
    }
  }
}

std::set<std::string> FolderTensors::names() const {
  std::set<std::string> names;
  for (const auto& [name, place] : tensors_) names.insert(name);
  return names;
}

std::optional<std::vector<double>> FolderTensors::read(const std::string& name,
                                                       std::vector<Finding>* findings) const {
  const auto& [file, tensor] = tensors_.at(name);
  try {
    return files_[file].read(tensor);
  } catch (const Error& error) {
    findings->push_back({Verdict::kFatal, name, "", error.what()});
    return std::nullopt;
  }
}

}  // namespace amct
