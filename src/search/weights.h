// Counts as the kernels take them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace amct {

/// Counts in floating point; none where there are none.
template <typename T>
std::vector<T> weights_of(std::span<const std::uint64_t> counts) {
  std::uint64_t bits = 0;
  for (const std::uint64_t count : counts) bits |= count;
  std::vector<T> weights(counts.size());
  if ((bits >> 31) == 0) {  // conversions that there are vector instructions for
    std::ranges::transform(counts, weights.begin(), [](std::uint64_t count) {
      return static_cast<T>(static_cast<std::int32_t>(count));
    });
  } else {
    std::ranges::copy(counts, weights.begin());
  }
  return weights;
}

}  // namespace amct
