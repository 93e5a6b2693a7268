// One pass over a run of values: smallest, largest, and whether all are finite.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// What a pass found. Only finite values count for min and max; without any, min > max.
struct ScanResult {
  float min;
  float max;
  std::int64_t non_finite;  ///< number of NaN and infinite values

  friend bool operator==(const ScanResult&, const ScanResult&) = default;
};

/// The result for no values at all.
ScanResult empty_scan();

/// Scans `count` values. No alignment is needed.
ScanResult scan_float32(const float* values, std::size_t count);
ScanResult scan_half(DType dtype, const std::uint16_t* patterns, std::size_t count);

/// Smallest and largest magnitude of 16-bit patterns, as patterns without their sign.
struct MagnitudeRange {
  std::uint16_t smallest;  ///< of those that are not zero; 0xFFFF where all are
  std::uint16_t largest;

  friend bool operator==(const MagnitudeRange&, const MagnitudeRange&) = default;
};

MagnitudeRange magnitude_range(const std::uint16_t* patterns, std::size_t count);

/// The same in plain C++, for runs with non-finite values and for the tests.
ScanResult scan_float32_scalar(const float* values, std::size_t count);
ScanResult scan_half_scalar(DType dtype, const std::uint16_t* patterns, std::size_t count);
MagnitudeRange magnitude_range_scalar(const std::uint16_t* patterns, std::size_t count);

}  // namespace amct::kernels
