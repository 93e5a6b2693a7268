#include "observe/channel_counts.h"

#include <algorithm>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "kernels/collect.h"
#include "kernels/scan.h"
#include "observe/elements.h"

namespace amct {
namespace {

using kernels::kPageSize;

/// The pages of one sign that patterns of some channel lie in: that of zero, and a run. Pages of
/// the other sign are 128 further.
struct PageRange {
  explicit PageRange(const kernels::MagnitudeRange& range)
      : first(range.smallest >> 8), last(range.largest >> 8) {}

  std::size_t first;
  std::size_t last;  // below first where all are zero

  /// Patterns of both signs in the pages visited.
  std::size_t patterns() const {
    return 2 * kPageSize * (1 + (last >= first ? last - first + 1 : 0));
  }

  /// Calls visit(page) for the pages of negative values by ascending value, then those of positive
  /// ones.
  template <typename Visit>
  void for_each_ascending(Visit visit) const {
    for (std::size_t page = last + 1; page-- > first;) visit(page + 128);
    if (first > 0) visit(128);
    if (first > 0) visit(0);
    for (std::size_t page = first; page <= last; ++page) visit(page);
  }
};

/// -0 counts as 0.
void join_zeros(CountTables& tables) {
  tables.first()[0] += std::exchange(tables.first()[0x8000], 0U);
  tables.second()[0] += std::exchange(tables.second()[0x8000], 0U);
}

/// Calls body(first channel of the strip, its columns, tables) for every strip.
template <typename Body>
void for_each_strip(const ChannelRows<std::uint16_t>& rows, Body body) {
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, rows.strips()),
                    [&](const tbb::blocked_range<std::size_t>& range) {
                      CountTables tables;
                      Columns<std::uint16_t> columns;
                      for (std::size_t strip = range.begin(); strip < range.end(); ++strip) {
                        rows.turn(strip, columns);
                        body(strip * ChannelRows<std::uint16_t>::kWidth, rows.width(strip), columns,
                             tables);
                      }
                    });
}

}  // namespace

ChannelCounts::ChannelCounts(DType dtype, std::int64_t channels)
    : dtype_(dtype), staged_(channels) {}

void ChannelCounts::reserve(std::int64_t rows) { staged_.reserve(std::min(rows, kStagedRows)); }

void ChannelCounts::add(const TensorView& view) {
  for (const Block& block : blocks_of(view)) {
    for (std::int64_t row = 0; row < block.rows;) {
      if (staged_.rows() == kStagedRows) flush();
      const std::int64_t last = std::min(block.rows, row + kStagedRows - staged_.rows());
      staged_.append(block, row, last);
      row = last;
    }
  }
}

void ChannelCounts::flush() {
  if (pages_.empty()) pages_.resize(static_cast<std::size_t>(staged_.channels()) * kPages);
  for_each_strip(staged_, [&](std::size_t first, std::size_t width,
                              const Columns<std::uint16_t>& columns, CountTables& tables) {
    for (std::size_t i = 0; i < width; ++i) count_into_pages(first + i, columns.channel(i), tables);
  });
  staged_.clear();
}

void ChannelCounts::count_into_pages(std::size_t channel, const std::uint16_t* patterns,
                                     CountTables& tables) {
  const auto size = static_cast<std::size_t>(staged_.rows());
  const PageRange range(kernels::magnitude_range(patterns, size));
  tables.count(patterns, size);
  range.for_each_ascending([&](std::size_t index) {
    if (!tables.any(index)) return;
    std::uint32_t* a = tables.first() + index * kPageSize;
    std::uint32_t* b = tables.second() + index * kPageSize;
    CounterPage::Counts counts;
    for (std::size_t low = 0; low < kPageSize; ++low) counts[low] = std::uint64_t{a[low]} + b[low];
    std::fill_n(a, kPageSize, 0U);
    std::fill_n(b, kPageSize, 0U);
    pages_[channel * kPages + index].add(counts);
  });
  tables.set_clean();
}

void ChannelCounts::merge(const ChannelCounts& other) {
  if (staged_.rows() + other.staged_.rows() > kStagedRows) flush();
  // `other` may be this object, whose rows are then in its pages or fit twice.
  if (!other.pages_.empty()) {
    if (pages_.empty()) pages_.resize(other.pages_.size());
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (!other.pages_[i].empty()) pages_[i].add(other.pages_[i].counts());
    }
  }
  staged_.append(other.staged_);
}

void ChannelCounts::visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const {
  for_each_strip(staged_, [&](std::size_t first, std::size_t width,
                              const Columns<std::uint16_t>& columns, CountTables& tables) {
    for (std::size_t i = 0; i < width; ++i)
      visit(first + i, value_counts(first + i, columns.channel(i), tables));
  });
}

ValueCounts ChannelCounts::value_counts(std::size_t channel) const {
  constexpr std::size_t kWidth = ChannelRows<std::uint16_t>::kWidth;
  Columns<std::uint16_t> columns;
  staged_.turn(channel / kWidth, columns);
  CountTables tables;
  return value_counts(channel, columns.channel(channel % kWidth), tables);
}

ValueCounts ChannelCounts::value_counts(std::size_t channel, const std::uint16_t* patterns,
                                        CountTables& tables) const {
  const auto size = static_cast<std::size_t>(staged_.rows());
  const PageRange range(kernels::magnitude_range(patterns, size));
  tables.count(patterns, size);
  if (!pages_.empty()) return with_pages(channel, tables);
  join_zeros(tables);
  LargeArray<float> values(range.patterns() + kernels::kCollectSlack);
  LargeArray<std::uint32_t> counts(range.patterns() + kernels::kCollectSlack);
  std::size_t written = 0;
  range.for_each_ascending([&](std::size_t index) {
    written += kernels::collect_page(dtype_, index, tables.first(), tables.second(),
                                     values.data() + written, counts.data() + written);
  });
  tables.set_clean();
  values.resize(written);
  return {std::move(values),
          std::vector<std::uint64_t>(counts.begin(),
                                     counts.begin() + static_cast<std::ptrdiff_t>(written))};
}

ValueCounts ChannelCounts::with_pages(std::size_t channel, CountTables& tables) const {
  LargeArray<float> values;
  std::vector<std::uint64_t> counts;
  const auto append_page = [&](std::size_t index) {
    const CounterPage& page = pages_[channel * kPages + index];
    if (page.empty() && !tables.any(index)) return;
    const CounterPage::Counts counted = page.counts();
    std::uint32_t* a = tables.first() + index * kPageSize;
    std::uint32_t* b = tables.second() + index * kPageSize;
    for (std::size_t j = 0; j < kPageSize; ++j) {
      const std::size_t low = index >= kPages / 2 ? kPageSize - 1 - j : j;
      const auto pattern = static_cast<std::uint16_t>(index * kPageSize + low);
      const std::uint64_t count =
          counted[low] + std::exchange(a[low], 0U) + std::exchange(b[low], 0U);
      if (count == 0 || !is_finite(pattern, dtype_)) continue;
      const float value = half_to_float(dtype_, pattern);
      if (value == 0.0F && !values.empty() && values.back() == 0.0F) {  // -0, then +0
        counts.back() += count;
        continue;
      }
      values.push_back(value == 0.0F ? 0.0F : value);
      counts.push_back(count);
    }
  };
  for (std::size_t index = kPages; index-- > kPages / 2;) append_page(index);
  for (std::size_t index = 0; index < kPages / 2; ++index) append_page(index);
  tables.set_clean();
  return {std::move(values), std::move(counts)};
}

}  // namespace amct
