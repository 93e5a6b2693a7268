#include "export/model_layers.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>
#include <utility>

namespace amct {
namespace {

// As amct_pytorch.discovery and _fused know them; a Python test compares the lists.
constexpr std::array<std::string_view, 5> kKeys{"k_proj", "key", "k", "k_lin", "key_proj"};
constexpr std::array<std::string_view, 5> kValues{"v_proj", "value", "v", "v_lin", "value_proj"};
constexpr std::array<std::string_view, 7> kFused{
    "qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "wqkv", "kv_a_proj_with_mqa"};
constexpr std::array<std::string_view, 2> kLatent{"kv_a_proj_with_mqa", "kv_a_layernorm"};

template <typename List>
bool holds(const List& list, std::string_view item) {
  return std::ranges::find(list, item) != list.end();
}

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('.') + 1); }

std::string_view parent(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return path.substr(0, dot == std::string_view::npos ? 0 : dot);
}

/// The number that a component of a name is, or nothing.
std::optional<std::int64_t> number_of(std::string_view part) {
  constexpr std::size_t kMostDigits = 9;
  std::int64_t number = 0;
  const auto result = std::from_chars(part.data(), part.data() + part.size(), number);
  const bool digits = std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
  if (part.empty() || part.size() > kMostDigits || !digits || result.ec != std::errc()) return {};
  return number;
}

std::string quoted(std::string_view name) {
  std::string text("'");
  text += name;
  return text += '\'';
}

/// Which number of a name is the layer's: the first that every name has and that no two layers of
/// the same role share. Throws ValueError where none is.
std::size_t position_of_number(std::span<const LayerRecord> layers,
                               const std::vector<LayerName>& names,
                               const std::vector<KVRole>& roles) {
  std::size_t numbers = names.front().numbers.size();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    numbers = std::min(numbers, names[i].numbers.size());
    if (numbers == 0) {
      throw ValueError("layer " + quoted(layers[i].name) +
                       ": its number in the model cannot be told; a name needs one between points, "
                       "as 'layers.0.k_proj'");
    }
  }
  std::string twice;
  for (std::size_t position = 0; position < numbers; ++position) {
    std::map<std::pair<std::int64_t, KVRole>, std::size_t> seen;
    bool unique = true;
    for (std::size_t i = 0; unique && i < layers.size(); ++i) {
      const auto [found, added] = seen.emplace(std::pair(names[i].numbers[position], roles[i]), i);
      if (!added && position == 0) {
        twice = "layer " + std::to_string(found->first.first) + " has two of role " +
                std::string(name_of(roles[i])) + ": " + quoted(layers[found->second].name) +
                " and " + quoted(layers[i].name);
      }
      unique = added;
    }
    if (unique) return position;
  }
  throw ValueError(twice);
}

}  // namespace

LayerName parse_layer_name(std::string_view name) {
  LayerName result;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    if (const auto number = number_of(name.substr(at, end - at))) result.numbers.push_back(*number);
    at = end + 1;
  }
  const std::string_view last = last_part(name);
  if (holds(kKeys, last)) result.role = KVRole::kKey;
  if (holds(kValues, last)) result.role = KVRole::kValue;
  std::string_view projection = name;
  if ((last == "key" || last == "value") && holds(kFused, last_part(parent(name)))) {
    projection = parent(name);
  }
  result.projection = projection;
  result.attention = parent(projection);
  return result;
}

std::vector<LayerPlace> layer_places(std::span<const LayerRecord> layers, std::string* reason) {
  try {
    if (layers.empty()) throw ValueError("the record holds no layers");
    std::vector<LayerName> names;
    std::vector<KVRole> roles;
    for (const LayerRecord& layer : layers) {
      names.push_back(parse_layer_name(layer.name));
      const std::optional<KVRole> role = layer.role ? layer.role : names.back().role;
      if (!role) {
        throw ValueError(
            "layer " + quoted(layer.name) +
            ": whether it is a key or a value cannot be told from its name; the record "
            "may say so: 'role: key'");
      }
      roles.push_back(*role);
    }
    const std::size_t position = position_of_number(layers, names, roles);
    std::vector<LayerPlace> places;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      places.push_back({names[i].numbers[position], roles[i]});
    }
    return places;
  } catch (const ValueError& error) {
    *reason = error.what();
    return {};
  }
}

