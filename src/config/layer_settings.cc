#include "config/layer_settings.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string_view>

namespace amct {
namespace {

/// Settings of a layer that only a model's configuration can give.
constexpr std::array<std::string_view, 7> kPlace{
    "tap", "role", "slice", "slice_groups", "max_position", "sink_tokens", "query_weighted"};

std::vector<std::string> names_of(const AlgorithmCatalog& catalog) {
  std::vector<std::string> names;
  for (const AlgorithmSpec& spec : catalog) names.push_back(spec.name);
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "'" : ", '") + word + "'";
  return text;
}

/// Reads the settings one by one and throws through `fail`.
class Reader {
 public:
  Reader(SettingsDialect dialect, const AlgorithmCatalog& catalog, const SettingsFailure& fail)
      : dialect_(dialect), catalog_(catalog), fail_(fail) {}

  LayerConfig read(const Settings& settings) {
    LayerConfig layer;
    const AlgorithmSpec& spec = algorithm(settings);
    layer.algorithm = spec.name;
    layer.options = spec.defaults();
    for (const auto& [key, value] : settings) {
      if (key == "act_algo") continue;
      if (const OptionSpec* option = spec.find(key); option != nullptr) {
        set_option(layer, *option, value, fail_);
      } else if (key == "asymmetric") {
        layer.asymmetric = boolean(key, value);
      } else if (key == "quant_granularity") {
        layer.granularity = granularity(value);
      } else if (key == "head_num") {
        layer.head_num = at_least(key, value, 1);
      } else if (key == "nonfinite") {
        layer.nonfinite = nonfinite(value);
      } else if (key == "num_bits") {
        num_bits_ = bits(value);
      } else if (key == "dst_type") {
        layer.grid = grid(value);
        has_dst_type_ = true;
      } else if (dialect_ == SettingsDialect::kFile &&
                 std::ranges::find(kPlace, key) != kPlace.end()) {
        set_place(layer, key, value);
      } else {
        unknown(key, spec);
      }
    }
    set_bits(layer);
    check_heads(layer);
    check_place(layer);
    check_conflicts(layer, spec, fail_);
    return layer;
  }

 private:
  void set_place(LayerConfig& layer, const std::string& key, const OptionValue& value) {
    if (key == "tap") {
      layer.tap = word<Tap>(key, value, {{"linear", Tap::kLinear}, {"cache", Tap::kCache}});
    } else if (key == "role") {
      layer.role = word<KVRole>(key, value, {{"key", KVRole::kKey}, {"value", KVRole::kValue}});
    } else if (key == "max_position") {
      layer.max_position = at_least(key, value, 0);
    } else if (key == "sink_tokens") {
      layer.sink_tokens = at_least(key, value, 0);
    } else if (key == "query_weighted") {
      layer.query_weighted = boolean(key, value);
    } else if (key == "slice_groups") {
      slice_groups_ = at_least(key, value, 1);
    } else {
      layer.slice = slice(value);
    }
  }

  void check_heads(const LayerConfig& layer) const {
    const bool per_head = layer.granularity == Granularity::kPerHead;
    if (per_head && layer.head_num == 0) {
      fail_(SettingsProblem::kRange,
            "quant_granularity per head needs head_num, the number of heads");
    }
    if (!per_head && layer.head_num > 0)
      fail_(SettingsProblem::kRange, "head_num is for quant_granularity per head");
  }

  void check_place(LayerConfig& layer) const {
    if (slice_groups_ && !layer.slice)
      fail_(SettingsProblem::kRange, "slice_groups is there, but no slice");
    if (slice_groups_ && layer.slice) layer.slice->groups = *slice_groups_;
    if (layer.query_weighted && layer.tap != Tap::kCache)
      fail_(SettingsProblem::kRange, "query_weighted needs tap 'cache', where queries meet keys");
    if (layer.role) return;
    if (layer.slice) fail_(SettingsProblem::kRange, "slice needs a role: 'key' or 'value'");
    if (layer.tap == Tap::kCache)
      fail_(SettingsProblem::kRange, "tap 'cache' needs a role: 'key' or 'value'");
  }

