#include "amct/search/hfmg.h"

#include "amct/core/error.h"

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
using support::ReferenceHistogram;
using support::ReferenceRange;

class HfmgTest : public testing::TestWithParam<std::tuple<Distribution, DType>> {
 protected:
  std::vector<float> data(std::size_t n, unsigned seed) const {
    const auto [distribution, dtype] = GetParam();
    return support::make_tensor(dtype, {}, support::sample(distribution, n, seed)).values();
  }
};

INSTANTIATE_TEST_SUITE_P(AllData, HfmgTest,
                         testing::Combine(testing::ValuesIn(support::kAllDistributions),
                                          testing::ValuesIn(support::kAllDTypes)),
                         [](const auto& param) {
                           return support::name_of(std::get<0>(param.param)) + "_" +
                                  std::string(name_of(std::get<1>(param.param)));
                         });

/// Compares every range's loss, and checks that the best one was chosen.
void expect_best_range(const std::vector<float>& x, std::int64_t bins) {
  const ValueCounts values = ValueCounts::of(x);
  const Histogram histogram = hfmg_histogram(values, bins);
  const ReferenceHistogram reference = support::reference_histogram(x, bins);
  ASSERT_EQ(histogram.counts, reference.counts);
  ASSERT_EQ(histogram.low, reference.low);
  ASSERT_EQ(histogram.high, reference.high);

  const std::vector<BinRange> ranges = hfmg_ranges(histogram);
  const std::vector<ReferenceRange> expected = support::reference_hfmg_ranges(reference.counts);
  ASSERT_EQ(ranges.size(), expected.size());
  ASSERT_FALSE(ranges.empty());
  std::vector<double> losses;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    ASSERT_EQ(ranges[i], (BinRange{expected[i].left, expected[i].right})) << i;
    losses.push_back(support::reference_hfmg_loss(reference, expected[i]));
  }
  const double best = *std::min_element(losses.begin(), losses.end());

  for (const bool with_offset : {true, false}) {
    const SearchResult result = hfmg(values, {.with_offset = with_offset, .num_of_bins = bins});
    // The chosen range is known by its edges; several ranges may share them in float32.
    const double width = (reference.high - reference.low) / static_cast<double>(bins);
    double chosen = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const auto low =
          static_cast<float>(reference.low + static_cast<double>(ranges[i].left) * width);
      const auto high =
          static_cast<float>(reference.low + static_cast<double>(ranges[i].right + 1) * width);
      if (low == result.clip_min && high == result.clip_max) chosen = std::min(chosen, losses[i]);
    }
    ASSERT_LE(chosen, best * (1 + 1e-9)) << "with_offset " << with_offset;
    ASSERT_NEAR(result.loss * static_cast<double>(x.size()), best, best * 1e-8);
    ASSERT_EQ(result.params,
              support::reference_minmax(result.clip_min, result.clip_max, with_offset));
    ASSERT_TRUE(std::isfinite(result.params.scale) && result.params.scale > 0);
    ASSERT_GE(result.params.offset, -128);
    ASSERT_LE(result.params.offset, 127);
    ASSERT_EQ(kInt8.store(0.0, result.params), 0.0);
  }
}

TEST_P(HfmgTest, TheChosenRangeHasTheSmallestLossOfAll) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(seed);
    expect_best_range(data(400 + 900 * seed, seed), 1024);
  }
}

TEST_P(HfmgTest, EveryLossIsTheIntegralsValue) {
  const std::vector<float> x = data(2500, 77);
  for (const std::int64_t bins : {1024, 4096}) {
    const Histogram histogram = hfmg_histogram(ValueCounts::of(x), bins);
    const ReferenceHistogram reference = support::reference_histogram(x, bins);
    for (std::int64_t i = 0; i < 12; ++i) {
      // Narrow and wide ranges, at both ends and in the middle, of awkward spans.
      const std::int64_t left = i * bins / 17;
      const std::int64_t right = std::min(bins - 1, left + bins / 4 + i * i * bins / 150 + i);
      const double expected = support::reference_hfmg_loss(reference, {left, right});
      ASSERT_NEAR(hfmg_loss(histogram, {left, right}), expected, 1e-9 * expected)
          << bins << " bins, " << left << " to " << right;
    }
  }
}

TEST(HfmgLargeTest, EightThousandBins) {
  expect_best_range(support::sample(Distribution::kNormal, 3000, 1), 8192);
}

TEST(HfmgLargeTest, DefaultBins) {
  expect_best_range(support::sample(Distribution::kHeavyTailed, 5000, 2), 4096);
}

TEST(HfmgLargeTest, NarrowRangesThatCostNothingAreReached) {
  // The narrower ranges of these values have levels below FLT_EPSILON, and so cost nothing, while
  // some wider ones clip more than the best before them costs.
  std::vector<float> narrow = support::sample(Distribution::kPositive, 2000, 3);
  const float largest = *std::ranges::max_element(narrow);
  for (float& value : narrow) value *= 1e-4F / largest;
  expect_best_range(narrow, 1024);
  expect_best_range(support::sample(Distribution::kNormal, 150001, 3), 2048);  // a quota of two
}

TEST(HfmgLargeTest, ARangeThatClipsWinsWhereItsLevelsAreTooNarrowToCount) {
  expect_best_range({5.0078125F, 5.0F}, 1024);
}

