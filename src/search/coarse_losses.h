// Bounds on the losses of many clip ranges, from one pass over the values.
#pragma once

#include "amct/observe/value_counts.h"

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

/// The values in equal bins, each with its count and mean.
///
/// Let L(x) be the level that a candidate moves x to: the nearest one, so that between two middles
/// of levels it is constant. Then the loss of a bin [a, a + w) with c values of mean m, which all
/// go to one level, is
///
///     sum (x - L)^2 = c * (m - L)^2 + V,    V = sum (x - m)^2,
///
/// and V does not depend on the candidate. In a bin that holds the middle M of two levels this is
/// too much, since some values have a nearer level: where m <= M, by sum over x > M of 2 * scale *
/// (x - M). A sum of max(0, x - M) over values in [a, a + w) with mean m is largest where all of
/// them are at the ends; over all M, at M = m:
///
///     c * g,  g = (m - a) * (a + w - m) / w.
///
/// So a candidate's loss, less the sum of all V, lies in [E - 2 * scale * G, E], with E the sum of
/// c * (m - L(m))^2 over all bins and G the sum of c * g over those that hold a middle. With 16
/// bins a level that is about 1% wide, and narrower with the square of their number.
///
/// Bins cover what some candidate does not clip. Values beyond are clipped by all of them, to their
/// last level: one more bin at either end, of any width.
class CoarseLosses {
 public:
  /// Bins for candidates inside of the range of `envelope`, with no smaller scale.
  CoarseLosses(const ValueCounts& values, const kernels::Rounding& envelope);

  /// Whether bins are narrow enough for a bracket; nothing else may be asked where not.
  bool valid() const { return valid_; }

  /// The sum of squared errors of one candidate with every value at the mean of its bin, which is
  /// what its brackets are made from.
  double error(const kernels::Rounding& candidate) const;
  /// Bounds on the sum of squared errors, less an amount that is the same for all candidates.
  Bracket bracket(const kernels::Rounding& candidate, double error) const;
  /// The same, with a lower bound that is cheaper and weaker.
  Bracket rough_bracket(const kernels::Rounding& candidate, double error) const;

 private:
  class Bins;
  void add_samples(std::span<const float> samples, const Bins& bins);
  void add_sorted(const ValueCounts& values, const Bins& bins);
  void add_bin(std::size_t bin, double count, double places, const Bins& bins);
  void add_end(double count, double sum);
  void fill_last_vector();
  Bracket around(double error, double excess, const kernels::Rounding& candidate) const;

  bool valid_ = false;
  double low_ = 0;
  double width_ = 0;  // of a bin
  double total_ = 0;
  double shift_ = 0;            // how far means, and values from their bins, may be off
  std::vector<float> means_;    // of bins that hold values
  std::vector<float> weights_;  // their counts
  std::vector<float> excess_;   // bound of c * g of bin i at i + 1, and a zero at either end
  double largest_of_runs_ = 0;  // sum of the largest excess in each run of bins
};

}  // namespace amct
