#include "amct/search/kl.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::Distribution;

/// The search as its header says it, by loops over bins and dictionaries of levels.
class Reference {
 public:
  Reference(const std::vector<float>& x, const KlOptions& options) : options_(options) {
    const auto [least, most] = std::ranges::minmax(x);
    const double end = std::max(std::fabs(least), std::fabs(most));
    low_ = options.with_offset ? std::min(0.0F, least) : -end;
    const double high = options.with_offset ? std::max(0.0F, most) : end;
    bins_ = static_cast<std::size_t>(options.num_of_bins);
    width_ = (high - low_) / static_cast<double>(bins_);
    counts_.assign(bins_, 0);
    for (const float value : x) {
      const double place = (value - low_) * static_cast<double>(bins_) / (high - low_);
      counts_[std::min(bins_ - 1, static_cast<std::size_t>(place))] += 1;
    }
    total_ = static_cast<double>(x.size());
  }

  double divergence(std::size_t left, std::size_t right) const {
    const QuantParams params = params_of(left, right);
    std::vector<double> p(counts_.begin() + static_cast<std::ptrdiff_t>(left),
                          counts_.begin() + static_cast<std::ptrdiff_t>(right));
    const std::vector<double> kept = p;
    double inside = 0;
    for (const double c : kept) inside += c;
    if (inside == 0) return std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < left; ++i) p.front() += counts_[i];
    for (std::size_t i = right; i < bins_; ++i) p.back() += counts_[i];
    std::map<double, std::pair<double, double>> levels;  // mass, bins that are not empty
    const auto level_of = [&](std::size_t i) {
      const double centre = low_ + (static_cast<double>(left + i) + 0.5) * width_;
      return options_.grid.store(centre, params);
    };
    for (std::size_t i = 0; i < kept.size(); ++i) {
      auto& [mass, used] = levels[level_of(i)];
      mass += kept[i];
      used += kept[i] > 0 ? 1 : 0;
    }
    double sum = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) continue;
      const auto& [mass, used] = levels[level_of(i)];
      const double q = kept[i] > 0 ? mass / used / inside : 1e-4;
      sum += p[i] / total_ * std::log(p[i] / total_ / q);
    }
    return sum;
  }

  QuantParams params_of(std::size_t left, std::size_t right) const {
    const auto edge = [&](std::size_t bin) {
      return static_cast<float>(low_ + static_cast<double>(bin) * width_);
    };
    return minmax_params(options_.grid, edge(left), edge(right), options_.with_offset);
  }

  using Range = std::pair<std::size_t, std::size_t>;
  Range shrunk(Range start, bool low, bool high) const {
    const std::size_t step = bins_ / 256;
    const std::size_t levels = options_.grid.is_float()
                                   ? 2 * options_.grid.format().magnitudes().size() - 1
                                   : static_cast<std::size_t>(options_.grid.steps() + 1);
    Range best = start;
    double smallest = divergence(start.first, start.second);
    for (std::size_t cut = step;; cut += step) {
      const std::size_t left = start.first + (low ? cut : 0);
      if (start.second < left + (high ? cut : 0) + levels) return best;
      const std::size_t right = start.second - (high ? cut : 0);
      const double d = divergence(left, right);
      // Equal but for rounding: the first wins.
      if (d < smallest - 1e-12) {
        smallest = d;
        best = {left, right};
      }
    }
  }

  QuantParams best() const {
    Range range = shrunk({0, bins_}, true, true);
    if (options_.with_offset) {
      range = shrunk({range.first, bins_}, false, true);
      range = shrunk({0, range.second}, true, false);
    }
    return params_of(range.first, range.second);
  }

 private:
  KlOptions options_;
  std::size_t bins_ = 0;
  double low_ = 0;
  double width_ = 0;
  double total_ = 0;
  std::vector<double> counts_;
};

using Param = std::tuple<Distribution, Grid, bool>;

class KlTest : public testing::TestWithParam<Param> {};

INSTANTIATE_TEST_SUITE_P(
    All, KlTest,
    testing::Combine(testing::Values(Distribution::kNormal, Distribution::kShifted,
                                     Distribution::kNegative, Distribution::kPositive),
                     testing::Values(kInt8, kInt4, kFp8E4M3, kHif8), testing::Bool()),
    [](const auto& info) {
      return support::name_of(std::get<0>(info.param)) + "_" +
             std::string(std::get<1>(info.param).name) +
             (std::get<2>(info.param) ? "WithOffset" : "Symmetric");
    });

TEST_P(KlTest, FindsWhatTheLongWayFinds) {
  const auto [distribution, grid, with_offset] = GetParam();
  if (grid.is_float() && with_offset) {
    support::expect_error<ValueError>(
        [&, grid = grid] { kl(ValueCounts::of({1.0F}), {.with_offset = true, .grid = grid}); },
        {"no offsets"});
    return;
  }
  for (const std::size_t size : {500U, 20000U}) {
    std::vector<float> x = support::sample(distribution, size, 2);
    x[3] *= 6;  // something to clip
    const KlOptions options{.with_offset = with_offset, .num_of_bins = 1024, .grid = grid};
    EXPECT_EQ(kl(ValueCounts::of(x), options).params, Reference(x, options).best()) << size;
  }
}

TEST(KlKnownTest, ClipsRareOutliersAndNothingElse) {
  std::vector<float> x = support::sample(Distribution::kNormal, 50000, 3);
  const double range = *std::ranges::max_element(x);
  const double without = kl(ValueCounts::of(x), {.with_offset = false}).clip_max;
  EXPECT_GT(without, range / 3);
  x[9] = 100;
  const SearchResult result = kl(ValueCounts::of(x), {.with_offset = false});
  EXPECT_LT(result.clip_max, 25);
  EXPECT_EQ(result.clip_min, -result.clip_max);
}

TEST(KlKnownTest, EdgesOfWhatIsAllowed) {
  support::expect_error<StateError>([] { kl({}); }, {"no finite value"});
  EXPECT_EQ(kl(ValueCounts::of({0.0F, 0.0F})).params, (QuantParams{1.0F, -128}));
  for (const Distribution distribution : support::kAllDistributions) {
    for (const bool with_offset : {true, false}) {
      const SearchResult result =
          kl(ValueCounts::of(support::sample(distribution, 300, 4)), {.with_offset = with_offset});
      EXPECT_TRUE(std::isfinite(result.params.scale)) << support::name_of(distribution);
      EXPECT_GT(result.params.scale, 0);
    }
  }
}

}  // namespace
}  // namespace amct