TEST(HfmgHistogramTest, TheLargestValueFallsInTheLastBin) {
  const Histogram h = hfmg_histogram(ValueCounts::of({0, 1, 1023, 1024}), 1024);
  EXPECT_EQ(h.counts[0], 1U);
  EXPECT_EQ(h.counts[1], 1U);
  EXPECT_EQ(h.counts[1023], 2U);
  EXPECT_EQ(h.low, 0);
  EXPECT_EQ(h.high, 1024);
  EXPECT_EQ(h.width, 1);
}

TEST(HfmgHistogramTest, AConstantStandsInTheMiddleWhateverItsSize) {
  for (const float value : {0.0F, 1.0F, -7.5F, 1e-40F, 1e17F, -3.4e38F}) {
    const Histogram h = hfmg_histogram(ValueCounts::of({value, value, value}), 1024);
    EXPECT_EQ(h.counts[512], 3U) << value;
    EXPECT_EQ(h.low, static_cast<double>(value));
    EXPECT_EQ(h.high, static_cast<double>(value));
    EXPECT_EQ(h.width, 0);
  }
}

TEST(HfmgLossTest, OneBinInsideOneLevel) {
  // Bins of width 1, range of 1024 bins: levels of 4 bins, centres at 2, 6, 10, ...
  Histogram h{std::vector<std::uint64_t>(1024, 0), 0, 1024, 1};
  h.counts[0] = 10;  // [0, 1] to 2: integral of (x-2)^2 = (8 - 1) / 3
  EXPECT_NEAR(hfmg_loss(h, {0, 1023}), 10 * 7.0 / 3, 1e-12);
  h.counts[5] = 1;  // [5, 6] to 6: 1/3
  EXPECT_NEAR(hfmg_loss(h, {0, 1023}), 10 * 7.0 / 3 + 1.0 / 3, 1e-12);
}

TEST(HfmgLossTest, ValuesOutsideFallToTheEndLevels) {
  Histogram h{std::vector<std::uint64_t>(1024, 0), 0, 1024, 1};
  h.counts[0] = 1;
  // Range [256, 511]: 256 levels of one bin; the first has its centre at 256.5.
  EXPECT_NEAR(hfmg_loss(h, {256, 511}), 256.0 * 256 + 1.0 / 12, 1e-9);
  h.counts[0] = 0;
  h.counts[1023] = 1;  // centre 1023.5 to the last level's 511.5
  EXPECT_NEAR(hfmg_loss(h, {256, 511}), 512.0 * 512 + 1.0 / 12, 1e-9);
}

TEST(HfmgLossTest, LevelsNarrowerThanFloatEpsilonCostNothing) {
  Histogram h{std::vector<std::uint64_t>(1024, 1), 0, 1024e-9, 1e-9};
  EXPECT_EQ(hfmg_loss(h, {0, 1023}), 0);
}

TEST(HfmgLossTest, CountsNearTheLimitDoNotOverflow) {
  Histogram h{std::vector<std::uint64_t>(8192, 0), 0, 8192, 1};
  const std::uint64_t many = std::numeric_limits<std::int64_t>::max();
  h.counts[0] = many;
  // Level of the range [6144, 8191] (8 bins wide) nearest to bin 0: centre 6148.
  const double expected = static_cast<double>(many) * (6147.5 * 6147.5 + 1.0 / 12);
  EXPECT_NEAR(hfmg_loss(h, {6144, 8191}) / expected, 1.0, 1e-12);
}

TEST(HfmgRangesTest, TheSparserEndIsCutAndTheRightOneOnATie) {
  Histogram h{std::vector<std::uint64_t>(1024, 1), 0, 1, 1.0 / 1024};
  const std::vector<BinRange> even = hfmg_ranges(h);
  EXPECT_EQ(even[0], (BinRange{0, 1022}));  // a tie: right first
  EXPECT_EQ(even[1], (BinRange{0, 1021}));
  EXPECT_EQ(even.back().right - even.back().left, 256);
  h.counts[0] = h.counts[1] = h.counts[2] = 0;
  EXPECT_EQ(hfmg_ranges(h)[0], (BinRange{4, 1023}));  // three empty bins and the one that counts
}

/// A hundred-thousandth of the values, rounded up, and one at least.
TEST(HfmgRangesTest, HowManyValuesAreCut) {
  Histogram h{std::vector<std::uint64_t>(1024, 1), 0, 1, 1.0 / 1024};
  for (const std::uint64_t quota : {1, 2, 3}) {
    const auto last = static_cast<std::int64_t>(1023 - quota);
    h.counts[512] = quota * 100000 - 1023;
    EXPECT_EQ(hfmg_ranges(h)[0], (BinRange{0, last})) << quota;
    ++h.counts[512];
    EXPECT_EQ(hfmg_ranges(h)[0], (BinRange{0, last - 1})) << quota;
  }
}

TEST(HfmgKnownTest, CountsWeighAsManyCopiesDo) {
  const ValueCounts once = ValueCounts::of(support::sample(Distribution::kFewValues, 100, 9));
  std::vector<std::uint64_t> counts;
  for (const std::uint64_t count : once.counts()) counts.push_back(count << 40);
  const ValueCounts many({once.values().begin(), once.values().end()}, counts);
  const SearchResult result = hfmg(many);
  EXPECT_TRUE(std::isfinite(result.loss) && result.loss >= 0);
  EXPECT_EQ(result.params, hfmg(once).params);
}

TEST(HfmgKnownTest, NothingToSearchIsAnError) {
  support::expect_error<StateError>([] { hfmg(ValueCounts()); }, {"no finite value"});
}

}  // namespace
}  // namespace amct
