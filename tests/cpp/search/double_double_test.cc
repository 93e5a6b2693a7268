#include "search/double_double.h"

#include <cmath>
#include <cstdint>
#include <random>

#include <gtest/gtest.h>

namespace amct {
namespace {

__extension__ using Int128 = __int128;  // exact integers to compare with

Int128 integer(DoubleDouble x) { return static_cast<Int128>(x.hi) + static_cast<Int128>(x.lo); }

DoubleDouble negated(DoubleDouble x) { return {-x.hi, -x.lo}; }

bool is_normalised(DoubleDouble x) { return x.hi + x.lo == x.hi; }

class DoubleDoubleTest : public testing::Test {
 protected:
  /// A random pair of which hi + lo is an integer of about `bits` bits.
  DoubleDouble random(int bits) {
    const double high = std::ldexp(std::round(std::ldexp(uniform_(generator_), 50)), bits - 50);
    const double low = std::round(uniform_(generator_) * std::ldexp(1.0, bits - 54));
    return DoubleDouble::sum(high, low);
  }
  std::mt19937_64 generator_{5};
  std::uniform_real_distribution<double> uniform_{-1, 1};
};

TEST_F(DoubleDoubleTest, SumAndProductOfDoublesAreExact) {
  const DoubleDouble sum = DoubleDouble::sum(1e20, 1.0);
  EXPECT_EQ(sum.hi, 1e20);
  EXPECT_EQ(sum.lo, 1.0);
  const DoubleDouble reversed = DoubleDouble::sum(1.0, 1e20);
  EXPECT_EQ(reversed.hi, 1e20);
  EXPECT_EQ(reversed.lo, 1.0);
  std::uniform_int_distribution<std::int64_t> wide(-(std::int64_t{1} << 53), std::int64_t{1} << 53);
  for (int i = 0; i < 10000; ++i) {
    const std::int64_t a = wide(generator_);
    const std::int64_t b = wide(generator_);
    const auto x = static_cast<double>(a);
    const auto y = static_cast<double>(b);
    ASSERT_EQ(integer(DoubleDouble::product(x, y)), static_cast<Int128>(a) * b);
    ASSERT_EQ(integer(DoubleDouble::sum(x * 1024, y)), static_cast<Int128>(a) * 1024 + b);
  }
}

TEST_F(DoubleDoubleTest, PairsOfIntegersAddExactlyWithin106Bits) {
  for (int i = 0; i < 10000; ++i) {
    const DoubleDouble a = random(100);
    const DoubleDouble b = random(100 - i % 40);
    ASSERT_EQ(integer(a + b), integer(a) + integer(b));
    ASSERT_EQ(integer(a + negated(b)), integer(a) - integer(b));
    ASSERT_TRUE(is_normalised(a + b));
    ASSERT_EQ((a + negated(a)).value(), 0.0);
  }
}

TEST_F(DoubleDoubleTest, CancellationKeepsWhatDoubleLoses) {
  // (2^60 + 1) - 2^60 is lost in double.
  const DoubleDouble large = DoubleDouble::sum(0x1p60, 1.0);
  EXPECT_EQ((large + DoubleDouble{-0x1p60, 0}).value(), 1.0);
  DoubleDouble sum;
  for (int i = 0; i < 1000; ++i) sum = sum + DoubleDouble::product(1e13 + 1, 1e13 - 1);
  for (int i = 0; i < 1000; ++i) sum = sum + negated(DoubleDouble::product(1e13, 1e13));
  EXPECT_EQ(sum.value(), -1000.0);
}

}  // namespace
}  // namespace amct
