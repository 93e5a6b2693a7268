// KL: the clip range whose stored values differ least from the observed ones as distributions.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#include <cstdint>

#pragma GCC visibility push(default)
namespace amct {

struct KlOptions {
  bool with_offset = true;
  std::int64_t num_of_bins = 2048;  ///< 1024, 2048, 4096 or 8192
  Grid grid = kInt8;
};

/// Entropy calibration (S. Migacz, "8-bit Inference with TensorRT", 2017), of one or both ends.
///
/// The values are counted in equal bins over their range, widened to hold zero; without offset over
/// [-max|x|, max|x|]. A candidate keeps bins [left, right). Its reference P has the values outside
/// in its end bins. Its Q is what the stored values say: the values of the bins whose centres go to
/// one level of the grid, by minmax_params of the candidate's edges, are spread evenly over those
/// of the bins that are not empty; values outside are none of Q. The smallest sum P log(P / Q)
/// wins, both normalised to 1; where Q is 0 and P is not, Q counts as 1e-4.
///
/// Ends move in steps of 1/256 of the bins, while as many bins as levels of the grid are left:
/// first both, cutting the same share off; with offset then the high end, then the low one, from
/// that best range. The first smallest wins. `loss` of the result is 0, as it is no squared error.
/// Throws StateError where `values` is empty.
SearchResult kl(const ValueCounts& values, const KlOptions& options = {});

Algorithm kl_algorithm();

}  // namespace amct
#pragma GCC visibility pop
