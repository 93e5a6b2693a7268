#include "amct/search/mse.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "search/candidate_search.h"
#include "search/grid_rounding.h"
#include "search/level_losses.h"

namespace amct {
namespace {

using kernels::Rounding;

constexpr int kStepsAnOctave = 16;
constexpr int kOctaves = 2;  // of a window, over which one set of bins is fine enough
constexpr double kMargin = 1.3;
constexpr int kFloatOctaves = 24;         // that a float grid shrinks at most
constexpr std::size_t kCandidates = 256;  // about so many for one set of bins

/// An end of a range times a factor; saturated.
float scaled(float end, double factor) {
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(end * factor, -kMax, kMax));
}

struct ClipRange {
  float low;
  float high;
};

/// Ranges between the smallest and largest value (zero included), and the best one so far.
class MseSearch {
 public:
  MseSearch(const ValueCounts& values, const MseOptions& options)
      : values_(values),
        options_(options),
        data_{std::min(0.0F, values.min()), std::max(0.0F, values.max())},
        best_(data_) {}

  SearchResult run() {
    shrink_together();
    if (options_.with_offset) vary(kOctaves * 8, 1.0 / 8);
    vary(8, 1.0 / 64);
    vary(8, 1.0 / 512);
    // Losses were compared to some thousandths; nothing is won if they were mistaken.
    const std::vector<ClipRange> last{data_, best_};
    const BestCandidate winner = CandidateSearch(values_).best(roundings_of(last));
    const ClipRange range = last[winner.index];
    return {.params = params_of(range),
            .clip_min = rounding_of(range).low,
            .clip_max = rounding_of(range).high,
            .loss = winner.loss};
  }

 private:
  QuantParams params_of(ClipRange range) const {
    return minmax_params(options_.grid, range.low, range.high, options_.with_offset);
  }

  Rounding rounding_of(ClipRange range) const {
    return rounding_on(options_.grid, params_of(range));
  }

  static ClipRange times(ClipRange range, double factor) {
    return {scaled(range.low, factor), scaled(range.high, factor)};
  }

  /// A search whose bins suit ranges from kMargin times `window` down to 2^-kOctaves of it.
  std::shared_ptr<const CandidateSearch> search_in(ClipRange window) const {
    Rounding envelope = rounding_of(times(window, kMargin));
    const Rounding smallest = rounding_of(times(window, std::exp2(-kOctaves) / kMargin));
    envelope.scale = std::min(envelope.scale, smallest.scale);
    return std::make_shared<const CandidateSearch>(values_, envelope, kCandidates);
  }

  /// Ranges near that of the data: small data and data on a grid of its own have their best ranges
  /// in places that only a fine search finds, also beyond their ends.
  void append_near_data(std::vector<ClipRange>& ranges) const {
    for (int percent = 70; percent < 130; ++percent) {
      const double factor = percent / 100.0;
      if (options_.with_offset) {
        ranges.push_back({data_.low, scaled(data_.high, factor)});
        ranges.push_back({scaled(data_.low, factor), data_.high});
      } else {
        ranges.push_back(times(data_, factor));
      }
    }
  }

  void shrink_together() {
    double best_loss = std::numeric_limits<double>::infinity();
    ClipRange window = data_;
    std::vector<ClipRange> ranges;
    append_near_data(ranges);
    std::shared_ptr<const CandidateSearch> search;
    do {
      search = search_in(window);
      for (int i = 0; i <= kOctaves * kStepsAnOctave; ++i)
        ranges.push_back(times(window, std::exp2(-static_cast<double>(i) / kStepsAnOctave)));
      const BestCandidate found = search->quick_best(roundings_of(ranges));
      if (found.loss < best_loss) {
        best_loss = found.loss;
        best_ = ranges[found.index];
        window_of_best_ = window;
        search_of_best_ = search;
      }
      window = ranges.back();
      ranges.clear();
    } while (best_loss > 0 && can_shrink(window) && clipping(*search, window) < best_loss);
  }

  /// Whether a scale below that of `range` is still taken.
  bool can_shrink(ClipRange range) const {
    return params_of(times(range, std::exp2(-kOctaves))).scale < params_of(range).scale;
  }

