#include "observe/float_sketch.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>

#include "observe/channel_rows.h"
#include "observe/elements.h"

namespace amct {
namespace {

constexpr int kMantissaBits = 23;
constexpr std::uint64_t kMaxTotal = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kBinades = 60;
// Elements counted in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kTaskElements = std::int64_t{1} << 18;
// Samples counted before the counts are moved to where they are kept.
constexpr std::size_t kSamples = std::size_t{1} << 16;
// Rows turned together.
constexpr std::int64_t kTurnedRows = 4096;
// Points that a bin's values are spread over.
constexpr int kPoints = 16;

/// Calls append(value, count) for points in the middles of equal parts of a bin, by ascending
/// value. The density of values is taken to change linearly over the bin, by `slope` times its
/// mean.
template <typename Bin, typename Append>
void spread(const Bin& bin, double slope, Append append) {
  if (bin.low == bin.high) return append(bin.low, bin.count);
  const double s = std::clamp(slope, -2.0, 2.0);  // beyond, it would be negative at one end
  const double width = static_cast<double>(bin.high) - static_cast<double>(bin.low);
  // Values before a share t of the bin: rounded, so that what is in the parts adds up.
  const auto before = [&](int part) {
    if (part == kPoints) return bin.count;
    const double t = static_cast<double>(part) / kPoints;
    const double share = t + s * (t * t - t) / 2;
    return std::min(bin.count, static_cast<std::uint64_t>(
                                   std::llround(share * static_cast<double>(bin.count))));
  };
  for (int part = 0; part < kPoints; ++part) {
    const double middle = (part + 0.5) / kPoints;
    append(static_cast<float>(static_cast<double>(bin.low) + middle * width),
           before(part + 1) - before(part));
  }
}

/// The change of the density over bin `i`, as a share of its mean, by its neighbours, which may be
/// empty.
template <typename Bin>
double slope_at(const std::vector<Bin>& bins, std::size_t i) {
  const double density = bins[i].density();
  if (density == 0) return 0;
  const bool left_is_next = i > 0 && bins[i - 1].high == bins[i].low;
  const bool right_is_next = i + 1 < bins.size() && bins[i + 1].low == bins[i].high;
  const double left = left_is_next ? bins[i - 1].density() : 0;
  const double right = right_is_next ? bins[i + 1].density() : 0;
  return (right - left) / (2 * density);
}

/// Makes `value` the first or the last one, in place of one that was counted near it.
void set_end(LargeArray<float>& values, std::vector<std::uint64_t>& counts, bool first,
             float value) {
  const std::size_t at = first ? 0 : values.size() - 1;
  if (values[at] == value) return;
  if (counts[at] == 1) {
    values[at] = value;
    return;
  }
  counts[at] -= 1;
  values.insert(first ? values.begin() : values.end(), value);
  counts.insert(first ? counts.begin() : counts.end(), 1);
}

/// Counters of one run of samples, in pages made when first needed and used again.
class Scratch {
 public:
  explicit Scratch(std::size_t pages) : pages_(pages) {}

  void count(std::uint32_t key) {
    std::unique_ptr<CounterPage::Counts>& page = pages_[key / CounterPage::kSize];
    if (page == nullptr) page = std::make_unique<CounterPage::Counts>();
    (*page)[key % CounterPage::kSize] += 1;
  }

  /// Adds all counts to pages, and clears them.
  void move_to(std::vector<CounterPage>& pages) {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (pages_[i] == nullptr) continue;
      if (std::ranges::all_of(*pages_[i], [](std::uint64_t count) { return count == 0; })) continue;
      pages[i].add(*pages_[i]);
      pages_[i]->fill(0);
    }
  }

 private:
  std::vector<std::unique_ptr<CounterPage::Counts>> pages_;
};

}  // namespace

FloatSketch::FloatSketch(std::size_t groups)
    : bits_(groups == 1 ? kTensorBits : kChannelBits), groups_(groups) {}

void FloatSketch::add(const TensorView& view) {
  for (const Block& block : blocks_of(view)) {
    if (groups_.size() == 1) {
      add_to_one_group(block);
    } else {
      add_by_channel(block);
    }
  }
}

