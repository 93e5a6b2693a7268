// Which values share a scale and an offset.
#pragma once

#include <cstdint>
#include <string_view>

namespace amct {

/// kPerTensor: all values of a layer share one pair. kPerChannel: one pair for each index of the
/// last dimension. The numbers are those of the configuration files.
enum class Granularity : std::uint8_t { kPerTensor = 0, kPerChannel = 1 };

/// "per_tensor" or "per_channel".
constexpr std::string_view name_of(Granularity granularity) {
  return granularity == Granularity::kPerTensor ? "per_tensor" : "per_channel";
}

}  // namespace amct
