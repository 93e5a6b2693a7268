#include "amct/search/percentile.h"

#include "amct/core/error.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/reference.h"

namespace amct {
namespace {

class PercentileTest : public testing::TestWithParam<support::Distribution> {};

INSTANTIATE_TEST_SUITE_P(Distributions, PercentileTest,
                         testing::ValuesIn(support::kAllDistributions),
                         [](const auto& param) { return support::name_of(param.param); });

TEST_P(PercentileTest, IsMinMaxOfTheValuesBetween) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{10}, std::size_t{5000}}) {
    const std::vector<float> x = support::sample(GetParam(), size, 1);
    std::vector<float> sorted = x;
    std::ranges::sort(sorted);
    for (const double share : {0.51, 0.9, 0.999, 0.9999, 1.0}) {
      const auto within = static_cast<std::size_t>(share * static_cast<double>(x.size()));
      const std::size_t k = std::max<std::size_t>(1, x.size() - within);
      const float low = sorted[k - 1];
      const float high = sorted[x.size() - k];
      for (const bool with_offset : {true, false}) {
        const SearchResult result =
            percentile(ValueCounts::of(x), {.with_offset = with_offset, .percentile = share});
        EXPECT_EQ(result.clip_min, low) << share;
        EXPECT_EQ(result.clip_max, high) << share;
        EXPECT_EQ(result.params, support::reference_minmax(low, high, with_offset));
      }
    }
  }
}

TEST(PercentileTest, CountsWeigh) {
  const ValueCounts counts({-100, -1, 1, 100}, {1, 500, 500, 1});
  const SearchResult result = percentile(counts, {.percentile = 0.998});
  EXPECT_EQ(result.clip_min, -1);
  EXPECT_EQ(result.clip_max, 1);
}

TEST(PercentileTest, NothingToSearch) {
  support::expect_error<StateError>([] { percentile({}); }, {"no finite value"});
}

}  // namespace
}  // namespace amct