void FloatSketch::add_to_one_group(const Block& block) {
  // Threads count into sketches of their own; sums are the same in any order.
  tbb::enumerable_thread_specific<FloatSketch> sketches([] { return FloatSketch(1); });
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskElements / block.channels);
  tbb::parallel_for(
      tbb::blocked_range<std::int64_t>(0, block.rows, static_cast<std::size_t>(grain)),
      [&](const tbb::blocked_range<std::int64_t>& range) {
        Block rows = block;
        rows.data += 4 * range.begin() * block.row_stride;
        rows.rows = range.end() - range.begin();
        FloatSketch& sketch = sketches.local();
        std::vector<float> samples;
        samples.reserve(kSamples);
        const auto add_samples = [&] {
          sketch.add(sketch.groups_[0], samples);
          samples.clear();
        };
        for_each_element<std::uint32_t>(rows, [&](std::int64_t, std::int64_t, std::uint32_t bits) {
          samples.push_back(std::bit_cast<float>(bits));
          if (samples.size() == kSamples) add_samples();
        });
        add_samples();
      });
  for (const FloatSketch& sketch : sketches) merge(sketch);
}

void FloatSketch::add_by_channel(const Block& block) {
  // A piece of the block at a time, so that the copy takes little memory.
  for (std::int64_t first = 0; first < block.rows; first += kTurnedRows) {
    ChannelRows<std::uint32_t> rows(block.channels, kTurnedRows);
    rows.append(block, first, std::min(first + kTurnedRows, block.rows));
    rows.visit([&](std::size_t channel, std::span<const std::uint32_t> bits) {
      std::vector<float> samples(bits.size());
      std::memcpy(samples.data(), bits.data(), bits.size_bytes());
      add(channel, samples);
    });
  }
}

void FloatSketch::add(Group& group, std::span<const float> samples) const {
  if (group.pages.empty()) group.pages.resize(2 * pages_a_sign());
  thread_local std::array<std::unique_ptr<Scratch>, 2> scratches;  // per tensor, per channel
  std::unique_ptr<Scratch>& scratch = scratches[bits_ == kTensorBits ? 0 : 1];
  if (scratch == nullptr) scratch = std::make_unique<Scratch>(2 * pages_a_sign());
  for (const float sample : samples) {
    if (!std::isfinite(sample)) continue;
    widen(group, sample, sample);
    group.total += 1;
    scratch->count(std::bit_cast<std::uint32_t>(sample) >> (kMantissaBits - bits_));
  }
  scratch->move_to(group.pages);
  drop_small(group);
}

void FloatSketch::widen(Group& group, float min, float max) {
  group.min = group.total == 0 ? min : std::min(group.min, min);
  group.max = group.total == 0 ? max : std::max(group.max, max);
}

void FloatSketch::drop_small(Group& group) const {
  const float largest = std::max(std::fabs(group.min), std::fabs(group.max));
  const std::int64_t exponent = std::bit_cast<std::uint32_t>(largest) >> kMantissaBits;
  const std::int64_t floor = std::max<std::int64_t>(0, exponent - kBinades + 1);
  const std::size_t pages_a_binade = (std::size_t{1} << bits_) / CounterPage::kSize;
  std::uint64_t zeros = 0;
  for (std::size_t index = 0; index < static_cast<std::size_t>(floor) * pages_a_binade; ++index) {
    for (CounterPage* page : {&group.pages[index], &group.pages[pages_a_sign() + index]}) {
      if (page->empty()) continue;
      for (const std::uint64_t count : page->counts()) zeros += count;
      *page = {};
    }
  }
  if (zeros == 0) return;
  CounterPage::Counts counts{};
  counts[0] = zeros;
  group.pages[0].add(counts);
}

void FloatSketch::merge(const FloatSketch& other) {
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    Group& group = groups_[i];
    const Group& from = other.groups_[i];
    if (from.total == 0) continue;
    if (group.pages.empty()) group.pages.resize(from.pages.size());
    for (std::size_t page = 0; page < from.pages.size(); ++page) {
      if (!from.pages[page].empty()) group.pages[page].add(from.pages[page].counts());
    }
    widen(group, from.min, from.max);
    group.total += from.total;
    drop_small(group);
  }
}

void FloatSketch::visit(const std::function<void(std::size_t, const ValueCounts&)>& visit) const {
  tbb::parallel_for(std::size_t{0}, groups_.size(),
                    [&](std::size_t group) { visit(group, value_counts(group)); });
}