  template <typename Value>
  Value word(const std::string& key, const OptionValue& value,
             std::initializer_list<std::pair<std::string_view, Value>> words) const {
    std::string wanted;
    for (const auto& [word, result] : words)
      wanted += (wanted.empty() ? "'" : " or '") + std::string(word) + "'";
    const auto given = get<std::string>(key, value, wanted.c_str());
    for (const auto& [word, result] : words) {
      if (given == word) return result;
    }
    fail_(SettingsProblem::kRange, key + " must be " + wanted + ", not \"" + given + "\"");
    return {};
  }

  std::int64_t at_least(const std::string& key, const OptionValue& value,
                        std::int64_t least) const {
    const std::string wanted = "an integer, " + std::to_string(least) + " or more";
    const auto number = get<std::int64_t>(key, value, wanted.c_str());
    if (number < least || number > kMaxPlace)
      fail_(SettingsProblem::kRange, key + " must be " + wanted + ", not " + to_string(value));
    return number;
  }

  ChannelSlice slice(const OptionValue& value) const {
    const std::string wanted = "two integers [begin, end], 0 <= begin < end";
    const auto ends = get<std::vector<double>>("slice", value, wanted.c_str());
    const auto whole = [](double end) {
      return end >= 0 && end <= static_cast<double>(kMaxPlace) && end == std::floor(end);
    };
    if (ends.size() != 2 || !std::ranges::all_of(ends, whole) || ends[0] >= ends[1])
      fail_(SettingsProblem::kRange, "slice must be " + wanted + ", not " + to_string(value));
    return {static_cast<std::int64_t>(ends[0]), static_cast<std::int64_t>(ends[1])};
  }

  /// The value as T, or a type problem.
  template <typename T>
  T get(const std::string& key, const OptionValue& value, const char* wanted) const {
    if (const T* result = std::get_if<T>(&value)) return *result;
    fail_(SettingsProblem::kType, key + " must be " + wanted + ", not " + to_string(value));
    return {};
  }

  bool boolean(const std::string& key, const OptionValue& value) const {
    return get<bool>(key, value, "true or false");
  }

  const AlgorithmSpec& algorithm(const Settings& settings) const {
    const auto found = std::ranges::find(settings, "act_algo", &Settings::value_type::first);
    if (found == settings.end()) return catalog_.front();
    const auto name = get<std::string>("act_algo", found->second, "a string");
    const AlgorithmSpec* spec = find_spec(catalog_, name);
    if (spec != nullptr) return *spec;
    const std::vector<std::string> names = names_of(catalog_);
    fail_(SettingsProblem::kRange, "act_algo must be one of " + joined(names) + ", not \"" + name +
                                       "\"" + suggestion(name, names));
    return catalog_.front();
  }

  Granularity granularity(const OptionValue& value) const {
    if (dialect_ == SettingsDialect::kFile) {
      const auto number = get<std::int64_t>("quant_granularity", value,
                                            "0 (per tensor), 1 (per channel) or 2 (per head)");
      if (number >= 0 && number <= 2) return static_cast<Granularity>(number);
      fail_(SettingsProblem::kRange,
            "quant_granularity must be 0 (per tensor), 1 (per channel) or 2 (per head), not " +
                std::to_string(number));
    }
    const auto word = get<std::string>("quant_granularity", value, "a string");
    if (word == "per_tensor" || word == "0") return Granularity::kPerTensor;
    if (word == "per_channel" || word == "1") return Granularity::kPerChannel;
    if (word == "per_head" || word == "2") return Granularity::kPerHead;
    fail_(SettingsProblem::kRange,
          "quant_granularity must be 'per_tensor' or '0', 'per_channel' or '1', 'per_head' or '2', "
          "not \"" +
              word + "\"");
    return Granularity::kPerTensor;
  }

  NonFinitePolicy nonfinite(const OptionValue& value) const {
    const auto word = get<std::string>("nonfinite", value, "'raise' or 'skip'");
    if (word == "skip") return NonFinitePolicy::kSkip;
    if (word != "raise") {
      fail_(SettingsProblem::kRange, "nonfinite must be 'raise' or 'skip', not \"" + word + "\"");
    }
    return NonFinitePolicy::kRaise;
  }

