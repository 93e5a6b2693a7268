#include "amct/core/grid.h"

#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include <gtest/gtest.h>

#include "support/reference.h"

namespace amct {
namespace {

constexpr float kFloatMax = std::numeric_limits<float>::max();

TEST(GridTest, QuantizesHalfToEvenAndClamps) {
  const QuantParams params{2.0F, 0};
  EXPECT_EQ(kInt8.quantize(1.0, params), 0);  // 0.5: a tie, to even
  EXPECT_EQ(kInt8.quantize(3.0, params), 2);  // 1.5
  EXPECT_EQ(kInt8.quantize(5.0, params), 2);  // 2.5
  EXPECT_EQ(kInt8.quantize(-3.0, params), -2);
  EXPECT_EQ(kInt8.quantize(1e30, params), 127);
  EXPECT_EQ(kInt8.quantize(-1e30, params), -128);
  EXPECT_EQ(kInt8.quantize(0.0, {2.0F, -7}), -7);
  EXPECT_EQ(kInt8.quantize(1e9, {2.0F, -7}), 127);
  EXPECT_EQ(kInt8.steps(), 255);
}

TEST(GridTest, OffsetIsSubtractedOnTheWayBack) {
  EXPECT_EQ(kInt8.dequantize(-7, {0.5F, -7}), 0);
  EXPECT_EQ(kInt8.dequantize(3, {0.5F, -7}), 5);
  EXPECT_EQ(kInt8.dequantize(-128, {0.5F, 127}), -127.5);
}

TEST(MinMaxParamsTest, KnownRanges) {
  EXPECT_EQ(minmax_params(kInt8, 0.0F, 255.0F, true), (QuantParams{1.0F, -128}));
  EXPECT_EQ(minmax_params(kInt8, -255.0F, 0.0F, true), (QuantParams{1.0F, 127}));
  EXPECT_EQ(minmax_params(kInt8, -128.0F, 127.0F, true), (QuantParams{1.0F, 0}));
  // The range is widened to hold zero on either side.
  EXPECT_EQ(minmax_params(kInt8, 100.0F, 255.0F, true), (QuantParams{1.0F, -128}));
  EXPECT_EQ(minmax_params(kInt8, -255.0F, -100.0F, true), (QuantParams{1.0F, 127}));
  EXPECT_EQ(minmax_params(kInt8, -3.0F, 127.0F, false), (QuantParams{1.0F, 0}));
  EXPECT_EQ(minmax_params(kInt8, -128.0F, 3.0F, false), (QuantParams{1.0F, 0}));
  EXPECT_EQ(minmax_params(kInt8, -127.0F, 127.0F, false), (QuantParams{1.0F, 0}));
}

TEST(MinMaxParamsTest, DegenerateRangesGetScaleOne) {
  EXPECT_EQ(minmax_params(kInt8, 0.0F, 0.0F, true), (QuantParams{1.0F, -128}));
  EXPECT_EQ(minmax_params(kInt8, 0.0F, 0.0F, false), (QuantParams{1.0F, 0}));
  EXPECT_EQ(minmax_params(kInt8, -1e-30F, 1e-30F, true), (QuantParams{1.0F, -128}));
  EXPECT_EQ(minmax_params(kInt8, -1e-45F, 1e-45F, false), (QuantParams{1.0F, 0}));
}

TEST(MinMaxParamsTest, ScaleIsFiniteForAnyFiniteRange) {
  const QuantParams widest = minmax_params(kInt8, -kFloatMax, kFloatMax, true);
  EXPECT_TRUE(std::isfinite(widest.scale));
  EXPECT_NEAR(widest.scale / (2 * (static_cast<double>(kFloatMax) / 255)), 1.0, 1e-6);
  EXPECT_GE(widest.offset, -1);
  EXPECT_LE(widest.offset, 0);
  EXPECT_TRUE(std::isfinite(minmax_params(kInt8, -kFloatMax, kFloatMax, false).scale));
}

TEST(MinMaxParamsTest, RandomRangesKeepTheirPromises) {
  std::mt19937 generator(3);
  std::uniform_real_distribution<float> mantissa(-1.0F, 1.0F);
  std::uniform_int_distribution<int> exponent(-140, 127);
  for (int i = 0; i < 20000; ++i) {
    float low = std::ldexp(mantissa(generator), exponent(generator));
    float high = std::ldexp(mantissa(generator), exponent(generator));
    if (low > high) std::swap(low, high);
    for (const bool with_offset : {true, false}) {
      const QuantParams params = minmax_params(kInt8, low, high, with_offset);
      ASSERT_EQ(params, support::reference_minmax(low, high, with_offset)) << low << " " << high;
      ASSERT_TRUE(std::isfinite(params.scale) && params.scale > 0) << low << " " << high;
      ASSERT_GE(params.offset, -128);
      ASSERT_LE(params.offset, 127);
      if (!with_offset) {
        ASSERT_EQ(params.offset, 0);
      }
      // Zero is stored without error, and a covered value within half a step (and the half step
      // that rounding the offset can cost at the ends).
      ASSERT_EQ(kInt8.store(0.0, params), 0.0);
      for (const float x : {low, high}) {
        const double back = kInt8.store(x, params);
        ASSERT_LE(std::fabs(back - static_cast<double>(x)), 1.0001 * params.scale)
            << x << " in " << low << " " << high;
      }
    }
  }
}

}  // namespace
}  // namespace amct
