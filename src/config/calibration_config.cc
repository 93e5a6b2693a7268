#include "amct/config/calibration_config.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"
#include "amct/core/text.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include <nlohmann/json.hpp>

#include "config/layer_settings.h"
#include "core/json_builder.h"

namespace amct {
namespace {

using Json = nlohmann::json;

constexpr const char* kSettingsKey = "kv_data_quant_config";
constexpr std::string_view kBatchNum = "batch_num";
constexpr std::string_view kActivationOffset = "activation_offset";

/// A parsed object whose top-level keys keep their order; nlohmann's own ordered object would look
/// every key up linearly.
struct Document {
  Json root;
  std::vector<std::string> keys;
};

/// Refuses what is nested too deeply, and keys that stand twice.
struct DocumentObserver {
  const std::string& source;
  std::vector<std::string>& keys;

  void on_level(std::size_t levels) const {
    if (levels > kMaxConfigDepth) {
      throw ValueError(source + ": JSON is nested too deeply, more than " +
                       std::to_string(kMaxConfigDepth) + " levels");
    }
  }
  void on_key(std::size_t levels, const std::string& key, bool is_new) const {
    if (!is_new) throw ValueError(source + ": key '" + key + "' appears twice; remove one");
    if (levels == 1) keys.push_back(key);
  }
};

Document parse_document(std::string_view text, const std::string& source) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    throw ValueError(source + ": the file is empty; create it with create_quant_cali_config");
  }
  Document document;
  DocumentObserver observer{source, document.keys};
  JsonBuilder<Json, DocumentObserver> builder(observer);
  if (!Json::sax_parse(text, &builder)) throw ValueError(source + ": not JSON: " + builder.error());
  document.root = std::move(builder.value());
  if (!document.root.is_object()) {
    throw ValueError(source + ": a JSON object is needed, not " + document.root.type_name());
  }
  return document;
}

/// A JSON value as a setting; empty for what no setting can be (null, an object, a list of others
/// than numbers).
std::optional<OptionValue> to_option(const Json& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() &&
      json.get<std::uint64_t>() >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return json.get<double>();
  }
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (!json.is_array()) return std::nullopt;
  std::vector<double> numbers;
  for (const Json& element : json) {
    if (!element.is_number()) return std::nullopt;
    numbers.push_back(element.get<double>());
  }
  return numbers;
}

LayerConfig parse_layer(const std::string& name, const Json& json, const std::string& source,
                        const AlgorithmCatalog& catalog) {
  check_layer_name(name, source);
  const std::string where = source + ": layer '" + name + "': ";
  for (const auto& [key, value] : json.items()) {
    if (key != kSettingsKey) {
      throw ValueError(where + "unknown key '" + key + "'; a layer holds '" + kSettingsKey +
                       "' alone");
    }
  }
  if (!json.contains(kSettingsKey)) throw ValueError(where + "'" + kSettingsKey + "' is missing");
  const Json& object = json.at(kSettingsKey);
  if (!object.is_object()) {
    throw ValueError(where + "'" + kSettingsKey + "' must be an object, not " + object.type_name());
  }
  Settings settings;
  for (const auto& [key, value] : object.items()) {
    std::optional<OptionValue> option = to_option(value);
    if (!option) {
      throw ValueError(where + key +
                       " must be a number, a string, true, false or a list of numbers, not " +
                       value.type_name());
    }
    settings.emplace_back(key, std::move(*option));
  }
  LayerConfig layer = parse_layer_settings(
      settings, SettingsDialect::kFile, catalog,
      [&](SettingsProblem, const std::string& message) { throw ValueError(where + message); });
  layer.name = name;
  return layer;
}

/// A copy. Where memory runs out in std::variant's own, GCC 12 destroys what was not made.
OptionValue copy_of(const OptionValue& value) {
  return std::visit([](const auto& held) { return OptionValue(held); }, value);
}

