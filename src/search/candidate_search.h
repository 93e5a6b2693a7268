// Finding the best of many clip ranges without computing every loss exactly.
#pragma once

#include "amct/observe/value_counts.h"

#include <cstddef>
#include <span>

#include "kernels/rounding_error.h"

namespace amct {

/// The candidate that won.
struct BestCandidate {
  std::size_t index = 0;
  double loss = 0;  ///< mean squared error, to about 1e-10 relative; 0 at or below the noise
};

/// The first candidate with the smallest mean((round(clamp(x, low, high) / scale) * scale - x)^2),
/// half to even. A loss of at most (FLT_EPSILON * max|x|)^2 counts as zero.
///
/// Losses are first bracketed in float32, then, where more than one candidate can still win, in
/// float64, and only what is left after that is summed exactly. The brackets are rigorous, so the
/// answer is that of exact losses, on every machine. `values` and `candidates` must not be empty.
BestCandidate first_smallest_loss(const ValueCounts& values,
                                  std::span<const kernels::Rounding> candidates);

}  // namespace amct
