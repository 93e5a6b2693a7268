// Checking counts and ranges that come from elsewhere.
#pragma once

#include "amct/core/granularity.h"
#include "amct/observe/counted_batches.h"

#include <cstddef>
#include <cstdint>

#include "kernels/scan.h"

namespace amct {

/// Throws ValueError where the fields contradict each other or what CountedBatches says of them.
void validate(const CountedBatches& batches, Granularity granularity);
/// The same for RangedBatches.
void validate(const RangedBatches& batches, Granularity granularity);

/// The range of the finite values of one group, and how many of its values are not finite.
kernels::ScanResult scan(const CountedBatches& batches, std::size_t group);

}  // namespace amct
