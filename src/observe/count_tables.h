// Scratch memory for counting 16-bit patterns.
#pragma once

#include "amct/core/dtype.h"

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace amct {

/// Counters of the 65,536 patterns of one 16-bit type, all zero when made. Memory is borrowed from
/// a pool of the process, since making and clearing it takes longer than many a count; only what
/// was given back clean is used again. What is never counted never takes up memory.
///
/// bfloat16 has two tables (see kernels::count_patterns), as neighbours are often equal in its few
/// patterns. float16 has one: in two its many patterns would no longer stay in the cache.
class CountTables {
 public:
  static constexpr std::size_t kPages = 256;  ///< of 256 patterns with the same upper byte

  /// Throws std::bad_alloc.
  explicit CountTables(DType dtype);
  ~CountTables();
  CountTables(CountTables&&) noexcept = default;
  CountTables& operator=(CountTables&&) = delete;

  /// Counts patterns; less than 2^32 of them before the tables are emptied.
  void count(const std::uint16_t* patterns, std::size_t count);

  /// How many of the patterns counted stand for NaN or infinity.
  std::uint64_t non_finite() const;

  /// Which pages have counts.
  std::bitset<kPages> used() const;

  /// Adds the counts of a page to the ones in `counters`, and clears them here.
  void move_page(std::size_t page, std::uint64_t* counters);
  /// Says that all pages with counts were moved.
  void set_clean() { clean_ = true; }

 private:
  friend struct CountTablesPool;
  struct Free {
    void operator()(std::uint32_t* cells) const { std::free(cells); }  // NOLINT(*-no-malloc)
  };
  using Cells = std::unique_ptr<std::uint32_t, Free>;

  std::uint32_t* first() const { return cells_.get(); }
  std::uint32_t* second() const;  // the first one again, where there is one

  DType dtype_;
  Cells cells_;
  bool clean_ = true;
};

}  // namespace amct
