#include "amct/core/dtype.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

namespace amct {
namespace {

TEST(DTypeTest, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kFloat32), 4U);
  EXPECT_EQ(size_of(DType::kFloat16), 2U);
  EXPECT_EQ(size_of(DType::kBFloat16), 2U);
  EXPECT_EQ(name_of(DType::kFloat32), "float32");
  EXPECT_EQ(name_of(DType::kFloat16), "float16");
  EXPECT_EQ(name_of(DType::kBFloat16), "bfloat16");
}

/// The value of a binary floating-point pattern by the definition of IEEE 754.
double value_of(std::uint16_t bits, int mantissa_bits, int exponent_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

void expect_all_patterns(DType dtype, int mantissa_bits, int exponent_bits) {
  const int all_ones = (1 << exponent_bits) - 1;
  for (std::uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const float value = half_to_float(dtype, bits);
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << pattern;
    const bool special = ((bits >> mantissa_bits) & all_ones) == all_ones;
    ASSERT_EQ((bits & exponent_mask(dtype)) == exponent_mask(dtype), special) << pattern;
    ASSERT_EQ(std::isfinite(value), !special) << pattern;
    if (special) {
      ASSERT_EQ(std::isinf(value), (bits & ((1 << mantissa_bits) - 1)) == 0) << pattern;
    } else {
      ASSERT_EQ(static_cast<double>(value), value_of(bits, mantissa_bits, exponent_bits))
          << pattern;
    }
  }
}

TEST(DTypeTest, Float16WidensEveryPatternExactly) { expect_all_patterns(DType::kFloat16, 10, 5); }

TEST(DTypeTest, BFloat16WidensEveryPatternExactly) { expect_all_patterns(DType::kBFloat16, 7, 8); }

TEST(DTypeTest, KnownValues) {
  static_assert(float16_to_float(0x3C00) == 1.0F);
  static_assert(float16_to_float(0x7BFF) == 65504.0F);
  static_assert(float16_to_float(0x0001) == 0x1p-24F);
  static_assert(bfloat16_to_float(0x3F80) == 1.0F);
  static_assert(bfloat16_to_float(0xC040) == -3.0F);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(float16_to_float(0x8000)), 0x80000000U);
}

/// Every pattern comes back, and so do the values around the middle to the next one.
void expect_narrows_to_nearest(DType dtype) {
  const std::uint16_t infinity = exponent_mask(dtype);
  for (std::uint32_t pattern = 0; pattern < infinity; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const float value = half_to_float(dtype, bits);
    ASSERT_EQ(float_to_half(dtype, value), bits);
    ASSERT_EQ(float_to_half(dtype, -value), bits | 0x8000);
    // The last one rounds to infinity as if there were a next value.
    const float step = value - half_to_float(dtype, static_cast<std::uint16_t>(bits - 1));
    const float next = bits + 1 == infinity
                           ? value + step
                           : half_to_float(dtype, static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    if (middle == value || std::isinf(next)) continue;
    const auto above = static_cast<std::uint16_t>(bits + 1);
    ASSERT_EQ(float_to_half(dtype, std::nextafter(middle, 0.0F)), bits);
    ASSERT_EQ(float_to_half(dtype, middle), bits % 2 == 0 ? bits : above);
    ASSERT_EQ(float_to_half(dtype, std::nextafter(middle, next)), above);
  }
  ASSERT_EQ(float_to_half(dtype, std::numeric_limits<float>::infinity()), infinity);
  ASSERT_GT(float_to_half(dtype, std::numeric_limits<float>::quiet_NaN()), infinity);
  ASSERT_GT(float_to_half(dtype, std::bit_cast<float>(0x7F800001U)), infinity);
}

TEST(DTypeTest, NarrowsToTheNearestPattern) {
  expect_narrows_to_nearest(DType::kFloat16);
  expect_narrows_to_nearest(DType::kBFloat16);
  static_assert(float_to_float16(65519.0F) == 0x7BFF);
  static_assert(float_to_float16(65520.0F) == 0x7C00);
  static_assert(float_to_float16(1e30F) == 0x7C00);
  static_assert(float_to_bfloat16(3.4e38F) == 0x7F80);
}

}  // namespace
}  // namespace amct
