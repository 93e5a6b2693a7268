#include "amct/search/percentile.h"

#include <algorithm>
#include <limits>

namespace amct {

std::uint64_t order_statistic(std::uint64_t n, double percentile) {
  if (1.0 - percentile < static_cast<double>(std::numeric_limits<float>::epsilon())) return 1;
  const auto below = static_cast<std::uint64_t>(percentile * static_cast<double>(n));
  return std::max<std::uint64_t>(1, n - std::min(below, n));
}

SearchResult percentile(const ValueCounts& values, const PercentileOptions& options) {
  require_values(values);
  const std::uint64_t k = order_statistic(values.total(), options.percentile);
  const float low = values.kth_smallest(k);
  const float high = values.kth_largest(k);
  return {.params = minmax_params(options.grid, low, high, options.with_offset),
          .clip_min = low,
          .clip_max = high,
          .loss = 0};
}

Algorithm percentile_algorithm() {
  return {.spec = {.name = "percentile",
                   .options = {{"percentile",
                                0.9999,
                                "a float in (0.5, 1]",
                                [](const OptionValue& value) {
                                  const double p = std::get<double>(value);
                                  return p > 0.5 && p <= 1;
                                },
                                {"percentile"}}}},
          .search = [](const ValueCounts& values, const SearchTarget& target,
                       const OptionMap& options) {
            return percentile(values, {.with_offset = target.with_offset,
                                       .percentile = std::get<double>(options.at("percentile")),
                                       .grid = target.grid});
          }};
}

}  // namespace amct
