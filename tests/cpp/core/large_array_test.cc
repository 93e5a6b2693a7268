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
  LargeArray<float> array;
  grow(array, kMany / 16, std::size_t{1} << 60);
  EXPECT_GE(array.capacity(), kMany / 16);
  EXPECT_LE(array.capacity(), kMany);
}

}  // namespace
}  // namespace amct
