// Storage of observed float32 values: the values themselves.
#pragma once

#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace amct {

/// Keeps the values of one group, or of one group a channel, row by row as they came. Values that
/// are not finite are left out when the values are asked for.
class FloatSamples {
 public:
  /// `groups` is 1, or the number of channels.
  explicit FloatSamples(std::size_t groups) : groups_(groups) {}

  /// Makes room for `count` values in all, where so much is to be had. Memory is only taken up as
  /// values come.
  void reserve(std::size_t count);

  /// Adds the elements of a float32 view, or nothing where memory runs out. `any_non_finite` says
  /// whether some are NaN or infinite.
  void add(const TensorView& view, bool any_non_finite);
  void merge(const FloatSamples& other);

  ValueCounts value_counts(std::size_t group) const;
  /// The same for the only group, moved out.
  ValueCounts take_value_counts();

 private:
  std::size_t groups_;
  std::vector<float> samples_;  // [row][group]
  bool any_non_finite_ = false;
};

}  // namespace amct
