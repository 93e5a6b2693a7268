#include "amct/search/ifmr.h"

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
using support::ReferenceCandidate;
using support::ReferenceIfmr;

IfmrOptions options_of(const ReferenceIfmr& r) {
  return {.with_offset = r.with_offset,
          .max_percentile = r.max_percentile,
          .min_percentile = r.min_percentile,
          .search_start = r.start,
          .search_end = r.end,
          .search_step = r.step};
}

/// Everything the specification promises of an answer.
void expect_best_candidate(const std::vector<float>& x, const ReferenceIfmr& reference) {
  const SearchResult result = ifmr(ValueCounts::of(x), options_of(reference));
  const float scale = result.params.scale;
  ASSERT_TRUE(std::isfinite(scale) && scale > 0) << scale;
  ASSERT_GE(result.params.offset, -128);
  ASSERT_LE(result.params.offset, 127);

  // The first of all candidates whose loss is the smallest, by brute force.
  const std::vector<ReferenceCandidate> candidates =
      support::reference_ifmr_candidates(x, reference);
  const double noise = support::reference_noise(x);
  std::vector<double> losses;
  for (const ReferenceCandidate& c : candidates) {
    const double loss = support::reference_ifmr_loss(x, c);
    losses.push_back(loss <= noise * (1 + 1e-9) ? 0 : loss);
  }
  const double best = *std::min_element(losses.begin(), losses.end());
  const auto chosen = std::find_if(candidates.begin(), candidates.end(), [&](const auto& c) {
    return c.scale == scale && c.low == result.clip_min && c.high == result.clip_max;
  });
  ASSERT_NE(chosen, candidates.end()) << "scale " << scale << " is no candidate's";
  const auto index = static_cast<std::size_t>(chosen - candidates.begin());
  ASSERT_LE(losses[index], best * (1 + 1e-6)) << "candidate " << index << " of " << losses.size();
  const auto first = static_cast<std::size_t>(
      std::find_if(losses.begin(), losses.end(), [&](double l) { return l <= best; }) -
      losses.begin());
  if (best == 0) {
    ASSERT_EQ(index, first) << "the first of several losses that count as zero wins";
  }
  ASSERT_NEAR(result.loss, losses[index], 1e-9 * losses[index] + noise * 1e-6);

  if (reference.with_offset) {
    const double zero_code = std::nearbyint(static_cast<double>(chosen->low) / scale);
    ASSERT_EQ(result.params.offset, static_cast<int>(-zero_code) - 128);
  } else {
    ASSERT_EQ(result.params.offset, 0);
  }
  ASSERT_EQ(kInt8.store(0.0, result.params), 0.0);
}

class IfmrTest : public testing::TestWithParam<std::tuple<Distribution, DType>> {
 protected:
  std::vector<float> data(std::size_t n, unsigned seed) const {
    const auto [distribution, dtype] = GetParam();
    return support::make_tensor(dtype, {}, support::sample(distribution, n, seed)).values();
  }
};

INSTANTIATE_TEST_SUITE_P(AllData, IfmrTest,
                         testing::Combine(testing::ValuesIn(support::kAllDistributions),
                                          testing::ValuesIn(support::kAllDTypes)),
                         [](const auto& param) {
                           return support::name_of(std::get<0>(param.param)) + "_" +
                                  std::string(name_of(std::get<1>(param.param)));
                         });

TEST_P(IfmrTest, DefaultSettingsFindTheBestCandidate) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(seed);
    const std::vector<float> x = data(300 + 170 * seed, seed);
    expect_best_candidate(x, {.with_offset = true});
    expect_best_candidate(x, {.with_offset = false});
  }
}

TEST_P(IfmrTest, OtherSettingsFindTheBestCandidate) {
  for (unsigned seed = 100; seed < 104; ++seed) {
    SCOPED_TRACE(seed);
    const std::vector<float> x = data(500, seed);
    for (const bool with_offset : {true, false}) {
      expect_best_candidate(x, {with_offset, 1.0, 1.0, 0.7, 1.3, 0.01});
      expect_best_candidate(x, {with_offset, 0.99, 0.97, 0.3, 1.0, 0.07});
      expect_best_candidate(x, {with_offset, 0.500001, 0.9, 0.01, 3.0, 0.31});
      expect_best_candidate(x, {with_offset, 0.9, 0.500001, 1.0, 1.5, 0.5});  // a single candidate
    }
  }
}

TEST_P(IfmrTest, CandidatesAreTheSpecifications) {
  const std::vector<float> x = data(777, 55);
  for (const bool with_offset : {true, false}) {
    for (const double percentile : {0.999999, 1.0, 0.99, 0.75}) {
      const ReferenceIfmr reference{with_offset, percentile, percentile, 0.7, 1.3, 0.01};
      const auto expected = support::reference_ifmr_candidates(x, reference);
      const auto found = ifmr_candidates(ValueCounts::of(x), options_of(reference));
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].scale, expected[i].scale) << i;
        ASSERT_EQ(found[i].low, expected[i].low) << i;
        ASSERT_EQ(found[i].high, expected[i].high) << i;
      }
    }
  }
}

