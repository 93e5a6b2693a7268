// Storage of 16-bit values observed per channel: exact counts of their bit patterns.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/counted_batches.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "observe/channel_rows.h"
#include "observe/counter_page.h"
#include "observe/pattern_counts.h"

namespace amct {

/// Counts the patterns of one 16-bit type for each channel.
///
/// Rows are staged as they come, up to kStagedRows (16 KiB a channel), and counted together: a call
/// with one token costs a copy, and a short calibration is counted once, from the cache, when its
/// values are asked for. Past that counts are kept in pages of 256 counters that occur, of 16 bits
/// until more are needed: some 10 to 20 KiB a channel, whatever the number of rows.
class ChannelCounts {
 public:
  ChannelCounts(DType dtype, std::int64_t channels);

  /// Makes room for rows that will come. Only a hint.
  void reserve(std::int64_t rows);

  /// Adds the elements of a view of this dtype and number of channels. Infinite and NaN patterns
  /// are counted like others, and never reported.
  void add(const TensorView& view);
  /// Adds valid counts of this dtype and number of channels, or nothing where memory runs out.
  void add(const CountedBatches& batches);
  void merge(const ChannelCounts& other);

  /// Calls visit(channel, values) for every channel, on several threads at once.
  void visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const;
  ValueCounts value_counts(std::size_t channel) const;
  /// The patterns of each channel that occurred, infinite and NaN ones included.
  std::vector<PatternCounts> patterns() const;

  static constexpr std::int64_t kStagedRows = 8192;

 private:
  static constexpr std::size_t kPages = 256;
  /// Scratch memory: a counter for every pattern, all zero between uses. 16 bits hold kStagedRows.
  using Table = std::vector<std::uint16_t>;

  /// Counts the staged rows into pages.
  void flush();
  void count_into_pages(std::size_t channel, std::span<const std::uint16_t> patterns, Table& table);
  /// The counts of some patterns and of the channel's pages.
  ValueCounts value_counts(std::size_t channel, std::span<const std::uint16_t> patterns,
                           Table& table) const;
  /// Staged float16 values of a channel as they came; `largest` is their largest magnitude.
  static ValueCounts samples_of(std::span<const std::uint16_t> patterns, std::uint16_t largest);
  /// The counts of the table, which is emptied, and of the channel's pages.
  ValueCounts with_pages(std::size_t channel, Table& table) const;

  DType dtype_;
  ChannelRows<std::uint16_t> staged_;
  std::vector<CounterPage> pages_;  // [channel][upper byte]; empty before the first flush
};

}  // namespace amct
