// Storage of observed float32 values past the memory budget: counts in log-linear bins.
#pragma once

#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "observe/counter_page.h"

namespace amct {

/// Counts float32 values by sign, exponent and their first mantissa bits: kTensorBits of them per
/// tensor, kChannelBits per channel. A bin is thus 2^-10 (2^-8) of its value wide, and the
/// density of values is taken to change linearly over a bin; the smallest and the largest are known
/// exactly. Values below 2^-60 of the largest magnitude count as zero, so that a group takes less
/// than 1 MiB per tensor, whatever the values and their number.
///
/// The result depends on the multiset of values alone, like exact counts do.
class FloatSketch {
 public:
  static constexpr int kTensorBits = 10;
  static constexpr int kChannelBits = 8;

  /// `groups` is 1, or the number of channels.
  explicit FloatSketch(std::size_t groups);

  /// Adds the finite elements of a float32 view.
  void add(const TensorView& view);
  /// Adds finite values of one group. Threads may add to different groups at once.
  void add(std::size_t group, std::span<const float> samples) { add(groups_[group], samples); }
  void merge(const FloatSketch& other);

  /// Calls visit(group, values) for every group, on several threads at once.
  void visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const;
  ValueCounts value_counts(std::size_t group_index) const;

  /// The counts of a group by the upper bits of their values: sign, exponent and kTensorBits or
  /// kChannelBits of the mantissa.
  struct Keys {
    std::vector<std::uint32_t> keys;    ///< ascending
    std::vector<std::uint64_t> counts;  ///< one a key, positive
    float min = 0;                      ///< 0 where there is none
    float max = 0;
  };
  Keys keys(std::size_t group_index) const;
  /// Adds counts to a group. Throws ValueError for keys that no finite value has, or that are not
  /// ascending, and for counts of zero.
  void add(std::size_t group_index, const Keys& added);

  /// Bytes that the counters of a group take.
  std::size_t bytes(std::size_t group_index) const;

 private:
  struct Group {
    std::vector<CounterPage> pages;  // by the upper bits of the key
    float min = 0;
    float max = 0;
    std::uint64_t total = 0;
  };

  /// Values counted together, in [low, high); low == high for zero.
  struct Bin {
    float low;
    float high;
    std::uint64_t count;

    double density() const {
      const double width = static_cast<double>(high) - static_cast<double>(low);
      return width > 0 ? static_cast<double>(count) / width : 0;
    }
  };

  std::vector<Bin> ascending_bins(const Group& group) const;
  std::size_t pages_a_sign() const { return (std::size_t{256} << bits_) / CounterPage::kSize; }
  void add_to_one_group(const Block& block);
  void add_by_channel(const Block& block);
  void add(Group& group, std::span<const float> samples) const;
  static void widen(Group& group, float min, float max);
  /// Counts as zero what is too small beside the largest magnitude.
  void drop_small(Group& group) const;

  int bits_;
  std::vector<Group> groups_;
};

}  // namespace amct
