// One look at a batch: its range, and NaN and infinite values.
#pragma once

#include "amct/core/tensor_view.h"

#include <cstdint>

#include "kernels/scan.h"

namespace amct {

/// Scans all elements of `view`, on several threads where they are many.
kernels::ScanResult scan(const TensorView& view);

/// Flat row-major index of the first element that is NaN or infinite; -1 where none is.
std::int64_t first_non_finite(const TensorView& view);

}  // namespace amct
