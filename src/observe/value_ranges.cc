#include "observe/value_ranges.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_reduce.h>

#include "observe/elements.h"

namespace amct {
namespace {

using kernels::ScanResult;
using Ranges = std::vector<ScanResult>;

// Elements looked at in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kTaskElements = std::int64_t{1} << 18;

void widen(ScanResult& range, const ScanResult& by) {
  range.min = std::min(range.min, by.min);
  range.max = std::max(range.max, by.max);
}

Ranges joined(Ranges a, const Ranges& b) {
  for (std::size_t i = 0; i < a.size(); ++i) widen(a[i], b[i]);
  return a;
}

/// Integers in the order of the 16-bit values whose patterns they are made from, and back.
std::int16_t key_of(std::uint16_t pattern) {
  const auto x = static_cast<std::int16_t>(pattern);
  return static_cast<std::int16_t>(x ^ ((x >> 15) & 0x7FFF));
}
std::uint16_t pattern_of(std::int16_t key) {
  return static_cast<std::uint16_t>(key_of(static_cast<std::uint16_t>(key)));
}

/// The smallest and largest key of each channel over rows [first, last) of contiguous channels, all
/// finite: loops that compilers turn into vector instructions.
template <typename Bits, typename Key, typename KeyOf>
void key_ranges(const Block& block, std::int64_t first, std::int64_t last, KeyOf key_of_bits,
                std::vector<Key>& low, std::vector<Key>& high) {
  for (std::int64_t row = first; row < last; ++row) {
    const std::byte* from =
        block.data + static_cast<std::int64_t>(sizeof(Bits)) * row * block.row_stride;
    for (std::size_t c = 0; c < low.size(); ++c) {
      const Key key = key_of_bits(load_bits<Bits>(from + sizeof(Bits) * c));
      low[c] = key < low[c] ? key : low[c];
      high[c] = key > high[c] ? key : high[c];
    }
  }
}

Ranges ranges_of_rows(const Block& block, DType dtype, std::int64_t first, std::int64_t last) {
  const auto channels = static_cast<std::size_t>(block.channels);
  Ranges ranges(channels, kernels::empty_scan());
  if (dtype == DType::kFloat32) {
    std::vector<float> low(channels, kernels::empty_scan().min);
    std::vector<float> high(channels, kernels::empty_scan().max);
    key_ranges<std::uint32_t>(
        block, first, last, [](std::uint32_t bits) { return std::bit_cast<float>(bits); }, low,
        high);
    for (std::size_t c = 0; c < channels; ++c) ranges[c] = {low[c], high[c], 0};
    return ranges;
  }
  std::vector<std::int16_t> low(channels, INT16_MAX);
  std::vector<std::int16_t> high(channels, INT16_MIN);
  key_ranges<std::uint16_t>(block, first, last, key_of, low, high);
  for (std::size_t c = 0; c < channels; ++c) {
    ranges[c] = {half_to_float(dtype, pattern_of(low[c])),
                 half_to_float(dtype, pattern_of(high[c])), 0};
  }
  return ranges;
}

}  // namespace

void ValueRanges::add(const TensorView& view, const ScanResult& scanned) {
  if (ranges_.size() == 1) {
    widen(ranges_[0], scanned);
    return;
  }
  for (const Block& block : blocks_of(view)) {
    if (scanned.non_finite > 0 || block.channel_stride != 1) {
      add_one_by_one(block, view.dtype);
      continue;
    }
    const std::int64_t grain = std::max<std::int64_t>(1, kTaskElements / block.channels);
    const Ranges ranges = tbb::parallel_reduce(
        tbb::blocked_range<std::int64_t>(0, block.rows, static_cast<std::size_t>(grain)),
        Ranges(ranges_.size(), kernels::empty_scan()),
        [&](const tbb::blocked_range<std::int64_t>& range, Ranges sum) {
          return joined(std::move(sum),
                        ranges_of_rows(block, view.dtype, range.begin(), range.end()));
        },
        joined);
    for (std::size_t i = 0; i < ranges_.size(); ++i) widen(ranges_[i], ranges[i]);
  }
}

void ValueRanges::add_one_by_one(const Block& block, DType dtype) {
  const auto add_value = [&](std::int64_t channel, float value) {
    if (std::isfinite(value)) widen(ranges_[static_cast<std::size_t>(channel)], {value, value, 0});
  };
  if (dtype == DType::kFloat32) {
    for_each_element<std::uint32_t>(block,
                                    [&](std::int64_t, std::int64_t channel, std::uint32_t bits) {
                                      add_value(channel, std::bit_cast<float>(bits));
                                    });
  } else {
    for_each_element<std::uint16_t>(block,
                                    [&](std::int64_t, std::int64_t channel, std::uint16_t bits) {
                                      add_value(channel, half_to_float(dtype, bits));
                                    });
  }
}

void ValueRanges::add(const Ranges& ranges) {
  for (std::size_t i = 0; i < ranges_.size(); ++i) widen(ranges_[i], ranges[i]);
}

}  // namespace amct
