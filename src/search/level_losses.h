// Losses of storing on a grid whose levels are not evenly spread.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <span>
#include <vector>

#include "search/candidate_search.h"
#include "search/double_double.h"

namespace amct {

/// The values in ascending order with sums over them, so that a loss costs a search for each level
/// of the grid, whatever the number of values.
///
/// Values from the middle of one pair of levels to the next go to the level v between, and cost
///
///     sum (x - v)^2 = sum x^2 - 2 v sum x + v^2 sum 1.
///
/// The sums are differences of sums from the first value on, in double-double, since nearly all of
/// them cancels.
class LevelLosses {
 public:
  /// `values` must not be empty, `grid` a float grid.
  LevelLosses(const ValueCounts& values, const Grid& grid);

  /// mean((x' - x)^2) with x' what is read back at this scale, to about 1e-12 relative; 0 at or
  /// below (FLT_EPSILON * max|x|)^2.
  double loss(float scale) const;
  /// The mean squared error of clipping to [-end, end] alone.
  double clipping(double end) const;
  /// The first of `scales` with the smallest loss. There must be one.
  BestCandidate best(std::span<const float> scales) const;

 private:
  struct Sums {
    double count = 0;
    DoubleDouble x;
    DoubleDouble squares;
  };
  static void add(Sums& sums, float value, double count);

  std::size_t first_from(double bound, std::size_t from) const;
  Sums sums_below(std::size_t index) const;
  static double moved_to(double level, const Sums& begin, const Sums& end);

  ValueCounts values_;  // sorted
  std::vector<double> levels_;
  std::size_t block_;         // values of a block
  std::vector<Sums> blocks_;  // of the values before each block
  double total_;
  double noise_;
};

}  // namespace amct
