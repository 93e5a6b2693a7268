#include "observe/half_counts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "kernels/count.h"
#include "observe/elements.h"

namespace amct {
namespace {

// Below this many elements a thread hand-over costs more than it saves.
constexpr std::int64_t kParallelElements = std::int64_t{1} << 18;
// Below this many elements clearing and adding whole tables costs more than it saves.
constexpr std::int64_t kTableElements = std::int64_t{1} << 14;
// Values of a row that contiguous memory is cut into.
constexpr std::int64_t kRowElements = 4096;
// Channels counted together: a row of them fills a cache line, and their pages stay in the cache.
constexpr std::int64_t kChannelTile = 32;
constexpr std::int64_t kRowTile = 1024;

/// Two tables for count_patterns, all zero between uses; each thread keeps its own.
std::vector<std::uint32_t>& scratch_tables() {
  thread_local std::vector<std::uint32_t> tables(2 * kernels::kPatterns);
  return tables;
}

const std::uint16_t* patterns_of(const std::byte* data) {
  return reinterpret_cast<const std::uint16_t*>(data);
}

bool is_aligned(const std::byte* data) {
  return reinterpret_cast<std::uintptr_t>(data) % alignof(std::uint16_t) == 0;
}

}  // namespace

HalfCounts::HalfCounts(DType dtype, std::size_t groups)
    : dtype_(dtype),
      groups_(groups),
      pages_(groups * kPages),
      wraps_mutex_(std::make_unique<std::mutex>()),
      fold_mutex_(std::make_unique<std::mutex>()) {}

void HalfCounts::add(const TensorView& view) {
  for (const Block& block : blocks_of(view)) {
    if (groups_ == 1) {
      add_to_one_group(block);
    } else {
      add_by_channel(block);
    }
  }
}

void HalfCounts::add_to_one_group(const Block& block) {
  const std::int64_t size = block.rows * block.channels;
  const bool dense = (block.channel_stride == 1 || block.channels == 1) && is_aligned(block.data);
  if (size < kTableElements || !dense) {
    for_each_element<std::uint16_t>(
        block, [this](std::int64_t, std::int64_t, std::uint16_t pattern) { add(0, pattern); });
    return;
  }
  // Contiguous memory is cut into rows that suit the threads, and a shorter rest.
  Block rows = block;
  if (block.is_contiguous()) {
    rows.channels = std::min(size, kRowElements);
    rows.row_stride = rows.channels;
    rows.rows = size / rows.channels;
  }
  Block rest = rows;
  rest.data += 2 * rows.rows * rows.row_stride;
  rest.rows = 1;
  rest.channels = size - rows.rows * rows.channels;
  if (rest.channels > 0) count_rows(rest, 0, 1);
  if (size < kParallelElements) {
    count_rows(rows, 0, rows.rows);
    return;
  }
  // Large chunks, since each ends with a fold.
  const std::int64_t chunk = std::max<std::int64_t>(1, kParallelElements / 2 / rows.channels);
  tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, rows.rows, static_cast<std::size_t>(chunk)),
                    [&](const tbb::blocked_range<std::int64_t>& range) {
                      count_rows(rows, range.begin(), range.end());
                    });
}

void HalfCounts::count_rows(const Block& rows, std::int64_t first, std::int64_t last) {
  std::vector<std::uint32_t>& tables = scratch_tables();
  // A table's counters hold 2^32 values, of which a row may bring 2^31.
  const std::int64_t step = std::max<std::int64_t>(1, (std::int64_t{1} << 31) / rows.channels);
  for (std::int64_t begin = first; begin < last; begin += step) {
    for (std::int64_t row = begin; row < std::min(last, begin + step); ++row) {
      kernels::count_patterns(patterns_of(rows.data) + row * rows.row_stride,
                              static_cast<std::size_t>(rows.channels), tables.data(),
                              tables.data() + kernels::kPatterns);
    }
    fold(tables);
  }
}

void HalfCounts::fold(std::vector<std::uint32_t>& tables) {
  const std::lock_guard lock(*fold_mutex_);
  for (std::size_t index = 0; index < kPages; ++index) {
    std::uint32_t* a = tables.data() + index * kPageSize;
    std::uint32_t* b = a + kernels::kPatterns;
    std::uint32_t any = 0;
    for (std::size_t i = 0; i < kPageSize; ++i) any |= a[i] | b[i];
    if (any == 0) continue;
    for (std::size_t i = 0; i < kPageSize; ++i) {
      increase(0, index * kPageSize + i, std::uint64_t{a[i]} + b[i]);
    }
    std::fill_n(a, kPageSize, 0U);
    std::fill_n(b, kPageSize, 0U);
  }
}

void HalfCounts::add_by_channel(const Block& block) {
  const auto tiles = [&](const tbb::blocked_range<std::int64_t>& range) {
    add_channels(block, range.begin(), range.end());
  };
  const tbb::blocked_range<std::int64_t> all(0, block.channels, kChannelTile);
  if (block.rows * block.channels < kParallelElements) {
    tiles(all);
  } else {
    tbb::parallel_for(all, tiles);
  }
}

