#include "amct/core/float_format.h"

#include "amct/core/grid.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include <gtest/gtest.h>

namespace amct {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class FloatFormatTest : public testing::TestWithParam<Grid> {
 protected:
  static const FloatFormat& format() { return GetParam().format(); }
};

INSTANTIATE_TEST_SUITE_P(All, FloatFormatTest,
                         testing::Values(kFp8E4M3, kFp8E5M2, kFp8E4M3Fnuz, kFp8E5M2Fnuz, kHif8),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(FloatFormatTest, EveryCodeComesBack) {
  int numbers = 0;
  for (int code = 0; code < 256; ++code) {
    const float value = format().decode(static_cast<std::uint8_t>(code));
    if (!std::isfinite(value) || code == 0x80) continue;  // which are never stored
    ++numbers;
    EXPECT_EQ(format().encode(value), code) << value;
    EXPECT_EQ(format().round(value), value);
  }
  EXPECT_EQ(numbers, 2 * static_cast<int>(format().magnitudes().size()) - 1);
}

TEST_P(FloatFormatTest, RoundsToTheNearestOfAllValues) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(-30, 18);
  for (int i = 0; i < 20000; ++i) {
    const double x = std::exp2(exponent(random)) * (i % 2 == 0 ? 1 : -1);
    double nearest = std::numeric_limits<double>::infinity();
    for (int code = 0; code < 256; ++code) {
      const double value = format().decode(static_cast<std::uint8_t>(code));
      if (std::isfinite(value)) nearest = std::min(nearest, std::fabs(value - x));
    }
    ASSERT_EQ(std::fabs(static_cast<double>(format().round(x)) - x), nearest) << x;
    ASSERT_EQ(format().decode(format().encode(x)), format().round(x)) << x;
  }
}

TEST_P(FloatFormatTest, Saturates) {
  const float max = format().max();
  for (const double x : {2.0 * max, 1e300, std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(format().round(x), max);
    EXPECT_EQ(format().round(-x), -max);
    EXPECT_TRUE(format().clips(x));
    EXPECT_TRUE(format().clips(-x));
  }
  EXPECT_FALSE(format().clips(max));
  EXPECT_FALSE(format().clips(-max * 1.01));
  EXPECT_EQ(format().encode(0.0), 0);
  EXPECT_EQ(format().encode(-0.0), 0);
}

TEST(FloatFormatKnownTest, LargestAndSmallestValues) {
  EXPECT_EQ(fp8_e4m3().max(), 448);
  EXPECT_EQ(fp8_e5m2().max(), 57344);
  EXPECT_EQ(fp8_e4m3fnuz().max(), 240);
  EXPECT_EQ(fp8_e5m2fnuz().max(), 57344);
  EXPECT_EQ(hif8().max(), 32768);
  EXPECT_EQ(fp8_e4m3().magnitudes()[1], 0x1p-9F);
  EXPECT_EQ(fp8_e5m2().magnitudes()[1], 0x1p-16F);
  EXPECT_EQ(fp8_e4m3fnuz().magnitudes()[1], 0x1p-10F);
  EXPECT_EQ(fp8_e5m2fnuz().magnitudes()[1], 0x1p-17F);
  EXPECT_EQ(hif8().magnitudes()[1], 0x1p-22F);
}

TEST(FloatFormatKnownTest, Codes) {
  EXPECT_EQ(fp8_e4m3().decode(0x38), 1);
  EXPECT_EQ(fp8_e4m3().decode(0xB9), -1.125);
  EXPECT_TRUE(std::isnan(fp8_e4m3().decode(0x7F)));
  EXPECT_EQ(fp8_e5m2().decode(0x3C), 1);
  EXPECT_EQ(fp8_e4m3().decode(0xFE), -448);
  EXPECT_TRUE(std::isnan(fp8_e4m3().decode(0xFF)));
  EXPECT_EQ(fp8_e5m2().decode(0x7C), kInfinity);
  EXPECT_EQ(fp8_e5m2().decode(0xFC), -kInfinity);
  EXPECT_TRUE(std::isnan(fp8_e5m2().decode(0x7D)));
  for (const FloatFormat* with_negative_zero : {&fp8_e4m3(), &fp8_e5m2()}) {
    EXPECT_EQ(with_negative_zero->decode(0x80), 0);
    EXPECT_TRUE(std::signbit(with_negative_zero->decode(0x80)));
  }
  EXPECT_EQ(fp8_e4m3fnuz().decode(0x40), 1);
  EXPECT_TRUE(std::isnan(fp8_e4m3fnuz().decode(0x80)));
  EXPECT_EQ(hif8().decode(0x08), 1);
  EXPECT_EQ(hif8().decode(0x0F), 1.875);
  EXPECT_EQ(hif8().decode(0x10), 2);          // 001 0 000
  EXPECT_EQ(hif8().decode(0x18), 0.5);        // 001 1 000
  EXPECT_EQ(hif8().decode(0x20), 4);          // 01 00 000
  EXPECT_EQ(hif8().decode(0x3F), 0.234375F);  // 01 11 111: 2^-3 * 1.875
  EXPECT_EQ(hif8().decode(0x6E), 32768);      // 11 0111 0
  EXPECT_EQ(hif8().decode(0x6F), kInfinity);
  EXPECT_EQ(hif8().decode(0x7F), 0x1.8p-15F);
  EXPECT_EQ(hif8().decode(0x07), 0x1p-16F);
  EXPECT_TRUE(std::isnan(hif8().decode(0x80)));
}

TEST(FloatFormatKnownTest, TiesGoToEvenOrAway) {
  EXPECT_EQ(fp8_e4m3().round(1.0625), 1);     // between 1 and 1.125
  EXPECT_EQ(fp8_e4m3().round(1.1875), 1.25);  // between 1.125 and 1.25
  EXPECT_EQ(fp8_e4m3().round(0x1p-10), 0);    // between 0 and the smallest
  EXPECT_EQ(fp8_e4m3().round(-0x3p-10), -0x2p-9F);
  EXPECT_EQ(hif8().round(1.0625), 1.125);
  EXPECT_EQ(hif8().round(-0x1p-23), -0x1p-22F);
}

}  // namespace
}  // namespace amct
