// Storage of observed float32 values: the values themselves.
#pragma once

#include "amct/core/large_array.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "observe/channel_rows.h"

namespace amct {

/// Keeps the values of one group, or of one group a channel. Values that are not finite are left
/// out when the values are asked for.
class FloatSamples {
 public:
  /// `groups` is 1, or the number of channels.
  explicit FloatSamples(std::size_t groups);

  /// Makes room for `count` values in all, where so much is to be had. Memory is only taken up as
  /// values come.
  void reserve(std::size_t count);

  /// Adds the elements of a float32 view, or nothing where memory runs out. `any_non_finite` says
  /// whether some are NaN or infinite.
  void add(const TensorView& view, bool any_non_finite);
  void merge(const FloatSamples& other);

  /// Number of values held.
  std::size_t size() const;

  /// Calls visit(group, its finite values) for every group, on several threads at once.
  void visit(const std::function<void(std::size_t, LargeArray<float>)>& visit) const;
  LargeArray<float> samples_of(std::size_t group) const;
  /// The same for the only group, moved out.
  LargeArray<float> take_samples();

 private:
  void add_to_one_group(const TensorView& view);
  LargeArray<float> finite(LargeArray<float> samples) const;

  LargeArray<float> one_group_;                     // of a single group, or
  std::optional<ChannelRows<std::uint32_t>> rows_;  // of several
  bool any_non_finite_ = false;
};

}  // namespace amct
