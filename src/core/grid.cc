#include "amct/core/grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace amct {
namespace {

constexpr float kEpsilon = std::numeric_limits<float>::epsilon();

}  // namespace

double Grid::quantize(double x, QuantParams params) const {
  const double code = std::nearbyint(x / static_cast<double>(params.scale)) + params.offset;
  return std::clamp(code, static_cast<double>(qmin), static_cast<double>(qmax));
}

QuantParams minmax_params(const Grid& grid, float low, float high, bool with_offset) {
  if (!with_offset) {
    const auto levels =
        static_cast<float>(std::fabs(high) < std::fabs(low) ? -grid.qmin : grid.qmax);
    const float scale = std::max(std::fabs(high), std::fabs(low)) / levels;
    return {scale < kEpsilon ? 1.0F : scale, 0};
  }
  low = std::min(low, 0.0F);
  high = std::max(high, 0.0F);
  const auto steps = static_cast<float>(grid.steps());
  float scale = (high - low) / steps;
  if (!std::isfinite(scale)) {
    scale = static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) / steps);
  }
  if (scale < kEpsilon) return {1.0F, grid.qmin};
  const float offset = std::nearbyint(static_cast<float>(grid.qmin) - low / scale);
  return {scale, static_cast<std::int32_t>(offset)};
}

}  // namespace amct
