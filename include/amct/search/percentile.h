// Percentile: the clip range that holds a given share of the values on either side.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#include <cstdint>

#pragma GCC visibility push(default)
namespace amct {

struct PercentileOptions {
  bool with_offset = true;
  double percentile = 0.9999;  ///< in (0.5, 1]: share of the values that are not above the range,
                               ///< and share that are not below it
  Grid grid = kInt8;
};

/// k such that the bound of a percentile is the k-th largest (or smallest) of n values:
/// n - int(percentile * n), and 1 where that is 0 or 1 - percentile < FLT_EPSILON.
std::uint64_t order_statistic(std::uint64_t n, double percentile);

/// Factors of minmax_params for the range from the k-th smallest to the k-th largest value. Throws
/// StateError where `values` is empty.
SearchResult percentile(const ValueCounts& values, const PercentileOptions& options = {});

Algorithm percentile_algorithm();

}  // namespace amct
#pragma GCC visibility pop
