#include "amct/observe/value_counts.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "observe/radix_sort.h"

namespace amct {
namespace {

constexpr auto kMaxTotal = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());

/// The sum of two totals up to kMaxTotal, which does not overflow before it is checked.
std::uint64_t checked_total(std::uint64_t a, std::uint64_t b) {
  if (b > kMaxTotal - a) throw ValueError("value counts: the total exceeds 2^63 - 1");
  return a + b;
}

void check_rank(std::uint64_t k, std::uint64_t total) {
  if (k < 1 || k > total) {
    throw ValueError("order statistic " + std::to_string(k) + " of " + std::to_string(total) +
                     " values does not exist");
  }
}

}  // namespace

ValueCounts::ValueCounts(std::vector<float> values, std::vector<std::uint64_t> counts)
    : values_(std::move(values)), counts_(std::move(counts)) {
  if (values_.size() != counts_.size()) {
    throw ValueError("value counts: " + std::to_string(values_.size()) + " values but " +
                     std::to_string(counts_.size()) + " counts");
  }
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (!std::isfinite(values_[i])) throw ValueError("value counts: a value is not finite");
    if (i > 0 && !(values_[i - 1] < values_[i])) {
      throw ValueError("value counts: values are not strictly ascending");
    }
    if (values_[i] == 0.0F) values_[i] = 0.0F;  // -0 becomes +0
    if (counts_[i] == 0) throw ValueError("value counts: a count is zero");
    total_ = checked_total(total_, counts_[i]);
  }
}

ValueCounts ValueCounts::of(std::vector<float> samples) {
  radix_sort(samples);
  ValueCounts result;
  result.total_ = samples.size();
  for (std::size_t i = 0; i < samples.size();) {
    std::size_t end = i + 1;
    while (end < samples.size() && samples[end] == samples[i]) ++end;
    result.values_.push_back(samples[i] == 0.0F ? 0.0F : samples[i]);
    result.counts_.push_back(end - i);
    i = end;
  }
  return result;
}

ValueCounts ValueCounts::merged(const ValueCounts& a, const ValueCounts& b) {
  ValueCounts result;
  result.total_ = checked_total(a.total_, b.total_);
  result.values_.reserve(a.values_.size() + b.values_.size());
  result.counts_.reserve(a.values_.size() + b.values_.size());
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < a.values_.size() || j < b.values_.size()) {
    const bool from_a =
        j == b.values_.size() || (i < a.values_.size() && a.values_[i] <= b.values_[j]);
    const bool from_b =
        i == a.values_.size() || (j < b.values_.size() && b.values_[j] <= a.values_[i]);
    result.values_.push_back(from_a ? a.values_[i] : b.values_[j]);
    result.counts_.push_back((from_a ? a.counts_[i] : 0) + (from_b ? b.counts_[j] : 0));
    i += from_a ? 1 : 0;
    j += from_b ? 1 : 0;
  }
  return result;
}

float ValueCounts::max_abs() const {
  return empty() ? 0.0F : std::max(std::fabs(min()), std::fabs(max()));
}

float ValueCounts::kth_smallest(std::uint64_t k) const {
  check_rank(k, total_);
  std::size_t i = 0;
  for (std::uint64_t seen = counts_[0]; seen < k; seen += counts_[i]) ++i;
  return values_[i];
}

float ValueCounts::kth_largest(std::uint64_t k) const {
  check_rank(k, total_);
  std::size_t i = values_.size() - 1;
  for (std::uint64_t seen = counts_[i]; seen < k; seen += counts_[i]) --i;
  return values_[i];
}

}  // namespace amct
