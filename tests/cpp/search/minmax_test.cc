#include "amct/search/minmax.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/reference.h"

namespace amct {
namespace {

class MinMaxTest : public testing::TestWithParam<support::Distribution> {};

INSTANTIATE_TEST_SUITE_P(Distributions, MinMaxTest, testing::ValuesIn(support::kAllDistributions),
                         [](const auto& param) { return support::name_of(param.param); });

TEST_P(MinMaxTest, CoversAllValues) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    const std::vector<float> x = support::sample(GetParam(), 200, seed);
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    for (const bool with_offset : {true, false}) {
      const SearchResult result = minmax(ValueCounts::of(x), {.with_offset = with_offset});
      EXPECT_EQ(result.params, support::reference_minmax(*low, *high, with_offset));
      EXPECT_EQ(result.clip_min, *low);
      EXPECT_EQ(result.clip_max, *high);
      EXPECT_TRUE(std::isfinite(result.params.scale) && result.params.scale > 0);
      // Within half a step, and half of one for the rounding of the offset at the ends.
      const double step = result.params.scale;
      EXPECT_LE(support::reference_int8_mse(x, result.params), 1.0001 * step * step);
    }
  }
}

TEST(MinMaxKnownTest, NothingToSearchIsAnError) {
  support::expect_error<StateError>([] { minmax(ValueCounts()); }, {"no finite value"});
}

}  // namespace
}  // namespace amct
