#include "amct/config/operator_params.h"

#include "amct/core/error.h"

#include <optional>

#include "config/layer_settings.h"

namespace amct {

OperatorParams parse_operator_params(const std::vector<std::pair<std::string, OptionValue>>& params,
                                     const AlgorithmCatalog& catalog) {
  const SettingsFailure fail = [](SettingsProblem problem, const std::string& message) {
    const std::string text = "quant_algo_params: " + message;
    if (problem == SettingsProblem::kType) throw TypeError(text);
    throw StateError(text);
  };
  OperatorParams result;
  std::optional<bool> with_offset;
  Settings settings;
  for (const auto& [key, value] : params) {
    if (key == "batch_num") {
      const auto* number = std::get_if<std::int64_t>(&value);
      if (number == nullptr) {
        fail(SettingsProblem::kType, "batch_num must be an int > 0, not " + to_string(value));
      } else if (*number <= 0) {
        fail(SettingsProblem::kRange,
             "batch_num must be an int > 0, not " + std::to_string(*number));
      } else {
        result.batch_num = *number;
      }
    } else if (key == "with_offset") {
      const auto* flag = std::get_if<bool>(&value);
      if (flag == nullptr) {
        fail(SettingsProblem::kType, "with_offset must be a bool, not " + to_string(value));
      } else {
        with_offset = *flag;
      }
    } else {
      settings.emplace_back(key, value);
    }
  }
  result.layer = parse_layer_settings(settings, SettingsDialect::kOperator, catalog, fail);
  const bool is_float = result.layer.grid.is_float();
  if (is_float && !result.layer.asymmetric && with_offset.value_or(false)) {
    fail(SettingsProblem::kRange, "dst_type '" + std::string(result.layer.grid.name) +
                                      "' has no offsets, but with_offset is true");
  }
  if (!result.layer.asymmetric) result.layer.asymmetric = with_offset.value_or(!is_float);
  return result;
}

}  // namespace amct
