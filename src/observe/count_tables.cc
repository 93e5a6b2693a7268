#include "observe/count_tables.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "kernels/collect.h"
#include "kernels/count.h"
#include "observe/elements.h"

namespace amct {

using kernels::kPageSize;
using kernels::kPatterns;

struct CountTablesPool {
  std::mutex mutex;
  std::vector<CountTables::Cells> cells;  // of two tables

  static CountTablesPool& instance() {
    // Never destroyed: threads may still give tables back while the program ends.
    static CountTablesPool& pool = *new CountTablesPool;
    return pool;
  }
};

CountTables::CountTables(DType dtype) : dtype_(dtype) {
  CountTablesPool& pool = CountTablesPool::instance();
  {
    const std::lock_guard lock(pool.mutex);
    if (!pool.cells.empty()) {
      cells_ = std::move(pool.cells.back());
      pool.cells.pop_back();
      return;
    }
  }
  // Memory that comes as zeros is not taken up before it is written.
  cells_.reset(static_cast<std::uint32_t*>(
      std::calloc(2 * kPatterns, sizeof(std::uint32_t))));  // NOLINT(*-no-malloc)
  if (cells_ == nullptr) throw std::bad_alloc();
}

CountTables::~CountTables() {
  if (cells_ == nullptr || !clean_) return;
  CountTablesPool& pool = CountTablesPool::instance();
  const std::lock_guard lock(pool.mutex);
  try {
    pool.cells.push_back(std::move(cells_));
  } catch (...) {  // NOLINT(bugprone-empty-catch): without memory for the list it is freed instead
  }
}

std::uint32_t* CountTables::second() const {
  return dtype_ == DType::kBFloat16 ? first() + kPatterns : first();
}

void CountTables::count(const std::uint16_t* patterns, std::size_t count) {
  clean_ = false;
  kernels::count_patterns(patterns, count, first(), second());
}

std::uint64_t CountTables::non_finite() const {
  std::uint64_t sum = 0;
  for (const std::uint32_t* table : {first(), second()}) {
    for (const std::size_t sign : {std::size_t{0}, std::size_t{0x8000}}) {
      for (std::size_t pattern = exponent_mask(dtype_); pattern < 0x8000; ++pattern)
        sum += table[sign + pattern];
    }
    if (first() == second()) break;
  }
  return sum;
}

std::bitset<CountTables::kPages> CountTables::used() const {
  std::bitset<kPages> result;
  for (std::size_t page = 0; page < kPages; ++page) {
    const std::uint32_t* a = first() + page * kPageSize;
    const std::uint32_t* b = second() + page * kPageSize;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < kPageSize; ++i) bits |= a[i] | b[i];
    result[page] = bits != 0;
  }
  return result;
}

void CountTables::move_page(std::size_t page, std::uint64_t* counters) {
  std::uint32_t* a = first() + page * kPageSize;
  for (std::size_t i = 0; i < kPageSize; ++i) counters[i] += a[i];
  std::fill_n(a, kPageSize, 0U);
  std::uint32_t* b = second() + page * kPageSize;
  if (a == b) return;
  for (std::size_t i = 0; i < kPageSize; ++i) counters[i] += b[i];
  std::fill_n(b, kPageSize, 0U);
}

}  // namespace amct
