// Every search on every number format, against sums over all values.
#include "amct/core/error.h"
#include "amct/search/hfmg.h"
#include "amct/search/ifmr.h"
#include "amct/search/minmax.h"
#include "amct/search/mse.h"
#include "amct/search/percentile.h"
#include "amct/search/quantization_error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::Distribution;

struct Format {
  Grid grid;
  bool with_offset;
};

const std::vector<Format>& formats() {
  static const std::vector<Format> kFormats = [] {
    std::vector<Format> all;
    for (const Grid& grid : grids()) {
      all.push_back({grid, false});
      if (!grid.is_float()) all.push_back({grid, true});
    }
    return all;
  }();
  return kFormats;
}

class NumberFormatsTest : public testing::TestWithParam<std::tuple<Distribution, Format>> {
 protected:
  static Grid grid() { return std::get<1>(GetParam()).grid; }
  static bool with_offset() { return std::get<1>(GetParam()).with_offset; }
  static std::vector<float> values(std::size_t size) {
    return support::sample(std::get<0>(GetParam()), size, 1);
  }
  static double error_of(const std::vector<float>& x, const SearchResult& result) {
    return support::reference_mse(x, grid(), result.params);
  }
};

INSTANTIATE_TEST_SUITE_P(All, NumberFormatsTest,
                         testing::Combine(testing::ValuesIn(support::kAllDistributions),
                                          testing::ValuesIn(formats())),
                         [](const auto& info) {
                           const Format& format = std::get<1>(info.param);
                           return support::name_of(std::get<0>(info.param)) + "_" +
                                  std::string(format.grid.name) +
                                  (format.with_offset ? "WithOffset" : "Symmetric");
                         });

TEST_P(NumberFormatsTest, MinMaxClipsNothing) {
  const std::vector<float> x = values(2000);
  const SearchResult result = minmax(ValueCounts::of(x), {with_offset(), grid()});
  for (const float value : x) {
    // A symmetric integer grid has one code less above than below, which costs a step at most.
    if (grid().is_float() || with_offset()) {
      ASSERT_FALSE(grid().clips(value, result.params)) << value;
    } else {
      ASSERT_LE(std::fabs(grid().store(value, result.params) - static_cast<double>(value)),
                static_cast<double>(result.params.scale));
    }
  }
  EXPECT_EQ(grid().store(0, result.params), 0);
}

TEST_P(NumberFormatsTest, PercentileIsMinMaxOfTheValuesInside) {
  std::vector<float> x = values(2000);
  const SearchResult result = percentile(
      ValueCounts::of(x), {.with_offset = with_offset(), .percentile = 0.99, .grid = grid()});
  std::sort(x.begin(), x.end());
  const std::size_t cut = x.size() - static_cast<std::size_t>(0.99 * static_cast<double>(x.size()));
  const std::size_t k = std::max<std::size_t>(1, cut);
  const SearchResult inside =
      minmax(ValueCounts::of({x[k - 1], x[x.size() - k]}), {with_offset(), grid()});
  EXPECT_EQ(result.params, inside.params);
}

TEST_P(NumberFormatsTest, IfmrFindsTheBestOfItsCandidates) {
  const std::vector<float> x = values(1500);
  const ValueCounts counts = ValueCounts::of(x);
  const double noise = support::reference_noise(x);
  for (const bool search_clip_min : {false, true}) {
    const IfmrOptions options{.with_offset = with_offset(),
                              .max_percentile = 0.999,
                              .search_start = 0.75,
                              .search_end = 1.25,
                              .search_step = 0.0625,
                              .search_clip_min = search_clip_min,
                              .grid = grid()};
    const SearchResult result = ifmr(counts, options);
    const std::vector<IfmrCandidate> candidates = ifmr_candidates(counts, options);
    EXPECT_EQ(candidates.size(), search_clip_min && with_offset() ? 64U : 8U);
    double best = std::numeric_limits<double>::infinity();
    for (const IfmrCandidate& c : candidates) {
      const double loss = grid().is_float()
                              ? support::reference_mse(x, grid(), {c.scale, 0})
                              : support::reference_ifmr_loss(x, {c.scale, c.low, c.high});
      best = std::min(best, loss <= noise ? 0 : loss);
    }
    EXPECT_NEAR(result.loss, best, 1e-6 * best + 1e-3 * noise);
    EXPECT_TRUE(std::ranges::any_of(candidates, [&](const IfmrCandidate& c) {
      return c.scale == result.params.scale && c.low == result.clip_min &&
             c.high == result.clip_max;
    }));
    EXPECT_EQ(grid().store(0, result.params), 0);
  }
}

