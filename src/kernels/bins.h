// Sorting float32 values into equal bins.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// indices[i] = min(floor((values[i] - low) * bins / range), bins - 1), computed in float64 in this
/// order. Values must lie in [low, low + range], range must be positive.
void bin_indices(const float* values, std::size_t count, double low, double range,
                 std::uint32_t bins, std::uint32_t* indices);

/// indices[i] = min(floor((values[i] - low) * inverse), bins - 1): without the division, which
/// takes longer than the rest, at the cost of an ulp. Values must not be below low.
void quick_bin_indices(const float* values, std::size_t count, double low, double inverse,
                       std::uint32_t bins, std::uint32_t* indices);

/// The same in plain C++, for the tests.
void quick_bin_indices_scalar(const float* values, std::size_t count, double low, double inverse,
                              std::uint32_t bins, std::uint32_t* indices);
void bin_indices_scalar(const float* values, std::size_t count, double low, double range,
                        std::uint32_t bins, std::uint32_t* indices);

}  // namespace amct::kernels
