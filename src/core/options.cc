#include "amct/core/options.h"

#include "amct/core/decimal.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

namespace amct {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

}  // namespace

const OptionSpec* AlgorithmSpec::find(std::string_view key) const {
  const auto found = std::ranges::find(options, key, &OptionSpec::key);
  return found == options.end() ? nullptr : &*found;
}

OptionMap AlgorithmSpec::defaults() const {
  OptionMap values;
  for (const OptionSpec& option : options) values.emplace(option.key, option.default_value);
  return values;
}

const AlgorithmSpec* find_spec(const AlgorithmCatalog& catalog, std::string_view name) {
  const auto found = std::ranges::find(catalog, name, &AlgorithmSpec::name);
  return found == catalog.end() ? nullptr : &*found;
}

OptionProblem check_option(const OptionSpec& spec, OptionValue& value) {
  if (std::holds_alternative<double>(spec.default_value) &&
      std::holds_alternative<std::int64_t>(value)) {
    value = static_cast<double>(std::get<std::int64_t>(value));
  }
  const auto problem = [&](OptionProblem::Kind kind) {
    return OptionProblem{kind, spec.key + " must be " + spec.allowed + ", not " + to_string(value)};
  };
  if (value.index() != spec.default_value.index()) return problem(OptionProblem::Kind::kType);
  if (!spec.accepts(value)) return problem(OptionProblem::Kind::kRange);
  return {};
}

std::string to_string(const OptionValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) {
          return v ? "true" : "false";
        } else if constexpr (std::is_same_v<T, std::int64_t>) {
          return std::to_string(v);
        } else if constexpr (std::is_same_v<T, double>) {
          return shortest_decimal(v);
        } else if constexpr (std::is_same_v<T, std::string>) {
          return "\"" + v + "\"";
        } else {
          std::string text = "[";
          for (std::size_t i = 0; i < v.size(); ++i)
            text += (i > 0 ? ", " : "") + shortest_decimal(v[i]);
          return text + "]";
        }
      },
      value);
}

std::string closest_match(std::string_view word, std::span<const std::string> candidates) {
  // Names that differ in more than a third of their letters are not what was meant. Long names
  // (module paths) are compared no further than needed to stay fast on hostile input.
  constexpr std::size_t kMaxLength = 512;
  if (word.size() > kMaxLength) return {};
  std::size_t best = std::max<std::size_t>(2, word.size() / 3) + 1;
  std::string match;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > kMaxLength) continue;
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best) {
      best = distance;
      match = candidate;
    }
  }
  return match;
}

std::string suggestion(std::string_view word, std::span<const std::string> candidates) {
  const std::string match = closest_match(word, candidates);
  return match.empty() ? "" : "; did you mean '" + match + "'?";
}

}  // namespace amct
