#include "search/level_losses.h"

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::Distribution;

using Param = std::tuple<Distribution, Grid>;

class LevelLossesTest : public testing::TestWithParam<Param> {};

INSTANTIATE_TEST_SUITE_P(All, LevelLossesTest,
                         testing::Combine(testing::ValuesIn(support::kAllDistributions),
                                          testing::Values(kFp8E4M3, kFp8E5M2, kHif8)),
                         [](const auto& info) {
                           return support::name_of(std::get<0>(info.param)) + "_" +
                                  std::string(std::get<1>(info.param).name);
                         });

TEST_P(LevelLossesTest, AreThoseOfStoringEveryValue) {
  const auto [distribution, grid] = GetParam();
  for (const std::size_t size : {1U, 64U, 3000U, 70000U}) {
    const std::vector<float> x = support::sample(distribution, size, 1);
    const ValueCounts counts = ValueCounts::of(x);
    const LevelLosses losses(counts, grid);
    const double noise = support::reference_noise(x);
    const float range = std::max(counts.max_abs(), 1e-30F);
    for (const double factor : {0.1, 0.6, 1.0, 1.3, 9.0}) {
      const auto scale = static_cast<float>(range * factor / grid.limit(false));
      if (!std::isfinite(scale) || scale < grid.smallest_scale()) continue;
      const double mse = support::reference_mse(x, grid, {scale, 0});
      EXPECT_NEAR(losses.loss(scale), mse <= noise ? 0 : mse, 1e-9 * mse + 1e-3 * noise) << factor;
      const double end = range * factor;
      double clipped = 0;
      for (const float value : x) {
        const double beyond = std::fabs(static_cast<double>(value)) - end;
        if (beyond > 0) clipped += beyond * beyond / static_cast<double>(x.size());
      }
      EXPECT_NEAR(losses.clipping(end), clipped, 1e-9 * clipped + noise);
    }
  }
}

TEST(LevelLossesKnownTest, TheFirstOfEqualsWins) {
  const LevelLosses losses(ValueCounts::of({1.0F, -2.0F, 4.0F}), kFp8E4M3);
  const std::vector<float> scales{3.0F, 1.0F, 0.5F, 2.0F};
  const BestCandidate best = losses.best(scales);
  EXPECT_EQ(best.index, 1U);  // 1, 0.5 and 2 are all exact
  EXPECT_EQ(best.loss, 0);
}

}  // namespace
}  // namespace amct
