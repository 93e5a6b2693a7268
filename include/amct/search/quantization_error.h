// How good factors are on the values they were made for.
#pragma once

#include "amct/core/grid.h"
#include "amct/core/quant_params.h"
#include "amct/observe/value_counts.h"

#pragma GCC visibility push(default)
namespace amct {

/// Error of storing values on a grid. Sums of several groups add up.
struct QuantizationError {
  double squared_error = 0;   ///< sum of (x' - x)^2
  double squared_signal = 0;  ///< sum of x^2
  double clipped = 0;         ///< number of values whose code had to be clamped
  double total = 0;           ///< number of values

  double mse() const { return total > 0 ? squared_error / total : 0; }
  /// Signal to quantization noise ratio in decibel: 10 log10(sum x^2 / sum (x' - x)^2); infinite
  /// where there is no error.
  double sqnr_db() const;
  /// Share of clipped values, 0 to 1.
  double clipped_fraction() const { return total > 0 ? clipped / total : 0; }

  QuantizationError& operator+=(const QuantizationError& other);
};

/// Stores every value as Grid::quantize does and reads it back, in float64.
QuantizationError quantization_error(const ValueCounts& values, const Grid& grid,
                                     QuantParams params);

}  // namespace amct
#pragma GCC visibility pop
