// Floating-point formats of 8 bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#pragma GCC visibility push(default)
namespace amct {

/// A format given by the value of each of its codes, which is what every one of them has, however
/// its bits are laid out: FP8 has fields of fixed width, HiF8 has not.
class FloatFormat {
 public:
  /// Where a value is as near to two others.
  enum class Ties : std::uint8_t {
    kEven,  ///< to the one with an even code, as IEEE 754 casts
    kAway,  ///< to the larger magnitude
  };

  /// `decode` gives the value of each code 0x00 to 0x7F, NaN or infinite where it is no number; the
  /// top bit is the sign. `negative_zero` is the value of 0x80: -0, or NaN where there is none.
  /// `mantissa_bits` is as below.
  FloatFormat(float (*decode)(std::uint8_t code), float negative_zero, Ties ties,
              int mantissa_bits = 0);

  /// The values that are not negative, ascending from 0.
  std::span<const float> magnitudes() const { return {values_.data(), size_}; }
  float max() const { return values_[size_ - 1]; }
  /// Of a format whose codes are an exponent and a mantissa of so many bits; else 0.
  int mantissa_bits() const { return mantissa_bits_; }

  /// The code of the value nearest to x, saturating; zero has the code 0 whatever its sign. x must
  /// not be NaN.
  std::uint8_t encode(double x) const;
  /// The value of a code, of one that encode() never gives, too: -0, infinity, NaN.
  float decode(std::uint8_t code) const { return by_code_[code]; }
  /// decode(encode(x))
  float round(double x) const;
  /// Whether x lies beyond the largest value by more than half the last step.
  bool clips(double x) const;

 private:
  std::size_t nearest(double magnitude) const;  // index of a magnitude

  std::array<float, 256> by_code_{};
  std::array<float, 128> values_{};        // ascending; the first size_
  std::array<std::uint8_t, 128> codes_{};  // of values_
  std::size_t size_ = 0;
  Ties ties_;
  int mantissa_bits_;
};

/// OCP 8-bit floating point (OFP8, 2023): E4M3 has no infinities and reaches 448, E5M2 57,344.
const FloatFormat& fp8_e4m3();
const FloatFormat& fp8_e5m2();
/// The variants without negative zero, whose exponents are lower by one ("8-bit Numerical Formats
/// for Deep Neural Networks", Noune et al., 2022): E4M3 reaches 240, E5M2 57,344.
const FloatFormat& fp8_e4m3fnuz();
const FloatFormat& fp8_e5m2fnuz();
/// HiFloat8 ("Ascend HiFloat8 Format for Deep Learning", Luo et al., 2024, arXiv 2409.16626): a
/// prefix code says how many bits the exponent has, the mantissa takes what is left: 3 bits for
/// exponents of -3 to 3, 2 up to 7, 1 up to 15, then powers of two alone down to 2^-22. Reaches
/// 2^15; casts round ties away from zero.
const FloatFormat& hif8();

}  // namespace amct
#pragma GCC visibility pop
