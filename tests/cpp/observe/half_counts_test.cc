#include "observe/half_counts.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"

namespace amct {
namespace {

constexpr std::uint64_t kTwo32 = std::uint64_t{1} << 32;

std::uint64_t count_of_only_value(const HalfCounts& counts, std::size_t group = 0) {
  const ValueCounts values = counts.value_counts(group);
  return values.counts().size() == 1 ? values.counts()[0] : 0;
}

TEST(HalfCountsTest, EveryFinitePatternIsCountedInAscendingOrder) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    HalfCounts counts(dtype, 1);
    std::uint64_t finite = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      if ((bits & exponent_mask(dtype)) == exponent_mask(dtype)) continue;
      for (std::uint32_t i = 0; i <= bits % 3; ++i) counts.add(0, static_cast<std::uint16_t>(bits));
      ++finite;
    }
    const ValueCounts values = counts.value_counts(0);
    ASSERT_EQ(values.values().size(), finite - 1);  // both zeros are one value
    for (std::size_t i = 0; i < values.values().size(); ++i) {
      const float x = values.values()[i];
      const std::uint16_t bits =
          dtype == DType::kFloat16 ? support::to_float16(x) : support::to_bfloat16(x);
      const std::uint64_t both_zeros = (0x8000 % 3 + 1) + 1;
      ASSERT_EQ(values.counts()[i], x == 0 ? both_zeros : bits % 3 + 1U) << x;
    }
  }
}

TEST(HalfCountsTest, ACounterGoesOnPast32Bits) {
  // c -> 2c + 1, thirty-one times from 1, is the largest 32-bit number; one more add wraps.
  HalfCounts counts(DType::kBFloat16, 1);
  counts.add(0, 0x3F80);
  for (int i = 0; i < 31; ++i) {
    counts.merge(counts);
    counts.add(0, 0x3F80);
  }
  ASSERT_EQ(count_of_only_value(counts), kTwo32 - 1);
  counts.add(0, 0x3F80);
  EXPECT_EQ(count_of_only_value(counts), kTwo32);
  counts.add(0, 0x3F80);
  EXPECT_EQ(count_of_only_value(counts), kTwo32 + 1);
}

TEST(HalfCountsTest, MergingWithItselfDoublesEveryCount) {
  HalfCounts counts(DType::kFloat16, 2);
  for (int i = 0; i < 3; ++i) counts.add(1, 0xBC00);
  std::uint64_t expected = 3;
  for (int i = 0; i < 50; ++i) {
    counts.merge(counts);
    expected *= 2;
    ASSERT_EQ(count_of_only_value(counts, 1), expected) << "after " << i + 1 << " doublings";
    ASSERT_TRUE(counts.value_counts(0).empty());
  }
}

TEST(HalfCountsTest, MergesOfTwoAddUpPast32BitsInEitherDirection) {
  // Fibonacci: each takes in the other.
  HalfCounts a(DType::kFloat16, 1);
  HalfCounts b(DType::kFloat16, 1);
  a.add(0, 0x7BFF);
  b.add(0, 0x7BFF);
  std::uint64_t expected_a = 1;
  std::uint64_t expected_b = 1;
  for (int i = 0; i < 40; ++i) {
    a.merge(b);
    expected_a += expected_b;
    ASSERT_EQ(count_of_only_value(a), expected_a);
    b.merge(a);
    expected_b += expected_a;
    ASSERT_EQ(count_of_only_value(b), expected_b);
  }
  ASSERT_GT(expected_b, kTwo32);
}

TEST(HalfCountsTest, AWrapInOneGroupLeavesTheOthersAlone) {
  HalfCounts counts(DType::kBFloat16, 3);
  for (std::size_t group = 0; group < 3; ++group) {
    for (std::size_t i = 0; i <= group; ++i) counts.add(group, 0x4000);
  }
  for (int i = 0; i < 31; ++i) counts.merge(counts);
  EXPECT_EQ(count_of_only_value(counts, 0), kTwo32 / 2);
  EXPECT_EQ(count_of_only_value(counts, 1), kTwo32);
  EXPECT_EQ(count_of_only_value(counts, 2), kTwo32 / 2 * 3);
}

}  // namespace
}  // namespace amct
