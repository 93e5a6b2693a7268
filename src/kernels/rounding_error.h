// The error of clipping and rounding, summed over a run of values.
#pragma once

#include <cstddef>

namespace amct::kernels {

/// One candidate: values are clamped to [low, high], then rounded to multiples of scale.
struct Rounding {
  float scale;  ///< positive
  float low;
  float high;
};

/// Sum over i of weights[i] * (round(clamp(values[i]) * (1 / scale)) * scale - values[i])^2 in
/// float64, halves to even; weights are 1 where `weights` is null.
///
/// Multiplying by 1 / scale instead of dividing by scale can choose the other level only where the
/// value lies within an ulp of the middle of two, where both have the same error but for 1e-13 of
/// it. Sums run in eight lanes and blocks, the same on every instruction set: the result is the
/// same bits everywhere, and within kRoundingErrorBound of the true sum, relatively.
double rounding_error(const float* values, const double* weights, std::size_t count,
                      const Rounding& rounding);

/// The same, computed in float32 where float64 is not needed: several times faster, and within
/// quick_error_bound of the true sum. The same bits on every instruction set.
double quick_rounding_error(const float* values, const float* weights, std::size_t count,
                            const Rounding& rounding);

/// Bound on |quick_rounding_error - true sum|, given its result and the sum of the weights. Holds
/// where the clip range spans at most 256 levels.
double quick_error_bound(double result, double total_weight, const Rounding& rounding);

/// The same in plain C++, for the tests.
double quick_rounding_error_scalar(const float* values, const float* weights, std::size_t count,
                                   const Rounding& rounding);
double rounding_error_scalar(const float* values, const double* weights, std::size_t count,
                             const Rounding& rounding);

/// Relative bound on the difference between rounding_error and the exact sum with division.
inline constexpr double kRoundingErrorBound = 1e-10;

}  // namespace amct::kernels
