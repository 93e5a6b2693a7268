#include "observe/float_samples.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
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

}  // namespace

FloatSamples::FloatSamples(std::size_t groups, std::size_t limit) : limit_(limit) {
  if (groups > 1) {
    const auto channels = static_cast<std::int64_t>(groups);
    rows_.emplace(channels, static_cast<std::int64_t>(limit) / channels);
  } else {
    one_group_ = std::make_shared<Samples>();
  }
}

std::size_t FloatSamples::size() const {
  return rows_ ? static_cast<std::size_t>(rows_->rows() * rows_->channels()) : one_group_->size();
}

void FloatSamples::reserve(std::size_t count) {
  try {
    if (rows_) {
      rows_->reserve(static_cast<std::int64_t>(count) / rows_->channels());
    } else {
      one_group_->reserve(count);
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

FloatSamples::Samples& FloatSamples::room_for(std::size_t added) {
  if (one_group_.use_count() > 1) one_group_ = std::make_shared<Samples>(*one_group_);
  // Reads of those who gave the array up come before what is written now: use_count() alone orders
  // nothing, and giving up a share does (a fence would, too, but ThreadSanitizer does not see it).
  std::shared_ptr<Samples>(one_group_).reset();
  grow(*one_group_, one_group_->size() + added, limit_);
  return *one_group_;
}

void FloatSamples::add_to_one_group(const TensorView& view) {
  Samples& samples = room_for(static_cast<std::size_t>(view.size()));
  const std::size_t before = samples.size();
  samples.resize(before + static_cast<std::size_t>(view.size()));
  float* to = samples.data() + before;
  for (const Block& block : blocks_of(view)) {
    copy(block, to);
    to += block.rows * block.channels;
  }
}

void FloatSamples::merge(const FloatSamples& other) {
  if (rows_ && other.rows_) {
    rows_->append(*other.rows_);
  } else {
    // `other` may be this object: its size is taken before, and its place looked up after growth.
    const std::size_t added = other.size();
    Samples& samples = room_for(added);
    const std::size_t before = samples.size();
    samples.resize(before + added);
    std::copy_n(other.one_group_->begin(), added,
                samples.begin() + static_cast<std::ptrdiff_t>(before));
  }
  any_non_finite_ = any_non_finite_ || other.any_non_finite_;
}

std::shared_ptr<const FloatSamples::Samples> FloatSamples::finite_of_one_group() const {
  if (!any_non_finite_) return one_group_;
  auto samples = std::make_shared<Samples>();
  samples->reserve(one_group_->size());
  std::ranges::copy_if(*one_group_, std::back_inserter(*samples),
                       [](float sample) { return std::isfinite(sample); });
  return samples;
}

FloatSamples::Samples FloatSamples::finite(std::span<const std::uint32_t> bits) const {
  Samples samples(bits.size());
  if (!samples.empty()) std::memcpy(samples.data(), bits.data(), bits.size_bytes());
  if (any_non_finite_) std::erase_if(samples, [](float sample) { return !std::isfinite(sample); });
  return samples;
}

void FloatSamples::visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const {
  if (!rows_) {
    visit(0, value_counts(0));
    return;
  }
  rows_->visit([&](std::size_t channel, std::span<const std::uint32_t> bits) {
    visit(channel, ValueCounts::of(finite(bits)));
  });
}

void FloatSamples::visit_samples(
    const std::function<void(std::size_t, std::span<const float>)>& visit) const {
  if (!rows_) {
    visit(0, *finite_of_one_group());
    return;
  }
  rows_->visit([&](std::size_t channel, std::span<const std::uint32_t> bits) {
    visit(channel, finite(bits));
  });
}

ValueCounts FloatSamples::value_counts(std::size_t group) const {
  if (!rows_) return ValueCounts::of(finite_of_one_group());
  Columns<std::uint32_t> columns;
  constexpr std::size_t kWidth = ChannelRows<std::uint32_t>::kWidth;
  rows_->turn(group / kWidth, columns);
  return ValueCounts::of(finite(columns.channel(group % kWidth)));
}

std::vector<std::vector<float>> FloatSamples::values() const {
  if (!rows_) return {std::vector<float>(one_group_->begin(), one_group_->end())};
  std::vector<std::vector<float>> result(static_cast<std::size_t>(rows_->channels()));
  rows_->visit([&](std::size_t channel, std::span<const std::uint32_t> bits) {
    result[channel].resize(bits.size());
    if (!bits.empty()) std::memcpy(result[channel].data(), bits.data(), bits.size_bytes());
  });
  return result;
}

}  // namespace amct
