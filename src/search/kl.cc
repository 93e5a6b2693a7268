#include "amct/search/kl.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <vector>

#include "search/histogram.h"

namespace amct {
namespace {

constexpr std::size_t kSteps = 256;  // over all bins
constexpr double kUnlikely = 1e-4;   // what counts as Q where Q is 0 and P is not

/// The natural logarithm of x > 0: that of the C library may differ in its last bit from one
/// instruction set to another, which would let near ties fall either way.
/// log m = 2 artanh((m - 1) / (m + 1)), m in [1/2, 1), by its series.
double log_of(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2;
    --exponent;
  }
  const double z = (m - 1) / (m + 1);  // |z| < 0.172
  double sum = 0;
  for (int n = 21; n >= 1; n -= 2) sum = sum * z * z + 1.0 / n;
  return 2 * z * sum + exponent * std::numbers::ln2;
}

struct Bins {
  std::size_t left;
  std::size_t right;  ///< exclusive
};

/// The divergences of many ranges of one histogram, each in as many steps as the grid has levels.
class Divergence {
 public:
  Divergence(std::vector<std::uint64_t> counts, double low, double width, const KlOptions& options)
      : options_(options), low_(low), width_(width), counts_(std::move(counts)) {
    sums_.reserve(counts_.size() + 1);
    Sums sums;
    sums_.push_back(sums);
    for (const std::uint64_t count : counts_) {
      const auto c = static_cast<double>(count);
      sums.count += c;
      sums.used += count > 0 ? 1 : 0;
      sums.entropy += c_log_c(c);
      sums_.push_back(sums);
    }
    if (options.grid.is_float()) {
      const auto magnitudes = options.grid.format().magnitudes();
      for (std::size_t i = magnitudes.size() - 1; i > 0; --i) levels_.push_back(-magnitudes[i]);
      levels_.insert(levels_.end(), magnitudes.begin(), magnitudes.end());
    } else {
      for (std::int32_t code = options.grid.qmin; code <= options.grid.qmax; ++code)
        levels_.push_back(static_cast<float>(code));
    }
  }

  std::size_t size() const { return counts_.size(); }
  std::size_t levels() const { return levels_.size(); }
  float edge(std::size_t bin) const {
    return static_cast<float>(low_ + static_cast<double>(bin) * width_);
  }
  QuantParams params(Bins bins) const {
    return minmax_params(options_.grid, edge(bins.left), edge(bins.right), options_.with_offset);
  }

  /// sum P log(P / Q)
  double operator()(Bins bins) const {
    const double kept = between(bins.left, bins.right).count;
    if (kept == 0) return std::numeric_limits<double>::infinity();
    const double total = sums_.back().count;
    const double below = sums_[bins.left].count;
    const double above = total - sums_[bins.right].count;
    const std::size_t last = bins.right - 1;
    const auto first_count = static_cast<double>(counts_[bins.left]);
    const auto last_count = static_cast<double>(counts_[last]);

    // sum P' log P' with P' = total * P: the end bins hold what lies outside, too.
    double divergence = between(bins.left, bins.right).entropy;
    divergence += c_log_c(first_count + below) - c_log_c(first_count);
    divergence += c_log_c(last_count + above) - c_log_c(last_count);
    divergence -= total * log_of(total);

    const QuantParams at = params(bins);
    std::size_t begin = bins.left;
    for (std::size_t level = 0; level < levels_.size() && begin < bins.right; ++level) {
      const std::size_t end = end_of(level, at, begin, bins.right);
      if (end == begin) continue;
      const Sums part = between(begin, end);
      const double q = part.used > 0 ? log_of(part.count / part.used / kept) : 0;
      divergence -= part.count * q;
      const auto outside = [&](double outside_count, double own) {
        divergence -= outside_count * (own > 0 ? q : log_of(kUnlikely));
      };
      if (begin == bins.left && below > 0) outside(below, first_count);
      if (end == bins.right && above > 0) outside(above, last_count);
      begin = end;
    }
    return divergence / total;
  }

