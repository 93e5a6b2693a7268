// Finding NaN and infinite values in a batch.
#pragma once

#include "amct/core/tensor_view.h"

#include <cstdint>

namespace amct {

/// How many values are not finite, and where the first stands.
struct NonFinite {
  std::int64_t count = 0;
  std::int64_t first_index = -1;  ///< flat row-major index in elements; -1 where count is 0
};

NonFinite find_non_finite(const TensorView& view);

}  // namespace amct
