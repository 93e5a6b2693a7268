#include "observe/tensor_counts.h"

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <tbb/global_control.h>

#include "support/data.h"

namespace amct {
namespace {

constexpr std::uint64_t kTwo32 = std::uint64_t{1} << 32;

std::uint64_t count_of_only_value(const TensorCounts& counts) {
  const ValueCounts values = counts.value_counts();
  return values.counts().size() == 1 ? values.counts()[0] : 0;
}

std::vector<std::uint16_t> random_patterns(std::size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::uint16_t> patterns(size);
  for (std::uint16_t& pattern : patterns) pattern = static_cast<std::uint16_t>(generator());
  return patterns;
}

TEST(TensorCountsTest, EveryFinitePatternIsCountedInAscendingOrder) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    TensorCounts counts(dtype);
    std::uint64_t finite = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      if ((bits & exponent_mask(dtype)) == exponent_mask(dtype)) continue;
      for (std::uint32_t i = 0; i <= bits % 3; ++i) counts.add(static_cast<std::uint16_t>(bits));
      ++finite;
    }
    const ValueCounts values = counts.value_counts();
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

TEST(TensorCountsTest, TablesCountWhatSingleAdditionsDoForAnyNumberOfThreads) {
  // Rows of a wider tensor, so that shares of threads begin in the middle of one.
  const std::vector<std::uint16_t> patterns = random_patterns(701 * 1024, 1);
  TensorView view = TensorView::contiguous(patterns.data(), DType::kBFloat16, {701, 1024});
  view.shape[1] = 1000;
  ASSERT_TRUE(TensorCounts::suits_tables(view));
  TensorCounts expected(DType::kBFloat16);
  expected.add(view);
  std::uint64_t non_finite = 0;
  for (std::size_t i = 0; i < patterns.size(); ++i)
    non_finite += i % 1024 < 1000 && (patterns[i] & 0x7F80) == 0x7F80 ? 1 : 0;
  for (const std::size_t threads : {1, 2, 5}) {
    const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, threads);
    TensorCounts counts(DType::kBFloat16);
    TensorCounts::Batch batch = TensorCounts::count(view);
    EXPECT_EQ(batch.non_finite(), non_finite);
    counts.add(std::move(batch));
    EXPECT_EQ(counts.value_counts(), expected.value_counts());
  }
}

TEST(TensorCountsTest, ADiscardedBatchLeavesNothingBehind) {
  const std::vector<std::uint16_t> patterns(1 << 15, 0x7F80);
  const TensorView view = TensorView::contiguous(patterns.data(), DType::kBFloat16, {1 << 15});
  EXPECT_EQ(TensorCounts::count(view).non_finite(), patterns.size());  // and is thrown away
  const std::vector<std::uint16_t> ones(1 << 15, 0x3F80);
  TensorCounts counts(DType::kBFloat16);
  counts.add(TensorCounts::count(TensorView::contiguous(ones.data(), DType::kBFloat16, {1 << 15})));
  EXPECT_EQ(count_of_only_value(counts), ones.size());
}

TEST(TensorCountsTest, ACounterGoesOnPast32Bits) {
  // c -> 2c + 1, thirty-one times from 1, is the largest 32-bit number.
  TensorCounts counts(DType::kBFloat16);
  counts.add(std::uint16_t{0x3F80});
  for (int i = 0; i < 31; ++i) {
    counts.merge(counts);
    counts.add(std::uint16_t{0x3F80});
  }
  ASSERT_EQ(count_of_only_value(counts), kTwo32 - 1);
  counts.add(std::uint16_t{0x3F80});
  EXPECT_EQ(count_of_only_value(counts), kTwo32);
}

TEST(TensorCountsTest, MergesOfTwoAddUpInEitherDirection) {
  // Fibonacci: each takes in the other.
  TensorCounts a(DType::kFloat16);
  TensorCounts b(DType::kFloat16);
  a.add(std::uint16_t{0x7BFF});
  b.add(std::uint16_t{0x7BFF});
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

}  // namespace
}  // namespace amct
