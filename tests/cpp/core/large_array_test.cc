#include "amct/core/large_array.h"

#include <cstddef>

#include <gtest/gtest.h>

namespace amct {
namespace {

constexpr std::size_t kMany = std::size_t{1} << 26;  // elements

TEST(LargeArrayTest, SmallArraysGrowByDoubling) {
  LargeArray<float> array;
  grow(array, 100, kMany);
  EXPECT_GE(array.capacity(), 100U);
  EXPECT_LT(array.capacity(), 1000U);
  array.resize(100, 1.0F);
  grow(array, 101, kMany);
  EXPECT_GE(array.capacity(), 200U);
  EXPECT_LT(array.capacity(), 1000U);
  EXPECT_EQ(array, LargeArray<float>(100, 1.0F));
}

TEST(LargeArrayTest, LargeArraysMoveOnce) {
  LargeArray<float> array;
  grow(array, kMany / 16, kMany);
  array.resize(kMany / 16, 2.0F);
  EXPECT_EQ(array.capacity(), kMany);
  EXPECT_EQ(array.back(), 2.0F);
  const float* where = array.data();
  grow(array, kMany, kMany);
  EXPECT_EQ(array.data(), where);
}

TEST(LargeArrayTest, WhereTheLimitIsNotToBeHadGrowsAllTheSame) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer ends the program where memory is refused";
#endif
  LargeArray<float> array;
  grow(array, kMany / 16, std::size_t{1} << 60);
  EXPECT_GE(array.capacity(), kMany / 16);
  EXPECT_LE(array.capacity(), kMany);
}

TEST(LargeArrayTest, MemoryIsUsedAgainByArraysOfTheSameSize) {
  constexpr std::size_t kSize = std::size_t{3} << 20;  // elements: 12 MiB
  LargeArray<float> first(kSize);
  const float* where = first.data();
  first = LargeArray<float>();
  const LargeArray<double> other(kSize);
  EXPECT_NE(static_cast<const void*>(other.data()), static_cast<const void*>(where));
  const LargeArray<float> second(kSize);
  EXPECT_EQ(second.data(), where);
}

TEST(LargeArrayTest, WhatIsKeptIsBounded) {
  constexpr std::size_t kSize = std::size_t{3} << 20;  // elements, and some more each time
  for (std::size_t i = 0; i < 40; ++i) {
    const LargeArray<float> array(kSize + (i << 19), 1.0F);
    EXPECT_EQ(array.back(), 1.0F);
  }
  const LargeArray<float> larger(kMany, 2.0F);  // than all that is kept
  EXPECT_EQ(larger.back(), 2.0F);
}

}  // namespace
}  // namespace amct
