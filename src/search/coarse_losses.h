// Bounds on the losses of many clip ranges, from one pass over the values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/rounding_error.h"

namespace amct {

/// A sum or loss known to lie in [low, high].
struct Bracket {
  double low;
  double high;
};

/// The values of a large sample in kBins equal bins, each with its count and mean.
///
/// Let d(x) be the distance of x from the nearest level, so that the loss is the sum of d^2. In a
/// bin that lies between two neighbouring middles of levels, all values have one level, and the sum
/// is count * d(mean)^2 plus the spread of the values around their mean. In a bin that holds a
/// middle, d is still Lipschitz with constant 1, so the sum misses that by at most 2 sqrt(count
/// d(mean)^2 * spread), and never exceeds it. With d <= scale / 2 there, and a spread of at most
/// count * width^2 / 4:
///
///     E - straddling * scale * width / 2  <=  loss  <=  E + total * width^2 / 4,
///     E = sum of count * d(mean)^2
///
/// where `straddling` counts the values in bins with a middle. Means are known to an eighth of a
/// thousandth of a bin, which moves E by as little. The bracket is some 0.3% wide.
class CoarseLosses {
 public:
  /// The samples must lie in [low, high], low < high.
  CoarseLosses(std::span<const float> samples, float low, float high);

  /// Bounds on the sum of squared errors of one candidate.
  Bracket bracket(const kernels::Rounding& candidate) const;

 private:
  std::uint64_t straddling(const kernels::Rounding& candidate) const;

  double low_;
  double width_;  // of a bin
  double total_;
  std::vector<std::uint64_t> below_;  // values in bins before bin i
  std::vector<float> means_;          // of bins that hold values
  std::vector<double> weights_;       // their counts
};

}  // namespace amct
