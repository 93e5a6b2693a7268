#include "observe/radix_sort.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"

namespace amct {
namespace {

/// Ascending, and the same bits in the same numbers as before.
void expect_sorted(std::vector<float> values) {
  std::vector<std::uint32_t> before;
  for (const float x : values) before.push_back(std::bit_cast<std::uint32_t>(x));
  radix_sort(values);
  ASSERT_TRUE(std::is_sorted(values.begin(), values.end()));
  std::vector<std::uint32_t> after;
  for (const float x : values) after.push_back(std::bit_cast<std::uint32_t>(x));
  std::sort(before.begin(), before.end());
  std::sort(after.begin(), after.end());
  ASSERT_EQ(before, after);
}

TEST(RadixSortTest, SortsEverySizeAroundTheSwitchOfMethod) {
  for (const std::size_t n : {0, 1, 2, 3, 1022, 1023, 1024, 1025, 5000}) {
    expect_sorted(support::sample(support::Distribution::kNormal, n, 7));
  }
}

TEST(RadixSortTest, SortsEveryKindOfValues) {
  for (const support::Distribution distribution : support::kAllDistributions) {
    SCOPED_TRACE(support::name_of(distribution));
    expect_sorted(support::sample(distribution, 4000, 11));
  }
}

TEST(RadixSortTest, SortsRandomBitPatterns) {
  std::mt19937 generator(13);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> values;
    while (values.size() < 3000) {
      const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(generator()));
      if (std::isfinite(value)) values.push_back(value);
    }
    expect_sorted(values);
  }
}

TEST(RadixSortTest, SortedAndReversedInputs) {
  std::vector<float> values = support::sample(support::Distribution::kHeavyTailed, 3000, 17);
  std::sort(values.begin(), values.end());
  expect_sorted(values);
  std::reverse(values.begin(), values.end());
  expect_sorted(values);
}

}  // namespace
}  // namespace amct
