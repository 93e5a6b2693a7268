// Scratch memory for counting 16-bit patterns.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace amct {

/// Two tables of 65,536 counters (see kernels::count_patterns), all zero when made. Tables are
/// borrowed from a pool of the process, since making and clearing them takes longer than many a
/// count; only tables that were given back clean are used again.
class CountTables {
 public:
  CountTables();
  ~CountTables();
  CountTables(CountTables&&) noexcept = default;
  CountTables& operator=(CountTables&&) noexcept = default;

  /// Counts patterns; less than 2^32 of them before the tables are emptied.
  void count(const std::uint16_t* patterns, std::size_t count);

  std::uint32_t* first() { return cells_.data(); }
  std::uint32_t* second();
  const std::uint32_t* first() const { return cells_.data(); }
  const std::uint32_t* second() const;

  /// How many of the patterns counted stand for NaN or infinity.
  std::uint64_t non_finite(DType dtype) const;

  /// Whether a pattern with this upper byte was counted.
  bool any(std::size_t page) const;

  /// Says that all counters are zero again.
  void set_clean() { clean_ = true; }

 private:
  std::vector<std::uint32_t> cells_;
  bool clean_ = true;
};

}  // namespace amct