/// The settings of a layer in the order of the file.
Settings settings_of(const LayerConfig& layer, const AlgorithmSpec& spec) {
  Settings settings{{"act_algo", layer.algorithm}};
  for (const OptionSpec& option : spec.options) {
    const OptionValue& value = layer.options.at(option.key);
    if (option.is_extension && value == option.default_value) continue;
    settings.emplace_back(option.key, copy_of(value));
  }
  if (layer.asymmetric) settings.emplace_back("asymmetric", *layer.asymmetric);
  settings.emplace_back("quant_granularity", static_cast<std::int64_t>(layer.granularity));
  if (layer.grid != kInt8) settings.emplace_back("dst_type", std::string(layer.grid.name));
  if (layer.granularity == Granularity::kPerHead) settings.emplace_back("head_num", layer.head_num);
  if (layer.nonfinite == NonFinitePolicy::kSkip)
    settings.emplace_back("nonfinite", std::string("skip"));
  if (layer.tap == Tap::kCache) settings.emplace_back("tap", std::string("cache"));
  if (layer.role)
    settings.emplace_back("role", std::string(*layer.role == KVRole::kKey ? "key" : "value"));
  if (layer.slice) {
    settings.emplace_back("slice", std::vector<double>{static_cast<double>(layer.slice->begin),
                                                       static_cast<double>(layer.slice->end)});
    if (layer.slice->groups > 1) settings.emplace_back("slice_groups", layer.slice->groups);
  }
  if (layer.max_position) settings.emplace_back("max_position", *layer.max_position);
  if (layer.sink_tokens > 0) settings.emplace_back("sink_tokens", layer.sink_tokens);
  if (layer.query_weighted && layer.role != KVRole::kValue)
    settings.emplace_back("query_weighted", true);
  return settings;
}

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', true); }

std::string indented(int depth) { return std::string(static_cast<std::size_t>(4 * depth), ' '); }

/// A setting as Python's json.dumps(indent=4, separators=(',', ':')) writes it.
/// A list holds whole numbers where it is a slice.
std::string to_json_text(const std::string& key, const OptionValue& value, int depth) {
  if (const auto* text = std::get_if<std::string>(&value)) return quoted(*text);
  const auto* list = std::get_if<std::vector<double>>(&value);
  if (list == nullptr) return to_string(value);
  std::string lines = "[\n";
  for (std::size_t i = 0; i < list->size(); ++i) {
    const double number = (*list)[i];
    lines += indented(depth + 1) + to_string(key == "slice"
                                                 ? OptionValue(static_cast<std::int64_t>(number))
                                                 : OptionValue(number));
    lines += i + 1 < list->size() ? ",\n" : "\n";
  }
  return lines + indented(depth) + "]";
}

}  // namespace

CalibrationConfig default_config(std::span<const std::string> layers,
                                 const AlgorithmCatalog& catalog) {
  CalibrationConfig config;
  for (const std::string& name : layers) {
    LayerConfig layer;
    layer.name = name;
    layer.algorithm = catalog.front().name;
    layer.options = catalog.front().defaults();
    config.layers.push_back(std::move(layer));
  }
  return config;
}

CalibrationConfig parse_config(std::string_view text, const std::string& source,
                               const AlgorithmCatalog& catalog) {
  const Document document = parse_document(text, source);
  CalibrationConfig config;
  for (const std::string& key : document.keys) {
    const Json& value = document.root.at(key);
    if (key == kBatchNum) {
      if (!value.is_number_integer() || value.get<double>() < 1 ||
          value.get<double>() > 4294967295.0) {
        throw ValueError(source + ": batch_num must be an integer from 1 to 4294967295, not " +
                         value.dump());
      }
      config.batch_num = value.get<std::int64_t>();
    } else if (key == kActivationOffset) {
      if (!value.is_boolean()) {
        throw ValueError(source + ": activation_offset must be true or false, not " + value.dump());
      }
      config.activation_offset = value.get<bool>();
    } else if (value.is_object()) {
      check_layer_count(config.layers.size() + 1, source);
      config.layers.push_back(parse_layer(key, value, source, catalog));
    } else {
      const std::vector<std::string> known{"batch_num", "activation_offset"};
      throw ValueError(source + ": '" + key +
                       "' is neither a known key nor a layer with its settings" +
                       suggestion(key, known));
    }
  }
  if (config.layers.empty()) {
    throw ValueError(source + ": no layer is named, so there is nothing to calibrate");
  }
  return config;
}

