#include "amct/core/kv_layer.h"

#include <algorithm>
#include <array>

namespace amct {

std::optional<KVRole> role_in_name(std::string_view layer) {
  static constexpr std::array<std::string_view, 5> kKeys{"k_proj", "key_proj", "key", "k", "k_lin"};
  static constexpr std::array<std::string_view, 5> kValues{"v_proj", "value_proj", "value", "v",
                                                           "v_lin"};
  const std::string_view last = layer.substr(layer.find_last_of('.') + 1);
  if (std::ranges::find(kKeys, last) != kKeys.end()) return KVRole::kKey;
  if (std::ranges::find(kValues, last) != kValues.end()) return KVRole::kValue;
  return std::nullopt;
}

}  // namespace amct
