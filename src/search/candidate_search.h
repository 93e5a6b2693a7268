// Finding the best of many clip ranges without computing every loss exactly.
#pragma once

#include "amct/observe/value_counts.h"

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "kernels/rounding_error.h"
#include "search/coarse_losses.h"

namespace amct {

/// The candidate that won.
struct BestCandidate {
  std::size_t index = 0;
  double loss = 0;  ///< mean squared error, to about 1e-10 relative; 0 at or below the noise
};

/// Searches of the values of one group among candidates.
///
/// Losses are mean((round(clamp(x, low, high) / scale) * scale - x)^2), half to even; one of at
/// most (FLT_EPSILON * max|x|)^2 counts as zero. They are first bracketed from bins where there are
/// many values, then in float32, then, where more than one candidate can still win, in float64, and
/// only what is left after that is summed exactly. The brackets are rigorous, so the answer is that
/// of exact losses, on every machine.
class CandidateSearch {
 public:
  /// `values`, which must not be empty, are kept by reference. Bins are made where they help with
  /// so many candidates in all, to suit those inside of the range of `envelope` with no smaller
  /// scale.
  CandidateSearch(const ValueCounts& values, const kernels::Rounding& envelope,
                  std::size_t candidates);
  /// The same without bins, for any candidates.
  explicit CandidateSearch(const ValueCounts& values);

  /// The first candidate with the smallest loss. There must be one.
  BestCandidate best(std::span<const kernels::Rounding> candidates) const;
  /// A candidate whose loss is the smallest to some thousandths, at the least cost: from bins,
  /// where there are any. Its loss is as good.
  BestCandidate quick_best(std::span<const kernels::Rounding> candidates) const;

 private:
  class Run;

  const ValueCounts& values_;
  double noise_;  // losses up to this count as zero
  std::optional<CoarseLosses> coarse_;
};

/// Losses up to this count as zero: (FLT_EPSILON * max|x|)^2, which storing in float32 costs.
double noise_of(const ValueCounts& values);

/// The best of candidates that are all known.
BestCandidate first_smallest_loss(const ValueCounts& values,
                                  std::span<const kernels::Rounding> candidates);

}  // namespace amct
