// Storage of observed float32 values: the values themselves.
#pragma once

#include "amct/core/large_array.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "observe/channel_rows.h"

namespace amct {

/// Keeps the values of one group, or of one group a channel. Values that are not finite are left
/// out when the values are asked for.
///
/// Values of a single group are shared with the ValueCounts made of them, since a copy would take
/// as much memory again; adding more then copies them, while such an object lives.
class FloatSamples {
 public:
  /// `groups` is 1, or the number of channels. No more than `limit` values will be added.
  FloatSamples(std::size_t groups, std::size_t limit);

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
  void visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const;
  /// The same with the values as they came.
  void visit_samples(const std::function<void(std::size_t, std::span<const float>)>& visit) const;
  ValueCounts value_counts(std::size_t group) const;

  /// All values of each group as they came, those that are not finite included.
  std::vector<std::vector<float>> values() const;
  bool any_non_finite() const { return any_non_finite_; }

 private:
  using Samples = LargeArray<float>;

  /// The array of a single group with room for `added` more, nobody else's. Throws std::bad_alloc.
  Samples& room_for(std::size_t added);
  void add_to_one_group(const TensorView& view);
  std::shared_ptr<const Samples> finite_of_one_group() const;
  Samples finite(std::span<const std::uint32_t> bits) const;

  std::size_t limit_;
  std::shared_ptr<Samples> one_group_;              // of a single group, or
  std::optional<ChannelRows<std::uint32_t>> rows_;  // of several
  bool any_non_finite_ = false;
};

}  // namespace amct
