#include "amct/core/float_format.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace amct {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint8_t kSign = 0x80;

/// Fields of fixed width: an exponent with this bias and a mantissa. The last `kNaNs` codes are no
/// numbers, and the one before them is infinite where `kHasInfinity`.
template <int kMantissaBits, int kBias, int kNaNs, bool kHasInfinity = false>
float decode_fields(std::uint8_t code) {
  if (code > 0x7F - kNaNs) return kNaN;
  if (kHasInfinity && code == 0x7F - kNaNs) return kInfinity;
  constexpr int kOne = 1 << kMantissaBits;
  const int exponent = code >> kMantissaBits;
  const int mantissa = code & (kOne - 1);
  const int normal = exponent > 0 ? 1 : 0;
  return std::ldexp(static_cast<float>(mantissa + normal * kOne),
                    exponent - normal + 1 - kBias - kMantissaBits);
}

template <int kMantissaBits, int kBias, int kNaNs, bool kHasInfinity = false>
FloatFormat with_fields(float negative_zero) {
  return {decode_fields<kMantissaBits, kBias, kNaNs, kHasInfinity>, negative_zero,
          FloatFormat::Ties::kEven, kMantissaBits};
}

/// The prefix ("dot") tells the number of exponent bits: 11: 4, 10: 3, 01: 2, 001: 1, 0001: 0, and
/// 0000 a power of two. The exponent is sign and magnitude, whose leading one is left out.
float decode_hif8(std::uint8_t code) {
  if (code == 0) return 0;
  if (code < 0x08) return std::ldexp(1.0F, code - 23);
  int exponent_bits = 0;
  int dot_bits = 4;
  if (code >= 0x20) {
    exponent_bits = (code >> 5) + 1;
    dot_bits = 2;
  } else if (code >= 0x10) {
    exponent_bits = 1;
    dot_bits = 3;
  }
  const int mantissa_bits = 7 - dot_bits - exponent_bits;
  const int field = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  int exponent = 0;
  if (exponent_bits > 0) {
    const int leading = 1 << (exponent_bits - 1);
    exponent = leading | (field & (leading - 1));
    if ((field & leading) != 0) exponent = -exponent;
  }
  const int one = 1 << mantissa_bits;
  if (exponent == 15 && (code & 1) != 0) return kInfinity;
  return std::ldexp(static_cast<float>(one + (code & (one - 1))), exponent - mantissa_bits);
}

}  // namespace

FloatFormat::FloatFormat(float (*decode)(std::uint8_t code), float negative_zero, Ties ties,
                         int mantissa_bits)
    : ties_(ties), mantissa_bits_(mantissa_bits) {
  for (std::uint8_t code = 0; code < kSign; ++code) {
    const float value = decode(code);
    by_code_[code] = value;
    by_code_[code | kSign] = code == 0 ? negative_zero : -value;
    if (std::isfinite(value)) codes_[size_++] = code;
  }
  std::sort(codes_.begin(), codes_.begin() + static_cast<std::ptrdiff_t>(size_),
            [&](std::uint8_t a, std::uint8_t b) { return by_code_[a] < by_code_[b]; });
  for (std::size_t i = 0; i < size_; ++i) values_[i] = by_code_[codes_[i]];
}

std::size_t FloatFormat::nearest(double magnitude) const {
  const std::span<const float> values = magnitudes();
  const auto above = std::ranges::upper_bound(values, magnitude, std::less<>());
  const auto low = static_cast<std::size_t>(above - values.begin()) - 1;
  if (low + 1 == values.size()) return low;
  const double to_low = magnitude - static_cast<double>(values[low]);
  const double to_high = static_cast<double>(values[low + 1]) - magnitude;
  if (to_low != to_high) return to_low < to_high ? low : low + 1;
  if (ties_ == Ties::kAway) return low + 1;
  return codes_[low] % 2 == 0 ? low : low + 1;
}

std::uint8_t FloatFormat::encode(double x) const {
  const std::uint8_t code = codes_[nearest(std::fabs(x))];
  return x < 0 && code != 0 ? code | kSign : code;
}

float FloatFormat::round(double x) const {
  return std::copysign(values_[nearest(std::fabs(x))], static_cast<float>(x));
}

bool FloatFormat::clips(double x) const {
  const auto last = static_cast<double>(values_[size_ - 1]);
  return std::fabs(x) > last + (last - static_cast<double>(values_[size_ - 2])) / 2;
}

const FloatFormat& fp8_e4m3() {
  static const FloatFormat kFormat = with_fields<3, 7, 1>(-0.0F);
  return kFormat;
}

const FloatFormat& fp8_e5m2() {
  static const FloatFormat kFormat = with_fields<2, 15, 3, true>(-0.0F);
  return kFormat;
}

const FloatFormat& fp8_e4m3fnuz() {
  static const FloatFormat kFormat = with_fields<3, 8, 0>(kNaN);
  return kFormat;
}

const FloatFormat& fp8_e5m2fnuz() {
  static const FloatFormat kFormat = with_fields<2, 16, 0>(kNaN);
  return kFormat;
}

const FloatFormat& hif8() {
  static const FloatFormat kFormat(decode_hif8, kNaN, FloatFormat::Ties::kAway);
  return kFormat;
}

}  // namespace amct
