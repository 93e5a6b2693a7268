#include "amct/observe/value_counts.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;

constexpr std::uint64_t kMaxTotal = std::numeric_limits<std::int64_t>::max();

TEST(ValueCountsTest, CountsWhatOccurs) {
  const ValueCounts counts = ValueCounts::of({3, -1, 3, 0, 3, -1});
  EXPECT_EQ(counts, ValueCounts({-1, 0, 3}, {2, 1, 3}));
  EXPECT_EQ(counts.total(), 6U);
  EXPECT_EQ(counts.min(), -1);
  EXPECT_EQ(counts.max(), 3);
  EXPECT_EQ(counts.max_abs(), 3);
  EXPECT_EQ(ValueCounts::of({-5, 2}).max_abs(), 5);
}

TEST(ValueCountsTest, NothingIsEmpty) {
  EXPECT_TRUE(ValueCounts().empty());
  EXPECT_EQ(ValueCounts::of(LargeArray<float>()), ValueCounts());
  EXPECT_EQ(ValueCounts().total(), 0U);
  EXPECT_EQ(ValueCounts().max_abs(), 0);
}

TEST(ValueCountsTest, ZeroHasOneEntryWhateverItsSign) {
  const ValueCounts counts = ValueCounts::of({-0.0F, 0.0F, -0.0F, 1.0F});
  ASSERT_EQ(counts.values().size(), 2U);
  EXPECT_FALSE(std::signbit(counts.values()[0]));
  EXPECT_EQ(counts.counts()[0], 3U);
  EXPECT_FALSE(std::signbit(ValueCounts({-0.0F}, {1}).values()[0]));
  EXPECT_FALSE(std::signbit(ValueCounts::of({-0.0F}).values()[0]));
}

TEST(ValueCountsTest, ConstructorRefusesWhatIsNoMultiset) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  expect_error<ValueError>([] { ValueCounts({1, 2}, {1}); }, {"2 values", "1 counts"});
  expect_error<ValueError>([] { ValueCounts({2, 1}, {1, 1}); }, {"ascending"});
  expect_error<ValueError>([] { ValueCounts({1, 1}, {1, 1}); }, {"ascending"});
  expect_error<ValueError>([] { ValueCounts({-0.0F, 0.0F}, {1, 1}); }, {"ascending"});
  expect_error<ValueError>([] { ValueCounts({1}, {0}); }, {"zero"});
  expect_error<ValueError>([&] { ValueCounts({nan}, {1}); }, {"finite"});
  expect_error<ValueError>([&] { ValueCounts({1, inf}, {1, 1}); }, {"finite"});
  expect_error<ValueError>([] { ValueCounts({1, 2}, {kMaxTotal, 1}); }, {"2^63 - 1"});
  EXPECT_EQ(ValueCounts({1, 2}, {kMaxTotal - 1, 1}).total(), kMaxTotal);
}

TEST(ValueCountsTest, MergedIsTheUnion) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::vector<float> a = support::sample(support::Distribution::kFewValues, 50 + seed, seed);
    const std::vector<float> b = support::sample(support::Distribution::kNormal, seed, seed);
    const ValueCounts merged = ValueCounts::merged(ValueCounts::of(a), ValueCounts::of(b));
    EXPECT_EQ(merged, ValueCounts::merged(ValueCounts::of(b), ValueCounts::of(a)));
    a.insert(a.end(), b.begin(), b.end());
    EXPECT_EQ(merged, ValueCounts::of(a));
    EXPECT_EQ(merged.total(), a.size());
  }
}

TEST(ValueCountsTest, MergedRefusesATotalBeyond63Bits) {
  const ValueCounts half({1}, {kMaxTotal});
  expect_error<ValueError>([&] { ValueCounts::merged(half, ValueCounts({2}, {1})); }, {"2^63 - 1"});
  EXPECT_EQ(ValueCounts::merged(half, ValueCounts()), half);
}

TEST(ValueCountsTest, OrderStatisticsMatchASortedCopy) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::vector<float> x = support::sample(support::Distribution::kFewValues, 300, seed);
    const ValueCounts counts = ValueCounts::of(x);
    std::sort(x.begin(), x.end());
    for (std::size_t k = 1; k <= x.size(); ++k) {
      ASSERT_EQ(counts.kth_smallest(k), x[k - 1]);
      ASSERT_EQ(counts.kth_largest(k), x[x.size() - k]);
    }
  }
}

TEST(ValueCountsTest, OrderStatisticsThatDoNotExist) {
  const ValueCounts counts({1, 2}, {3, 4});
  expect_error<ValueError>([&] { counts.kth_smallest(0); }, {"order statistic 0", "7 values"});
  expect_error<ValueError>([&] { counts.kth_smallest(8); }, {"order statistic 8"});
  expect_error<ValueError>([&] { counts.kth_largest(0); }, {"order statistic 0"});
  expect_error<ValueError>([&] { counts.kth_largest(8); }, {"order statistic 8"});
  expect_error<ValueError>([] { ValueCounts().kth_largest(1); }, {"0 values"});
}

TEST(ValueCountsTest, OrderStatisticsOfCountsBeyond32Bits) {
  const std::uint64_t many = std::uint64_t{1} << 40;
  const ValueCounts counts({1, 2, 3}, {many, 1, many});
  EXPECT_EQ(counts.kth_smallest(many), 1);
  EXPECT_EQ(counts.kth_smallest(many + 1), 2);
  EXPECT_EQ(counts.kth_smallest(many + 2), 3);
  EXPECT_EQ(counts.kth_largest(many + 1), 2);
}

TEST(ValueCountsTest, CountsMatchAMapForEveryKindOfValues) {
  for (const support::Distribution distribution : support::kAllDistributions) {
    SCOPED_TRACE(support::name_of(distribution));
    const std::vector<float> x = support::sample(distribution, 3000, 5);
    std::map<float, std::uint64_t> expected;
    for (const float value : x) ++expected[value];
    const ValueCounts counts = ValueCounts::of(x).sorted();
    ASSERT_EQ(counts.values().size(), expected.size());
    std::size_t i = 0;
    for (const auto& [value, count] : expected) {
      ASSERT_EQ(counts.values()[i], value);
      ASSERT_EQ(counts.counts()[i], count);
      ++i;
    }
  }
}

}  // namespace
}  // namespace amct
