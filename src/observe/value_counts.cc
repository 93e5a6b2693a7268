#include "amct/observe/value_counts.h"

#include "amct/core/error.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "kernels/scan.h"
#include "observe/radix_sort.h"

namespace amct {
namespace {

// Up to here sorting is cheap, and equal values are then counted together.
constexpr std::size_t kSortedSamples = 1024;

// Samples whose extremes are known, and blocks of them that a thread scans at once.
constexpr std::size_t kBlock = 1024;
constexpr std::size_t kTaskBlocks = 256;

constexpr auto kMaxTotal = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());

/// The sum of two totals up to kMaxTotal, which does not overflow before it is checked.
std::uint64_t checked_total(std::uint64_t a, std::uint64_t b) {
  if (b > kMaxTotal - a) throw ValueError("value counts: the total exceeds 2^63 - 1");
  return a + b;
}

/// Whether values are finite and strictly ascending and counts positive, without a branch in the
/// loop: the usual case, in vector instructions.
bool all_in_order(std::span<const float> values, std::span<const std::uint64_t> counts) {
  if (values.empty()) return true;
  unsigned wrong = std::isfinite(values.front()) && std::isfinite(values.back()) ? 0 : 1;
  for (std::size_t i = 1; i < values.size(); ++i) wrong |= values[i - 1] < values[i] ? 0U : 1U;
  for (const std::uint64_t count : counts) wrong |= count == 0 ? 1U : 0U;
  return wrong == 0;
}

/// Throws ValueError for what all_in_order() found wrong.
void check_one_by_one(std::span<const float> values, std::span<const std::uint64_t> counts) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) throw ValueError("value counts: a value is not finite");
    if (i > 0 && !(values[i - 1] < values[i]))
      throw ValueError("value counts: values are not strictly ascending");
    if (counts[i] == 0) throw ValueError("value counts: a count is zero");
  }
}

/// Throws ValueError where the sum exceeds kMaxTotal.
std::uint64_t sum_of(std::span<const std::uint64_t> counts) {
  std::uint64_t bits = 0;
  std::uint64_t sum = 0;
  for (const std::uint64_t count : counts) {
    bits |= count;
    sum += count;
  }
  // Fewer than 2^23 counts below 2^40 cannot overflow.
  if ((bits >> 40) == 0 && (counts.size() >> 23) == 0) return sum;
  sum = 0;
  for (const std::uint64_t count : counts) sum = checked_total(sum, count);
  return sum;
}

void check_rank(std::uint64_t k, std::uint64_t total) {
  if (k < 1 || k > total) {
    throw ValueError("order statistic " + std::to_string(k) + " of " + std::to_string(total) +
                     " values does not exist");
  }
}

/// The k-th of the samples in the order of `before`, 1-based. `extremes` are the first of each
/// kBlock samples in that order, and all samples count once.
template <typename Before>
float kth_of_samples(std::span<const float> samples, const std::vector<float>& extremes,
                     std::uint64_t k, Before before) {
  const std::size_t wanted = k;
  std::vector<float> kept;
  if (wanted >= extremes.size()) {
    kept.assign(samples.begin(), samples.end());
  } else {
    // The k-th of some samples does not come before the k-th of all, so blocks whose extreme comes
    // after it hold none that is looked for: k blocks are left, more only where values repeat.
    std::vector<float> sorted = extremes;
    const auto last = sorted.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
    std::ranges::nth_element(sorted, last, before);
    const float bound = *last;
    for (std::size_t block = 0; block < extremes.size(); ++block) {
      if (before(bound, extremes[block])) continue;
      const std::size_t begin = block * kBlock;
      for (const float sample : samples.subspan(begin, std::min(kBlock, samples.size() - begin))) {
        if (!before(bound, sample)) kept.push_back(sample);
      }
    }
  }
  const auto kth = kept.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
  std::ranges::nth_element(kept, kth, before);
  return *kth == 0.0F ? 0.0F : *kth;
}

}  // namespace

ValueCounts::ValueCounts(LargeArray<float> values, std::vector<std::uint64_t> counts)
    : counts_(std::move(counts)) {
  if (values.size() != counts_.size()) {
    throw ValueError("value counts: " + std::to_string(values.size()) + " values but " +
                     std::to_string(counts_.size()) + " counts");
  }
  if (!all_in_order(values, counts_)) check_one_by_one(values, counts_);
  total_ = sum_of(counts_);
  // -0 becomes +0, of which there is one.
  const auto zero = std::ranges::lower_bound(values, 0.0F);
  if (zero != values.end() && *zero == 0.0F) *zero = 0.0F;
  set_sorted(std::move(values));
}

ValueCounts ValueCounts::of(LargeArray<float> samples) {
  return of(std::make_shared<const LargeArray<float>>(std::move(samples)));
}

