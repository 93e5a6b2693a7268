// The mean squared error of clipping and rounding, for many candidate scales of the same values.
#pragma once

#include "amct/observe/value_counts.h"

#include <cstdint>
#include <span>
#include <vector>

#include "search/double_double.h"

namespace amct {

/// Evaluates mean((round(clamp(x, low, high) / scale) * scale - x)^2), round half to even.
///
/// All values that round to one level k form a run of the ascending values, so with prefix sums of
/// 1, x and x^2 a level costs one search for the run's end: sum (x - L)^2 = S2 - 2 L S1 + L^2 S0.
/// These sums cancel, hence double-double; the result is good to about 1e-15 relative.
class RoundingLoss {
 public:
  /// Keeps a reference to `values`.
  explicit RoundingLoss(const ValueCounts& values);

  double operator()(float scale, float low, float high) const;

 private:
  /// Sum of (x - level)^2 over values [begin, end).
  double error(std::size_t begin, std::size_t end, double level) const;

  std::span<const float> values_;
  double total_;
  std::vector<std::uint64_t> sum0_;  // of counts below index i
  std::vector<DoubleDouble> sum1_;   // of counts * x
  std::vector<DoubleDouble> sum2_;   // of counts * x^2
};

}  // namespace amct
