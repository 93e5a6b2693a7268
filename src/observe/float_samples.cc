#include "observe/float_samples.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "observe/elements.h"

namespace amct {
namespace {

// Elements copied in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kTaskElements = std::int64_t{1} << 18;

void copy_row(const Block& block, std::int64_t row, float* to) {
  const std::byte* from = block.data + 4 * row * block.row_stride;
  if (block.channel_stride == 1) {
    std::memcpy(to, from, static_cast<std::size_t>(4 * block.channels));
    return;
  }
  for (std::int64_t channel = 0; channel < block.channels; ++channel) {
    to[channel] =
        std::bit_cast<float>(load_bits<std::uint32_t>(from + 4 * channel * block.channel_stride));
  }
}

/// Copies the elements of a block, row by row.
void copy(const Block& block, float* to) {
  const std::int64_t size = block.rows * block.channels;
  const auto copy_rows = [&](const tbb::blocked_range<std::int64_t>& range) {
    if (block.is_contiguous()) {
      const std::int64_t begin = range.begin() * block.channels;
      const std::int64_t end = range.end() * block.channels;
      std::memcpy(to + begin, block.data + 4 * begin, static_cast<std::size_t>(4 * (end - begin)));
      return;
    }
    for (std::int64_t row = range.begin(); row < range.end(); ++row)
      copy_row(block, row, to + row * block.channels);
  };
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskElements / block.channels);
  const tbb::blocked_range<std::int64_t> all(0, block.rows, static_cast<std::size_t>(grain));
  if (size <= kTaskElements) {
    copy_rows(all);
  } else {
    tbb::parallel_for(all, copy_rows);
  }
}

LargeArray<float> samples_in(const Columns<std::uint32_t>& columns, std::size_t channel) {
  LargeArray<float> samples(columns.size());
  if (!samples.empty())
    std::memcpy(samples.data(), columns.channel(channel), sizeof(float) * samples.size());
  return samples;
}

}  // namespace

FloatSamples::FloatSamples(std::size_t groups) {
  if (groups > 1) rows_.emplace(static_cast<std::int64_t>(groups));
}

std::size_t FloatSamples::size() const {
  return rows_ ? static_cast<std::size_t>(rows_->rows() * rows_->channels()) : one_group_.size();
}

void FloatSamples::reserve(std::size_t count) {
  try {
    if (rows_) {
      rows_->reserve(static_cast<std::int64_t>(count) / rows_->channels());
    } else {
      one_group_.reserve(count);
    }
  } catch (const std::bad_alloc&) {
    // What really comes may be less, and grows as it comes.
    return;
  }
}

void FloatSamples::add(const TensorView& view, bool any_non_finite) {
  if (rows_) {
    const std::vector<Block> blocks = blocks_of(view);
    if (blocks.size() > 1) rows_->grow_by(view.rows());  // memory first: all blocks, or none
    for (const Block& block : blocks) rows_->append(block, 0, block.rows);
  } else {
    add_to_one_group(view);
  }
  any_non_finite_ = any_non_finite_ || any_non_finite;
}

void FloatSamples::add_to_one_group(const TensorView& view) {
  const std::size_t before = one_group_.size();
  const std::size_t needed = before + static_cast<std::size_t>(view.size());
  // At least doubling keeps the cost of many small batches linear.
  if (needed > one_group_.capacity())
    one_group_.reserve(std::max(needed, 2 * one_group_.capacity()));
  one_group_.resize(needed);
  float* to = one_group_.data() + before;
  for (const Block& block : blocks_of(view)) {
    copy(block, to);
    to += block.rows * block.channels;
  }
}

void FloatSamples::merge(const FloatSamples& other) {
  if (rows_ && other.rows_) {
    rows_->append(*other.rows_);
  } else {
    // `other` may be this object, so its size is taken and its place looked up around the growth.
    const std::size_t before = one_group_.size();
    const std::size_t added = other.one_group_.size();
    one_group_.resize(before + added);
    std::copy_n(other.one_group_.begin(), added,
                one_group_.begin() + static_cast<std::ptrdiff_t>(before));
  }
  any_non_finite_ = any_non_finite_ || other.any_non_finite_;
}

LargeArray<float> FloatSamples::finite(LargeArray<float> samples) const {
  if (any_non_finite_) std::erase_if(samples, [](float sample) { return !std::isfinite(sample); });
  return samples;
}

void FloatSamples::visit(const std::function<void(std::size_t, LargeArray<float>)>& visit) const {
  if (!rows_) {
    visit(0, finite(one_group_));
    return;
  }
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, rows_->strips()),
                    [&](const tbb::blocked_range<std::size_t>& range) {
                      Columns<std::uint32_t> columns;
                      for (std::size_t strip = range.begin(); strip < range.end(); ++strip) {
                        rows_->turn(strip, columns);
                        for (std::size_t i = 0; i < rows_->width(strip); ++i) {
                          visit(strip * ChannelRows<std::uint32_t>::kWidth + i,
                                finite(samples_in(columns, i)));
                        }
                      }
                    });
}

LargeArray<float> FloatSamples::samples_of(std::size_t group) const {
  if (!rows_) return finite(one_group_);
  constexpr std::size_t kWidth = ChannelRows<std::uint32_t>::kWidth;
  Columns<std::uint32_t> columns;
  rows_->turn(group / kWidth, columns);
  return finite(samples_in(columns, group % kWidth));
}

LargeArray<float> FloatSamples::take_samples() { return finite(std::exchange(one_group_, {})); }

}  // namespace amct
