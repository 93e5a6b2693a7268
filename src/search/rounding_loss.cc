#include "search/rounding_loss.h"

#include <algorithm>
#include <cmath>

namespace amct {
namespace {

/// count as an exact pair: a count beyond 2^53 does not fit one double.
DoubleDouble exact(std::uint64_t count) {
  const auto low = static_cast<double>(count & 0xFFFFFFFFU);
  return DoubleDouble::sum(static_cast<double>(count >> 32) * 0x1p32, low);
}

/// First index in [begin, values.size()) whose value is above the boundary, by steps that double:
/// the runs of neighbouring levels are of similar length, so this beats a plain binary search.
template <typename Above>
std::size_t find_end(std::span<const float> values, std::size_t begin, Above above) {
  std::size_t step = 1;
  std::size_t low = begin;
  std::size_t high = begin;
  while (high < values.size() && !above(values[high])) {
    low = high + 1;
    high += step;
    step *= 2;
  }
  high = std::min(high, values.size());
  const auto first = values.begin() + static_cast<std::ptrdiff_t>(low);
  const auto last = values.begin() + static_cast<std::ptrdiff_t>(high);
  return low + static_cast<std::size_t>(
                   std::partition_point(first, last, [&](float x) { return !above(x); }) - first);
}

}  // namespace

RoundingLoss::RoundingLoss(const ValueCounts& values)
    : values_(values.values()), total_(static_cast<double>(values.total())) {
  sum0_.reserve(values_.size() + 1);
  sum1_.reserve(values_.size() + 1);
  sum2_.reserve(values_.size() + 1);
  std::uint64_t s0 = 0;
  DoubleDouble s1;
  DoubleDouble s2;
  sum0_.push_back(s0);
  sum1_.push_back(s1);
  sum2_.push_back(s2);
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const std::uint64_t count = values.counts()[i];
    const double x = values_[i];
    s0 += count;
    s1 = s1 + exact(count) * x;
    s2 = s2 + exact(count) * (x * x);  // the square of a float32 is exact in a double
    sum0_.push_back(s0);
    sum1_.push_back(s1);
    sum2_.push_back(s2);
  }
}

double RoundingLoss::error(std::size_t begin, std::size_t end, double level) const {
  if (begin == end) return 0;
  const DoubleDouble s0 = exact(sum0_[end] - sum0_[begin]);
  const DoubleDouble s1 = sum1_[end] - sum1_[begin];
  const DoubleDouble s2 = sum2_[end] - sum2_[begin];
  const DoubleDouble result = (s2 - s1 * level) - (s1 - s0 * level) * level;
  return std::max(0.0, result.value());
}

double RoundingLoss::operator()(float scale, float low, float high) const {
  if (values_.empty()) return 0;
  const double step = scale;
  const auto level_of = [&](float x) { return std::nearbyint(std::clamp(x, low, high) / step); };
  const double first = level_of(values_.front());
  const double last = level_of(values_.back());
  double sum = 0;
  std::size_t begin = 0;
  for (double level = first; level < last && begin < values_.size(); level += 1) {
    // round(x / step) > level, ties to even, without calling a rounding function in the search.
    const double boundary = level + 0.5;
    const bool tie_goes_up = std::fmod(level, 2.0) != 0;
    const std::size_t end = find_end(values_, begin, [&](float x) {
      const double quotient = std::clamp(x, low, high) / step;
      return quotient > boundary || (quotient == boundary && tie_goes_up);
    });
    sum += error(begin, end, level * step);
    begin = end;
  }
  sum += error(begin, values_.size(), last * step);
  return sum / total_;
}

}  // namespace amct