TEST(IfmrKnownTest, WholeNumbersAreKeptExactly) {
  std::vector<float> x;
  for (int i = -100; i <= 155; ++i) x.push_back(static_cast<float>(i));
  const SearchResult result = ifmr(ValueCounts::of(x), {.max_percentile = 1, .min_percentile = 1});
  EXPECT_EQ(result.params, (QuantParams{1.0F, -28}));
  EXPECT_EQ(result.loss, 0);
  EXPECT_EQ(support::reference_int8_mse(x, result.params), 0);
}

TEST(IfmrKnownTest, LimitDependsOnTheSideThatIsLarger) {
  const IfmrOptions symmetric{
      .with_offset = false, .search_start = 1, .search_end = 1.1, .search_step = 0.1};
  EXPECT_EQ(ifmr_candidates(ValueCounts::of({-128, 100}), symmetric)[0].scale, 1.0F);
  EXPECT_EQ(ifmr_candidates(ValueCounts::of({-100, 127}), symmetric)[0].scale, 1.0F);
  EXPECT_EQ(ifmr_candidates(ValueCounts::of({-127, 127}), symmetric)[0].scale, 1.0F);
}

TEST(IfmrKnownTest, PercentileCutsTheOutliersOff) {
  std::vector<float> x(999, 1.0F);
  x.push_back(1e6F);
  const IfmrOptions cut{.max_percentile = 0.99,
                        .min_percentile = 0.99,
                        .search_start = 1,
                        .search_end = 1.1,
                        .search_step = 0.1};
  EXPECT_EQ(ifmr_candidates(ValueCounts::of(x), cut)[0].high, 1.0F);
  IfmrOptions keep = cut;
  keep.max_percentile = 1;
  EXPECT_EQ(ifmr_candidates(ValueCounts::of(x), keep)[0].high, 1e6F);
  // 1 - percentile below FLT_EPSILON is the maximum too.
  keep.max_percentile = 1 - 1e-7;
  EXPECT_EQ(ifmr_candidates(ValueCounts::of(x), keep)[0].high, 1e6F);
}

TEST(IfmrKnownTest, RatiosStopBelowTheEndForAnyStep) {
  const ValueCounts values = ValueCounts::of({1.0F});
  EXPECT_EQ(
      ifmr_candidates(values, {.search_start = 0.7, .search_end = 1.3, .search_step = 0.01}).size(),
      static_cast<std::size_t>(std::ceil((1.3 - 0.7) / 0.01)));
  EXPECT_EQ(
      ifmr_candidates(values, {.search_start = 1, .search_end = 2, .search_step = 0.25}).size(),
      4U);
  EXPECT_EQ(ifmr_candidates(values, {.search_start = 1, .search_end = 2, .search_step = 1}).size(),
            1U);
}

TEST(IfmrKnownTest, RatiosBeyondFloat32StillGiveAnAnswer) {
  // 1e39 is no float32; times a clip_max of zero it must not become NaN.
  for (const std::vector<float>& x :
       {std::vector<float>{-1, -2, -3}, {0}, {1, 2, 3}, {-3e38F, 3e38F}}) {
    for (const bool with_offset : {true, false}) {
      const IfmrOptions options{.with_offset = with_offset,
                                .search_start = 1e39,
                                .search_end = 1e40,
                                .search_step = 1e39};
      const SearchResult result = ifmr(ValueCounts::of(x), options);
      EXPECT_TRUE(std::isfinite(result.params.scale) && result.params.scale > 0);
      EXPECT_GE(result.params.offset, -128);
      EXPECT_LE(result.params.offset, 127);
    }
  }
}

TEST(IfmrKnownTest, CountsWeighAsManyCopiesDo) {
  const std::vector<float> x = support::sample(Distribution::kNormal, 400, 9);
  std::vector<std::uint64_t> counts;
  const ValueCounts once = ValueCounts::of(x);
  for (const std::uint64_t count : once.counts()) counts.push_back(count << 36);
  const ValueCounts many({once.values().begin(), once.values().end()}, counts);
  const IfmrOptions options{.max_percentile = 1, .min_percentile = 1};
  EXPECT_EQ(ifmr(many, options).params, ifmr(once, options).params);
  EXPECT_NEAR(ifmr(many, options).loss / ifmr(once, options).loss, 1.0, 1e-12);
}

TEST(IfmrKnownTest, NothingToSearchIsAnError) {
  support::expect_error<StateError>([] { ifmr(ValueCounts()); }, {"no finite value"});
  support::expect_error<StateError>([] { ifmr_candidates(ValueCounts(), {}); },
                                    {"no finite value"});
}

TEST(IfmrKnownTest, NoWorseThanMinMaxOnOrdinaryData) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const std::vector<float> x = support::sample(Distribution::kNormal, 4000, seed);
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    for (const bool with_offset : {true, false}) {
      const QuantParams found = ifmr(ValueCounts::of(x), {.with_offset = with_offset}).params;
      const QuantParams plain = support::reference_minmax(*low, *high, with_offset);
      EXPECT_LE(support::reference_int8_mse(x, found), support::reference_int8_mse(x, plain) * 1.02)
          << seed;
    }
  }
}

}  // namespace
}  // namespace amct
