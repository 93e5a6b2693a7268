// HFMG (histogram feature map gradient): shrinks a histogram from its sparser end and keeps the
// range whose quantization error under the histogram is the smallest.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#include <cstdint>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

struct HfmgOptions {
  bool with_offset = true;
  std::int64_t num_of_bins = 4096;  ///< 1024, 2048, 4096 or 8192
  Grid grid = kInt8;
};

/// Equal bins over the range of the data. The largest value falls in the last bin.
struct Histogram {
  std::vector<std::uint64_t> counts;
  double low = 0;    ///< smallest value
  double high = 0;   ///< largest value; where it equals low, the bins cover [low - 1, low + 1]
  double width = 0;  ///< width the losses are taken with: (high - low) / bins
};

/// Bins [left, right], both included.
struct BinRange {
  std::int64_t left;
  std::int64_t right;

  friend bool operator==(const BinRange&, const BinRange&) = default;
};

Histogram hfmg_histogram(const ValueCounts& values, std::int64_t num_of_bins);

/// The ranges met while the end that holds the next ceil(total / 100000) values in more bins is cut
/// off (the right one on a tie), until no more than a quarter of the bins is left. Never empty.
std::vector<BinRange> hfmg_ranges(const Histogram& histogram);

/// Integral of (x - its level)^2 under uniform density inside each bin, summed over all values: 256
/// equal levels over the range, values outside falling to the end levels. 0 where a level is
/// narrower than FLT_EPSILON. `levels` is the number of steps of the grid and one.
double hfmg_loss(const Histogram& histogram, BinRange range, std::int64_t levels = 256);

/// Picks the first range with the smallest loss; scale and offset are those of minmax_params on its
/// edges. Exact over the union of all batches. `loss` of the result is a mean over the values.
/// Throws StateError where `values` is empty, ValueError for a float grid: its levels are not
/// spread evenly.
SearchResult hfmg(const ValueCounts& values, const HfmgOptions& options = {});

Algorithm hfmg_algorithm();

}  // namespace amct
#pragma GCC visibility pop