  /// About the mean squared error of clipping to `range` alone: rounding to steps that small is
  /// none.
  static double clipping(const CandidateSearch& search, ClipRange range) {
    const float step = (range.high - range.low) * 0x1p-18F;
    if (!(step > 0) || !std::isfinite(step)) return 0;
    return search.quick_best(std::vector{Rounding{step, range.low, range.high}}).loss;
  }

  /// Tries `count` multiples of 2^step to either side of the best range, each end by itself where
  /// they are free.
  void vary(int count, double step) {
    if (options_.with_offset) {
      vary_ends(count, step, false, true);
      vary_ends(count, step, true, false);
    } else {
      vary_ends(count, step, true, true);
    }
  }

  void vary_ends(int count, double step, bool low, bool high) {
    const ClipRange floor = times(window_of_best_, std::exp2(-kOctaves));
    const ClipRange ceiling = times(window_of_best_, kMargin);
    std::vector<ClipRange> ranges{best_};  // first, so that a tie changes nothing
    for (int i = -count; i <= count; ++i) {
      if (i == 0) continue;
      const double factor = std::exp2(i * step);
      ClipRange range = best_;
      if (low) range.low = std::clamp(scaled(range.low, factor), ceiling.low, floor.low);
      if (high) range.high = std::clamp(scaled(range.high, factor), floor.high, ceiling.high);
      ranges.push_back(range);
    }
    best_ = ranges[search_of_best_->quick_best(roundings_of(ranges)).index];
  }

  std::vector<Rounding> roundings_of(const std::vector<ClipRange>& ranges) const {
    std::vector<Rounding> roundings;
    roundings.reserve(ranges.size());
    for (const ClipRange range : ranges) roundings.push_back(rounding_of(range));
    return roundings;
  }

  const ValueCounts& values_;
  MseOptions options_;
  ClipRange data_;
  ClipRange best_;
  ClipRange window_of_best_{};
  std::shared_ptr<const CandidateSearch> search_of_best_;  // whose bins suit that window
};

/// The scale of a float grid. Within an octave the loss differs by the places of the levels, which
/// come again at twice the scale; over octaves by what is clipped or too small, and by the widths
/// of the mantissa in a format where they differ.
SearchResult float_mse(const ValueCounts& values, const Grid& grid) {
  const LevelLosses losses(values, grid);
  const float end = values.max_abs();
  std::vector<double> factors{1};  // of the range of the data
  std::vector<float> scales;
  BestCandidate best;
  const auto search = [&] {
    scales.clear();
    for (const double factor : factors)
      scales.push_back(minmax_params(grid, 0, scaled(end, factor), false).scale);
    best = losses.best(scales);
    factors = {factors[best.index]};  // first, so that a tie changes nothing
  };
  const auto search_around = [&](int steps, double step) {
    const double centre = factors.front();
    for (int i = -steps; i <= steps; ++i) factors.push_back(std::exp2(i * step) * centre);
    search();
  };
  // Up to where the largest value is stored as 1.
  const double octaves = std::log2(static_cast<double>(grid.limit(false)));
  for (int i = 1; i <= 4 * octaves; ++i) factors.push_back(std::exp2(i / 4.0));
  search();
  for (int octave = 0; best.loss > 0 && octave < kFloatOctaves; ++octave) {
    for (int i = 1; i <= 4; ++i) factors.push_back(std::exp2(-octave - i / 4.0));
    search();
    if (losses.clipping(std::exp2(-octave - 1) * end) >= best.loss) break;
  }
  // A few large values on levels of their own make many narrow minima, which only small steps see.
  search_around(128, 1.0 / 256);
  search_around(8, 1.0 / 2048);
  const float high = scaled(end, factors.front());
  return {
      .params = {scales[best.index], 0}, .clip_min = -high, .clip_max = high, .loss = best.loss};
}

}  // namespace

SearchResult mse(const ValueCounts& values, const MseOptions& options) {
  require_values(values);
  if (options.grid.is_float()) return float_mse(values, options.grid);
  return MseSearch(values, options).run();
}

Algorithm mse_algorithm() {
  return {.spec = {.name = "mse", .options = {}},
          .search = [](const ValueCounts& values, const SearchTarget& target,
                       const OptionMap& /*options*/) {
            return mse(values, {.with_offset = target.with_offset, .grid = target.grid});
          }};
}

}  // namespace amct