TEST_P(NumberFormatsTest, MseIsNearTheBestOfManyRanges) {
  if (grid().is_float() && std::get<0>(GetParam()) == Distribution::kDenormal)
    GTEST_SKIP() << "scales of such values are below all that are used";
  for (const std::size_t size : {400U, 5000U}) {
    const std::vector<float> x = values(size);
    const ValueCounts counts = ValueCounts::of(x);
    const SearchResult result = mse(counts, {with_offset(), grid()});
    const double error = error_of(x, result);
    const double noise = support::reference_noise(x);
    EXPECT_NEAR(result.loss, error <= noise ? 0 : error, 1e-6 * error + noise);
    double best = error_of(x, minmax(counts, {with_offset(), grid()}));
    EXPECT_LE(error, best * (1 + 1e-9) + noise);
    const int ends = with_offset() ? 24 : 0;
    // A float grid may be better used at a larger scale, which wastes its largest values.
    for (int i = grid().is_float() ? -480 : 0; i <= (with_offset() ? 24 : 96); ++i) {
      for (int j = 0; j <= ends; ++j) {
        const double low = counts.min() * std::exp2(-(with_offset() ? i / 6.0 : i / 24.0));
        const double high = counts.max() * std::exp2(-(with_offset() ? j / 6.0 : i / 24.0));
        const QuantParams params =
            minmax_params(grid(), static_cast<float>(low), static_cast<float>(high), with_offset());
        best = std::min(best, quantization_error(counts, grid(), params).mse());
      }
    }
    // Where one value makes most of the error, it has a narrow minimum for each of its levels.
    const bool few = std::get<0>(GetParam()) == Distribution::kHeavyTailed;
    EXPECT_LE(error, best * (!grid().is_float() ? 1.01 : few ? 1.2 : 1.03) + noise);
  }
}

TEST_P(NumberFormatsTest, QuantizationErrorIsThatOfStoringEveryValue) {
  const std::vector<float> x = values(3000);
  const ValueCounts counts = ValueCounts::of(x);
  for (const float shrink : {1.0F, 0.3F}) {
    QuantParams params = minmax(counts, {with_offset(), grid()}).params;
    params.scale *= shrink;
    const QuantizationError error = quantization_error(counts, grid(), params);
    const double mse = support::reference_mse(x, grid(), params);
    EXPECT_NEAR(error.mse(), mse, 1e-8 * mse);
    const auto clipped =
        std::ranges::count_if(x, [&](float value) { return grid().clips(value, params); });
    EXPECT_EQ(error.clipped, static_cast<double>(clipped));
  }
}

TEST_P(NumberFormatsTest, HfmgIsForEvenlySpreadLevels) {
  const std::vector<float> x = values(3000);
  const ValueCounts counts = ValueCounts::of(x);
  const HfmgOptions options{.with_offset = with_offset(), .num_of_bins = 1024, .grid = grid()};
  if (grid().is_float()) {
    support::expect_error<ValueError>([&] { hfmg(counts, options); }, {"evenly spread"});
    return;
  }
  const SearchResult result = hfmg(counts, options);
  const Histogram histogram = hfmg_histogram(counts, 1024);
  double best = std::numeric_limits<double>::infinity();
  for (const BinRange range : hfmg_ranges(histogram))
    best = std::min(best, hfmg_loss(histogram, range, grid().steps() + 1));
  EXPECT_NEAR(result.loss * static_cast<double>(counts.total()), best, 1e-9 * best);
  EXPECT_GE(result.params.offset, grid().qmin);
  EXPECT_LE(result.params.offset, grid().qmax);
}

}  // namespace
}  // namespace amct
