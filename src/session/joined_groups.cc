#include "session/joined_groups.h"

#include "amct/core/error.h"
#include "amct/core/large_array.h"
#include "amct/observe/value_counts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <tbb/parallel_for.h>

namespace amct {
namespace {

/// The union of neighbouring groups, which is emptied.
ValueCounts join(std::span<ValueCounts> groups) {
  const bool all_samples = std::ranges::none_of(groups, &ValueCounts::is_sorted);
  if (all_samples) {
    LargeArray<float> samples;
    std::size_t size = 0;
    for (const ValueCounts& group : groups) size += group.values().size();
    samples.reserve(size);
    for (ValueCounts& group : groups) {
      std::ranges::copy(group.values(), std::back_inserter(samples));
      group = {};
    }
    return ValueCounts::of(std::move(samples));
  }
  // Pairs, then pairs of pairs: each value moves as often as there are rounds.
  for (std::size_t step = 1; step < groups.size(); step *= 2) {
    const std::size_t pairs = (groups.size() + step - 1) / (2 * step);
    tbb::parallel_for(std::size_t{0}, pairs, [&](std::size_t pair) {
      const std::size_t left = 2 * step * pair;
      if (left + step >= groups.size()) return;
      groups[left] = ValueCounts::merged(groups[left], groups[left + step]);
      groups[left + step] = {};
    });
  }
  return std::move(groups.front());
}

/// The values, each `factor` times as often.
ValueCounts times(const ValueCounts& values, std::uint64_t factor) {
  if (factor == 1 || values.empty()) return values;
  const ValueCounts sorted = values.sorted();
  LargeArray<float> copies;
  copies.reserve(sorted.values().size());
  std::ranges::copy(sorted.values(), std::back_inserter(copies));
  std::vector<std::uint64_t> counts(sorted.counts().begin(), sorted.counts().end());
  for (std::uint64_t& count : counts) count *= factor;
  return {std::move(copies), std::move(counts)};
}

/// The weights of the channels of a group in whole numbers: no channel is left out.
std::vector<std::uint64_t> whole_weights(std::span<const std::uint64_t> weights) {
  constexpr double kMost = 1024;
  const auto largest = static_cast<double>(std::ranges::max(weights));
  std::vector<std::uint64_t> whole;
  whole.reserve(weights.size());
  for (const std::uint64_t weight : weights) {
    const double share = largest > 0 ? static_cast<double>(weight) / largest : 1;
    whole.push_back(
        std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::round(kMost * share))));
  }
  return whole;
}

}  // namespace

std::size_t groups_joined(Granularity wanted, std::int64_t head_num, const Observer& observer) {
  const Granularity seen = observer.granularity();
  const auto heads = static_cast<std::size_t>(head_num);
  if (wanted == Granularity::kPerTensor) return std::max<std::size_t>(1, observer.groups());
  const bool same_heads = wanted != Granularity::kPerHead || observer.groups() == heads;
  if (wanted == seen && (same_heads || observer.groups() == 0)) return 1;
  if (wanted != Granularity::kPerHead || seen != Granularity::kPerChannel) {
    throw ValueError("it was observed " + std::string(name_of(seen)) +
                     ", which does not tell what factors " + std::string(name_of(wanted)) +
                     " need; calibrate " + std::string(name_of(Granularity::kPerChannel)));
  }
  if (heads == 0) throw ValueError("factors per head need head_num, the number of heads");
  if (observer.groups() % heads != 0) {
    throw StateError(std::to_string(observer.groups()) + " channels cannot be cut into " +
                     std::to_string(heads) + " heads");
  }
  return observer.groups() / heads;
}

void visit_joined(const Observer& observer, std::size_t joined, const Observer::Visit& visit,
                  std::span<const std::uint64_t> weights) {
  if (joined == 1) {
    observer.visit(visit);
    return;
  }
  std::vector<ValueCounts> all(observer.groups());
  observer.visit([&](std::size_t group, const ValueCounts& values) { all[group] = values; });
  tbb::parallel_for(std::size_t{0}, all.size() / joined, [&](std::size_t group) {
    const std::span own = std::span(all).subspan(group * joined, joined);
    if (!weights.empty()) {
      const std::vector<std::uint64_t> whole =
          whole_weights(weights.subspan(group * joined, joined));
      for (std::size_t i = 0; i < joined; ++i) own[i] = times(own[i], whole[i]);
    }
    visit(group, join(own));
  });
}

}  // namespace amct
