#include "search/rounding_loss.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::Distribution;
using support::ReferenceCandidate;

class RoundingLossTest : public testing::TestWithParam<Distribution> {};

INSTANTIATE_TEST_SUITE_P(Distributions, RoundingLossTest,
                         testing::ValuesIn(support::kAllDistributions),
                         [](const auto& param) { return support::name_of(param.param); });

TEST_P(RoundingLossTest, EqualsTheSumOverAllValues) {
  for (const DType dtype : support::kAllDTypes) {
    for (unsigned seed = 0; seed < 6; ++seed) {
      const std::vector<float> x =
          support::make_tensor(dtype, {}, support::sample(GetParam(), 1500, seed)).values();
      const ValueCounts values = ValueCounts::of(x);
      const RoundingLoss loss(values);
      const double noise = support::reference_noise(x);
      for (const bool with_offset : {true, false}) {
        const std::vector<ReferenceCandidate> candidates = support::reference_ifmr_candidates(
            x, {.with_offset = with_offset, .start = 0.1, .end = 2, .step = 0.13});
        for (const ReferenceCandidate& c : candidates) {
          const double expected = support::reference_ifmr_loss(x, c);
          ASSERT_NEAR(loss(c.scale, c.low, c.high), expected, 1e-12 * std::max(expected, noise))
              << name_of(dtype) << " seed " << seed << " scale " << c.scale;
        }
      }
    }
  }
}

double loss_of(const std::vector<float>& x, float scale, float low, float high) {
  const ValueCounts values = ValueCounts::of(x);
  return RoundingLoss(values)(scale, low, high);
}

TEST(RoundingLossKnownTest, TiesGoToTheEvenLevel) {
  // A tie costs the same either way, unless a value far off is clipped to it: at scale 2 the bound
  // 5 stands for level 2.5 and becomes 4, the bound 7 stands for 3.5 and becomes 8.
  EXPECT_EQ(loss_of({100}, 2, -5, 5), 96.0 * 96.0);
  EXPECT_EQ(loss_of({100}, 2, -7, 7), 92.0 * 92.0);
  EXPECT_EQ(loss_of({-100}, 2, -5, 5), 96.0 * 96.0);
  EXPECT_EQ(loss_of({-100}, 2, -7, 7), 92.0 * 92.0);
  EXPECT_EQ(loss_of({100}, 1, 0, 0.5F), 100.0 * 100.0);
  EXPECT_EQ(loss_of({100}, 1, 0, 1.5F), 98.0 * 98.0);
  // Other values, whose levels are walked through on the way, do not change that.
  EXPECT_EQ(loss_of({-100, 0, 2, 4, 100}, 2, -5, 5), 2 * 96.0 * 96.0 / 5);
  EXPECT_EQ(loss_of({-100, 0, 2, 4, 100}, 2, -7, 7), 2 * 92.0 * 92.0 / 5);
}

TEST(RoundingLossKnownTest, ClippedValuesPayTheWholeDistance) {
  EXPECT_EQ(loss_of({100}, 1, -5, 5), 95.0 * 95.0);
  EXPECT_EQ(loss_of({-100, 0}, 1, -5, 5), 95.0 * 95.0 / 2);
}

TEST(RoundingLossKnownTest, NoValuesNoLoss) {
  const ValueCounts none;
  EXPECT_EQ(RoundingLoss(none)(1, -1, 1), 0);
}

TEST(RoundingLossKnownTest, CountsBeyond53BitsWeighInFull) {
  const std::uint64_t many = (std::uint64_t{1} << 62) + 1;
  const ValueCounts values({0.25F, 1.0F}, {many, 1});
  EXPECT_NEAR(RoundingLoss(values)(1, -1, 1), 0.0625, 1e-15);
  const ValueCounts exact({1.0F, 2.25F}, {many, 1});
  // The single bad value among 2^62 good ones is not lost.
  EXPECT_NEAR(RoundingLoss(exact)(1, -4, 4) / (0.0625 / static_cast<double>(many)), 1.0, 1e-12);
}

TEST(RoundingLossKnownTest, AConstantFarFromZeroDoesNotCancelAway) {
  // x = 1e6 + 1/16 rounds to 1e6: the error is 2^-8 while x^2 is 1e12.
  const std::vector<float> x(1000, 1000000.0625F);
  EXPECT_NEAR(loss_of(x, 1, 0, 2e6F), 0.00390625, 1e-15);
}

}  // namespace
}  // namespace amct
