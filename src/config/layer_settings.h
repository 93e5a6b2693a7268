// The settings of one layer, as the configuration file and the operator's parameters share them.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/core/options.h"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace amct {

/// Where settings come from; the two spell the granularity differently.
enum class SettingsDialect : std::uint8_t {
  kFile,      ///< quant_granularity is 0, 1 or 2
  kOperator,  ///< it is 'per_tensor' or '0', 'per_channel' or '1', 'per_head' or '2'
};

/// What is wrong with the settings; the caller throws what its interface promises.
enum class SettingsProblem : std::uint8_t { kType, kRange, kUnknownKey };

using Settings = std::vector<std::pair<std::string, OptionValue>>;

/// Throws; called with a message that names the key.
using SettingsFailure = std::function<void(SettingsProblem, const std::string&)>;

/// Fills all of a LayerConfig but its name from `settings`. `fail` must throw.
LayerConfig parse_layer_settings(const Settings& settings, SettingsDialect dialect,
                                 const AlgorithmCatalog& catalog, const SettingsFailure& fail);

/// Checks one setting of an algorithm and stores it in `layer.options`.
void set_option(LayerConfig& layer, const OptionSpec& spec, OptionValue value,
                const SettingsFailure& fail);

/// Checks that the settings of `layer` fit each other.
void check_conflicts(const LayerConfig& layer, const AlgorithmSpec& spec,
                     const SettingsFailure& fail);

}  // namespace amct