CalibrationConfig read_config(const std::string& path, const AlgorithmCatalog& catalog) {
  return parse_config(read_text_file(path, kMaxConfigFileSize), path, catalog);
}

std::string to_json(const CalibrationConfig& config, const AlgorithmCatalog& catalog) {
  std::string text = "{\n" + indented(1) + "\"batch_num\":" + std::to_string(config.batch_num) +
                     ",\n" + indented(1) +
                     "\"activation_offset\":" + (config.activation_offset ? "true" : "false");
  check_layer_count(config.layers.size(), "the configuration");
  for (const LayerConfig& layer : config.layers) {
    check_layer_name(layer.name, "the configuration");
    if (layer.name == kBatchNum || layer.name == kActivationOffset) {
      throw ValueError("a layer cannot be called '" + layer.name +
                       "', which is a setting of the configuration file");
    }
    const AlgorithmSpec* spec = find_spec(catalog, layer.algorithm);
    if (spec == nullptr)
      throw ValueError("layer '" + layer.name + "': no algorithm '" + layer.algorithm + "'");
    text += ",\n" + indented(1) + quoted(layer.name) + ":{\n" + indented(2) + quoted(kSettingsKey) +
            ":{\n";
    const Settings settings = settings_of(layer, *spec);
    for (std::size_t i = 0; i < settings.size(); ++i) {
      const auto& [key, value] = settings[i];
      text += indented(3) + quoted(key) + ":" + to_json_text(key, value, 3);
      text += i + 1 < settings.size() ? ",\n" : "\n";
    }
    text += indented(2) + "}\n" + indented(1) + "}";
  }
  return text + "\n}";
}

LayerConfig with_settings(const LayerConfig& layer,
                          std::span<const std::pair<std::string, OptionValue>> changes,
                          const AlgorithmCatalog& catalog) {
  const std::string where = "layer '" + layer.name + "': ";
  const AlgorithmSpec* spec = find_spec(catalog, layer.algorithm);
  if (spec == nullptr) throw ValueError(where + "no algorithm '" + layer.algorithm + "'");
  Settings settings = settings_of(layer, *spec);
  const auto is_changed = [&](std::string_view key) {
    return std::ranges::any_of(changes, [&](const auto& change) { return change.first == key; });
  };
  std::erase_if(settings, [&](const Settings::value_type& setting) {
    const std::string& key = setting.first;
    return is_changed(key) || (is_changed("act_algo") && spec->find(key) != nullptr) ||
           (is_changed("quant_granularity") && key == "head_num") ||
           (is_changed("num_bits") && key == "dst_type");
  });
  settings.insert(settings.end(), changes.begin(), changes.end());
  LayerConfig changed = parse_layer_settings(
      settings, SettingsDialect::kFile, catalog,
      [&](SettingsProblem, const std::string& message) { throw ValueError(where + message); });
  changed.name = layer.name;
  return changed;
}

void check_layers(std::span<const std::string> names, std::span<const ModelLayer> model,
                  const std::string& source) {
  std::unordered_map<std::string_view, const ModelLayer*> by_name;
  for (const ModelLayer& layer : model) by_name.emplace(layer.name, &layer);
  std::unordered_set<std::string_view> seen;
  for (const std::string& name : names) {
    if (!seen.insert(name).second) {
      throw ValueError(source + ": layer '" + name + "' is listed twice; list it once");
    }
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      std::vector<std::string> supported;
      for (const ModelLayer& layer : model) {
        if (layer.supported) supported.push_back(layer.name);
      }
      throw ValueError(source + ": the model has no layer '" + name + "'" +
                       suggestion(name, supported));
    }
    if (!found->second->supported) {
      throw ValueError(source + ": layer '" + name + "' is a " + found->second->type +
                       ", which cannot be calibrated; name a Linear layer or another projection");
    }
  }
}

}  // namespace amct
