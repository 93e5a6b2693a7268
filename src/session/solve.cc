#include "amct/session/solve.h"

#include "amct/core/error.h"
#include "amct/search/quantization_error.h"
#include "amct/search/search.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "session/joined_groups.h"
#include "session/layer_result.h"
#include "session/stopwatch.h"

namespace amct {
namespace {

/// What one group contributes to the result of its layer.
struct GroupResult {
  QuantParams params;
  QuantizationError error;
  ValueRange range{};
};

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
  const bool weighed = config.weighs_channels() && joined > 1;
  if (weighed) {
    const auto search = [&](std::size_t group, const ValueCounts& values) {
      groups[group].params = algorithm.search(values, target, config.options).params;
    };
    visit_joined(observer, joined, search, observer.channel_weights());
  }
  // What the values lose is told of each as often as it was seen.
  visit_joined(observer, joined, [&](std::size_t group, const ValueCounts& values) {
    QuantParams& params = groups[group].params;
    if (!weighed) params = algorithm.search(values, target, config.options).params;
    groups[group].error = quantization_error(values, config.grid, params);
    groups[group].range = {values.min(), values.max()};
  });
  return groups;
}

}  // namespace

void set_configured(LayerResult* result, const LayerConfig& config, bool with_offset) {
  result->name = config.name;
  result->algorithm = config.algorithm;
  result->granularity = config.granularity;
  result->tap = config.tap;
  result->role = config.role;
  result->grid = config.grid;
  result->sink_tokens = config.sink_tokens;
  result->with_offset = with_offset;
}

LayerResult solve(const LayerConfig& config, bool with_offset, const Observer& observer) {
  const Stopwatch watch;
  const Algorithm* algorithm = find_algorithm(config.algorithm);
  if (algorithm == nullptr) throw ValueError("no algorithm '" + config.algorithm + "'");
  const bool range_only = observer.is_range_only();
  if (range_only && algorithm->search_range == nullptr) {
    throw StateError("only the range of its values was kept, which " + config.algorithm +
                     " cannot be searched from");
  }
  const std::size_t joined = groups_joined(config.granularity, config.head_num, observer);
  if (config.weighs_channels() && !range_only && observer.channel_weights().empty()) {
    throw StateError(
        "no queries were seen to weigh its channels by; calibrate with query_weighted, or solve "
        "without");
  }
  LayerResult result;
  set_configured(&result, config, with_offset);
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
          .role = result.role,
          .sink_tokens = result.sink_tokens};
}

}  // namespace amct
