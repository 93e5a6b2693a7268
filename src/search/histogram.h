// Counting values in equal bins.
#pragma once

#include "amct/observe/value_counts.h"

#include <cstdint>
#include <vector>

namespace amct {

/// Counts in `bins` equal bins over [low, high], low < high, which must hold all values. The value
/// `high` falls in the last bin.
std::vector<std::uint64_t> equal_bins(const ValueCounts& values, double low, double high,
                                      std::int64_t bins);

/// Whether `bins` is a number of bins that searches take: 1024, 2048, 4096 or 8192.
constexpr bool is_number_of_bins(std::int64_t bins) {
  return bins == 1024 || bins == 2048 || bins == 4096 || bins == 8192;
}

}  // namespace amct
