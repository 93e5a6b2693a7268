// Storing on a grid, as the kernels know it.
#pragma once

#include "amct/core/grid.h"

#include "kernels/rounding_error.h"

namespace amct {

/// What storing on an integer grid and reading back does: clamping to the values of the end codes
/// and rounding to multiples of the scale.
inline kernels::Rounding rounding_on(const Grid& grid, QuantParams params) {
  return {params.scale, static_cast<float>(grid.dequantize(grid.qmin, params)),
          static_cast<float>(grid.dequantize(grid.qmax, params))};
}

}  // namespace amct
