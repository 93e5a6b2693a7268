// Which values occurred, and how often: all that a search needs to know of the data.
#pragma once

#include "amct/core/large_array.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// The multiset of values of one group. Equal multisets are equal objects, in whatever order, in
/// however many batches and by however many threads they were observed. Zero has one entry whatever
/// its sign where values are sorted.
///
/// Held in one of two forms: *sorted*, ascending distinct values with their counts, which is what
/// counting 16-bit types gives; or *samples*, values as they came, each counting once, since
/// sorting millions of float32 values would take longer than any search of them.
class ValueCounts {
 public:
  ValueCounts() = default;

  /// Sorted form, of values and counts of equal length. Values must be finite and strictly
  /// ascending (-0 is taken as 0), counts positive. Throws ValueError otherwise, and where the
  /// counts' sum does not fit 63 bits.
  ValueCounts(LargeArray<float> values, std::vector<std::uint64_t> counts);

  /// Counts `samples`, which may hold duplicates in any order but must be finite: sorted form where
  /// they are few, else samples.
  static ValueCounts of(LargeArray<float> samples);
  /// The same, of samples that are held together with others, who must not change them.
  static ValueCounts of(std::shared_ptr<const LargeArray<float>> shared);
  static ValueCounts of(std::span<const float> samples);

  /// The union of two multisets, sorted. Throws ValueError where the total does not fit 63 bits.
  static ValueCounts merged(const ValueCounts& first, const ValueCounts& second);

  /// The values: ascending and distinct where is_sorted(), else as they came.
  std::span<const float> values() const {
    return values_ ? std::span<const float>(*values_) : std::span<const float>();
  }
  /// One count a value, positive; empty where not is_sorted(): each value counts once.
  std::span<const std::uint64_t> counts() const { return counts_; }
  /// The count of value `i`.
  std::uint64_t count(std::size_t i) const { return counts_.empty() ? 1 : counts_[i]; }

  bool is_sorted() const { return counts_.size() == values().size(); }
  /// The same multiset in sorted form.
  ValueCounts sorted() const;

  std::uint64_t total() const { return total_; }  ///< sum of the counts
  bool empty() const { return total_ == 0; }

  float min() const { return min_; }  ///< smallest value; 0 where empty()
  float max() const { return max_; }  ///< largest value; 0 where empty()
  float max_abs() const;              ///< largest magnitude, 0 where empty()

  /// The k-th smallest of the total() values, 1-based. Throws ValueError unless 1 <= k <= total().
  float kth_smallest(std::uint64_t k) const;
  /// The k-th largest of the total() values, 1-based. Throws ValueError unless 1 <= k <= total().
  float kth_largest(std::uint64_t k) const;

  friend bool operator==(const ValueCounts& first, const ValueCounts& second);

 private:
  static ValueCounts sorted_from(LargeArray<float> samples);
  void set_sorted(LargeArray<float> values);  // and the range

  std::shared_ptr<const LargeArray<float>> values_;  // shared by copies; null: none
  std::vector<std::uint64_t> counts_;
  // Smallest and largest of each kBlock samples, for order statistics; empty where is_sorted().
  std::vector<float> block_min_;
  std::vector<float> block_max_;
  std::uint64_t total_ = 0;
  float min_ = 0;
  float max_ = 0;
};

}  // namespace amct
#pragma GCC visibility pop
