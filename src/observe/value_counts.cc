#include "amct/observe/value_counts.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "kernels/scan.h"
#include "observe/radix_sort.h"

namespace amct {
namespace {

// Up to here sorting is cheap, and equal values are then counted together.
constexpr std::size_t kSortedSamples = 4096;

// Values whose extremes are looked at together.
constexpr std::size_t kBlock = 1024;

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

/// The k-th of the samples in the order of `before`, 1-based. Keeps the first k met so far, so a
/// small k costs one comparison a value.
template <typename Before>
float kth_of_samples(std::span<const float> samples, std::uint64_t k, Before before) {
  const std::size_t wanted = k;
  std::vector<float> kept;
  if (wanted > samples.size() / 16) {
    kept.assign(samples.begin(), samples.end());
  } else {
    // Twice as many are let in before the surplus is thrown out, which costs little a value.
    const std::size_t limit = 2 * wanted + 64;
    bool bounded = false;
    float bound = 0;
    for (std::size_t begin = 0; begin < samples.size(); begin += kBlock) {
      const auto block = samples.subspan(begin, std::min(kBlock, samples.size() - begin));
      // Most blocks hold nothing that comes before the bound, which their extremes tell at once.
      const kernels::ScanResult range = kernels::scan_float32(block.data(), block.size());
      if (bounded && !before(before(range.min, range.max) ? range.min : range.max, bound)) continue;
      for (const float sample : block) {
        if (bounded && !before(sample, bound)) continue;
        kept.push_back(sample);
        if (kept.size() < limit) continue;
        const auto last = kept.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
        std::ranges::nth_element(kept, last, before);
        bound = *last;
        bounded = true;
        kept.resize(wanted);
      }
    }
  }
  const auto kth = kept.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
  std::ranges::nth_element(kept, kth, before);
  return *kth == 0.0F ? 0.0F : *kth;
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
  set_range();
}

ValueCounts ValueCounts::of(std::vector<float> samples) {
  if (samples.size() <= kSortedSamples) return sorted_from(std::move(samples));
  ValueCounts result;
  const kernels::ScanResult range = kernels::scan_float32(samples.data(), samples.size());
  if (range.non_finite > 0) throw ValueError("value counts: a value is not finite");
  result.total_ = samples.size();
  result.min_ = range.min;
  result.max_ = range.max;
  result.values_ = std::move(samples);
  return result;
}

ValueCounts ValueCounts::sorted_from(std::vector<float> samples) {
  radix_sort(samples);
  ValueCounts result;
  result.total_ = samples.size();
  for (std::size_t i = 0; i < samples.size();) {
    std::size_t end = i + 1;
    while (end < samples.size() && samples[end] == samples[i]) ++end;
    if (!std::isfinite(samples[i])) throw ValueError("value counts: a value is not finite");
    result.values_.push_back(samples[i] == 0.0F ? 0.0F : samples[i]);
    result.counts_.push_back(end - i);
    i = end;
  }
  result.set_range();
  return result;
}

ValueCounts ValueCounts::sorted() const& { return is_sorted() ? *this : sorted_from(values_); }
ValueCounts ValueCounts::sorted() && {
  return is_sorted() ? std::move(*this) : sorted_from(std::move(values_));
}

void ValueCounts::set_range() {
  if (values_.empty()) return;
  min_ = values_.front();
  max_ = values_.back();
}

ValueCounts ValueCounts::merged(ValueCounts first, ValueCounts second) {
  if (first.empty()) return second;
  if (second.empty()) return first;
  const ValueCounts a = std::move(first).sorted();
  const ValueCounts b = std::move(second).sorted();
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
  result.set_range();
  return result;
}

bool operator==(const ValueCounts& first, const ValueCounts& second) {
  if (first.total_ != second.total_) return false;
  const ValueCounts a = first.sorted();
  const ValueCounts b = second.sorted();
  return a.values_ == b.values_ && a.counts_ == b.counts_;
}

float ValueCounts::max_abs() const { return std::max(std::fabs(min_), std::fabs(max_)); }

float ValueCounts::kth_smallest(std::uint64_t k) const {
  check_rank(k, total_);
  if (!is_sorted()) return kth_of_samples(values_, k, std::less<>());
  std::size_t i = 0;
  for (std::uint64_t seen = counts_[0]; seen < k; seen += counts_[i]) ++i;
  return values_[i];
}

float ValueCounts::kth_largest(std::uint64_t k) const {
  check_rank(k, total_);
  if (!is_sorted()) return kth_of_samples(values_, k, std::greater<>());
  std::size_t i = values_.size() - 1;
  for (std::uint64_t seen = counts_[i]; seen < k; seen += counts_[i]) --i;
  return values_[i];
}

}  // namespace amct
