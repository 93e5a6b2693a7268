#include "observe/channel_rows.h"

#include <algorithm>
#include <cstring>
#include <new>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "observe/elements.h"

namespace amct {
namespace {

// Elements copied in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kTaskElements = std::int64_t{1} << 18;

}  // namespace

template <typename Bits>
ChannelRows<Bits>::ChannelRows(std::int64_t channels, std::int64_t limit)
    : channels_(channels),
      limit_(limit),
      strips_((static_cast<std::size_t>(channels) + kWidth - 1) / kWidth) {}

template <typename Bits>
std::size_t ChannelRows<Bits>::width(std::size_t strip) const {
  return std::min(kWidth, static_cast<std::size_t>(channels_) - strip * kWidth);
}

template <typename Bits>
void ChannelRows<Bits>::reserve(std::int64_t rows) {
  try {
    bits_.reserve(elements_for(rows));
  } catch (const std::bad_alloc&) {
    // What really comes may be less, and grows as it comes.
    return;
  }
}

template <typename Bits>
void ChannelRows<Bits>::grow_to(std::int64_t rows) {
  const std::size_t needed = elements_for(rows);
  grow(bits_, needed, elements_for(limit_));
  if (needed > bits_.size()) bits_.resize(needed);
}

template <typename Bits>
void ChannelRows<Bits>::copy_row(const std::byte* from, std::int64_t channel_stride,
                                 std::int64_t row) {
  for (std::size_t strip = 0; strip < strips_; ++strip) {
    Bits* to = bits_.data() + offset(row, strip);
    const std::size_t count = width(strip);
    const std::int64_t step = static_cast<std::int64_t>(sizeof(Bits)) * channel_stride;
    const std::byte* start = from + static_cast<std::int64_t>(strip * kWidth) * step;
    if (channel_stride == 1 && count == kWidth) {
      std::memcpy(to, start, sizeof(Bits) * kWidth);
      continue;
    }
    for (std::size_t i = 0; i < count; ++i)
      to[i] = load_bits<Bits>(start + static_cast<std::int64_t>(i) * step);
    std::fill(to + count, to + kWidth, Bits{0});
  }
}

template <typename Bits>
void ChannelRows<Bits>::append(const Block& block, std::int64_t first, std::int64_t last) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Bits));
  grow_to(rows_ + last - first);
  const auto copy_rows = [&](const tbb::blocked_range<std::int64_t>& range) {
    for (std::int64_t row = range.begin(); row < range.end(); ++row) {
      copy_row(block.data + kSize * row * block.row_stride, block.channel_stride,
               rows_ + row - first);
    }
  };
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskElements / channels_);
  const tbb::blocked_range<std::int64_t> all(first, last, static_cast<std::size_t>(grain));
  if (last - first <= grain) {
    copy_rows(all);
  } else {
    tbb::parallel_for(all, copy_rows);
  }
  rows_ += last - first;
}

template <typename Bits>
void ChannelRows<Bits>::append(const ChannelRows& other) {
  const std::int64_t added = other.rows_;
  grow_to(rows_ + added);
  for (std::int64_t row = 0; row < added; ++row) {
    for (std::size_t strip = 0; strip < strips_; ++strip) {
      std::memcpy(bits_.data() + offset(rows_ + row, strip),
                  other.bits_.data() + other.offset(row, strip), sizeof(Bits) * kWidth);
    }
  }
  rows_ += added;
}

template <typename Bits>
void ChannelRows<Bits>::turn(std::size_t strip, Columns<Bits>& columns) const {
  const auto rows = static_cast<std::size_t>(rows_);
  columns.rows_ = rows;
  // Columns start one cache line apart in the cache's sets, which a power of two would not do.
  columns.pitch_ = (rows + kWidth - 1) / kWidth * kWidth + kWidth;
  if (columns.bits_.size() < kWidth * columns.pitch_) columns.bits_.resize(kWidth * columns.pitch_);
  for (std::int64_t row = 0; row < rows_; row += kChunkRows) {
    kernels::turn(bits_.data() + offset(row, strip),
                  static_cast<std::size_t>(std::min(kChunkRows, rows_ - row)),
                  columns.bits_.data() + row, columns.pitch_);
  }
}

template class ChannelRows<std::uint16_t>;
template class ChannelRows<std::uint32_t>;

}  // namespace amct
