// From what a layer was seen to hold to its factors.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/core/granularity.h"
#include "amct/core/grid.h"
#include "amct/core/kv_layer.h"
#include "amct/core/quant_params.h"
#include "amct/observe/observer.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// What a finished layer is known by.
struct LayerResult {
  std::string name;
  std::string algorithm;
  Granularity granularity = Granularity::kPerTensor;
  Tap tap = Tap::kLinear;
  std::optional<KVRole> role;  ///< where the configuration says it
  Grid grid = kInt8;
  std::int64_t sink_tokens = 0;  ///< first tokens of each sequence that were left out
  bool with_offset = true;
  std::int64_t batches = 0;         ///< batches observed
  std::int64_t rows = 0;            ///< rows (tokens) observed
  std::int64_t channels = 0;        ///< size of the last dimension
  std::int64_t non_finite = 0;      ///< NaN and infinite values left out (nonfinite = skip)
  float min = 0;                    ///< smallest value observed
  float max = 0;                    ///< largest value observed
  std::vector<QuantParams> params;  ///< one, or one a channel or head
  /// Signal to quantization noise ratio over all values, in dB, and the share of values outside the
  /// grid, 0 to 1. Unknown where the algorithm needs, and the layer kept, the range alone.
  std::optional<double> sqnr_db;
  std::optional<double> clipped_fraction;
  /// Whether there were more float32 values than the memory budget holds, so that factors are those
  /// of a sketch (see Observer).
  bool is_sketch = false;
  double observe_seconds = 0;  ///< time spent counting, summed over the calls
  double search_seconds = 0;   ///< time the search took
};

/// Searches the factors of observed values as `config` says. Its granularity is that of the
/// observer or a coarser one, whose groups are unions of the observer's: from per channel to per
/// head and per tensor, and from per head to per tensor. Throws ValueError for an unknown
/// algorithm, a float grid with offset, and for a finer granularity than was observed; StateError
/// where the algorithm needs values of which the range alone was kept, heads do not divide the
/// channels, a group has no finite value, or channels are to be weighed of which no weights were
/// added. Weights change factors alone: error and range are those of the values as they were seen.
LayerResult solve(const LayerConfig& config, bool with_offset, const Observer& observer);

/// What goes into the record of a result.
LayerRecord record_of(const LayerResult& result);

}  // namespace amct
#pragma GCC visibility pop
