// Sorting float32 values into equal bins.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// indices[i] = min(floor((values[i] - low) * bins / range), bins - 1), computed in float64 in this
/// order. Values must lie in [low, low + range], range must be positive.
void bin_indices(const float* values, std::size_t count, double low, double range,
                 std::uint32_t bins, std::uint32_t* indices);

/// indices[i] = floor((values[i] - low) * inverse), or `bins` where that is not in [0, bins): in
/// float32 and without the division, which takes longer than the rest. bins <= 2^24. Returns
/// whether an index is `bins`.
bool quick_bin_indices(const float* values, std::size_t count, float low, float inverse,
                       std::uint32_t bins, std::uint32_t* indices);

/// Sum over i < count of table[min(floor(first + i * step), size - 1)], where first and step are
/// not negative. In float64, in eight lanes: the same bits on every instruction set.
double sum_at_steps(const float* table, std::size_t size, double first, double step,
                    std::size_t count);

/// The same in plain C++, for the tests.
double sum_at_steps_scalar(const float* table, std::size_t size, double first, double step,
                           std::size_t count);
bool quick_bin_indices_scalar(const float* values, std::size_t count, float low, float inverse,
                              std::uint32_t bins, std::uint32_t* indices);
void bin_indices_scalar(const float* values, std::size_t count, double low, double range,
                        std::uint32_t bins, std::uint32_t* indices);

}  // namespace amct::kernels
