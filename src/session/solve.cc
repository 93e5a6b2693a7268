#include "amct/session/solve.h"

#include "amct/core/error.h"
#include "amct/search/quantization_error.h"
#include "amct/search/search.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include <tbb/parallel_for.h>

#include "session/stopwatch.h"

namespace amct {
namespace {

/// What one group contributes to the result of its layer.
struct GroupResult {
  QuantParams params;
  QuantizationError error;
  ValueRange range{};
};

/// How many neighbouring groups of the observer make one group of the layer.
std::size_t groups_joined(const LayerConfig& config, const Observer& observer) {
  const auto seen = observer.granularity();
  const auto wanted = config.granularity;
  const auto heads = static_cast<std::size_t>(config.head_num);
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

/// Calls visit(group, values) for every group of the layer, on several threads at once.
void visit_joined(const Observer& observer, std::size_t joined, const Observer::Visit& visit) {
  if (joined == 1) {
    observer.visit(visit);
    return;
  }
  std::vector<ValueCounts> all(observer.groups());
  observer.visit([&](std::size_t group, const ValueCounts& values) { all[group] = values; });
  tbb::parallel_for(std::size_t{0}, all.size() / joined, [&](std::size_t group) {
    visit(group, join(std::span(all).subspan(group * joined, joined)));
  });
}

std::vector<GroupResult> solve_ranges(const LayerConfig& config, const Algorithm& algorithm,
                                      bool with_offset, const Observer& observer,
                                      std::size_t joined) {
  std::vector<GroupResult> groups(observer.groups() / joined);
  const SearchTarget target{config.grid, with_offset};
  for (std::size_t group = 0; group < groups.size(); ++group) {
    ValueRange range = observer.range(group * joined);
    for (std::size_t i = 1; i < joined; ++i) {
      const ValueRange other = observer.range(group * joined + i);
      range = {std::min(range.min, other.min), std::max(range.max, other.max)};
    }
    if (range.min > range.max) require_values({});
    groups[group].range = range;
    groups[group].params =
        algorithm.search_range(range.min, range.max, target, config.options).params;
  }
  return groups;
}

std::vector<GroupResult> solve_counts(const LayerConfig& config, const Algorithm& algorithm,
                                      bool with_offset, const Observer& observer,
                                      std::size_t joined) {
  std::vector<GroupResult> groups(observer.groups() / joined);
  const SearchTarget target{config.grid, with_offset};
  visit_joined(observer, joined, [&](std::size_t group, const ValueCounts& values) {
    const QuantParams params = algorithm.search(values, target, config.options).params;
    groups[group] = {.params = params,
                     .error = quantization_error(values, config.grid, params),
                     .range = {values.min(), values.max()}};
  });
  return groups;
}

}  // namespace

LayerResult solve(const LayerConfig& config, bool with_offset, const Observer& observer) {
  const Stopwatch watch;
  const Algorithm* algorithm = find_algorithm(config.algorithm);
  if (algorithm == nullptr) throw ValueError("no algorithm '" + config.algorithm + "'");
  const bool range_only = observer.is_range_only();
  if (range_only && algorithm->search_range == nullptr) {
    throw StateError("only the range of its values was kept, which " + config.algorithm +
                     " cannot be searched from");
  }
  const std::size_t joined = groups_joined(config, observer);
  LayerResult result;
  result.name = config.name;
  result.algorithm = config.algorithm;
  result.granularity = config.granularity;
  result.tap = config.tap;
  result.role = config.role;
  result.grid = config.grid;
  result.with_offset = with_offset;
  result.batches = observer.batches();
  result.rows = observer.rows();
  result.channels = observer.channels();
  result.non_finite = observer.non_finite_count();
  result.is_sketch = observer.is_sketch();
  const std::vector<GroupResult> groups =
      range_only ? solve_ranges(config, *algorithm, with_offset, observer, joined)
                 : solve_counts(config, *algorithm, with_offset, observer, joined);
  if (groups.empty()) require_values({});
  // Sums go in channel order, whatever order the threads took.
  QuantizationError error;
  result.min = groups.front().range.min;
  result.max = groups.front().range.max;
  for (const GroupResult& group : groups) {
    result.params.push_back(group.params);
    error += group.error;
    result.min = std::min(result.min, group.range.min);
    result.max = std::max(result.max, group.range.max);
  }
  if (!range_only) {
    result.sqnr_db = error.sqnr_db();
    result.clipped_fraction = error.clipped_fraction();
  }
  result.search_seconds = watch.seconds();
  return result;
}

LayerRecord record_of(const LayerResult& result) {
  return {.name = result.name,
          .params = result.params,
          .per_head = result.granularity == Granularity::kPerHead,
          .grid = result.grid,
          .tap = result.tap,
          .role = result.role};
}

}  // namespace amct
