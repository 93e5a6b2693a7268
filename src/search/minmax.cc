#include "amct/search/minmax.h"

namespace amct {

SearchResult minmax(const ValueCounts& values, const MinMaxOptions& options) {
  require_values(values);
  return minmax(values.min(), values.max(), options);
}

SearchResult minmax(float low, float high, const MinMaxOptions& options) {
  return {.params = minmax_params(options.grid, low, high, options.with_offset),
          .clip_min = low,
          .clip_max = high,
          .loss = 0};
}

Algorithm minmax_algorithm() {
  return {
      .spec = {.name = "minmax", .options = {}},
      .search =
          [](const ValueCounts& values, const SearchTarget& target, const OptionMap& /*options*/) {
            return minmax(values, {.with_offset = target.with_offset, .grid = target.grid});
          },
      .search_range =
          [](float low, float high, const SearchTarget& target, const OptionMap& /*options*/) {
            return minmax(low, high, {.with_offset = target.with_offset, .grid = target.grid});
          }};
}

}  // namespace amct
