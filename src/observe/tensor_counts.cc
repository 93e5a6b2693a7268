#include "observe/tensor_counts.h"

#include <algorithm>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "kernels/collect.h"
#include "observe/ascending_counts.h"
#include "observe/elements.h"

namespace amct {
namespace {

using kernels::kPageSize;

constexpr std::size_t kPages = CountTables::kPages;
// Below this many elements clearing and adding whole tables costs more than it saves.
constexpr std::int64_t kTableElements = std::int64_t{1} << 14;
// Elements a thread must get to be worth a hand-over and tables of its own.
constexpr std::int64_t kThreadElements = std::int64_t{1} << 17;
// Pages that a thread adds at once.
constexpr std::size_t kTaskPages = 32;
// Most elements in one pair of tables, whose counters hold 2^32.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 31;

/// Elements [begin, end) of a block, in row-major order.
struct Part {
  const Block* block;
  std::int64_t begin;
  std::int64_t end;
};

bool is_dense(const Block& block) {
  return (block.channel_stride == 1 || block.channels == 1) &&
         reinterpret_cast<std::uintptr_t>(block.data) % alignof(std::uint16_t) == 0;
}

/// Cuts blocks into lists of parts of about the same number of elements, one a table.
std::vector<std::vector<Part>> shares_of(const std::vector<Block>& blocks, std::int64_t size) {
  const std::int64_t threads = tbb::this_task_arena::max_concurrency();
  const std::int64_t shares = std::max(std::clamp<std::int64_t>(size / kThreadElements, 1, threads),
                                       (size + kMaxElements - 1) / kMaxElements);
  const std::int64_t target = (size + shares - 1) / shares;
  std::vector<std::vector<Part>> result(1);
  std::int64_t room = target;
  for (const Block& block : blocks) {
    const std::int64_t elements = block.rows * block.channels;
    for (std::int64_t begin = 0; begin < elements;) {
      if (room == 0) {
        result.emplace_back();
        room = target;
      }
      const std::int64_t end = std::min(elements, begin + room);
      result.back().push_back({&block, begin, end});
      room -= end - begin;
      begin = end;
    }
  }
  return result;
}

void count_part(const Part& part, CountTables& tables) {
  const Block& block = *part.block;
  const auto* start = reinterpret_cast<const std::uint16_t*>(block.data);
  if (block.is_contiguous()) {
    tables.count(start + part.begin, static_cast<std::size_t>(part.end - part.begin));
    return;
  }
  for (std::int64_t begin = part.begin; begin < part.end;) {
    const std::int64_t row = begin / block.channels;
    const std::int64_t channel = begin % block.channels;
    const std::int64_t count = std::min(block.channels - channel, part.end - begin);
    tables.count(start + row * block.row_stride + channel, static_cast<std::size_t>(count));
    begin += count;
  }
}

}  // namespace

bool TensorCounts::suits_tables(const TensorView& view) {
  if (view.size() < kTableElements) return false;
  return std::ranges::all_of(blocks_of(view), is_dense);
}

TensorCounts::Batch TensorCounts::count(const TensorView& view) {
  const std::vector<Block> blocks = blocks_of(view);
  const auto shares = shares_of(blocks, view.size());
  Batch batch;
  batch.tables_.reserve(shares.size());
  for (std::size_t i = 0; i < shares.size(); ++i) batch.tables_.emplace_back(view.dtype);
  struct Found {
    std::uint64_t non_finite = 0;
    std::bitset<kPages> used;
  };
  std::vector<Found> found(shares.size());
  const auto count_share = [&](std::size_t i) {
    for (const Part& part : shares[i]) count_part(part, batch.tables_[i]);
    found[i] = {batch.tables_[i].non_finite(), batch.tables_[i].used()};
  };
  if (shares.size() == 1) {
    count_share(0);
  } else {
    tbb::parallel_for(std::size_t{0}, shares.size(), count_share, tbb::simple_partitioner());
  }
  for (const Found& share : found) {
    batch.non_finite_ += share.non_finite;
    batch.used_ |= share.used;
  }
  return batch;
}

void TensorCounts::add(Batch batch) {
  for (std::size_t index = 0; index < kPages; ++index) {
    if (batch.used_[index]) page(index);  // memory first, so that nothing is half added
  }
  const auto add_pages = [&](const tbb::blocked_range<std::size_t>& range) {
    for (std::size_t index = range.begin(); index < range.end(); ++index) {
      if (!batch.used_[index]) continue;
      for (CountTables& tables : batch.tables_) tables.move_page(index, pages_[index]->data());
    }
  };
  const tbb::blocked_range<std::size_t> all(0, kPages, kTaskPages);
  if (batch.tables_.size() == 1) {
    add_pages(all);
  } else {
    tbb::parallel_for(all, add_pages);
  }
  for (CountTables& tables : batch.tables_) tables.set_clean();
}

void TensorCounts::add(const TensorView& view) {
  for_each_element<std::uint16_t>(
      view, [this](std::int64_t, std::int64_t, std::uint16_t pattern) { add(pattern); });
}

void TensorCounts::add(std::span<const std::uint16_t> patterns,
                       std::span<const std::uint64_t> counts) {
  for (const std::uint16_t pattern : patterns) page(pattern >> 8);  // memory first
  for (std::size_t i = 0; i < patterns.size(); ++i)
    page(patterns[i] >> 8)[patterns[i] & 0xFF] += counts[i];
}

void TensorCounts::merge(const TensorCounts& other) {
  for (std::size_t index = 0; index < kPages; ++index) {
    if (other.pages_[index] == nullptr) continue;
    Page& counters = page(index);
    const Page& added = *other.pages_[index];
    for (std::size_t i = 0; i < kPageSize; ++i) counters[i] += added[i];
  }
}

ValueCounts TensorCounts::value_counts() const {
  const auto used = std::ranges::count_if(pages_, [](const auto& page) { return page != nullptr; });
  return ascending_counts(dtype_, static_cast<std::size_t>(used),
                          [this](std::size_t index) { return pages_[index].get(); });
}

PatternCounts TensorCounts::patterns() const {
  PatternCounts result;
  for (std::size_t index = 0; index < kPages; ++index) {
    if (pages_[index] != nullptr) result.append_page(index, *pages_[index]);
  }
  return result;
}

}  // namespace amct
