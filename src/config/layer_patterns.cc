#include "amct/config/layer_patterns.h"

#include "amct/core/error.h"

#include <algorithm>
#include <unordered_set>

#include <fnmatch.h>

namespace amct {

bool is_layer_pattern(const std::string& name) {
  return name.find_first_of("*?[") != std::string::npos;
}

bool matches_layer(const std::string& pattern, const std::string& name) {
  // fnmatch() would take either up to its NUL.
  if (pattern.find('\0') != std::string::npos || name.find('\0') != std::string::npos) return false;
  return ::fnmatch(pattern.c_str(), name.c_str(), FNM_NOESCAPE) == 0;
}

std::vector<std::string> expand_layers(std::span<const std::string> names,
                                       std::span<const ModelLayer> model,
                                       const std::string& source) {
  std::vector<std::string> result;
  std::unordered_set<std::string> named(names.begin(), names.end());
  for (const std::string& name : names) {
    if (!is_layer_pattern(name) ||
        std::ranges::find(model, name, &ModelLayer::name) != model.end()) {
      result.push_back(name);
      continue;
    }
    bool found = false;
    std::string other;  // that matches, but cannot be calibrated
    for (const ModelLayer& layer : model) {
      if (!matches_layer(name, layer.name)) continue;
      if (!layer.supported) {
        other = layer.name + "' (a " + layer.type + ")";
        continue;
      }
      found = true;
      if (named.insert(layer.name).second) result.push_back(layer.name);
    }
    if (found) continue;
    throw ValueError(source + ": no layer that can be calibrated matches '" + name + "'" +
                     (other.empty() ? "" : "; it matches '" + other));
  }
  return result;
}

}  // namespace amct
