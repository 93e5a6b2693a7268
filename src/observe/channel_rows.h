// Rows of channels, stored so that a channel's values are had at little cost.
#pragma once

#include "amct/core/large_array.h"
#include "amct/core/tensor_view.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "kernels/turn.h"

namespace amct {

/// A strip of ChannelRows turned: the values of some neighbouring channels, each in one piece.
template <typename Bits>
class Columns {
 public:
  std::size_t size() const { return rows_; }  ///< values a channel
  std::span<const Bits> channel(std::size_t i) const { return {bits_.data() + i * pitch_, rows_}; }

 private:
  template <typename>
  friend class ChannelRows;
  std::size_t rows_ = 0;
  std::size_t pitch_ = 0;
  std::vector<Bits> bits_;
};

/// A list of rows, cut into strips of kStripWidth channels. A row is appended a cache line a strip;
/// a strip is then read in sequence, where reading it from whole rows would wait for every line.
template <typename Bits>
class ChannelRows {
 public:
  static constexpr std::size_t kWidth = kernels::kStripWidth<Bits>;

  /// No more than `limit` rows will be held.
  ChannelRows(std::int64_t channels, std::int64_t limit);

  /// Makes room for rows in all. Only a hint: does nothing where memory runs out.
  void reserve(std::int64_t rows);
  /// Appends rows [first, last) of a block of as many channels, or nothing where memory runs out;
  /// on several threads where they are many.
  void append(const Block& block, std::int64_t first, std::int64_t last);
  /// Appends the rows of another one, which may be this.
  void append(const ChannelRows& other);
  void clear() { rows_ = 0; }
  /// Makes sure that `rows` more can be appended without memory. Throws std::bad_alloc.
  void grow_by(std::int64_t rows) { grow_to(rows_ + rows); }

  std::int64_t rows() const { return rows_; }
  std::int64_t channels() const { return channels_; }
  std::size_t strips() const { return strips_; }
  /// Channels in a strip: kWidth but for the last one.
  std::size_t width(std::size_t strip) const;

  /// Turns a strip into columns, whose memory is used again.
  void turn(std::size_t strip, Columns<Bits>& columns) const;
  /// Calls visit(channel, its values as a span) for all channels, on several threads at once.
  template <typename Visit>
  void visit(Visit visit) const {
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, strips_),
                      [&](const tbb::blocked_range<std::size_t>& range) {
                        Columns<Bits> columns;
                        for (std::size_t strip = range.begin(); strip < range.end(); ++strip) {
                          turn(strip, columns);
                          for (std::size_t i = 0; i < width(strip); ++i)
                            visit(strip * kWidth + i, columns.channel(i));
                        }
                      });
  }

 private:
  // Rows whose strips lie together, each in one piece.
  static constexpr std::int64_t kChunkRows = 256;
  // Pieces start one cache line apart in the cache's sets, which a power of two would not do.
  static constexpr std::int64_t kPitch = kChunkRows + 1;

  void grow_to(std::int64_t rows);
  std::size_t elements_for(std::int64_t rows) const {
    const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
    return static_cast<std::size_t>(chunks * kPitch) * strips_ * kWidth;
  }
  /// Where the channels of a strip of a row are in bits_.
  std::size_t offset(std::int64_t row, std::size_t strip) const {
    const auto chunk = static_cast<std::size_t>(row / kChunkRows);
    const auto row_of_chunk = static_cast<std::size_t>(row % kChunkRows);
    return ((chunk * strips_ + strip) * kPitch + row_of_chunk) * kWidth;
  }
  void copy_row(const std::byte* from, std::int64_t channel_stride, std::int64_t row);

  std::int64_t channels_;
  std::int64_t limit_;
  std::size_t strips_;
  std::int64_t rows_ = 0;
  LargeArray<Bits> bits_;  // [chunk][strip][row of chunk][channel of strip]
};

}  // namespace amct
