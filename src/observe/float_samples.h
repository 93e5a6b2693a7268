// Storage of observed float32 values: the values themselves.
#pragma once

#include "amct/observe/value_counts.h"

#include <cstddef>
#include <vector>

namespace amct {

/// Keeps the values of each group, in the order they came.
class FloatSamples {
 public:
  explicit FloatSamples(std::size_t groups) : samples_(groups) {}

  /// Makes room for `count` more values a group, so that adding them cannot fail.
  void reserve_more(std::size_t count);
  void add(std::size_t group, float value) { samples_[group].push_back(value); }
  void merge(const FloatSamples& other);

  ValueCounts value_counts(std::size_t group) const { return ValueCounts::of(samples_[group]); }

 private:
  std::vector<std::vector<float>> samples_;
};

}  // namespace amct
