#include "amct/search/minmax.h"

namespace amct {

SearchResult minmax(const ValueCounts& values, const MinMaxOptions& options) {
  require_values(values);
  return {.params = minmax_params(options.grid, values.min(), values.max(), options.with_offset),
          .clip_min = values.min(),
          .clip_max = values.max(),
          .loss = 0};
}

Algorithm minmax_algorithm() {
  return {.spec = {.name = "minmax", .options = {}},
          .search = [](const ValueCounts& values, bool with_offset, const OptionMap& /*options*/) {
            return minmax(values, {.with_offset = with_offset});
          }};
}

}  // namespace amct