 private:
  struct Sums {
    double count = 0;
    double used = 0;     // bins that are not empty
    double entropy = 0;  // sum of c log c
  };

  static double c_log_c(double c) { return c > 0 ? c * log_of(c) : 0; }

  Sums between(std::size_t begin, std::size_t end) const {
    const Sums& a = sums_[begin];
    const Sums& b = sums_[end];
    return {b.count - a.count, b.used - a.used, b.entropy - a.entropy};
  }

  /// The first bin from `begin` on whose centre goes to a level above this one.
  std::size_t end_of(std::size_t level, QuantParams at, std::size_t begin,
                     std::size_t right) const {
    if (level + 1 == levels_.size()) return right;
    const double middle =
        (static_cast<double>(levels_[level]) + static_cast<double>(levels_[level + 1])) / 2;
    const double x = (middle - at.offset) * static_cast<double>(at.scale);
    const double bin = std::ceil((x - low_) / width_ - 0.5);
    if (!(bin > static_cast<double>(begin))) return begin;
    return bin < static_cast<double>(right) ? static_cast<std::size_t>(bin) : right;
  }

  KlOptions options_;
  double low_;
  double width_;
  std::vector<std::uint64_t> counts_;
  std::vector<Sums> sums_;     // of the bins before each
  std::vector<float> levels_;  // of the grid, ascending, in units of the scale
};

/// Tries all ranges that cut steps off the ends that may move.
Bins shrunk(const Divergence& divergence, Bins best, bool low, bool high) {
  const std::size_t step = divergence.size() / kSteps;
  const Bins start = best;
  double smallest = divergence(best);
  for (std::size_t cut = step;; cut += step) {
    const std::size_t taken = (low ? cut : 0) + (high ? cut : 0);
    if (start.right - start.left < taken + divergence.levels()) return best;
    const Bins candidate{start.left + (low ? cut : 0), start.right - (high ? cut : 0)};
    const double loss = divergence(candidate);
    if (loss < smallest) {
      smallest = loss;
      best = candidate;
    }
  }
}

}  // namespace

SearchResult kl(const ValueCounts& values, const KlOptions& options) {
  require_values(values);
  const double end = values.max_abs();
  const double low = options.with_offset ? std::min(0.0F, values.min()) : -end;
  const double high = options.with_offset ? std::max(0.0F, values.max()) : end;
  const double width = (high - low) / static_cast<double>(options.num_of_bins);
  if (!(width > 0)) {  // nothing but zeros
    return {.params = minmax_params(options.grid, 0, 0, options.with_offset)};
  }
  const Divergence divergence(equal_bins(values, low, high, options.num_of_bins), low, width,
                              options);
  Bins best = shrunk(divergence, {0, divergence.size()}, true, true);
  if (options.with_offset) {
    best = shrunk(divergence, {best.left, divergence.size()}, false, true);
    best = shrunk(divergence, {0, best.right}, true, false);
  }
  return {.params = divergence.params(best),
          .clip_min = divergence.edge(best.left),
          .clip_max = divergence.edge(best.right),
          .loss = 0};
}

Algorithm kl_algorithm() {
  return {.spec = {.name = "kl",
                   .options = {{"num_of_bins",
                                std::int64_t{2048},
                                "1024, 2048, 4096 or 8192",
                                [](const OptionValue& value) {
                                  return is_number_of_bins(std::get<std::int64_t>(value));
                                },
                                {"num_of_bins"}}}},
          .search = [](const ValueCounts& values, const SearchTarget& target,
                       const OptionMap& options) {
            return kl(values, {.with_offset = target.with_offset,
                               .num_of_bins = std::get<std::int64_t>(options.at("num_of_bins")),
                               .grid = target.grid});
          }};
}

}  // namespace amct
