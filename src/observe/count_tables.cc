#include "observe/count_tables.h"

#include <mutex>
#include <utility>

#include "kernels/collect.h"
#include "kernels/count.h"

namespace amct {
namespace {

using kernels::kPageSize;
using kernels::kPatterns;

struct Pool {
  std::mutex mutex;
  std::vector<std::vector<std::uint32_t>> tables;
};

Pool& pool() {
  // Never destroyed: threads may still give tables back while the program ends.
  static Pool& instance = *new Pool;
  return instance;
}

}  // namespace

CountTables::CountTables() {
  {
    const std::lock_guard lock(pool().mutex);
    if (!pool().tables.empty()) {
      cells_ = std::move(pool().tables.back());
      pool().tables.pop_back();
      return;
    }
  }
  cells_.resize(2 * kPatterns);
}

CountTables::~CountTables() {
  if (cells_.empty() || !clean_) return;
  const std::lock_guard lock(pool().mutex);
  try {
    pool().tables.push_back(std::move(cells_));
  } catch (...) {  // NOLINT(bugprone-empty-catch): without memory for the list it is freed instead
  }
}

std::uint32_t* CountTables::second() { return cells_.data() + kPatterns; }
const std::uint32_t* CountTables::second() const { return cells_.data() + kPatterns; }

void CountTables::count(const std::uint16_t* patterns, std::size_t count) {
  clean_ = false;
  kernels::count_patterns(patterns, count, first(), second());
}

std::uint64_t CountTables::non_finite(DType dtype) const {
  std::uint64_t sum = 0;
  for (const std::size_t sign : {std::size_t{0}, std::size_t{0x8000}}) {
    for (std::size_t pattern = exponent_mask(dtype); pattern < 0x8000; ++pattern)
      sum += std::uint64_t{first()[sign + pattern]} + second()[sign + pattern];
  }
  return sum;
}

bool CountTables::any(std::size_t page) const {
  const std::uint32_t* a = first() + page * kPageSize;
  const std::uint32_t* b = second() + page * kPageSize;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < kPageSize; ++i) bits |= a[i] | b[i];
  return bits != 0;
}

}  // namespace amct
