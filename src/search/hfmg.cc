#include "amct/search/hfmg.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "search/histogram.h"

namespace amct {
namespace {

__extension__ using Int128 = __int128;  // an extension of GCC and clang on every 64-bit target

/// The losses of many ranges of one histogram.
///
/// Lengths are in bins. A bin that lies inside one level at distance d from its centre contributes
/// count * (d^2 + 1/12); with prefix sums of 1, m and m^2 (m = the bin's doubled centre, an
/// integer) a level costs one difference, and exact integers leave nothing to cancel. Bins that a
/// level's edge cuts are integrated piece by piece.
///
/// `Integer` holds the sums, which are below 4 * total * bins^2.
template <typename Integer>
class HistogramLoss {
 public:
  explicit HistogramLoss(const Histogram& histogram)
      : histogram_(histogram), sums_(histogram.counts.size() + 1) {
    for (std::size_t bin = 0; bin < histogram.counts.size(); ++bin) {
      const auto count = static_cast<Integer>(histogram.counts[bin]);
      const Integer centre = 2 * static_cast<Integer>(bin) + 1;
      const Sums& last = sums_[bin];
      sums_[bin + 1] = {last.s0 + count, last.s1 + count * centre,
                        last.s2 + count * centre * centre};
    }
  }

  double operator()(BinRange range, std::int64_t levels) const {
    if (counts_as_zero(range, levels)) return 0;
    const std::int64_t span = range.right - range.left + 1;
    const auto bins = static_cast<std::int64_t>(histogram_.counts.size());
    Int128 inner = 0;  // in thirds of squares of 1 / (2 * levels) bin
    double cut = 0;    // in squares of a bin
    std::int64_t begin = 0;
    for (std::int64_t level = 0; level < levels; ++level) {
      // Whole bins up to the level's right edge at range.left + (level + 1) * span / levels.
      const bool last = level + 1 == levels;
      const std::int64_t end = last ? bins : range.left + ((level + 1) * span) / levels;
      if (end > begin) {
        inner += squares(begin, end, 2 * levels * range.left + (2 * level + 1) * span, levels);
        begin = end;
      }
      if (last || ((level + 1) * span) % levels == 0) continue;
      // Bin `end` is cut by this edge, and by as many more as lie inside it.
      if (begin == end) {
        cut += static_cast<double>(histogram_.counts[static_cast<std::size_t>(end)]) *
               (integral(end + 1 - range.left, span, levels) -
                integral(end - range.left, span, levels));
        begin = end + 1;
      }
    }
    const double unit = 1.0 / static_cast<double>(2 * levels);
    const double sum = static_cast<double>(inner) / 3 * unit * unit + cut;
    return sum * histogram_.width * histogram_.width;
  }

  /// A lower bound on the loss of `range`: values outside fall to an end level, which lies inside
  /// the range, so they move at least to its edge.
  double clipping(BinRange range, std::int64_t levels) const {
    if (counts_as_zero(range, levels)) return 0;
    const auto bins = static_cast<std::int64_t>(histogram_.counts.size());
    const Int128 sum = squares(0, range.left, Int128{2} * range.left, 1) +
                       squares(range.right + 1, bins, Int128{2} * (range.right + 1), 1);
    return static_cast<double>(sum) / 12 * histogram_.width * histogram_.width;
  }

  /// Whether a level is narrower than FLT_EPSILON.
  bool counts_as_zero(BinRange range, std::int64_t levels) const {
    const auto span = static_cast<double>(range.right - range.left + 1);
    return histogram_.width * span / static_cast<double>(levels) <
           std::numeric_limits<float>::epsilon();
  }

 private:
  struct Sums {
    Integer s0, s1, s2;
  };

  /// Sum over bins [begin, end) of count * (d^2 + 1/12), d = distance of bin centre and level
  /// centre, in thirds of squares of 1 / (2 * levels) bin. `centre` is the level's centre in 1 / (2
  /// * levels).
  Int128 squares(std::int64_t begin, std::int64_t end, Int128 centre, Int128 levels) const {
    const Sums& a = sums_[static_cast<std::size_t>(begin)];
    const Sums& b = sums_[static_cast<std::size_t>(end)];
    const Int128 s0 = b.s0 - a.s0;
    const Int128 s1 = Int128{b.s1 - a.s1} * levels;
    const Int128 s2 = Int128{b.s2 - a.s2} * levels * levels;
    return 3 * (s2 - 2 * centre * s1 + centre * centre * s0) + s0 * levels * levels;
  }

  /// Integral from 0 to t bins of (u - centre of u's level)^2 du, end levels extended.
  static double integral(std::int64_t t, std::int64_t span, std::int64_t levels) {
    const double width = static_cast<double>(span) / static_cast<double>(levels);
    const double half = width / 2;
    const std::int64_t level = std::clamp<std::int64_t>(t * levels / span, 0, levels - 1);
    const double u = static_cast<double>(t) - static_cast<double>(level) * width - half;
    return static_cast<double>(level) * width * width * width / 12 +
           (u * u * u + half * half * half) / 3;
  }

