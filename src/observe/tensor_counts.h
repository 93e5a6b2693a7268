// Storage of 16-bit values observed per tensor: exact counts of their bit patterns.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "observe/count_tables.h"
#include "observe/pattern_counts.h"

namespace amct {

/// Counts the 65,536 patterns of one 16-bit type. Real activations use a small part of them, so
/// counters come in pages of 256 that are allocated when first needed: at most 512 KiB, typically
/// a tenth of it.
class TensorCounts {
 public:
  explicit TensorCounts(DType dtype) : dtype_(dtype) {}

  /// The patterns of one view, counted but not added yet.
  class Batch {
   public:
    std::uint64_t non_finite() const { return non_finite_; }

   private:
    friend class TensorCounts;
    std::vector<CountTables> tables_;
    std::bitset<CountTables::kPages> used_;
    std::uint64_t non_finite_ = 0;
  };

  /// Whether a batch of this view is worth a Batch; it is not for small ones, nor where elements
  /// lie apart.
  static bool suits_tables(const TensorView& view);
  /// Counts the elements of a view of this dtype that suits tables, on several threads where it is
  /// large.
  static Batch count(const TensorView& view);
  /// Adds a batch, or nothing where memory runs out. Infinite and NaN patterns are counted like
  /// others, and never reported.
  void add(Batch batch);

  /// Adds the elements of any view one by one.
  void add(const TensorView& view);
  /// Adds patterns by their counts, or nothing where memory runs out.
  void add(std::span<const std::uint16_t> patterns, std::span<const std::uint64_t> counts);
  /// Adds `pattern` once.
  void add(std::uint16_t pattern) { page(pattern >> 8)[pattern & 0xFF] += 1; }

  void merge(const TensorCounts& other);

  ValueCounts value_counts() const;
  /// The patterns that occurred, ascending as integers, infinite and NaN ones included.
  PatternCounts patterns() const;

 private:
  using Page = std::array<std::uint64_t, 256>;

  Page& page(std::size_t index) {
    std::unique_ptr<Page>& slot = pages_[index];
    if (slot == nullptr) slot = std::make_unique<Page>();
    return *slot;
  }

  DType dtype_;
  std::array<std::unique_ptr<Page>, CountTables::kPages> pages_;  // by upper byte of the pattern
};

}  // namespace amct