std::vector<FloatSketch::Bin> FloatSketch::ascending_bins(const Group& group) const {
  std::vector<Bin> bins;
  const auto append_page = [&](std::size_t page, bool negative) {
    if (group.pages[page].empty()) return;
    const CounterPage::Counts counts = group.pages[page].counts();
    for (std::size_t i = 0; i < CounterPage::kSize; ++i) {
      const std::size_t low = negative ? CounterPage::kSize - 1 - i : i;
      if (counts[low] == 0) continue;
      const auto key = static_cast<std::uint32_t>(page * CounterPage::kSize + low);
      const int shift = kMantissaBits - bits_;
      const auto nearer = std::bit_cast<float>(key << shift);
      constexpr float kMax = std::numeric_limits<float>::max();  // the next one is infinity
      const float farther = std::clamp(std::bit_cast<float>((key + 1) << shift), -kMax, kMax);
      if (key == 0) {  // and whatever was too small
        bins.push_back({0, 0, counts[low]});
      } else if (negative) {
        bins.push_back({farther, nearer, counts[low]});
      } else {
        bins.push_back({nearer, farther, counts[low]});
      }
    }
  };
  for (std::size_t page = group.pages.size(); page-- > pages_a_sign();) append_page(page, true);
  for (std::size_t page = 0; page < pages_a_sign(); ++page) append_page(page, false);
  return bins;
}

ValueCounts FloatSketch::value_counts(std::size_t group_index) const {
  const Group& group = groups_[group_index];
  if (group.total == 0) return {};
  LargeArray<float> values;
  std::vector<std::uint64_t> counts;
  const auto append = [&](float value, std::uint64_t count) {
    if (count == 0) return;
    value = std::clamp(value, group.min, group.max);
    if (!values.empty() && value == values.back()) {
      counts.back() += count;
    } else {
      values.push_back(value == 0.0F ? 0.0F : value);
      counts.push_back(count);
    }
  };
  const std::vector<Bin> bins = ascending_bins(group);
  for (std::size_t i = 0; i < bins.size(); ++i) spread(bins[i], slope_at(bins, i), append);
  // The extremes are in the first and the last bin, and known exactly.
  set_end(values, counts, true, group.min == 0.0F ? 0.0F : group.min);
  set_end(values, counts, false, group.max == 0.0F ? 0.0F : group.max);
  return {std::move(values), std::move(counts)};
}

std::size_t FloatSketch::bytes(std::size_t group_index) const {
  std::size_t sum = 0;
  for (const CounterPage& page : groups_[group_index].pages) sum += sizeof(page) + page.bytes();
  return sum;
}

FloatSketch::Keys FloatSketch::keys(std::size_t group_index) const {
  const Group& group = groups_[group_index];
  Keys result;
  result.min = group.min;
  result.max = group.max;
  for (std::size_t page = 0; page < group.pages.size(); ++page) {
    if (group.pages[page].empty()) continue;
    const CounterPage::Counts counts = group.pages[page].counts();
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      result.keys.push_back(static_cast<std::uint32_t>(page * CounterPage::kSize + i));
      result.counts.push_back(counts[i]);
    }
  }
  return result;
}

void FloatSketch::add(std::size_t group_index, const Keys& added) {
  if (added.keys.size() != added.counts.size())
    throw ValueError("a sketch has not one count a key");
  if (added.keys.empty()) return;
  if (!std::isfinite(added.min) || !std::isfinite(added.max) || added.min > added.max)
    throw ValueError("a sketch has no range");
  Group group;
  group.pages.resize(2 * pages_a_sign());
  group.min = added.min;
  group.max = added.max;
  for (std::size_t i = 0; i < added.keys.size();) {
    const std::size_t page = added.keys[i] / CounterPage::kSize;
    CounterPage::Counts counts{};
    for (; i < added.keys.size() && added.keys[i] / CounterPage::kSize == page; ++i) {
      const std::uint32_t key = added.keys[i];
      const std::uint32_t exponent = (key >> bits_) & 0xFF;
      const bool ascends = i == 0 || key > added.keys[i - 1];
      if (!ascends || key >> (bits_ + 9) != 0 || exponent == 0xFF)
        throw ValueError("a sketch has a key that no value has, or that does not ascend");
      if (added.counts[i] == 0 || added.counts[i] > kMaxTotal - group.total)
        throw ValueError("a sketch has a count of zero, or more than 63 bits hold");
      counts[key % CounterPage::kSize] = added.counts[i];
      group.total += added.counts[i];
    }
    group.pages[page].add(counts);
  }
  FloatSketch other(groups_.size());
  other.groups_[group_index] = std::move(group);
  merge(other);
}

}  // namespace amct