void HalfCounts::add_channels(const Block& block, std::int64_t first, std::int64_t last) {
  // A tile is turned first, so that each channel's counters are used many times while they are
  // near.
  std::vector<std::uint16_t> turned(kChannelTile * kRowTile);
  for (std::int64_t tile = first; tile < last; tile += kChannelTile) {
    const std::int64_t width = std::min(last - tile, kChannelTile);
    for (std::int64_t row = 0; row < block.rows; row += kRowTile) {
      const std::int64_t height = std::min(block.rows - row, kRowTile);
      for (std::int64_t i = 0; i < height; ++i) {
        const std::byte* start =
            block.data + 2 * ((row + i) * block.row_stride + tile * block.channel_stride);
        for (std::int64_t channel = 0; channel < width; ++channel) {
          turned[static_cast<std::size_t>(channel * kRowTile + i)] =
              load_bits<std::uint16_t>(start + 2 * channel * block.channel_stride);
        }
      }
      for (std::int64_t channel = 0; channel < width; ++channel) {
        const std::uint16_t* patterns = turned.data() + channel * kRowTile;
        for (std::int64_t i = 0; i < height; ++i)
          add(static_cast<std::size_t>(tile + channel), patterns[i]);
      }
    }
  }
}

void HalfCounts::increase(std::size_t group, std::size_t pattern, std::uint64_t count) {
  Counter& counter = page(group, pattern >> 8)[pattern & 0xFF];
  const std::uint64_t sum = counter + count;
  counter = static_cast<Counter>(sum);
  if (sum >> kCounterBits != 0) add_wraps(group, pattern, sum >> kCounterBits);
}

void HalfCounts::add_wraps(std::size_t group, std::size_t pattern, std::uint64_t wraps) {
  const std::lock_guard lock(*wraps_mutex_);
  wraps_[(static_cast<std::uint64_t>(group) << 16) | pattern] += wraps;
}

void HalfCounts::merge(const HalfCounts& other) {
  // Before the pages, whose sums may wrap too: `other` may be this object.
  for (const auto& [key, wraps] : other.wraps_) wraps_[key] += wraps;
  for (std::size_t i = 0; i < other.pages_.size(); ++i) {
    if (other.pages_[i] == nullptr) continue;
    for (std::size_t low = 0; low < kPageSize; ++low) {
      increase(i / kPages, (i % kPages) * kPageSize + low, (*other.pages_[i])[low]);
    }
  }
}

std::uint64_t HalfCounts::wraps_of(std::size_t group, std::size_t pattern) const {
  const auto found = wraps_.find((static_cast<std::uint64_t>(group) << 16) | pattern);
  return found == wraps_.end() ? 0 : found->second;
}

ValueCounts HalfCounts::value_counts(std::size_t group) const {
  Ascending ascending;
  const auto first = pages_.begin() + static_cast<std::ptrdiff_t>(group * kPages);
  const auto used =
      std::count_if(first, first + kPages, [](const auto& page) { return page != nullptr; });
  ascending.values.reserve(static_cast<std::size_t>(used) * kPageSize);
  ascending.counts.reserve(static_cast<std::size_t>(used) * kPageSize);
  // Negative patterns from the largest magnitude down, then positive ones up.
  for (std::size_t page = kPages; page-- > kPages / 2;) append_page(group, page, true, ascending);
  for (std::size_t page = 0; page < kPages / 2; ++page) append_page(group, page, false, ascending);
  return {std::move(ascending.values), std::move(ascending.counts)};
}

void HalfCounts::append_page(std::size_t group, std::size_t index, bool downwards,
                             Ascending& to) const {
  const Page* page = pages_[group * kPages + index].get();
  if (page == nullptr) return;
  constexpr std::size_t kQuad = sizeof(std::uint64_t) / sizeof(Counter);
  for (std::size_t i = 0; i < kPageSize; i += kQuad) {
    const std::size_t quad = downwards ? kPageSize - kQuad - i : i;
    // Most counters are zero, so four are looked at together.
    std::uint64_t four = 0;
    std::memcpy(&four, page->data() + quad, sizeof four);
    if (four == 0 && wraps_.empty()) continue;
    for (std::size_t j = 0; j < kQuad; ++j) {
      const std::size_t low = quad + (downwards ? kQuad - 1 - j : j);
      const auto pattern = static_cast<std::uint16_t>(index * kPageSize + low);
      std::uint64_t count = (*page)[low];
      if (!wraps_.empty()) count += wraps_of(group, pattern) << kCounterBits;
      if (count > 0 && is_finite(pattern, dtype_)) to.append(half_to_float(dtype_, pattern), count);
    }
  }
}

void HalfCounts::Ascending::append(float value, std::uint64_t count) {
  if (value == 0.0F && !values.empty() && values.back() == 0.0F) {  // -0, then +0
    counts.back() += count;
    return;
  }
  values.push_back(value == 0.0F ? 0.0F : value);
  counts.push_back(count);
}

}  // namespace amct
