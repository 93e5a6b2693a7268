// Storage for searches that need the range of the values alone.
#pragma once

#include "amct/core/tensor_view.h"

#include <cstddef>
#include <vector>

#include "kernels/scan.h"

namespace amct {

/// Keeps the smallest and the largest finite value of one group, or of one group a channel.
class ValueRanges {
 public:
  /// `groups` is 1, or the number of channels.
  explicit ValueRanges(std::size_t groups) : ranges_(groups, kernels::empty_scan()) {}

  /// Adds a view of any dtype, of which `scanned` is the scan.
  void add(const TensorView& view, const kernels::ScanResult& scanned);
  /// Adds one range a group; min > max where there is nothing to add.
  void add(const std::vector<kernels::ScanResult>& ranges);
  void merge(const ValueRanges& other) { add(other.ranges_); }

  /// The range of a group; min > max where it has no finite value.
  const kernels::ScanResult& range(std::size_t group) const { return ranges_[group]; }

 private:
  void add_one_by_one(const Block& block, DType dtype);

  std::vector<kernels::ScanResult> ranges_;
};

}  // namespace amct
