// Named settings of an algorithm: what exists, what is allowed, what was chosen.
//
// An algorithm states its settings once, as an AlgorithmSpec; the JSON reader and writer, the
// definition and the operator's parameters are all driven by it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// A setting's value. A vector stands for a JSON list of numbers.
using OptionValue = std::variant<bool, std::int64_t, double, std::string, std::vector<double>>;

/// Settings by key, complete: an absent key takes its default when the map is made.
using OptionMap = std::map<std::string, OptionValue, std::less<>>;

/// One setting of an algorithm.
struct OptionSpec {
  std::string key;            ///< its name in the configuration file
  OptionValue default_value;  ///< also fixes the type
  std::string allowed;        ///< the documented range in words: "a float in (0.5, 1]"
  std::function<bool(const OptionValue&)>
      accepts;  ///< whether a value of the right type is in range
  /// The fields of the algorithm's message in the definition that give the value; more than one for
  /// a list.
  std::vector<std::string> proto_fields;
  /// Whether the existing toolkit does not know it: it is written only where it differs from the
  /// default.
  bool is_extension = false;
};

/// The settings of an algorithm.
struct AlgorithmSpec {
  std::string name;                 ///< value of act_algo: "ifmr"
  std::vector<OptionSpec> options;  ///< in the order of the configuration file
  bool integer_grids_only = false;  ///< whether the levels have to be spread evenly
  /// Empty where the settings fit each other, else the reason why not; called once each is in
  /// range.
  std::function<std::string(const OptionMap&)> conflict = [](const OptionMap&) {
    return std::string();
  };

  /// The setting `key`, or nullptr.
  const OptionSpec* find(std::string_view key) const;
  /// All settings at their defaults.
  OptionMap defaults() const;
};

/// The algorithms that a configuration may name, the default one first. Never empty.
using AlgorithmCatalog = std::vector<AlgorithmSpec>;

/// The algorithm `name` of the catalog, or nullptr.
const AlgorithmSpec* find_spec(const AlgorithmCatalog& catalog, std::string_view name);

/// What is wrong with a setting. Each reader turns it into the error its interface promises.
struct OptionProblem {
  enum class Kind : std::uint8_t { kNone, kType, kRange };
  Kind kind = Kind::kNone;
  std::string message;  ///< "search_step must be a float > 0, not 0.0"
};

/// Checks `value` against `spec`. An integer is accepted where a float is wanted, and `value` is
/// then turned into one; a bool is never a number.
OptionProblem check_option(const OptionSpec& spec, OptionValue& value);

/// A value as JSON would write it, for messages.
std::string to_string(const OptionValue& value);

/// The candidate closest to `word` by edit distance, or "" where none is near enough to be meant.
std::string closest_match(std::string_view word, std::span<const std::string> candidates);

/// "; did you mean 'x'?" for the closest match, or "".
std::string suggestion(std::string_view word, std::span<const std::string> candidates);

}  // namespace amct
#pragma GCC visibility pop