std::vector<AttentionLayer> model_layers(std::span<const LayerRecord> layers) {
  std::string reason;
  const std::vector<LayerPlace> places = layer_places(layers, &reason);
  if (places.empty()) throw ValueError(reason);
  std::map<std::int64_t, std::array<const LayerRecord*, 2>> halves;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerName name = parse_layer_name(layers[i].name);
    if (holds(kLatent, last_part(name.projection))) {
      throw ValueError("layer " + quoted(layers[i].name) +
                       " is of multi-head latent attention, whose cache is one tensor for keys and "
                       "values; no runtime reads static factors of its parts");
    }
    halves[places[i].index].at(places[i].role == KVRole::kKey ? 0 : 1) = &layers[i];
  }
  std::vector<AttentionLayer> result;
  for (const auto& [index, half] : halves) {
    const auto [key, value] = half;
    if (key == nullptr || value == nullptr) {
      throw ValueError("layer " + std::to_string(index) + " has " +
                       quoted((key == nullptr ? value : key)->name) + " but no " +
                       (key == nullptr ? "key" : "value") + "; calibrate both");
    }
    const LayerName key_name = parse_layer_name(key->name);
    const LayerName value_name = parse_layer_name(value->name);
    if (key_name.attention != value_name.attention) {
      throw ValueError("layer " + std::to_string(index) + ": " + quoted(key->name) + " and " +
                       quoted(value->name) + " are not of the same attention module");
    }
    result.push_back(
        {index, key_name.attention, key_name.projection, value_name.projection, *key, *value});
  }
  return result;
}

Granularity granularity_of(const LayerRecord& layer) {
  if (layer.per_head) return Granularity::kPerHead;
  return layer.params.size() == 1 ? Granularity::kPerTensor : Granularity::kPerChannel;
}

LayerRecord coarsened(LayerRecord layer, std::optional<std::int64_t> heads) {
  const auto all_equal = [](std::span<const QuantParams> params) {
    return std::ranges::adjacent_find(params, std::ranges::not_equal_to()) == params.end();
  };
  if (all_equal(layer.params)) {
    layer.params.resize(1);
    layer.per_head = false;
    return layer;
  }
  if (layer.per_head || !heads || *heads <= 0) return layer;
  const std::size_t count = layer.params.size();
  const auto groups = static_cast<std::size_t>(*heads);
  if (count % groups != 0) return layer;
  const std::size_t width = count / groups;
  std::vector<QuantParams> of_heads;
  for (std::size_t at = 0; at < count; at += width) {
    if (!all_equal(std::span(layer.params).subspan(at, width))) return layer;
    of_heads.push_back(layer.params[at]);
  }
  layer.params = std::move(of_heads);
  layer.per_head = true;
  return layer;
}

std::vector<QuantParams> spread(const LayerRecord& layer, std::int64_t count) {
  const auto given = static_cast<std::int64_t>(layer.params.size());
  const bool of_channels = granularity_of(layer) == Granularity::kPerChannel;
  if (count < given || count % given != 0 || (of_channels && count != given)) {
    throw ValueError("layer " + quoted(layer.name) + " has factors of " + std::to_string(given) +
                     (layer.per_head ? " heads" : " channels") + ", which do not fit the model's " +
                     std::to_string(count));
  }
  std::vector<QuantParams> result;
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(layer.params[static_cast<std::size_t>(i / (count / given))]);
  }
  return result;
}

}  // namespace amct
