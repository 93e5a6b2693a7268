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
      wraps_mutex_(std::make_unique<std::mutex>()) {}

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
  // A contiguous block is cut into chunks of rows of its own choice.
  Block rows = block;
  if (block.is_contiguous()) {
    rows.channels = std::min<std::int64_t>(size, 4096);
    rows.row_stride = rows.channels;
    rows.rows = size / rows.channels;
  }
  std::mutex fold_mutex;
  const auto count_rows = [&](std::int64_t first, std::int64_t last, std::int64_t rest) {
    std::vector<std::uint32_t>& tables = scratch_tables();
    std::uint32_t* second = tables.data() + kernels::kPatterns;
    const std::uint16_t* start = patterns_of(rows.data);
    for (std::int64_t row = first; row < last; ++row) {
      kernels::count_patterns(start + row * rows.row_stride,
                              static_cast<std::size_t>(rows.channels), tables.data(), second);
    }
    if (rest > 0)
      kernels::count_patterns(start + last * rows.row_stride, static_cast<std::size_t>(rest),
                              tables.data(), second);
    const std::lock_guard lock(fold_mutex);
    for (std::size_t index = 0; index < kPages; ++index) {
      std::uint32_t* a = tables.data() + index * kPageSize;
      std::uint32_t* b = second + index * kPageSize;
      std::uint32_t any = 0;
      for (std::size_t i = 0; i < kPageSize; ++i) any |= a[i] | b[i];
      if (any == 0) continue;
      Page& target = page(0, index);
      for (std::size_t i = 0; i < kPageSize; ++i) {
        const std::uint64_t sum = std::uint64_t{target[i]} + a[i] + b[i];
        target[i] = static_cast<Counter>(sum);
        if (sum >> kCounterBits != 0) [[unlikely]]
          add_wraps(0, index * kPageSize + i, sum >> kCounterBits);
      }
      std::fill_n(a, kPageSize, 0U);
      std::fill_n(b, kPageSize, 0U);
    }
  };
  const std::int64_t rest = size - rows.rows * rows.channels;
  if (size < kParallelElements) {
    count_rows(0, rows.rows, rest);
    return;
  }
  // Large chunks, since each ends with a fold; small enough for their tables not to wrap.
  const std::int64_t chunk = std::max<std::int64_t>(1, kParallelElements / 2 / rows.channels);
  tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, rows.rows, static_cast<std::size_t>(chunk)),
                    [&](const tbb::blocked_range<std::int64_t>& range) {
                      count_rows(range.begin(), range.end(), range.end() == rows.rows ? rest : 0);
                    });
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
  std::size_t pages = 0;
  for (std::size_t page = 0; page < kPages; ++page)
    pages += pages_[group * kPages + page] != nullptr ? 1 : 0;
  std::vector<float> values;
  std::vector<std::uint64_t> counts;
  values.reserve(pages * kPageSize);
  counts.reserve(pages * kPageSize);
  const bool wrapped = !wraps_.empty();
  const auto append = [&](const Page& page, std::size_t index, std::size_t low) {
    const std::size_t pattern = index * kPageSize + low;
    std::uint64_t count = page[low];
    if (wrapped) count += wraps_of(group, pattern) << kCounterBits;
    const auto bits = static_cast<std::uint16_t>(pattern);
    if (count == 0 || !is_finite(bits, dtype_)) return;
    const float value = half_to_float(dtype_, bits);
    if (value == 0.0F && !values.empty() && values.back() == 0.0F) {  // -0, then +0
      counts.back() += count;
      return;
    }
    values.push_back(value == 0.0F ? 0.0F : value);
    counts.push_back(count);
  };
  // Ascending values: negative patterns from the largest magnitude down, then positive ones up.
  // Most counters are zero, so four are looked at together.
  constexpr std::size_t kQuad = 4;
  const auto any = [](const Page& page, std::size_t low) {
    std::uint64_t quad;
    static_assert(sizeof quad == kQuad * sizeof(Counter));
    std::memcpy(&quad, page.data() + low, sizeof quad);
    return quad != 0;
  };
  for (std::size_t page = kPages; page-- > kPages / 2;) {
    const Page* counters = pages_[group * kPages + page].get();
    if (counters == nullptr) continue;
    for (std::size_t end = kPageSize; end > 0; end -= kQuad) {
      if (!wrapped && !any(*counters, end - kQuad)) continue;
      for (std::size_t low = end; low-- > end - kQuad;) append(*counters, page, low);
    }
  }
  for (std::size_t page = 0; page < kPages / 2; ++page) {
    const Page* counters = pages_[group * kPages + page].get();
    if (counters == nullptr) continue;
    for (std::size_t begin = 0; begin < kPageSize; begin += kQuad) {
      if (!wrapped && !any(*counters, begin)) continue;
      for (std::size_t low = begin; low < begin + kQuad; ++low) append(*counters, page, low);
    }
  }
  return {std::move(values), std::move(counts)};
}

}  // namespace amct
