// Storage of observed float16 and bfloat16 values: exact counts of their bit patterns.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace amct {

/// Counts the 65,536 patterns of one 16-bit type for several groups. Real activations use a small
/// part of the patterns, so counters come in pages of 256 that are allocated when first needed: at
/// most 128 KiB a group, typically a tenth of it.
class HalfCounts {
 public:
  HalfCounts(DType dtype, std::size_t groups);

  /// Counts the elements of a view of this dtype: in group 0, or each in the group of its channel
  /// where there are several. Infinite and NaN patterns are counted like others, and never
  /// reported.
  void add(const TensorView& view);

  /// Counts `pattern` once in `group`. Threads may add to different groups at once.
  void add(std::size_t group, std::uint16_t pattern) {
    if (++page(group, pattern >> 8)[pattern & 0xFF] == 0) add_wraps(group, pattern, 1);
  }
  void merge(const HalfCounts& other);

  ValueCounts value_counts(std::size_t group) const;

 private:
  static constexpr std::size_t kPages = 256;
  static constexpr std::size_t kPageSize = 256;
  using Counter = std::uint16_t;
  using Page = std::array<Counter, kPageSize>;
  static constexpr int kCounterBits = 16;

  /// Values and counts in the making.
  struct Ascending {
    std::vector<float> values;
    std::vector<std::uint64_t> counts;
    void append(float value, std::uint64_t count);
  };

  void add_to_one_group(const Block& block);
  /// Counts rows [first, last) of contiguous channels in group 0. Threads may do so at once.
  void count_rows(const Block& rows, std::int64_t first, std::int64_t last);
  /// Moves the counts of scratch tables into group 0.
  void fold(std::vector<std::uint32_t>& tables);
  void add_by_channel(const Block& block);
  void add_channels(const Block& block, std::int64_t first, std::int64_t last);

  /// Adds `count` to a counter.
  void increase(std::size_t group, std::size_t pattern, std::uint64_t count);
  void add_wraps(std::size_t group, std::size_t pattern, std::uint64_t wraps);

  Page& page(std::size_t group, std::size_t index) {
    std::unique_ptr<Page>& slot = pages_[group * kPages + index];
    if (slot == nullptr) slot = std::make_unique<Page>();
    return *slot;
  }
  void append_page(std::size_t group, std::size_t index, bool downwards, Ascending& to) const;
  std::uint64_t wraps_of(std::size_t group, std::size_t pattern) const;

  DType dtype_;
  std::size_t groups_;
  std::vector<std::unique_ptr<Page>> pages_;  // [group][pattern >> 8]
  // How often a counter passed 2^16: few patterns do, and rarely, so that a map costs less than
  // wider counters for all.
  std::unordered_map<std::uint64_t, std::uint64_t> wraps_;
  std::unique_ptr<std::mutex> wraps_mutex_;
  std::unique_ptr<std::mutex> fold_mutex_;
};

}  // namespace amct
