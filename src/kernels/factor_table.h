// Factors as the kernels need them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace amct::kernels {

/// Up to here float32 adds an offset to a rounded quotient exactly, wherever that is not clipped.
inline constexpr std::int32_t kLargestOffset = 1 << 22;

/// Factors in the order of their channels or heads, as the kernels need them; more may be read than
/// there are, and mean nothing.
class FactorTable {
 public:
  /// Scales must be positive and finite, offsets whole and within kLargestOffset.
  FactorTable(std::span<const float> scales, std::span<const float> offsets);

  const float* scales() const { return scales_.data(); }
  const float* offsets() const { return offsets_.data(); }
  const float* inverses() const { return inverses_.data(); }
  /// What is subtracted from the bits of 1.5 * 2^23 + q to get the code of the quotient q.
  const std::int32_t* biases() const { return biases_.data(); }
  /// x * inverse rounds as x / scale does where it is no farther from the whole number it rounds
  /// to; negative where that cannot be told.
  float sure_distance() const { return sure_distance_; }
  /// x * inverse lies between the same neighbours as x / scale, of numbers whose patterns are
  /// multiples of 2^19, where its own pattern is as far from them; 2^18 where that cannot be told.
  std::int32_t sure_margin() const { return sure_margin_; }

 private:
  std::vector<float> scales_;
  std::vector<float> offsets_;
  std::vector<float> inverses_;
  std::vector<std::int32_t> biases_;
  float sure_distance_ = 0.5F;
  std::int32_t sure_margin_ = 0;
};

}  // namespace amct::kernels
