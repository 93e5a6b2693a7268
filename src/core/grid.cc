#include "amct/core/grid.h"

#include "amct/core/error.h"
#include "amct/core/options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace amct {
namespace {

/// The code of an integer grid before it is clamped.
double unclamped(double x, QuantParams params) {
  return std::nearbyint(x / static_cast<double>(params.scale)) + params.offset;
}

}  // namespace

float Grid::limit(bool negative_wins) const {
  if (is_float()) return format().max();
  return static_cast<float>(negative_wins ? -qmin : qmax);
}

float Grid::smallest_scale() const {
  using Limits = std::numeric_limits<float>;
  return is_float() ? Limits::min() : Limits::epsilon();
}

std::int32_t Grid::quantize(double x, QuantParams params) const {
  if (is_float()) return format().encode(x / static_cast<double>(params.scale));
  return static_cast<std::int32_t>(
      std::clamp(unclamped(x, params), static_cast<double>(qmin), static_cast<double>(qmax)));
}

double Grid::dequantize(std::int32_t code, QuantParams params) const {
  const auto scale = static_cast<double>(params.scale);
  if (is_float())
    return static_cast<double>(format().decode(static_cast<std::uint8_t>(code))) * scale;
  return (static_cast<double>(code) - params.offset) * scale;
}

bool Grid::clips(double x, QuantParams params) const {
  if (is_float()) return format().clips(x / static_cast<double>(params.scale));
  const double code = unclamped(x, params);
  return code < qmin || code > qmax;
}

std::span<const Grid> grids() {
  static constexpr std::array kGrids{kInt8,        kInt4,        kFp8E4M3, kFp8E5M2,
                                     kFp8E4M3Fnuz, kFp8E5M2Fnuz, kHif8};
  return kGrids;
}

const Grid* find_grid(std::string_view name) {
  const auto found = std::ranges::find(grids(), name, &Grid::name);
  return found == grids().end() ? nullptr : &*found;
}

const Grid& grid_named(std::string_view name, const std::string& what) {
  if (const Grid* grid = find_grid(name); grid != nullptr) return *grid;
  std::vector<std::string> names;
  std::string list;
  for (const Grid& grid : grids()) {
    names.emplace_back(grid.name);
    list += (list.empty() ? "'" : ", '") + names.back() + "'";
  }
  throw ValueError(what + " must be one of " + list + ", not \"" + std::string(name) + "\"" +
                   suggestion(name, names));
}

QuantParams minmax_params(const Grid& grid, float low, float high, bool with_offset) {
  if (!with_offset) {
    const float limit = grid.limit(std::fabs(high) < std::fabs(low));
    const float scale = std::max(std::fabs(high), std::fabs(low)) / limit;
    return {scale < grid.smallest_scale() ? 1.0F : scale, 0};
  }
  if (grid.is_float()) throw ValueError(std::string(grid.name) + " has no offsets");
  low = std::min(low, 0.0F);
  high = std::max(high, 0.0F);
  const auto steps = static_cast<float>(grid.steps());
  float scale = (high - low) / steps;
  if (!std::isfinite(scale)) {
    scale = static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) / steps);
  }
  if (scale < grid.smallest_scale()) return {1.0F, grid.qmin};
  const float offset = std::nearbyint(static_cast<float>(grid.qmin) - low / scale);
  return {scale, static_cast<std::int32_t>(offset)};
}

}  // namespace amct
