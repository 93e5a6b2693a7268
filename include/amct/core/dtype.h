// Element types of the tensors that can be observed, and their conversion to float32 and back.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// Element type of an observed tensor. All widen to float32 without loss.
enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

/// Size of one element in bytes.
constexpr std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// "float32", "float16" or "bfloat16".
std::string_view name_of(DType dtype);

/// The float32 with the bit pattern of a bfloat16 in its upper half.
constexpr float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// IEEE 754 binary16 to float32, exact for every pattern (subnormals, infinities and NaN included).
constexpr float float16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // zero or subnormal: exact
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

/// Widens the 16-bit pattern `bits` of type `dtype` (kFloat16 or kBFloat16) to float32.
constexpr float half_to_float(DType dtype, std::uint16_t bits) {
  return dtype == DType::kBFloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

/// The bfloat16 nearest to a float32, halves to even; beyond the range infinity, NaN stays NaN.
constexpr std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// The same for IEEE 754 binary16.
constexpr std::uint16_t float_to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return sign | 0x7E00U;
  if (magnitude < 0x38800000U) {
    // Subnormal: next to 0.5 float32 has the same spacing, so adding rounds.
    const auto shifted = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F);
    return static_cast<std::uint16_t>(sign | (shifted - 0x3F000000U));
  }
  const std::uint32_t rounded = (magnitude + 0xFFFU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
  return static_cast<std::uint16_t>(sign | (rounded < 0x7C00U ? rounded : 0x7C00U));
}

/// Narrows a float32 to the 16-bit pattern of `dtype` (kFloat16 or kBFloat16).
constexpr std::uint16_t float_to_half(DType dtype, float value) {
  return dtype == DType::kBFloat16 ? float_to_bfloat16(value) : float_to_float16(value);
}

/// The bits that are all set exactly where a 16-bit pattern of `dtype` is infinite or NaN.
constexpr std::uint16_t exponent_mask(DType dtype) {
  return dtype == DType::kBFloat16 ? 0x7F80 : 0x7C00;
}

}  // namespace amct
#pragma GCC visibility pop
