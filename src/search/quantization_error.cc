#include "amct/search/quantization_error.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/rounding_error.h"
#include "search/chunks.h"
#include "search/grid_rounding.h"
#include "search/weights.h"

namespace amct {

double QuantizationError::sqnr_db() const {
  if (squared_error == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(squared_signal / squared_error);
}

QuantizationError& QuantizationError::operator+=(const QuantizationError& other) {
  squared_error += other.squared_error;
  squared_signal += other.squared_signal;
  clipped += other.clipped;
  total += other.total;
  return *this;
}

namespace {

/// Whether a value's code of an integer grid has to be clamped, and to which end.
bool is_clipped(float x, const Grid& grid, QuantParams params, bool below) {
  const double code =
      std::nearbyint(static_cast<double>(x) / static_cast<double>(params.scale)) + params.offset;
  return below ? code < grid.qmin : code > grid.qmax;
}

/// The first value inward from an end of the grid that is not clipped there: codes grow with
/// values, so it parts the clipped ones from the others.
float edge(const Grid& grid, QuantParams params, bool below) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const double code = below ? grid.qmin - 0.5 : grid.qmax + 0.5;
  const double bound = (code - params.offset) * static_cast<double>(params.scale);
  float x = static_cast<float>(std::clamp(bound, -double{kMax}, double{kMax}));
  const float inward = below ? kMax : -kMax;
  while (x != -inward && !is_clipped(x, grid, params, below)) x = std::nextafter(x, -inward);
  while (x != inward && is_clipped(x, grid, params, below)) x = std::nextafter(x, inward);
  return x;
}

/// How many values lie outside of [low, high].
double clipped_of(std::span<const float> values, const double* weights, float low, float high) {
  if (weights == nullptr) {  // no branch in the loop: vector instructions
    std::uint32_t count = 0;
    for (const float x : values) count += (x < low ? 1U : 0U) | (x > high ? 1U : 0U);
    return count;
  }
  double count = 0;
  for (std::size_t i = 0; i < values.size(); ++i)
    count += values[i] < low || values[i] > high ? weights[i] : 0;
  return count;
}

/// Values [begin, begin + size) stored on a float grid.
QuantizationError float_error(const ValueCounts& values, std::size_t begin, std::size_t size,
                              const Grid& grid, QuantParams params) {
  QuantizationError sum;
  for (std::size_t i = begin; i < begin + size; ++i) {
    const auto x = static_cast<double>(values.values()[i]);
    const auto weight = static_cast<double>(values.count(i));
    const double error = grid.store(x, params) - x;
    sum.squared_error += weight * error * error;
    sum.squared_signal += weight * x * x;
    sum.clipped += grid.clips(x, params) ? weight : 0;
  }
  return sum;
}

}  // namespace

QuantizationError quantization_error(const ValueCounts& values, const Grid& grid,
                                     QuantParams params) {
  const std::span<const float> all = values.values();
  std::vector<QuantizationError> parts(chunks_of(all.size()));
  const auto sum_of_parts = [&] {
    QuantizationError sum;
    for (const QuantizationError& part : parts) sum += part;
    sum.total = static_cast<double>(values.total());
    return sum;
  };
  if (grid.is_float()) {
    for_each_chunk(all.size(), [&](std::size_t chunk, std::size_t begin, std::size_t size) {
      parts[chunk] = float_error(values, begin, size, grid, params);
    });
    return sum_of_parts();
  }
  const kernels::Rounding stored = rounding_on(grid, params);
  const kernels::Rounding nothing{1, 0, 0};  // clamping to zero leaves the signal
  const float low = edge(grid, params, true);
  const float high = edge(grid, params, false);
  const std::vector<double> weights = weights_of<double>(values.counts());
  for_each_chunk(all.size(), [&](std::size_t chunk, std::size_t begin, std::size_t size) {
    const double* chunk_weights = weights.empty() ? nullptr : weights.data() + begin;
    QuantizationError& part = parts[chunk];
    part.squared_error = kernels::rounding_error(all.data() + begin, chunk_weights, size, stored);
    part.squared_signal = kernels::rounding_error(all.data() + begin, chunk_weights, size, nothing);
    part.clipped = clipped_of(all.subspan(begin, size), chunk_weights, low, high);
  });
  return sum_of_parts();
}

}  // namespace amct
