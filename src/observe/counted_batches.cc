#include "observe/counted_batches.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "observe/elements.h"

namespace amct {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw ValueError("batches counted elsewhere: " + what);
}

/// Checks what counts and ranges have in common; returns the number of groups.
std::size_t checked_groups(std::int64_t channels, std::int64_t rows, std::int64_t batches,
                           Granularity granularity) {
  if (channels <= 0 || rows <= 0 || batches <= 0) {
    refuse("channels (" + std::to_string(channels) + "), rows (" + std::to_string(rows) +
           ") and batches (" + std::to_string(batches) + ") must be positive");
  }
  if (batches > rows) {
    refuse(std::to_string(batches) + " batches have " + std::to_string(rows) +
           " rows; each has at least one");
  }
  if (rows > std::numeric_limits<std::int64_t>::max() / channels)
    refuse("they have more than 2^63 - 1 values");
  if (granularity == Granularity::kPerHead) refuse("heads are not counted elsewhere");
  return granularity == Granularity::kPerTensor ? 1 : static_cast<std::size_t>(channels);
}

/// Checks the entries of a group of `size` values.
void check_group(const CountedBatches& batches, std::size_t group, std::uint64_t size) {
  const std::size_t first = batches.group_begin[group];
  std::uint64_t left = size;
  for (std::size_t i = first; i < batches.group_begin[group + 1]; ++i) {
    if (i > first && batches.patterns[i - 1] >= batches.patterns[i])
      refuse("the patterns of group " + std::to_string(group) + " do not ascend");
    if (batches.counts[i] == 0) refuse("a count of group " + std::to_string(group) + " is zero");
    if (batches.counts[i] > left) {
      refuse("group " + std::to_string(group) + " has more than its " + std::to_string(size) +
             " values");
    }
    left -= batches.counts[i];
  }
  if (left > 0) {
    refuse("group " + std::to_string(group) + " has " + std::to_string(size - left) +
           " values, not " + std::to_string(size));
  }
}

}  // namespace

void validate(const CountedBatches& batches, Granularity granularity) {
  if (batches.dtype == DType::kFloat32)
    refuse("float32 has more patterns than can be counted; only float16 and bfloat16 can");
  const std::size_t groups =
      checked_groups(batches.channels, batches.rows, batches.batches, granularity);
  const std::span<const std::size_t> begin = batches.group_begin;
  const std::size_t entries = batches.counts.size();
  if (batches.patterns.size() != entries) {
    refuse(std::to_string(batches.patterns.size()) + " patterns have " + std::to_string(entries) +
           " counts");
  }
  if (begin.size() != groups + 1) {
    refuse("group_begin has " + std::to_string(begin.size()) + " entries, one more than " +
           std::to_string(groups) + " groups are needed");
  }
  if (begin.front() != 0 || begin.back() != entries || !std::ranges::is_sorted(begin))
    refuse("group_begin does not ascend from 0 to " + std::to_string(entries) + ", the counts");
  const auto values = static_cast<std::uint64_t>(batches.rows * batches.channels);
  for (std::size_t group = 0; group < groups; ++group) check_group(batches, group, values / groups);
}

void validate(const RangedBatches& batches, Granularity granularity) {
  const std::size_t groups =
      checked_groups(batches.channels, batches.rows, batches.batches, granularity);
  if (batches.min.size() != groups || batches.max.size() != groups) {
    refuse(std::to_string(groups) + " groups have " + std::to_string(batches.min.size()) +
           " minima and " + std::to_string(batches.max.size()) + " maxima");
  }
  const std::int64_t values = batches.rows * batches.channels;
  if (batches.non_finite < 0 || batches.non_finite > values) {
    refuse(std::to_string(batches.non_finite) + " of " + std::to_string(values) +
           " values are said to be not finite");
  }
  for (std::size_t group = 0; group < groups; ++group) {
    const float min = batches.min[group];
    const float max = batches.max[group];
    const bool none = min == kernels::empty_scan().min && max == kernels::empty_scan().max;
    if (!none && (!std::isfinite(min) || !std::isfinite(max) || min > max))
      refuse("group " + std::to_string(group) + " has no range of finite values");
  }
}

kernels::ScanResult scan(const CountedBatches& batches, std::size_t group) {
  kernels::ScanResult result = kernels::empty_scan();
  for (std::size_t i = batches.group_begin[group]; i < batches.group_begin[group + 1]; ++i) {
    const std::uint16_t pattern = batches.patterns[i];
    if (!is_finite(pattern, batches.dtype)) {
      result.non_finite += static_cast<std::int64_t>(batches.counts[i]);
      continue;
    }
    const float value = half_to_float(batches.dtype, pattern);
    result.min = std::min(result.min, value);
    result.max = std::max(result.max, value);
  }
  return result;
}

}  // namespace amct
