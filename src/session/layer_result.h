// What is known of a layer's result before anything was seen.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/session/solve.h"

namespace amct {

/// Sets what a result has from the configuration.
void set_configured(LayerResult* result, const LayerConfig& config, bool with_offset);

}  // namespace amct
