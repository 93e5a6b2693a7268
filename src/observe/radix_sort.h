// Ascending sort of float32 values, several times faster than a comparison sort on large inputs.
#pragma once

#include <span>

namespace amct {

/// Sorts finite values ascending; -0 comes before +0. Needs as much memory again as `values` takes.
void radix_sort(std::span<float> values);

}  // namespace amct