  const Histogram& histogram_;
  std::vector<Sums> sums_;
};

struct RangeLoss {
  BinRange range;
  double loss;
};

/// The first range with the smallest loss.
template <typename Integer>
RangeLoss best_range(const Histogram& histogram, std::int64_t levels) {
  const HistogramLoss<Integer> loss_of(histogram);
  RangeLoss best{{0, 0}, std::numeric_limits<double>::infinity()};
  const std::vector<BinRange> ranges = hfmg_ranges(histogram);
  const bool some_cost_nothing = loss_of.counts_as_zero(ranges.back(), levels);
  for (const BinRange range : ranges) {
    if (loss_of.clipping(range, levels) > best.loss) {
      // Ranges are nested, so no later one clips less, unless it is so narrow that it costs
      // nothing.
      if (some_cost_nothing) continue;
      break;
    }
    const double loss = loss_of(range, levels);
    if (loss < best.loss) best = {range, loss};
  }
  return best;
}

}  // namespace

Histogram hfmg_histogram(const ValueCounts& values, std::int64_t num_of_bins) {
  require_values(values);
  Histogram histogram;
  histogram.low = values.min();
  histogram.high = values.max();
  histogram.width = (histogram.high - histogram.low) / static_cast<double>(num_of_bins);
  if (histogram.low == histogram.high) {
    // Binned over [value - 1, value + 1], which beyond 2^53 is no range in float64 any more.
    histogram.counts.assign(static_cast<std::size_t>(num_of_bins), 0);
    histogram.counts[histogram.counts.size() / 2] = values.total();
    return histogram;
  }
  histogram.counts = equal_bins(values, histogram.low, histogram.high, num_of_bins);
  return histogram;
}

std::vector<BinRange> hfmg_ranges(const Histogram& histogram) {
  const auto bins = static_cast<std::int64_t>(histogram.counts.size());
  const auto count = [&](std::int64_t bin) {
    return histogram.counts[static_cast<std::size_t>(bin)];
  };
  std::uint64_t total = 0;
  for (const std::uint64_t c : histogram.counts) total += c;
  const std::uint64_t quota =
      std::max<std::uint64_t>(1, total / 100000 + (total % 100000 != 0 ? 1 : 0));

  std::vector<BinRange> ranges;
  std::int64_t left = 0;
  std::int64_t right = bins - 1;
  while (right - left > (bins + 3) / 4) {
    std::int64_t from_left = left;
    for (std::uint64_t seen = 0; from_left < right && seen < quota; ++from_left)
      seen += count(from_left);
    std::int64_t from_right = right;
    for (std::uint64_t seen = 0; from_left < from_right && seen < quota; --from_right) {
      seen += count(from_right);
    }
    if (right - from_right >= from_left - left) {
      right = from_right;
    } else {
      left = from_left;
    }
    ranges.push_back({left, right});
  }
  return ranges;
}

double hfmg_loss(const Histogram& histogram, BinRange range, std::int64_t levels) {
  return HistogramLoss<Int128>(histogram)(range, levels);
}

SearchResult hfmg(const ValueCounts& values, const HfmgOptions& options) {
  if (options.grid.is_float()) {
    throw ValueError("hfmg needs evenly spread levels, which " + std::string(options.grid.name) +
                     " has not; use mse");
  }
  const Histogram histogram = hfmg_histogram(values, options.num_of_bins);
  const std::int64_t levels = options.grid.steps() + 1;
  // 64 bits are enough for all but huge totals, and half as slow.
  const double largest_sum = 4 * static_cast<double>(values.total()) *
                             static_cast<double>(options.num_of_bins) *
                             static_cast<double>(options.num_of_bins);
  const auto [best, best_loss] = largest_sum < 0x1p62 ? best_range<std::int64_t>(histogram, levels)
                                                      : best_range<Int128>(histogram, levels);
  const auto low =
      static_cast<float>(histogram.low + static_cast<double>(best.left) * histogram.width);
  const auto high =
      static_cast<float>(histogram.low + static_cast<double>(best.right + 1) * histogram.width);
  return {.params = minmax_params(options.grid, low, high, options.with_offset),
          .clip_min = low,
          .clip_max = high,
          .loss = best_loss / static_cast<double>(values.total())};
}

Algorithm hfmg_algorithm() {
  const auto bins = [](const OptionValue& value) {
    return is_number_of_bins(std::get<std::int64_t>(value));
  };
  return {.spec = {.name = "hfmg",
                   .options = {{"num_of_bins",
                                std::int64_t{4096},
                                "1024, 2048, 4096 or 8192",
                                bins,
                                {"num_of_bins"}}},
                   .integer_grids_only = true},
          .search = [](const ValueCounts& values, const SearchTarget& target,
                       const OptionMap& options) {
            return hfmg(values, {.with_offset = target.with_offset,
                                 .num_of_bins = std::get<std::int64_t>(options.at("num_of_bins")),
                                 .grid = target.grid});
          }};
}

}  // namespace amct
