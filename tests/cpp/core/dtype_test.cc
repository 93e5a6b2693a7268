#include "amct/core/dtype.h"

#include <bit>
#include <cmath>
#include <cstdint>

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

}  // namespace
}  // namespace amct