  std::int64_t bits(const OptionValue& value) const {
    const auto bits = get<std::int64_t>("num_bits", value, "8 or 4");
    if (bits != 8 && bits != 4)
      fail_(SettingsProblem::kRange, "num_bits must be 8 or 4, not " + std::to_string(bits));
    return bits;
  }

  Grid grid(const OptionValue& value) const {
    const auto name = get<std::string>("dst_type", value, "a string");
    try {
      return grid_named(name, "dst_type");
    } catch (const ValueError& error) {
      fail_(SettingsProblem::kRange, error.what());
      return kInt8;
    }
  }

  /// num_bits is another word for the integer formats, and may not contradict dst_type.
  void set_bits(LayerConfig& layer) const {
    if (!num_bits_) return;
    if (!has_dst_type_) {
      layer.grid = *num_bits_ == kInt4.bits ? kInt4 : kInt8;
    } else if (layer.grid.bits != *num_bits_) {
      fail_(SettingsProblem::kRange, "num_bits " + std::to_string(*num_bits_) +
                                         " contradicts dst_type '" + std::string(layer.grid.name) +
                                         "'; leave num_bits out");
    }
  }

  void unknown(const std::string& key, const AlgorithmSpec& spec) const {
    for (const AlgorithmSpec& other : catalog_) {
      if (other.find(key) != nullptr) {
        fail_(SettingsProblem::kUnknownKey, "'" + key + "' is a setting of act_algo '" +
                                                other.name + "', but this is '" + spec.name + "'");
      }
    }
    std::vector<std::string> known{"act_algo", "asymmetric", "quant_granularity", "nonfinite",
                                   "num_bits", "head_num",   "dst_type"};
    if (dialect_ == SettingsDialect::kOperator) {
      if (std::ranges::find(kPlace, key) != kPlace.end()) {
        fail_(SettingsProblem::kUnknownKey,
              "'" + key +
                  "' belongs into a configuration file; an operator observes what it is "
                  "called with");
      }
      known.insert(known.end(), {"batch_num", "with_offset"});
    } else {
      known.insert(known.end(), kPlace.begin(), kPlace.end());
    }
    for (const OptionSpec& option : spec.options) known.push_back(option.key);
    fail_(SettingsProblem::kUnknownKey, "unknown key '" + key + "'" + suggestion(key, known));
  }

  static constexpr std::int64_t kMaxPlace = std::int64_t{1} << 31;

  SettingsDialect dialect_;
  const AlgorithmCatalog& catalog_;
  const SettingsFailure& fail_;
  std::optional<std::int64_t> slice_groups_;
  std::optional<std::int64_t> num_bits_;
  bool has_dst_type_ = false;
};

}  // namespace

LayerConfig parse_layer_settings(const Settings& settings, SettingsDialect dialect,
                                 const AlgorithmCatalog& catalog, const SettingsFailure& fail) {
  return Reader(dialect, catalog, fail).read(settings);
}

void set_option(LayerConfig& layer, const OptionSpec& spec, OptionValue value,
                const SettingsFailure& fail) {
  const OptionProblem problem = check_option(spec, value);
  if (problem.kind != OptionProblem::Kind::kNone) {
    fail(problem.kind == OptionProblem::Kind::kType ? SettingsProblem::kType
                                                    : SettingsProblem::kRange,
         problem.message);
  }
  layer.options[spec.key] = std::move(value);
}

void check_conflicts(const LayerConfig& layer, const AlgorithmSpec& spec,
                     const SettingsFailure& fail) {
  if (const std::string conflict = spec.conflict(layer.options); !conflict.empty()) {
    fail(SettingsProblem::kRange, conflict);
  }
  if (!layer.grid.is_float()) return;
  const std::string name(layer.grid.name);
  if (layer.asymmetric.value_or(false)) {
    fail(SettingsProblem::kRange, "dst_type '" + name + "' has no offsets, but " +
                                      "asymmetric is true; leave it out or make it false");
  }
  if (spec.integer_grids_only) {
    fail(SettingsProblem::kRange, "act_algo '" + spec.name +
                                      "' needs evenly spread levels, which " + "dst_type '" + name +
                                      "' has not; use 'mse'");
  }
}

}  // namespace amct
