#include "amct/core/decimal.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace amct {
namespace {

TEST(DecimalTest, WritesDoublesAsPythonRepr) {
  // The right-hand sides were printed by Python's repr().
  const std::vector<std::pair<double, std::string>> cases{
      {0.0, "0.0"},
      {-0.0, "-0.0"},
      {1.0, "1.0"},
      {-1.0, "-1.0"},
      {0.01, "0.01"},
      {0.1 + 0.2, "0.30000000000000004"},
      {0.999999, "0.999999"},
      {0.0001, "0.0001"},
      {9.5e-05, "9.5e-05"},
      {1e-05, "1e-05"},
      {0.00012345, "0.00012345"},
      {123456.789, "123456.789"},
      {1e15, "1000000000000000.0"},
      {9007199254740993.0, "9007199254740992.0"},
      {1e16, "1e+16"},
      {1.2345678901234568e17, "1.2345678901234568e+17"},
      {1e100, "1e+100"},
      {1.7976931348623157e308, "1.7976931348623157e+308"},
      {5e-324, "5e-324"},
      {2.2250738585072014e-308, "2.2250738585072014e-308"},
      {1.0 / 3.0, "0.3333333333333333"},
  };
  for (const auto& [value, text] : cases) EXPECT_EQ(shortest_decimal(value), text);
}

TEST(DecimalTest, WritesFloatsWithTheirOwnDigitsAndNotThoseOfTheDouble) {
  EXPECT_EQ(shortest_decimal(0.01F), "0.01");
  EXPECT_EQ(shortest_decimal(0.999F), "0.999");
  EXPECT_EQ(shortest_decimal(0.999999F), "0.999999");
  EXPECT_EQ(shortest_decimal(0.05221764F), "0.05221764");
  EXPECT_EQ(shortest_decimal(1.0F), "1.0");
  EXPECT_EQ(shortest_decimal(16777216.0F), "16777216.0");
  EXPECT_EQ(shortest_decimal(3.4028235e38F), "3.4028235e+38");
  EXPECT_EQ(shortest_decimal(1e-45F), "1e-45");
  EXPECT_EQ(shortest_decimal(1.1920929e-07F), "1.1920929e-07");
}

template <typename Float, typename Bits>
void expect_round_trips(unsigned seed) {
  std::mt19937_64 generator(seed);
  for (int i = 0; i < 20000; ++i) {
    const auto value = std::bit_cast<Float>(static_cast<Bits>(generator()));
    if (!std::isfinite(value)) continue;
    const std::string text = shortest_decimal(value);
    Float back = 0;
    if constexpr (sizeof(Float) == 4) {
      back = std::strtof(text.c_str(), nullptr);
    } else {
      back = std::strtod(text.c_str(), nullptr);
    }
    ASSERT_EQ(std::bit_cast<Bits>(back), std::bit_cast<Bits>(value)) << text;
    ASSERT_NE(text.find_first_of(".e"), std::string::npos) << text << " would read as an integer";
    // 9 digits identify any float32, 17 any float64, so a longer mantissa is not the shortest.
    if (text.find('e') != std::string::npos) {
      const std::size_t digits = text.find('e') - (text[0] == '-' ? 1 : 0);
      ASSERT_LE(digits, sizeof(Float) == 4 ? 10U : 18U) << text;
    }
  }
}

TEST(DecimalTest, EveryFloatReadsBackAsTheSameBits) { expect_round_trips<float, std::uint32_t>(1); }

TEST(DecimalTest, EveryDoubleReadsBackAsTheSameBits) {
  expect_round_trips<double, std::uint64_t>(2);
}

TEST(DecimalTest, ExponentIsUsedExactlyOutsideItsRange) {
  const double below_low = std::nextafter(1e-4, 0.0);
  const double below_high = std::nextafter(1e16, 0.0);
  EXPECT_NE(shortest_decimal(below_low).find('e'), std::string::npos);
  EXPECT_EQ(shortest_decimal(1e-4).find('e'), std::string::npos);
  EXPECT_EQ(shortest_decimal(below_high).find('e'), std::string::npos);
  EXPECT_NE(shortest_decimal(1e16).find('e'), std::string::npos);
}

TEST(DecimalTest, NamesWhatIsNotFinite) {
  EXPECT_EQ(shortest_decimal(std::numeric_limits<float>::infinity()), "inf");
  EXPECT_EQ(shortest_decimal(-std::numeric_limits<double>::infinity()), "-inf");
  EXPECT_EQ(shortest_decimal(std::numeric_limits<double>::quiet_NaN()), "nan");
}

}  // namespace
}  // namespace amct
