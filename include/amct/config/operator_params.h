// The parameters of a calibration operator used by itself, without a configuration file.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/core/options.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// What the parameters of one operator say.
struct OperatorParams {
  std::int64_t batch_num = 1;
  LayerConfig layer;  ///< without a name; asymmetric is set
};

/// Reads `params` (key, value), as users of QuantCalibrationOp give them. asymmetric wins over
/// with_offset where both are given; without either factors have an offset. Throws TypeError for a
/// value of a wrong type; StateError for a value out of range, an unknown key, or a key of another
/// algorithm.
OperatorParams parse_operator_params(const std::vector<std::pair<std::string, OptionValue>>& params,
                                     const AlgorithmCatalog& catalog);

}  // namespace amct
#pragma GCC visibility pop
