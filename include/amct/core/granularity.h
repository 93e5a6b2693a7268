// Which values share a scale and an offset.
#pragma once

#include <cstdint>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// kPerTensor: all values of a layer share one pair. kPerChannel: one pair for each index of the
/// last dimension. kPerHead: one pair for each head, of equally many neighbouring channels. The
/// numbers are those of the configuration files.
enum class Granularity : std::uint8_t { kPerTensor = 0, kPerChannel = 1, kPerHead = 2 };

/// "per_tensor", "per_channel" or "per_head".
constexpr std::string_view name_of(Granularity granularity) {
  if (granularity == Granularity::kPerHead) return "per_head";
  return granularity == Granularity::kPerTensor ? "per_tensor" : "per_channel";
}

}  // namespace amct
#pragma GCC visibility pop
