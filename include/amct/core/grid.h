// The number format that cached values are stored in.
#pragma once

#include "amct/core/quant_params.h"

#include <cstdint>
#include <string_view>

namespace amct {

/// An integer grid: the codes qmin .. qmax, spread evenly by a scale.
struct Grid {
  std::string_view name;  ///< "INT8"
  std::int32_t qmin;      ///< smallest code
  std::int32_t qmax;      ///< largest code

  /// Number of steps between the smallest and the largest code: 255 for INT8.
  constexpr std::int32_t steps() const { return qmax - qmin; }

  /// The code of x: clamp(round(x / scale) + offset, qmin, qmax), in float64, half to even.
  double quantize(double x, QuantParams params) const;
  /// The value of a code: (code - offset) * scale, in float64.
  static double dequantize(double code, QuantParams params) {
    return (code - params.offset) * static_cast<double>(params.scale);
  }
};

inline constexpr Grid kInt8{"INT8", -128, 127};

/// The scale and offset that make `grid` cover [low, high], by min-max.
///
/// With offset the range is widened to hold zero, scale = (high - low) / steps and
/// offset = round(qmin - low / scale), so that x' of 0 is exactly 0. Without, offset = 0 and
/// scale = max(|low|, |high|) / (-qmin where |high| < |low|, else qmax).
/// A scale below FLT_EPSILON becomes 1 (offset qmin, or 0). All in float32, as the record stores
/// it, but in float64 where float32 would overflow: the scale is finite for any finite range.
QuantParams minmax_params(const Grid& grid, float low, float high, bool with_offset);

}  // namespace amct
