#include "amct/search/ifmr.h"

#include "amct/search/percentile.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "search/candidate_search.h"
#include "search/level_losses.h"

namespace amct {
namespace {

constexpr double kMaxRatio = std::numeric_limits<float>::max();

/// start, start + step, ... below end; float64 arithmetic, each rounded once to float32. One beyond
/// float32 saturates: infinity times a clip range of zero would be NaN.
std::vector<float> ratios(const IfmrOptions& options) {
  const auto count = static_cast<std::size_t>(
      std::ceil((options.search_end - options.search_start) / options.search_step));
  std::vector<float> result;
  result.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double ratio = options.search_start + static_cast<double>(i) * options.search_step;
    result.push_back(static_cast<float>(std::min(ratio, kMaxRatio)));
  }
  return result;
}

/// (high - low) / steps in float32, by float64 where the difference overflows.
float scale_between(float low, float high, float steps) {
  const float scale = (high - low) / steps;
  if (std::isfinite(scale)) return scale;
  return static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) / steps);
}

float saturated_product(float ratio, float value) {
  return std::min(ratio * value, std::numeric_limits<float>::max());
}

BestCandidate best_of(const std::vector<IfmrCandidate>& candidates, const ValueCounts& values,
                      const Grid& grid) {
  if (grid.is_float()) {
    std::vector<float> scales;
    scales.reserve(candidates.size());
    for (const IfmrCandidate& c : candidates) scales.push_back(c.scale);
    return LevelLosses(values, grid).best(scales);
  }
  std::vector<kernels::Rounding> roundings;
  roundings.reserve(candidates.size());
  for (const IfmrCandidate& c : candidates) roundings.push_back({c.scale, c.low, c.high});
  return first_smallest_loss(values, roundings);
}

}  // namespace

std::vector<IfmrCandidate> ifmr_candidates(const ValueCounts& values, const IfmrOptions& options) {
  require_values(values);
  const std::uint64_t n = values.total();
  const float clip_max =
      std::max(0.0F, values.kth_largest(order_statistic(n, options.max_percentile)));
  const float clip_min =
      std::min(0.0F, values.kth_smallest(order_statistic(n, options.min_percentile)));
  const Grid& grid = options.grid;
  std::vector<IfmrCandidate> candidates;
  const auto append = [&](float scale, float low, float high) {
    candidates.push_back({scale < grid.smallest_scale() ? 1.0F : scale, low, high});
  };
  const std::vector<float> factors = ratios(options);
  const std::vector<float> low_factors = options.search_clip_min ? factors : std::vector{1.0F};
  for (const float ratio : factors) {
    if (options.with_offset) {
      const float high = saturated_product(ratio, clip_max);
      for (const float low_ratio : low_factors) {
        const float low = -saturated_product(low_ratio, -clip_min);
        append(scale_between(low, high, static_cast<float>(grid.steps())), low, high);
      }
    } else {
      const float limit = grid.limit(std::fabs(clip_max) < std::fabs(clip_min));
      const float high =
          saturated_product(ratio, std::max(std::fabs(clip_max), std::fabs(clip_min)));
      append(high / limit, -high, high);
    }
  }
  return candidates;
}

SearchResult ifmr(const ValueCounts& values, const IfmrOptions& options) {
  const std::vector<IfmrCandidate> candidates = ifmr_candidates(values, options);
  const BestCandidate winner = best_of(candidates, values, options.grid);
  const IfmrCandidate& best = candidates[winner.index];
  QuantParams params{best.scale, 0};
  if (options.with_offset) {
    params.offset =
        static_cast<std::int32_t>(-std::nearbyint(best.low / best.scale)) + options.grid.qmin;
  }
  return {.params = params, .clip_min = best.low, .clip_max = best.high, .loss = winner.loss};
}

Algorithm ifmr_algorithm() {
  const auto percentile = [](const OptionValue& value) {
    const double p = std::get<double>(value);
    return p > 0.5 && p <= 1;
  };
  const auto range = [](const OptionValue& value) {
    const auto& r = std::get<std::vector<double>>(value);
    return r.size() == 2 && r[0] > 0 && r[0] < r[1] && std::isfinite(r[1]);
  };
  AlgorithmSpec spec{
      .name = "ifmr",
      .options = {
          {"max_percentile", 0.999999, "a float in (0.5, 1]", percentile, {"max_percentile"}},
          {"min_percentile", 0.999999, "a float in (0.5, 1]", percentile, {"min_percentile"}},
          {"search_range",
           std::vector<double>{0.7, 1.3},
           "[start, end] with 0 < start < end",
           range,
           {"search_range_start", "search_range_end"}},
          {"search_step",
           0.01,
           "a float in (0, end - start] of search_range",
           [](const OptionValue& value) { return std::get<double>(value) > 0; },
           {"search_step"}},
          {"search_clip_min",
           false,
           "true or false",
           [](const OptionValue& /*value*/) { return true; },
           {"search_clip_min"},
           true},
      }};
  spec.conflict = [](const OptionMap& options) -> std::string {
    const auto& r = std::get<std::vector<double>>(options.at("search_range"));
    const double step = std::get<double>(options.at("search_step"));
    // A finer search than a million candidates is a typing error, not a wish.
    if (step > r[1] - r[0]) {
      return "search_step must be in (0, end - start], but " + to_string(OptionValue(step)) +
             " is more than search_range " + to_string(OptionValue(r)) + " spans";
    }
    const double ends = std::get<bool>(options.at("search_clip_min")) ? 2 : 1;
    if (std::pow((r[1] - r[0]) / step, ends) > 1e6) {
      return "search_step " + to_string(OptionValue(step)) + " over search_range " +
             to_string(OptionValue(r)) + " gives more than 1,000,000 candidates";
    }
    return {};
  };
  return {.spec = std::move(spec),
          .search = [](const ValueCounts& values, const SearchTarget& target,
                       const OptionMap& options) {
            const auto& r = std::get<std::vector<double>>(options.at("search_range"));
            return ifmr(values, {.with_offset = target.with_offset,
                                 .max_percentile = std::get<double>(options.at("max_percentile")),
                                 .min_percentile = std::get<double>(options.at("min_percentile")),
                                 .search_start = r[0],
                                 .search_end = r[1],
                                 .search_step = std::get<double>(options.at("search_step")),
                                 .search_clip_min = std::get<bool>(options.at("search_clip_min")),
                                 .grid = target.grid});
          }};
}

}  // namespace amct
