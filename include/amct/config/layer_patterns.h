// Naming several layers of a model at once.
#pragma once

#include "amct/config/calibration_config.h"

#include <span>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// Whether `name` is a glob pattern: it holds one of * ? [.
bool is_layer_pattern(const std::string& name);

/// Whether `pattern` matches all of `name`. * stands for any characters, dots included, ? for one,
/// [kv] for one of those, [!kv] for one that is none of them.
bool matches_layer(const std::string& pattern, const std::string& name);

/// `names` with each pattern replaced by the layers of the model that it matches and that can be
/// calibrated, in the order of the model. A name that the model has is never a pattern. What
/// another entry named before is not repeated by a pattern. `source` begins messages. Throws
/// ValueError for a pattern that matches no such layer.
std::vector<std::string> expand_layers(std::span<const std::string> names,
                                       std::span<const ModelLayer> model,
                                       const std::string& source);

}  // namespace amct
#pragma GCC visibility pop
