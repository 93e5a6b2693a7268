// Which values occurred, and how often: all that a search needs to know of the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace amct {

/// The multiset of values of one group, as ascending distinct values and their counts. Zero has one
/// entry whatever its sign. Equal multisets give equal objects, in whatever order, in however many
/// batches and by however many threads they were observed.
class ValueCounts {
 public:
  ValueCounts() = default;

  /// Takes values and counts of equal length. Values must be finite and strictly ascending (-0 is
  /// taken as 0), counts positive. Throws ValueError otherwise, and where the counts' sum does not
  /// fit 63 bits.
  ValueCounts(std::vector<float> values, std::vector<std::uint64_t> counts);

  /// Counts `samples`, which may hold duplicates in any order but must be finite. Sorts in place.
  static ValueCounts of(std::vector<float> samples);

  /// The union of two multisets. Throws ValueError where the total does not fit 63 bits.
  static ValueCounts merged(const ValueCounts& a, const ValueCounts& b);

  std::span<const float> values() const { return values_; }          ///< ascending, distinct
  std::span<const std::uint64_t> counts() const { return counts_; }  ///< one a value, positive
  std::uint64_t total() const { return total_; }                     ///< sum of the counts
  bool empty() const { return values_.empty(); }

  float min() const { return values_.front(); }  ///< smallest value; undefined where empty()
  float max() const { return values_.back(); }   ///< largest value; undefined where empty()
  float max_abs() const;                         ///< largest magnitude, 0 where empty()

  /// The k-th smallest of the total() values, 1-based. Throws ValueError unless 1 <= k <= total().
  float kth_smallest(std::uint64_t k) const;
  /// The k-th largest of the total() values, 1-based. Throws ValueError unless 1 <= k <= total().
  float kth_largest(std::uint64_t k) const;

  friend bool operator==(const ValueCounts&, const ValueCounts&) = default;

 private:
  std::vector<float> values_;
  std::vector<std::uint64_t> counts_;
  std::uint64_t total_ = 0;
};

}  // namespace amct
