#include "amct/search/quantization_error.h"

#include <cmath>
#include <limits>

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

QuantizationError quantization_error(const ValueCounts& values, const Grid& grid,
                                     QuantParams params) {
  QuantizationError result;
  for (std::size_t i = 0; i < values.values().size(); ++i) {
    const double x = values.values()[i];
    const auto count = static_cast<double>(values.count(i));
    const double code = std::nearbyint(x / static_cast<double>(params.scale)) + params.offset;
    const double error = Grid::dequantize(grid.quantize(x, params), params) - x;
    result.squared_error += count * error * error;
    result.squared_signal += count * x * x;
    result.clipped += code < grid.qmin || code > grid.qmax ? count : 0;
    result.total += count;
  }
  return result;
}

}  // namespace amct
