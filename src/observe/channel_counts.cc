#include "observe/channel_counts.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>

#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "kernels/collect.h"
#include "kernels/count.h"
#include "kernels/scan.h"
#include "observe/ascending_counts.h"

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

std::span<std::uint16_t> page_of(std::vector<std::uint16_t>& table, std::size_t index) {
  return std::span(table).subspan(index * kPageSize, kPageSize);
}

/// Calls body(first channel of the strip, its width, its columns, a table) for every strip.
template <typename Body>
void for_each_strip(const ChannelRows<std::uint16_t>& rows, Body body) {
  struct Scratch {
    std::vector<std::uint16_t> table = std::vector<std::uint16_t>(kernels::kPatterns);
    Columns<std::uint16_t> columns;
  };
  tbb::enumerable_thread_specific<Scratch> scratches;
  tbb::parallel_for(std::size_t{0}, rows.strips(), [&](std::size_t strip) {
    // A search that the body runs may steal another strip on this thread: scratch is then in use.
    tbb::this_task_arena::isolate([&] {
      Scratch& scratch = scratches.local();
      rows.turn(strip, scratch.columns);
      body(strip * ChannelRows<std::uint16_t>::kWidth, rows.width(strip), scratch.columns,
           scratch.table);
    });
  });
}

}  // namespace

ChannelCounts::ChannelCounts(DType dtype, std::int64_t channels)
    : dtype_(dtype), staged_(channels, kStagedRows) {}

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
                              const Columns<std::uint16_t>& columns, Table& table) {
    for (std::size_t i = 0; i < width; ++i) count_into_pages(first + i, columns.channel(i), table);
  });
  staged_.clear();
}

void ChannelCounts::count_into_pages(std::size_t channel, std::span<const std::uint16_t> patterns,
                                     Table& table) {
  const PageRange range(kernels::magnitude_range(patterns.data(), patterns.size()));
  kernels::count_patterns(patterns.data(), patterns.size(), table.data());
  range.for_each_ascending([&](std::size_t index) {
    const auto counters = page_of(table, index);
    if (std::ranges::none_of(counters, std::identity())) return;
    CounterPage::Counts counts;
    std::ranges::copy(counters, counts.begin());
    std::ranges::fill(counters, 0);
    pages_[channel * kPages + index].add(counts);
  });
}

void ChannelCounts::add(const CountedBatches& batches) {
  using Sums = std::vector<std::pair<std::size_t, CounterPage>>;  // pages by their index
  const auto channels = static_cast<std::size_t>(staged_.channels());
  if (pages_.empty()) pages_.resize(channels * kPages);
  // Sums are made beside the pages and then take their place: all of them, or none.
  std::vector<Sums> sums(channels);
  tbb::parallel_for(std::size_t{0}, channels, [&](std::size_t channel) {
    const std::size_t end = batches.group_begin[channel + 1];
    for (std::size_t i = batches.group_begin[channel]; i < end;) {
      const std::size_t index = batches.patterns[i] / kPageSize;
      CounterPage::Counts counts = pages_[channel * kPages + index].counts();
      for (; i < end && batches.patterns[i] / kPageSize == index; ++i)
        counts[batches.patterns[i] % kPageSize] += batches.counts[i];
      sums[channel].emplace_back(index, CounterPage()).second.add(counts);
    }
  });
  for (std::size_t channel = 0; channel < channels; ++channel) {
    for (auto& [index, page] : sums[channel]) pages_[channel * kPages + index] = std::move(page);
  }
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
                              const Columns<std::uint16_t>& columns, Table& table) {
    for (std::size_t i = 0; i < width; ++i)
      visit(first + i, value_counts(first + i, columns.channel(i), table));
  });
}

ValueCounts ChannelCounts::value_counts(std::size_t channel) const {
  constexpr std::size_t kWidth = ChannelRows<std::uint16_t>::kWidth;
  Columns<std::uint16_t> columns;
  staged_.turn(channel / kWidth, columns);
  Table table(kernels::kPatterns);
  return value_counts(channel, columns.channel(channel % kWidth), table);
}

ValueCounts ChannelCounts::value_counts(std::size_t channel,
                                        std::span<const std::uint16_t> patterns,
                                        Table& table) const {
  const kernels::MagnitudeRange magnitudes =
      kernels::magnitude_range(patterns.data(), patterns.size());
  // Few rows of float16 hardly repeat a value: counting takes longer than it saves later.
  if (dtype_ == DType::kFloat16 && pages_.empty()) return samples_of(patterns, magnitudes.largest);
  const PageRange range(magnitudes);
  kernels::count_patterns(patterns.data(), patterns.size(), table.data());
  if (!pages_.empty()) return with_pages(channel, table);
  table[0] = static_cast<std::uint16_t>(table[0] + std::exchange(table[0x8000], 0));  // -0 is 0
  LargeArray<float> values(range.patterns() + kernels::kCollectSlack);
  LargeArray<std::uint32_t> counts(range.patterns() + kernels::kCollectSlack);
  std::size_t written = 0;
  range.for_each_ascending([&](std::size_t index) {
    written += kernels::collect_page(dtype_, index, table.data(), values.data() + written,
                                     counts.data() + written);
  });
  values.resize(written);
  return {std::move(values),
          std::vector<std::uint64_t>(counts.begin(),
                                     counts.begin() + static_cast<std::ptrdiff_t>(written))};
}

ValueCounts ChannelCounts::samples_of(std::span<const std::uint16_t> patterns,
                                      std::uint16_t largest) {
  LargeArray<float> samples(patterns.size());
  kernels::widen_float16(patterns.data(), samples.size(), samples.data());
  if (largest >= exponent_mask(DType::kFloat16))
    std::erase_if(samples, [](float sample) { return !std::isfinite(sample); });
  return ValueCounts::of(std::move(samples));
}

ValueCounts ChannelCounts::with_pages(std::size_t channel, Table& table) const {
  const auto pages = std::span(pages_).subspan(channel * kPages, kPages);
  const auto used =
      std::ranges::count_if(pages, [](const CounterPage& page) { return !page.empty(); });
  CounterPage::Counts counts;
  return ascending_counts(dtype_, static_cast<std::size_t>(used),
                          [&](std::size_t index) -> const CounterPage::Counts* {
                            const CounterPage& page = pages[index];
                            const auto counters = page_of(table, index);
                            if (page.empty() && std::ranges::none_of(counters, std::identity()))
                              return nullptr;
                            counts = page.counts();
                            for (std::size_t low = 0; low < kPageSize; ++low)
                              counts[low] += std::exchange(counters[low], 0);
                            return &counts;
                          });
}

std::vector<PatternCounts> ChannelCounts::patterns() const {
  std::vector<PatternCounts> result(static_cast<std::size_t>(staged_.channels()));
  for_each_strip(staged_, [&](std::size_t first, std::size_t width,
                              const Columns<std::uint16_t>& columns, Table& table) {
    for (std::size_t i = 0; i < width; ++i) {
      const std::span<const std::uint16_t> staged = columns.channel(i);
      kernels::count_patterns(staged.data(), staged.size(), table.data());
      for (std::size_t index = 0; index < kPages; ++index) {
        const auto counters = page_of(table, index);
        CounterPage::Counts counts{};
        if (!pages_.empty()) counts = pages_[(first + i) * kPages + index].counts();
        for (std::size_t low = 0; low < kPageSize; ++low)
          counts[low] += std::exchange(counters[low], 0);
        result[first + i].append_page(index, counts);
      }
    }
  });
  return result;
}

}  // namespace amct
