// Slow restatements of the searches, word by word after the specification, to test against.
//
// They share no code with the library but the definition of a grid: sums are plain loops over all
// values in float64 or wider.
#pragma once

#include "amct/core/grid.h"
#include "amct/core/quant_params.h"

#include <cstdint>
#include <vector>

namespace amct::support {

struct ReferenceCandidate {
  float scale;
  float low;
  float high;
};

struct ReferenceIfmr {
  bool with_offset = true;
  double max_percentile = 0.999999;
  double min_percentile = 0.999999;
  double start = 0.7;
  double end = 1.3;
  double step = 0.01;
};

/// All IFMR candidates in order.
std::vector<ReferenceCandidate> reference_ifmr_candidates(std::vector<float> x,
                                                          const ReferenceIfmr& options);

/// mean((round(clamp(x, low, high) / scale) * scale - x)^2).
double reference_ifmr_loss(const std::vector<float>& x, const ReferenceCandidate& candidate);

/// Losses up to this count as zero: (FLT_EPSILON * max|x|)^2.
double reference_noise(const std::vector<float>& x);

/// Mean squared error of storing on any grid, value by value.
double reference_mse(const std::vector<float>& x, const Grid& grid, QuantParams params);

/// Mean squared error of INT8 storage by the definition of the record.
double reference_int8_mse(const std::vector<float>& x, QuantParams params);

struct ReferenceHistogram {
  std::vector<std::uint64_t> counts;
  double low = 0;
  double high = 0;
};

ReferenceHistogram reference_histogram(const std::vector<float>& x, std::int64_t bins);

struct ReferenceRange {
  std::int64_t left;
  std::int64_t right;
};

std::vector<ReferenceRange> reference_hfmg_ranges(const std::vector<std::uint64_t>& counts);

/// Integral of (x - its level)^2 over every bin, cut at every edge between levels.
double reference_hfmg_loss(const ReferenceHistogram& histogram, ReferenceRange range);

/// Scale and offset of a clip range.
QuantParams reference_minmax(float low, float high, bool with_offset);

}  // namespace amct::support
