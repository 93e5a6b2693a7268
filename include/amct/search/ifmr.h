// IFMR (input feature map reconstruction): tries clip ranges around a percentile and keeps the one
// whose rounding and clipping error is the smallest.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#include <vector>

#pragma GCC visibility push(default)
namespace amct {

struct IfmrOptions {
  bool with_offset = true;
  double max_percentile = 0.999999;  ///< in (0.5, 1]: where the search for clip_max starts
  double min_percentile = 0.999999;  ///< in (0.5, 1]: the same for clip_min
  double search_start = 0.7;         ///< first ratio tried, > 0
  double search_end = 1.3;           ///< ratios stay below this, > search_start
  double search_step = 0.01;         ///< in (0, search_end - search_start]
  bool search_clip_min = false;      ///< with offset, clip_min is searched, too
  Grid grid = kInt8;
};

/// One clip range that is tried.
struct IfmrCandidate {
  float scale;
  float low;   ///< values below are clipped to it
  float high;  ///< values above are clipped to it
};

/// The candidates in the order they are tried, all in float32:
///
///     clip_max = max(0, k_max-th largest),  clip_min = min(0, k_min-th smallest),
///     k_max = n - int(max_percentile * n), or 1 where 1 - max_percentile < FLT_EPSILON; k_min
///     likewise; ratio_i = search_start + i * search_step < search_end
///
///     with offset:  high = ratio * clip_max, low = clip_min, scale = (high - low) / steps
///     without:      high = ratio * max(|clip_max|, |clip_min|), low = -high, scale = high / limit,
///                   limit that of the grid: 128 where |clip_max| < |clip_min|, else 127, for INT8
///
/// With search_clip_min and offset, low = ratio * clip_min for every ratio, within each high. A
/// scale below Grid::smallest_scale() becomes 1. A range that overflows float32 saturates.
std::vector<IfmrCandidate> ifmr_candidates(const ValueCounts& values, const IfmrOptions& options);

/// Picks the first candidate with the smallest mean((round(clamp(x, low, high) / scale) * scale -
/// x)^2), rounding to the values of the grid where it is a float grid. Losses are exact to about
/// 1e-15 relative (1e-12 for float grids); one of at most (FLT_EPSILON * max|x|)^2, which storing
/// in float32 costs already, counts as zero. offset = -round(low / scale) + qmin, or 0 without.
/// Throws StateError where `values` is empty.
SearchResult ifmr(const ValueCounts& values, const IfmrOptions& options = {});

Algorithm ifmr_algorithm();

}  // namespace amct
#pragma GCC visibility pop
