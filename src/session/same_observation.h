// Whether counts of two layers may be put together.
#pragma once

#include "amct/config/calibration_config.h"

#include <string>

namespace amct {

/// Throws ValueError, which `source` begins, unless counts of both may be added: the layers were
/// observed in the same way. Shards of one layer may have other numbers of heads and other slices.
void check_same_observation(const LayerConfig& a, const LayerConfig& b, const std::string& source,
                            bool are_shards = false);

}  // namespace amct