ValueCounts ValueCounts::of(std::shared_ptr<const LargeArray<float>> shared) {
  const std::span<const float> samples = *shared;
  if (samples.size() <= kSortedSamples) return sorted_from(*shared);
  ValueCounts result;
  const std::size_t blocks = (samples.size() + kBlock - 1) / kBlock;
  result.block_min_.resize(blocks);
  result.block_max_.resize(blocks);
  std::atomic<bool> all_finite = true;
  const auto scan_blocks = [&](const tbb::blocked_range<std::size_t>& range) {
    for (std::size_t block = range.begin(); block < range.end(); ++block) {
      const std::size_t begin = block * kBlock;
      const kernels::ScanResult found =
          kernels::scan_float32(samples.data() + begin, std::min(kBlock, samples.size() - begin));
      result.block_min_[block] = found.min;
      result.block_max_[block] = found.max;
      if (found.non_finite > 0) all_finite = false;
    }
  };
  const tbb::blocked_range<std::size_t> all(0, blocks, kTaskBlocks);
  if (blocks <= kTaskBlocks) {
    scan_blocks(all);
  } else {
    tbb::parallel_for(all, scan_blocks);
  }
  if (!all_finite) throw ValueError("value counts: a value is not finite");
  result.total_ = samples.size();
  result.min_ = *std::ranges::min_element(result.block_min_);
  result.max_ = *std::ranges::max_element(result.block_max_);
  result.values_ = std::move(shared);
  return result;
}

ValueCounts ValueCounts::of(std::span<const float> samples) {
  return of(LargeArray<float>(samples.begin(), samples.end()));
}

ValueCounts ValueCounts::sorted_from(LargeArray<float> samples) {
  radix_sort(samples);
  ValueCounts result;
  result.total_ = samples.size();
  LargeArray<float> values;
  for (std::size_t i = 0; i < samples.size();) {
    std::size_t end = i + 1;
    while (end < samples.size() && samples[end] == samples[i]) ++end;
    if (!std::isfinite(samples[i])) throw ValueError("value counts: a value is not finite");
    values.push_back(samples[i] == 0.0F ? 0.0F : samples[i]);
    result.counts_.push_back(end - i);
    i = end;
  }
  result.set_sorted(std::move(values));
  return result;
}

ValueCounts ValueCounts::sorted() const { return is_sorted() ? *this : sorted_from(*values_); }

void ValueCounts::set_sorted(LargeArray<float> values) {
  if (values.empty()) return;
  min_ = values.front();
  max_ = values.back();
  values_ = std::make_shared<const LargeArray<float>>(std::move(values));
}

ValueCounts ValueCounts::merged(const ValueCounts& first, const ValueCounts& second) {
  if (first.empty()) return second;
  if (second.empty()) return first;
  const ValueCounts sorted_a = first.sorted();
  const ValueCounts sorted_b = second.sorted();
  const std::span<const float> a = sorted_a.values();
  const std::span<const float> b = sorted_b.values();
  ValueCounts result;
  result.total_ = checked_total(sorted_a.total_, sorted_b.total_);
  LargeArray<float> values;
  values.reserve(a.size() + b.size());
  result.counts_.reserve(a.size() + b.size());
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < a.size() || j < b.size()) {
    const bool from_a = j == b.size() || (i < a.size() && a[i] <= b[j]);
    const bool from_b = i == a.size() || (j < b.size() && b[j] <= a[i]);
    values.push_back(from_a ? a[i] : b[j]);
    result.counts_.push_back((from_a ? sorted_a.counts_[i] : 0) +
                             (from_b ? sorted_b.counts_[j] : 0));
    i += from_a ? 1 : 0;
    j += from_b ? 1 : 0;
  }
  result.set_sorted(std::move(values));
  return result;
}

bool operator==(const ValueCounts& first, const ValueCounts& second) {
  if (first.total_ != second.total_) return false;
  const ValueCounts a = first.sorted();
  const ValueCounts b = second.sorted();
  return std::ranges::equal(a.values(), b.values()) && a.counts_ == b.counts_;
}

float ValueCounts::max_abs() const { return std::max(std::fabs(min_), std::fabs(max_)); }

float ValueCounts::kth_smallest(std::uint64_t k) const {
  check_rank(k, total_);
  if (!is_sorted()) return kth_of_samples(values(), block_min_, k, std::less<>());
  std::size_t i = 0;
  for (std::uint64_t seen = counts_[0]; seen < k; seen += counts_[i]) ++i;
  return values()[i];
}

float ValueCounts::kth_largest(std::uint64_t k) const {
  check_rank(k, total_);
  if (!is_sorted()) return kth_of_samples(values(), block_max_, k, std::greater<>());
  std::size_t i = counts_.size() - 1;
  for (std::uint64_t seen = counts_[i]; seen < k; seen += counts_[i]) --i;
  return values()[i];
}

}  // namespace amct
