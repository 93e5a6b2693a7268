// The number format that cached values are stored in.
#pragma once

#include "amct/core/float_format.h"
#include "amct/core/quant_params.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// What a code stands for, in units of the scale: an integer grid has the codes qmin .. qmax,
/// spread evenly; a float grid has the codes of its format, and no offsets.
struct Grid {
  std::string_view name;  ///< value of dst_type: "INT8"
  int bits;               ///< of a stored code
  std::int32_t qmin;      ///< smallest code of an integer grid; 0 of a float grid
  std::int32_t qmax;      ///< largest code of an integer grid; 255 of a float grid
  const FloatFormat& (*format)() = nullptr;  ///< null: an integer grid

  constexpr bool is_float() const { return format != nullptr; }

  /// Number of steps between the smallest and the largest code of an integer grid: 255 for INT8.
  constexpr std::int32_t steps() const { return qmax - qmin; }
  /// What the scale of a range that is symmetric around zero is its end divided by: the largest
  /// value, or -qmin where the range was made for `negative_wins`, values that reach further down
  /// than up.
  float limit(bool negative_wins) const;
  /// Scales below are not used: FLT_EPSILON for integer grids, as in AMCT, and FLT_MIN for float
  /// grids, whose scales are smaller by far.
  float smallest_scale() const;

  /// The code of x: clamp(round(x / scale) + offset, qmin, qmax), in float64, half to even; of a
  /// float grid that of the nearest value to x / scale.
  std::int32_t quantize(double x, QuantParams params) const;
  /// The value of a code: (code - offset) * scale, in float64; of a float grid its value times the
  /// scale.
  double dequantize(std::int32_t code, QuantParams params) const;
  /// dequantize(quantize(x)): what is read back.
  double store(double x, QuantParams params) const {
    return dequantize(quantize(x, params), params);
  }
  /// Whether x lies outside of the grid, by more than rounding.
  bool clips(double x, QuantParams params) const;

  friend bool operator==(const Grid& a, const Grid& b) { return a.name == b.name; }
};

inline constexpr Grid kInt8{"INT8", 8, -128, 127};
inline constexpr Grid kInt4{"INT4", 4, -8, 7};
inline constexpr Grid kFp8E4M3{"FP8_E4M3", 8, 0, 255, fp8_e4m3};
inline constexpr Grid kFp8E5M2{"FP8_E5M2", 8, 0, 255, fp8_e5m2};
inline constexpr Grid kFp8E4M3Fnuz{"FP8_E4M3FNUZ", 8, 0, 255, fp8_e4m3fnuz};
inline constexpr Grid kFp8E5M2Fnuz{"FP8_E5M2FNUZ", 8, 0, 255, fp8_e5m2fnuz};
inline constexpr Grid kHif8{"HIF8", 8, 0, 255, hif8};

/// All of them, the default one first.
std::span<const Grid> grids();
/// The grid of that name, or nullptr.
const Grid* find_grid(std::string_view name);
/// The same; throws ValueError, which begins with `what` and lists the names.
const Grid& grid_named(std::string_view name, const std::string& what);

/// The scale and offset that make `grid` cover [low, high], by min-max.
///
/// With offset the range is widened to hold zero, scale = (high - low) / steps and
/// offset = round(qmin - low / scale), so that x' of 0 is exactly 0. Without, offset = 0 and
/// scale = max(|low|, |high|) / limit(|high| < |low|).
/// A scale below smallest_scale() becomes 1 (offset qmin, or 0). All in float32, as the record
/// stores it, but in float64 where float32 would overflow: the scale is finite for any finite
/// range. Throws ValueError for a float grid with offset.
QuantParams minmax_params(const Grid& grid, float low, float high, bool with_offset);

}  // namespace amct
#pragma GCC visibility pop
