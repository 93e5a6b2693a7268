// Min-max: the clip range is the range of the data.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#pragma GCC visibility push(default)
namespace amct {

struct MinMaxOptions {
  bool with_offset = true;
  Grid grid = kInt8;
};

/// Factors that cover all values; see minmax_params. Throws StateError where `values` is empty.
SearchResult minmax(const ValueCounts& values, const MinMaxOptions& options = {});
/// The same for values whose smallest and largest are known.
SearchResult minmax(float low, float high, const MinMaxOptions& options = {});

Algorithm minmax_algorithm();

}  // namespace amct
#pragma GCC visibility pop
